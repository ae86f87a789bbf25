/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A fuzz peer's TLS: a GnuTLS client with a pre-shared key on a socket that does not wait.
 */
#ifndef VARVE_TESTS_FUZZ_PEER_TLS_H
#define VARVE_TESTS_FUZZ_PEER_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct fuzz_tls;

/* User alice with the hexadecimal key. */
struct fuzz_tls *fuzz_tls_new(const char *key);
void fuzz_tls_free(struct fuzz_tls *t); /* t may be NULL */

/* As send and recv of a socket that does not wait; both shake hands first, and while they do it is
 * -1 with EAGAIN.  A record that is under way must be offered again. */
ssize_t fuzz_tls_send(struct fuzz_tls *t, int fd, const void *data, size_t len);
ssize_t fuzz_tls_recv(struct fuzz_tls *t, int fd, void *buf, size_t len);

/* Says goodbye if hands were shaken; does not wait. */
void fuzz_tls_bye(struct fuzz_tls *t, int fd);

#endif
