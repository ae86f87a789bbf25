/* SPDX-License-Identifier: BSD-3-Clause
 *
 * GnuTLS pulls from one array and pushes to another.  The input array is looked at whole before
 * more fits in: GnuTLS keeps a record that is not yet complete itself, and no more than that one.
 */
#include "server/nbd/tls-session.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/x509.h>

/* What the first push makes room for: all of a handshake, or a large record. */
#define OUTPUT_FIRST (17u * 1024u)

struct varve_tls_session {
    gnutls_session_t g;
    struct varve_tls *tls;
    size_t in_pos, in_len; /* [in_pos, in_len) of in waits to be looked at */
    uint8_t *out;
    size_t out_len, out_cap;
    bool overflow; /* the output was to become longer than it may */
    uint8_t in[VARVE_TLS_INPUT_LEN];
};

/* --- GnuTLS's side of the queues -------------------------------------------------------------- */

static ssize_t session_pull(gnutls_transport_ptr_t arg, void *buf, size_t len)
{
    struct varve_tls_session *s = arg;
    size_t have = s->in_len - s->in_pos;

    if (!have) {
        gnutls_transport_set_errno(s->g, EAGAIN);
        return -1;
    }
    if (len > have)
        len = have;
    memcpy(buf, s->in + s->in_pos, len);
    s->in_pos += len;
    if (s->in_pos == s->in_len)
        s->in_pos = s->in_len = 0;
    return (ssize_t)len;
}

static int session_pull_timeout(gnutls_transport_ptr_t arg, unsigned ms)
{
    const struct varve_tls_session *s = arg;

    (void)ms;
    return s->in_len > s->in_pos;
}

/* Room for len bytes more. */
static bool output_reserve(struct varve_tls_session *s, size_t len)
{
    size_t cap = s->out_cap ? s->out_cap : OUTPUT_FIRST;
    uint8_t *more;

    if (len > VARVE_TLS_OUTPUT_MAX || s->out_len > VARVE_TLS_OUTPUT_MAX - len)
        return false;
    if (s->out_cap - s->out_len >= len)
        return true;
    while (cap < s->out_len + len)
        cap *= 2;
    more = realloc(s->out, cap);
    if (!more)
        return false;
    s->out = more;
    s->out_cap = cap;
    return true;
}

static ssize_t session_push(gnutls_transport_ptr_t arg, const void *buf, size_t len)
{
    struct varve_tls_session *s = arg;

    if (!output_reserve(s, len)) {
        s->overflow = true;
        gnutls_transport_set_errno(s->g, ENOMEM);
        return -1;
    }
    memcpy(s->out + s->out_len, buf, len);
    s->out_len += len;
    return (ssize_t)len;
}

void varve_tls_session_reserve(struct varve_tls_session *s, size_t len)
{
    output_reserve(s, len + len / 64 + 256);
}

static size_t input_left(const struct varve_tls_session *s)
{
    return s->in_len - s->in_pos;
}

/* --- life ------------------------------------------------------------------------------------- */

int varve_tls_session_new(struct varve_tls *t, struct varve_tls_session **out,
                          struct varve_err *err)
{
    struct varve_tls_session *s = calloc(1, sizeof(*s));
    int rc;

    if (!s)
        return varve_err_set(err, ENOMEM, "TLS: no memory");
    if (gnutls_init(&s->g,
                    GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS | GNUTLS_NO_SIGNAL)) {
        free(s);
        return varve_err_set(err, ENOMEM, "TLS: no memory");
    }
    s->tls = varve_tls_ref(t);
    rc = varve_tls_apply(t, s->g, err);
    if (rc) {
        varve_tls_session_free(s);
        return rc;
    }
    gnutls_transport_set_ptr(s->g, s);
    gnutls_transport_set_pull_function(s->g, session_pull);
    gnutls_transport_set_pull_timeout_function(s->g, session_pull_timeout);
    gnutls_transport_set_push_function(s->g, session_push);
    /* The connection has a clock of its own. */
    gnutls_handshake_set_timeout(s->g, GNUTLS_INDEFINITE_TIMEOUT);
    *out = s;
    return 0;
}

void varve_tls_session_free(struct varve_tls_session *s)
{
    if (!s)
        return;
    gnutls_deinit(s->g);
    varve_tls_unref(s->tls);
    free(s->out);
    free(s);
}

/* --- the connection's side of the queues ------------------------------------------------------ */

uint8_t *varve_tls_session_room(struct varve_tls_session *s, size_t *len)
{
    *len = sizeof(s->in) - s->in_len;
    return s->in + s->in_len;
}

void varve_tls_session_filled(struct varve_tls_session *s, size_t len)
{
    assert(len <= sizeof(s->in) - s->in_len);
    s->in_len += len;
}

void varve_tls_session_ignore(struct varve_tls_session *s)
{
    s->in_pos = s->in_len = 0;
}

size_t varve_tls_session_output_len(const struct varve_tls_session *s)
{
    return s->out_len;
}

bool varve_tls_session_take_output(struct varve_tls_session *s, uint8_t **data, size_t *len)
{
    if (!s->out_len)
        return false;
    *data = s->out;
    *len = s->out_len;
    s->out = NULL;
    s->out_len = s->out_cap = 0;
    return true;
}

/* --- the session ------------------------------------------------------------------------------ */

/* GnuTLS's error as ours.  -EAGAIN sets no text. */
static int session_err(const struct varve_tls_session *s, int rc, struct varve_err *err)
{
    gnutls_datum_t why = {0};

    if (rc == GNUTLS_E_AGAIN || rc == GNUTLS_E_INTERRUPTED)
        return -EAGAIN;
    if (s->overflow)
        return varve_err_set(err, ENOMEM, "TLS: more output than fits");
    if (rc == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR &&
        gnutls_certificate_verification_status_print(gnutls_session_get_verify_cert_status(s->g),
                                                     GNUTLS_CRT_X509, &why, 0) == 0) {
        varve_err_set(err, EPROTO, "TLS: %s", why.data);
        gnutls_free(why.data);
        return -EPROTO;
    }
    if (rc == GNUTLS_E_FATAL_ALERT_RECEIVED)
        return varve_err_set(err, EPROTO, "TLS: the client says: %s",
                             gnutls_alert_get_name(gnutls_alert_get(s->g)));
    return varve_err_set(err, EPROTO, "TLS: %s", gnutls_strerror(rc));
}

int varve_tls_session_handshake(struct varve_tls_session *s, struct varve_err *err)
{
    size_t before;
    int rc;

    /* Warnings are no end; each one took input, or else it is. */
    do {
        before = input_left(s);
        rc = gnutls_handshake(s->g);
    } while (rc < 0 && !gnutls_error_is_fatal(rc) && input_left(s) < before);
    if (rc == GNUTLS_E_SUCCESS)
        return 0;
    if (rc != GNUTLS_E_AGAIN)
        gnutls_alert_send_appropriate(s->g, rc);
    return session_err(s, rc, err);
}

static int identify_certificate(const struct varve_tls_session *s, struct varve_client_id *id,
                                struct varve_err *err)
{
    unsigned n = 0;
    const gnutls_datum_t *chain = gnutls_certificate_get_peers(s->g, &n);
    gnutls_datum_t dn = {0};
    gnutls_x509_crt_t crt;
    int rc;

    if (!chain || !n) {
        id->proof = VARVE_CLIENT_ANONYMOUS;
        return 0;
    }
    if (gnutls_x509_crt_init(&crt))
        return varve_err_set(err, ENOMEM, "TLS: no memory");
    rc = gnutls_x509_crt_import(crt, &chain[0], GNUTLS_X509_FMT_DER);
    if (rc == 0)
        rc = gnutls_x509_crt_get_dn3(crt, &dn, 0);
    if (rc == 0)
        rc = varve_client_id_prove(id, VARVE_CLIENT_DN, dn.data, dn.size, err);
    else
        rc = varve_err_set(err, EINVAL, "TLS: the certificate's subject: %s", gnutls_strerror(rc));
    gnutls_free(dn.data);
    gnutls_x509_crt_deinit(crt);
    return rc;
}

int varve_tls_session_identify(const struct varve_tls_session *s, struct varve_client_id *id,
                               struct varve_err *err)
{
    gnutls_datum_t user;

    switch (gnutls_auth_client_get_type(s->g)) {
    case GNUTLS_CRD_PSK:
        if (gnutls_psk_server_get_username2(s->g, &user))
            return varve_err_set(err, EINVAL, "TLS: a client without a user");
        return varve_client_id_prove(id, VARVE_CLIENT_PSK, user.data, user.size, err);
    case GNUTLS_CRD_CERTIFICATE:
        return identify_certificate(s, id, err);
    default:
        id->proof = VARVE_CLIENT_ANONYMOUS;
        return 0;
    }
}

ssize_t varve_tls_session_recv(struct varve_tls_session *s, void *buf, size_t len,
                               struct varve_err *err)
{
    size_t before;
    ssize_t rc;

    /* GnuTLS says AGAIN after each message that is no data, such as a new key, too. */
    do {
        before = input_left(s);
        rc = gnutls_record_recv(s->g, buf, len);
    } while ((rc == GNUTLS_E_AGAIN || rc == GNUTLS_E_INTERRUPTED ||
              rc == GNUTLS_E_WARNING_ALERT_RECEIVED) &&
             input_left(s) < before);
    if (rc >= 0)
        return rc;
    return session_err(s, (int)rc, err);
}

int varve_tls_session_send(struct varve_tls_session *s, const void *buf, size_t len,
                           struct varve_err *err)
{
    const uint8_t *p = buf;

    while (len) {
        ssize_t n = gnutls_record_send(s->g, p, len);

        if (n <= 0) {
            int rc = n < 0 ? session_err(s, (int)n, err) : -EPROTO;

            return rc == -EAGAIN ? varve_err_set(err, EPROTO, "TLS: not ready to send") : rc;
        }
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

void varve_tls_session_bye(struct varve_tls_session *s)
{
    /* Without waiting for the peer's; an error means that the session is broken anyway. */
    gnutls_bye(s->g, GNUTLS_SHUT_WR);
}
