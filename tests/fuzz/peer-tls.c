/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/fuzz/peer-tls.h"

#include "server/nbd/tls.h"
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <string.h>

struct fuzz_tls {
    gnutls_session_t g;
    gnutls_psk_client_credentials_t creds;
    bool begun, shaken, broken;
    size_t under_way; /* bytes of the record that is being sent; 0: none */
};

struct fuzz_tls *fuzz_tls_new(const char *key)
{
    struct fuzz_tls *t = calloc(1, sizeof(*t));
    gnutls_datum_t k = {(unsigned char *)(uintptr_t)key, (unsigned)strlen(key)};

    FUZZ_CHECK(t && gnutls_init(&t->g, GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL) == 0);
    FUZZ_CHECK(gnutls_psk_allocate_client_credentials(&t->creds) == 0);
    FUZZ_CHECK(gnutls_psk_set_client_credentials(t->creds, "alice", &k, GNUTLS_PSK_KEY_HEX) == 0);
    FUZZ_CHECK(gnutls_credentials_set(t->g, GNUTLS_CRD_PSK, t->creds) == 0);
    FUZZ_CHECK(gnutls_priority_set_direct(t->g, "NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+PSK",
                                          NULL) == 0);
    return t;
}

void fuzz_tls_free(struct fuzz_tls *t)
{
    if (!t)
        return;
    gnutls_deinit(t->g);
    gnutls_psk_free_client_credentials(t->creds);
    free(t);
}

static ssize_t fails(struct fuzz_tls *t, ssize_t rc)
{
    errno = rc == GNUTLS_E_AGAIN || rc == GNUTLS_E_INTERRUPTED ? EAGAIN : ECONNRESET;
    t->broken |= errno != EAGAIN;
    return -1;
}

/* 0: hands are shaken. */
static ssize_t shake(struct fuzz_tls *t, int fd)
{
    int rc;

    if (t->broken)
        return fails(t, -1);
    if (t->shaken)
        return 0;
    if (!t->begun)
        gnutls_transport_set_int(t->g, fd);
    t->begun = true;
    rc = gnutls_handshake(t->g);
    if (rc)
        return fails(t, gnutls_error_is_fatal(rc) ? rc : GNUTLS_E_AGAIN);
    t->shaken = true;
    return 0;
}

ssize_t fuzz_tls_send(struct fuzz_tls *t, int fd, const void *data, size_t len)
{
    ssize_t n = shake(t, fd);

    if (n)
        return n;
    if (t->under_way)
        len = t->under_way;
    n = gnutls_record_send(t->g, data, len);
    t->under_way = n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED ? len : 0;
    return n > 0 ? n : fails(t, n);
}

ssize_t fuzz_tls_recv(struct fuzz_tls *t, int fd, void *buf, size_t len)
{
    ssize_t n = shake(t, fd);

    if (n)
        return n;
    n = gnutls_record_recv(t->g, buf, len);
    return n >= 0 ? n : fails(t, n);
}

void fuzz_tls_bye(struct fuzz_tls *t, int fd)
{
    (void)fd;
    if (t->shaken && !t->broken)
        gnutls_bye(t->g, GNUTLS_SHUT_WR);
}
