/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Who is at the other end of a connection: its address or unix user, and the name that TLS proved.
 * Plain data, any thread that owns it.  It never decides what anybody may do: server/nbd/access.h does.
 */
#ifndef VARVE_SERVER_CLIENT_ID_H
#define VARVE_SERVER_CLIENT_ID_H

#include "lib/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>

/* The longest name that TLS may prove, in bytes. */
#define VARVE_CLIENT_NAME_MAX 1024u

/* Text forms of an address, and of all of it, fit in so many bytes, their end included. */
#define VARVE_CLIENT_PEER_MAX 96u
#define VARVE_CLIENT_TEXT_MAX (VARVE_CLIENT_NAME_MAX + 128u)

enum varve_client_proof {
    VARVE_CLIENT_PLAIN,     /* no TLS */
    VARVE_CLIENT_ANONYMOUS, /* TLS, but the client proved nothing */
    VARVE_CLIENT_DN,        /* a certificate; name is its subject, an RFC 4514 string */
    VARVE_CLIENT_PSK,       /* a pre-shared key; name is its user */
};

/* All zero: nothing is known. */
struct varve_client_id {
    struct sockaddr_storage addr; /* ss_family 0: unknown; IPv4 is never dressed up as IPv6 */
    bool has_uid;                 /* a unix socket's other end, when it connected: */
    uid_t uid;
    pid_t pid;
    enum varve_client_proof proof;
    char name[VARVE_CLIENT_NAME_MAX + 1]; /* empty unless proof says what it is */
};

/* Reads address and unix user of the socket's peer into an all-zero id. */
int varve_client_id_of_socket(struct varve_client_id *id, int fd, struct varve_err *err);

/* Takes a name of len bytes that TLS proved.  -EINVAL: it is empty, too long, or holds a NUL; then
 * id is as before. */
int varve_client_id_prove(struct varve_client_id *id, enum varve_client_proof proof,
                          const void *name, size_t len, struct varve_err *err);

/* Its parts, for people: where the client is (`uid 1000 (pid 4711)`, `192.0.2.1:50000`), and what
 * it proved (`psk:alice`, `dn:CN=b`; empty: nothing).  Return buf. */
const char *varve_client_id_peer(const struct varve_client_id *id, char *buf, size_t len);
const char *varve_client_id_identity(const struct varve_client_id *id, char *buf, size_t len);

/* For people: `uid 1000 (pid 4711)`, `192.0.2.1:50000 psk:alice`, `[2001:db8::1]:5 dn:CN=b`,
 * `vsock:3:1024`.  The name is the peer's: whoever prints it must take care of control bytes.
 * Returns buf. */
const char *varve_client_id_text(const struct varve_client_id *id, char *buf, size_t len);

#endif
