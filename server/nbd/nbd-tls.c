/* SPDX-License-Identifier: BSD-3-Clause
 *
 *     NONE ──STARTTLS──▶ ACK ──ACK is written──▶ SHAKE ──▶ OPEN ──▶ ENDED
 *                                                  └──▶ FAILED: the alert goes out, then the end
 *
 * From ACK on every byte that is read goes to the session; c->in, which was emptied, gets only what
 * the session decrypted.  So nothing that an attacker puts in plain behind STARTTLS is ever an
 * option or a request: what came with it ends the connection, what comes later is no TLS record.
 */
#include "server/nbd/nbd-tls.h"

#include "server/nbd/nbd-conn.h"

#include <errno.h>
#include <stdlib.h>

static void tls_log(struct varve_nbd_conn *c, const char *what)
{
    varve_nbd_host_log(c->host, &c->id, what);
}

void varve_nbd_tls_start(struct varve_nbd_conn *c, size_t behind)
{
    struct varve_err err = VARVE_ERR_INIT;

    if (behind) {
        tls_log(c, "sent data in plain behind STARTTLS; closed");
        varve_nbd_conn_close(c);
        return;
    }
    if (varve_tls_session_new(c->host->tls, &c->tls.session, &err)) {
        tls_log(c, err.msg);
        varve_nbd_conn_close(c);
        return;
    }
    c->tls.state = VARVE_NBD_TLS_ACK;
}

void varve_nbd_tls_acked(struct varve_nbd_conn *c)
{
    if (c->tls.state == VARVE_NBD_TLS_ACK)
        c->tls.state = VARVE_NBD_TLS_SHAKE;
}

/* --- input ---------------------------------------------------------------------------------- */

static void tls_fail(struct varve_nbd_conn *c, const struct varve_err *err)
{
    tls_log(c, err->msg);
    c->tls.state = VARVE_NBD_TLS_FAILED;
    c->deaf = true;
}

static bool tls_shake(struct varve_nbd_conn *c)
{
    struct varve_err err = VARVE_ERR_INIT;
    int rc = varve_tls_session_handshake(c->tls.session, &err);

    if (rc == -EAGAIN)
        return false;
    if (rc == 0)
        rc = varve_tls_session_identify(c->tls.session, &c->id, &err);
    if (rc) {
        tls_fail(c, &err);
        return false;
    }
    c->tls.state = VARVE_NBD_TLS_OPEN;
    varve_nbd_clients_identify(c->clients, &c->client, &c->id);
    return true;
}

static bool tls_decrypt(struct varve_nbd_conn *c)
{
    struct varve_err err = VARVE_ERR_INIT;
    ssize_t n;

    if (c->in_len == VARVE_NBD_INPUT_LEN)
        return false;
    n = varve_tls_session_recv(c->tls.session, c->in + c->in_len, VARVE_NBD_INPUT_LEN - c->in_len,
                               &err);
    if (n > 0) {
        c->in_len += (size_t)n;
        return true;
    }
    if (n == 0) {
        c->eof = true;
    } else if (n != -EAGAIN) {
        tls_log(c, err.msg);
        varve_nbd_conn_close(c);
    }
    return false;
}

bool varve_nbd_tls_pull(struct varve_nbd_conn *c)
{
    if (!c->tls.session || c->state == VARVE_NBD_CLOSING)
        return false;
    if (c->deaf) {
        varve_tls_session_ignore(c->tls.session);
        return false;
    }
    if (c->tls.state == VARVE_NBD_TLS_SHAKE)
        return tls_shake(c);
    return c->tls.state == VARVE_NBD_TLS_OPEN && tls_decrypt(c);
}

/* --- output --------------------------------------------------------------------------------- */

/* So that records are not moved while they get more. */
static void seal_prepare(struct varve_nbd_conn *c)
{
    const struct varve_nbd_out *out;
    size_t len = 0;

    TAILQ_FOREACH(out, &c->queue, link)
    {
        len += out->len;
        if (len >= VARVE_NBD_TLS_BATCH)
            break;
    }
    if (len > VARVE_NBD_TLS_BATCH)
        len = VARVE_NBD_TLS_BATCH;
    varve_tls_session_reserve(c->tls.session, len);
}

static int seal_queue(struct varve_nbd_conn *c, struct varve_err *err)
{
    struct varve_nbd_out *out;

    while (varve_tls_session_output_len(c->tls.session) < VARVE_NBD_TLS_BATCH &&
           (out = TAILQ_FIRST(&c->queue))) {
        size_t n = out->len - c->tls.sealed;
        int rc;

        if (n > VARVE_TLS_RECORD_MAX)
            n = VARVE_TLS_RECORD_MAX;
        rc = varve_tls_session_send(c->tls.session, out->data + c->tls.sealed, n, err);
        if (rc)
            return rc;
        c->tls.sealed += n;
        if (c->tls.sealed < out->len)
            continue;
        c->tls.sealed = 0;
        TAILQ_REMOVE(&c->queue, out, link);
        TAILQ_INSERT_TAIL(&c->batch, out, link);
    }
    return 0;
}

bool varve_nbd_tls_seal(struct varve_nbd_conn *c, uv_buf_t *buf)
{
    struct varve_err err = VARVE_ERR_INIT;
    size_t len;

    if (c->tls.state == VARVE_NBD_TLS_OPEN && !TAILQ_EMPTY(&c->queue)) {
        seal_prepare(c);
        if (seal_queue(c, &err)) {
            tls_log(c, err.msg);
            varve_nbd_conn_close(c);
            return false;
        }
    }
    if (!varve_tls_session_take_output(c->tls.session, &c->tls.records, &len))
        return false;
    *buf = uv_buf_init((char *)c->tls.records, (unsigned)len);
    return true;
}

void varve_nbd_tls_written(struct varve_nbd_conn *c)
{
    free(c->tls.records);
    c->tls.records = NULL;
}

/* --- the end -------------------------------------------------------------------------------- */

void varve_nbd_tls_bye(struct varve_nbd_conn *c)
{
    if (c->tls.state != VARVE_NBD_TLS_OPEN)
        return;
    varve_tls_session_bye(c->tls.session);
    c->tls.state = VARVE_NBD_TLS_ENDED;
}

void varve_nbd_tls_end(struct varve_nbd_conn *c)
{
    varve_nbd_tls_written(c);
    varve_tls_session_free(c->tls.session);
    c->tls.session = NULL;
}
