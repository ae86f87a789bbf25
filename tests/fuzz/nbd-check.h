/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Judges what an NBD server sends to a client whose every byte is known: that each reply belongs to
 * an option or request, and that it is whole, within bounds and of the right content.
 * For one thread; a broken rule aborts.
 */
#ifndef VARVE_TESTS_FUZZ_NBD_CHECK_H
#define VARVE_TESTS_FUZZ_NBD_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nbd_check;

/* What a guarded server must keep to. */
struct nbd_check_guard {
    const char *const *names; /* of exports that this client may see, ended by NULL; NULL: all */
    bool tls_required;
    bool tls_inside; /* what is fed behind STARTTLS' ACK was decrypted; else it cannot be judged */
};

/* The client's stream is borrowed; byte_at is the content of all exports. */
struct nbd_check *nbd_check_new(const uint8_t *sent, size_t sent_len, uint32_t max_request,
                                uint8_t (*byte_at)(uint64_t off),
                                const struct nbd_check_guard *guard);
void nbd_check_free(struct nbd_check *c);

/* What came from the server. */
void nbd_check_feed(struct nbd_check *c, const uint8_t *buf, size_t len);

/* The server has closed, after all that the client sent and without another reason than its end: if
 * the client kept the rules each request was answered. */
void nbd_check_answered(const struct nbd_check *c);

#endif
