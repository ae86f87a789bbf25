/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the daemon proves itself with, and what it lets clients in for: certificates and keys, read
 * once.  Constant afterwards and counted by its users: any thread may make sessions of it, and
 * sessions outlive the daemon's next set (SIGHUP).  It touches no socket and decides nothing about
 * exports.
 */
#ifndef VARVE_SERVER_TLS_H
#define VARVE_SERVER_TLS_H

#include "lib/err.h"

#include <gnutls/gnutls.h>
#include <stdbool.h>

enum varve_tls_mode {
    VARVE_TLS_OFF,
    VARVE_TLS_ON,      /* offered */
    VARVE_TLS_REQUIRE, /* nothing is served without it */
};

/* As on the command line. */
struct varve_tls_options {
    enum varve_tls_mode mode;
    const char *certificates; /* directory, or NULL */
    const char *psk;          /* file, or NULL */
    bool verify_peer;         /* a client without PSK needs a certificate */
};

struct varve_tls;

/* 0, or -EINVAL: the options contradict each other. */
int varve_tls_options_check(const struct varve_tls_options *o, struct varve_err *err);

/* Reads all that the options name; the caller gets a reference.  With mode off *out is NULL.  An
 * error names the file and what to do; nothing is left then.  Waits for the disk. */
int varve_tls_load(const struct varve_tls_options *o, struct varve_tls **out,
                   struct varve_err *err);

struct varve_tls *varve_tls_ref(struct varve_tls *t);
void varve_tls_unref(struct varve_tls *t); /* t may be NULL */

/* Clients must use TLS. */
bool varve_tls_required(const struct varve_tls *t);

/* Sets up a server's session; t must outlive it, and the session's pointer is t's from now on. */
int varve_tls_apply(struct varve_tls *t, gnutls_session_t session, struct varve_err *err);

#endif
