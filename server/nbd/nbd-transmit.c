/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The life of requests in the transmission phase, once nbd-request.c took them.
 *
 *     header ──▶ refused ────────────────────────────────────────────────▶ reply queued ──▶ sent
 *        │          ▲ (writes: after their payload was skipped)                 ▲
 *        ▼          │                                                           │
 *      READY ──── launch, while jobs and budget last ──▶ pool ──▶ done: chunk, or the last of all
 *        ▲─── more pieces: to the tail ──┘
 *
 * A request counts (tx.nreqs) until the last byte of its reply is with the peer's kernel.
 * nbd-job.c has the pieces between READY and done.
 */
#include "server/nbd/nbd-transmit.h"

#include "server/nbd/nbd-conn.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/* --- replies -------------------------------------------------------------------------------- */

size_t varve_nbd_extension(const struct varve_nbd_conn *c)
{
    return c->hs.extended ? VARVE_NBD_EXTENSION_LEN : 0;
}

/* A chunk was encoded behind room for the extension: makes it whole. */
static void extend(const struct varve_nbd_conn *c, const struct varve_nbd_request *hdr,
                   struct varve_nbd_out *out)
{
    if (c->hs.extended)
        varve_nbd_extend_chunk(out->data, hdr->off);
}

/* Sends a reply's last message. */
static void reply_last(struct varve_nbd_conn *c, struct varve_nbd_out *out)
{
    out->ends_request = true;
    varve_nbd_conn_send(c, out);
}

/* What a client does not get it may give up as a whole: the export is told before the client is. */
static void tell_read_failed(struct varve_nbd_conn *c, const struct varve_nbd_request *hdr)
{
    struct varve_export *e = c->tx.export;

    if (hdr->type == VARVE_NBD_CMD_READ && e->ops->read_failed && hdr->off <= e->size &&
        hdr->len <= e->size - hdr->off)
        e->ops->read_failed(e, hdr->off, hdr->len);
}

void varve_nbd_reply_error(struct varve_nbd_conn *c, const struct varve_nbd_request *hdr, int code,
                           const char *msg, const uint64_t *off)
{
    uint32_t error = varve_nbd_error(code);
    struct varve_nbd_out *out;
    size_t len = VARVE_NBD_SIMPLE_REPLY_LEN, ext = varve_nbd_extension(c);

    varve_nbd_client_add(&c->client.errors, 1);
    atomic_fetch_add(&c->tx.export->errors, 1);
    tell_read_failed(c, hdr);
    if (c->hs.structured)
        len = ext + varve_nbd_encode_error(NULL, 0, 0, error, msg, off);
    out = varve_nbd_out_new(len);
    if (!out) {
        varve_nbd_conn_close(c);
        return;
    }
    if (c->hs.structured)
        varve_nbd_encode_error(out->data + ext, VARVE_NBD_CHUNK_DONE, hdr->cookie, error, msg, off);
    else
        varve_nbd_encode_simple_reply(out->data, error, hdr->cookie);
    extend(c, hdr, out);
    reply_last(c, out);
}

/* Success without content. */
void varve_nbd_reply_ok(struct varve_nbd_conn *c, const struct varve_nbd_request *hdr)
{
    /* A structured client may not get a simple reply to a read, an extended one to nothing. */
    bool chunk = c->hs.extended || (c->hs.structured && hdr->type == VARVE_NBD_CMD_READ);
    size_t ext = varve_nbd_extension(c);
    struct varve_nbd_out *out;

    out = varve_nbd_out_new(chunk ? ext + VARVE_NBD_CHUNK_LEN : VARVE_NBD_SIMPLE_REPLY_LEN);
    if (!out) {
        varve_nbd_conn_close(c);
        return;
    }
    if (chunk)
        varve_nbd_encode_chunk(out->data + ext, VARVE_NBD_CHUNK_DONE, VARVE_NBD_CHUNK_NONE,
                               hdr->cookie, 0);
    else
        varve_nbd_encode_simple_reply(out->data, 0, hdr->cookie);
    extend(c, hdr, out);
    reply_last(c, out);
}

void varve_nbd_transmit_sent(struct varve_nbd_conn *c, const struct varve_nbd_out *out)
{
    if (out->held)
        varve_nbd_pool_release(c, out->held);
    if (out->data_len) {
        atomic_fetch_add(&c->tx.export->bytes_read, out->data_len);
        varve_nbd_client_add(&c->client.bytes, out->data_len);
    }
    if (out->ends_request) {
        assert(c->tx.nreqs > 0);
        c->client.queue = --c->tx.nreqs;
    }
}

/* --- requests ------------------------------------------------------------------------------- */

bool varve_nbd_req_is_whole(const struct varve_nbd_conn *c, const struct varve_nbd_req *req)
{
    return req->hdr.type == VARVE_NBD_CMD_READ &&
           (!c->hs.structured || req->hdr.flags & VARVE_NBD_CMD_FLAG_DF);
}

size_t varve_nbd_data_header_len(const struct varve_nbd_conn *c)
{
    if (!c->hs.structured)
        return VARVE_NBD_SIMPLE_REPLY_LEN;
    return varve_nbd_extension(c) + VARVE_NBD_DATA_HEADER_LEN;
}

void varve_nbd_req_free(struct varve_nbd_req *req)
{
    free(req->whole);
    free(req);
}

/* Nothing more of it is launched, and it waits for nothing: another may come to stand where it
 * stood in memory. */
static void req_stop(struct varve_nbd_conn *c, struct varve_nbd_req *req)
{
    if (c->tx.ticket_req == req)
        varve_nbd_throttle_leave(c);
    if (req->left)
        TAILQ_REMOVE(&c->tx.ready, req, link);
    req->left = 0;
}

void varve_nbd_req_fail(struct varve_nbd_conn *c, struct varve_nbd_req *req,
                        const struct varve_err *err, uint64_t off)
{
    req_stop(c, req);
    /* Of several the first in the request is told: up to there a client may use what it got. */
    if (req->err.code && req->err_off <= off)
        return;
    req->err = *err;
    req->err_off = off;
    req->err_has_off = req->hdr.type == VARVE_NBD_CMD_READ;
}

static void send_whole(struct varve_nbd_conn *c, struct varve_nbd_req *req)
{
    struct varve_nbd_out *out = req->whole;

    if (c->hs.structured)
        varve_nbd_encode_data_header(out->data + varve_nbd_extension(c), VARVE_NBD_CHUNK_DONE,
                                     req->hdr.cookie, req->hdr.off, (uint32_t)req->hdr.len);
    else
        varve_nbd_encode_simple_reply(out->data, 0, req->hdr.cookie);
    extend(c, &req->hdr, out);
    req->whole = NULL;
    reply_last(c, out);
}

static void drop_whole(struct varve_nbd_conn *c, struct varve_nbd_req *req)
{
    if (!req->whole)
        return;
    varve_nbd_pool_release(c, req->whole->held);
    free(req->whole);
    req->whole = NULL;
}

/* Sends the hole that was put together so far. */
static void send_hole(struct varve_nbd_conn *c, struct varve_nbd_req *req, bool last)
{
    size_t ext = varve_nbd_extension(c);
    struct varve_nbd_out *out = varve_nbd_out_new(ext + VARVE_NBD_HOLE_LEN);

    if (!out) {
        varve_nbd_conn_close(c);
        return;
    }
    varve_nbd_encode_hole(out->data + ext, last ? VARVE_NBD_CHUNK_DONE : 0, req->hdr.cookie,
                          req->hole_off, (uint32_t)req->hole_len);
    extend(c, &req->hdr, out);
    req->hole_len = 0;
    out->ends_request = last;
    varve_nbd_conn_send(c, out);
}

void varve_nbd_req_add_hole(struct varve_nbd_conn *c, struct varve_nbd_req *req, uint64_t off,
                            uint64_t len)
{
    if (req->hole_len && off + len == req->hole_off)
        req->hole_off = off;
    else if (req->hole_len && off != req->hole_off + req->hole_len)
        send_hole(c, req, false);
    if (!req->hole_len)
        req->hole_off = off;
    req->hole_len += len;
}

void varve_nbd_req_finish(struct varve_nbd_conn *c, struct varve_nbd_req *req, bool replied)
{
    assert(!req->left && !req->running);
    if (req->hole_len) {
        send_hole(c, req, !req->err.code);
        replied = true;
    }
    if (req->err.code) {
        drop_whole(c, req);
        varve_nbd_reply_error(c, &req->hdr, req->err.code, req->err.msg,
                              req->err_has_off ? &req->err_off : NULL);
    } else if (req->whole) {
        send_whole(c, req);
    } else if (!replied) {
        varve_nbd_reply_ok(c, &req->hdr);
    }
    varve_nbd_req_free(req);
}

/* --- beginning and end ---------------------------------------------------------------------- */

static void touch_export(struct varve_nbd_conn *c)
{
    atomic_store(&c->tx.export->last_client_ns, uv_hrtime());
}

void varve_nbd_transmit_begin(struct varve_nbd_conn *c, struct varve_export *e)
{
    c->tx.export = e;
    varve_nbd_pool_join(c, e->disk ? e->disk : e);
    atomic_fetch_add(&e->clients, 1);
    varve_nbd_clients_reads(c->clients, &c->client, e->name);
    touch_export(c);
}

void varve_nbd_transmit_abandon(struct varve_nbd_conn *c)
{
    struct varve_nbd_req *req;
    struct varve_err err;

    varve_nbd_throttle_leave(c);
    varve_err_set(&err, ESHUTDOWN, "the export is going away");
    while ((req = TAILQ_FIRST(&c->tx.ready))) {
        varve_nbd_req_fail(c, req, &err, req->next);
        if (!req->running)
            varve_nbd_req_finish(c, req, false);
    }
}

void varve_nbd_transmit_drop(struct varve_nbd_conn *c)
{
    struct varve_nbd_req *req;

    varve_nbd_throttle_leave(c);
    varve_nbd_pool_leave_lines(c);
    while ((req = TAILQ_FIRST(&c->tx.ready))) {
        req_stop(c, req);
        if (!req->running)
            varve_nbd_req_free(req);
    }
    for (unsigned i = 0; i < c->tx.njobs; i++)
        uv_cancel((uv_req_t *)&c->tx.jobs[i]->work);
}

void varve_nbd_transmit_end(struct varve_nbd_conn *c)
{
    struct varve_export *e = c->tx.export;

    if (!e)
        return;
    touch_export(c);
    atomic_fetch_sub(&e->clients, 1);
    varve_nbd_throttle_leave(c);
    varve_nbd_pool_part(c);
    varve_nbd_clients_reads(c->clients, &c->client, NULL);
    c->tx.export = NULL;
    varve_export_unref(e);
}
