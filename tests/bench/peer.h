/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the programs of the measurements share: a blocking NBD client's handshake, written from the
 * protocol document alone.  Whatever is wrong ends the program with a message.
 */
#ifndef VARVE_TESTS_BENCH_PEER_H
#define VARVE_TESTS_BENCH_PEER_H

#include <stddef.h>
#include <stdint.h>

#define PEER_MAGIC_REQUEST  UINT32_C(0x25609513)
#define PEER_MAGIC_CHUNK    UINT32_C(0x668e33ef)
#define PEER_MAGIC_EXTENDED UINT32_C(0x21e41c71) /* of requests */
#define PEER_MAGIC_REPLY    UINT32_C(0x6e8a278c) /* of extended replies */
#define PEER_MAGIC_SIMPLE   UINT32_C(0x67446698)

enum peer_headers { PEER_SIMPLE, PEER_STRUCTURED, PEER_EXTENDED };

struct peer {
    int fd;
    uint64_t size; /* of the export, bytes */
    uint32_t context;
};

void die(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));
uint64_t now_ns(void);
uint64_t get_be(const uint8_t *p, unsigned len);
uint8_t *put_be(uint8_t *p, uint64_t v, unsigned len);

void peer_send(int fd, const void *data, size_t len);
void peer_recv(int fd, void *data, size_t len);

/* WHERE is the path of a unix socket, or a TCP port of 127.0.0.1.  context may be NULL. */
void peer_open(struct peer *p, const char *where, const char *export, enum peer_headers headers,
               const char *context);

#endif
