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
 * A request counts (tx.nreqs) until the last byte of its reply is with the peer's kernel.  Work is
 * launched in turns, one piece of a request each, so a long read does not hold up short ones; the
 * first of the queue waits for the budget, and all wait behind it, so that one that needs much is
 * not starved by many that need little.
 */
#include "server/nbd-transmit.h"

#include "server/nbd-conn.h"

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
    if (out->data_len)
        atomic_fetch_add(&c->tx.export->bytes_read, out->data_len);
    if (out->ends_request) {
        assert(c->tx.nreqs > 0);
        c->tx.nreqs--;
    }
}

/* --- requests ------------------------------------------------------------------------------- */

/* The reply comes in one piece: it is known to be good before its first byte is sent. */
static bool req_is_whole(const struct varve_nbd_conn *c, const struct varve_nbd_req *req)
{
    return req->hdr.type == VARVE_NBD_CMD_READ &&
           (!c->hs.structured || req->hdr.flags & VARVE_NBD_CMD_FLAG_DF);
}

/* Before the data of a read. */
static size_t data_header_len(const struct varve_nbd_conn *c)
{
    if (!c->hs.structured)
        return VARVE_NBD_SIMPLE_REPLY_LEN;
    return varve_nbd_extension(c) + VARVE_NBD_DATA_HEADER_LEN;
}

static void req_free(struct varve_nbd_req *req)
{
    free(req->whole);
    free(req);
}

/* Nothing more of it is launched. */
static void req_stop(struct varve_nbd_conn *c, struct varve_nbd_req *req)
{
    if (req->left)
        TAILQ_REMOVE(&c->tx.ready, req, link);
    req->left = 0;
}

static void req_fail(struct varve_nbd_conn *c, struct varve_nbd_req *req,
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

/* Adds a piece that is a hole to the one before or behind it; a large hole is sent as one chunk. */
static void add_hole(struct varve_nbd_conn *c, struct varve_nbd_req *req, uint64_t off,
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

/* Ends a request that has nothing to launch and nothing in the pool.  `replied`: its last message
 * has been sent already. */
static void req_finish(struct varve_nbd_conn *c, struct varve_nbd_req *req, bool replied)
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
    req_free(req);
}

/* --- jobs ----------------------------------------------------------------------------------- */

static void job_free(struct varve_nbd_job *job)
{
    free(job->out);
    for (unsigned i = 0; i < VARVE_NBD_METACTX_MAX; i++)
        free(job->chunks[i]);
    free(job);
}

static void job_run(uv_work_t *work)
{
    struct varve_nbd_job *job = work->data;

    job->run(job);
}

static void cache_run(struct varve_nbd_job *job)
{
    job->err.code = 0;
    job->export->ops->cache(job->export, job->off, job->len);
}

/* Sends the chunks of a piece.  True: the request's last message was among them. */
static bool deliver_piece(struct varve_nbd_conn *c, struct varve_nbd_job *job, bool last)
{
    struct varve_nbd_out *out = job->out;

    if (!out->data_len) {
        varve_nbd_pool_release(c, out->held);
        add_hole(c, job->req, job->off, job->len);
        return false; /* the hole will be the last message */
    }
    last = last && !job->req->hole_len;
    if (last)
        varve_nbd_chunk_set_done(job->last_chunk);
    out->ends_request = last;
    varve_nbd_conn_send(c, out);
    job->out = NULL;
    return last;
}

/* Sends block status; all of it is there. */
static bool deliver_status(struct varve_nbd_conn *c, struct varve_nbd_job *job)
{
    unsigned n = job->req->nctx;

    varve_nbd_chunk_set_done(job->chunks[n - 1]->data);
    job->chunks[n - 1]->ends_request = true;
    for (unsigned i = 0; i < n; i++) {
        varve_nbd_pool_hold(c, job->chunks[i]->held);
        varve_nbd_conn_send(c, job->chunks[i]);
        job->chunks[i] = NULL;
    }
    return true;
}

static bool job_deliver(struct varve_nbd_conn *c, struct varve_nbd_job *job, bool last)
{
    if (job->out)
        return deliver_piece(c, job, last);
    return job->req->nctx ? deliver_status(c, job) : false;
}

static void job_done(struct varve_nbd_conn *c, struct varve_nbd_job *job)
{
    struct varve_nbd_req *req = job->req;
    bool replied = false;

    /* While the request counts as running nobody else frees it: whatever is sent here may meet a
     * lack of memory and close the connection, which drops the requests that wait. */
    assert(req->running > 0);
    if (job->err.code) {
        if (job->out)
            varve_nbd_pool_release(c, job->out->held);
        req_fail(c, req, &job->err, job->off);
    } else {
        replied = job_deliver(c, job, !req->left && req->running == 1 && !req->err.code);
    }
    varve_nbd_pool_release(c, job->held);
    req->running--;
    if (!req->left && !req->running)
        req_finish(c, req, replied);
}

static void on_job_done(uv_work_t *work, int status)
{
    struct varve_nbd_job *job = work->data;
    struct varve_nbd_conn *c = job->conn;
    struct varve_nbd_pool *pool = &c->host->pool;
    unsigned i;

    for (i = 0; c->tx.jobs[i] != job; i++)
        continue;
    c->tx.jobs[i] = c->tx.jobs[--c->tx.njobs];
    varve_nbd_pool_ended(pool, c->tx.share);
    if (c->state != VARVE_NBD_CLOSING) {
        assert(status == 0); /* only what closes is cancelled */
        job_done(c, job);
    } else if (!--job->req->running) {
        req_free(job->req);
    }
    (void)status;
    job_free(job);
    varve_nbd_conn_tick(c);
    varve_nbd_pool_turns(pool); /* c may be gone */
}

/* --- launching ------------------------------------------------------------------------------ */

/* Extents that the reply may have.  Where another holds the memory for a long one it is cut to what
 * this connection may have now: more than there ever are on most disks. */
static size_t status_extents(const struct varve_nbd_conn *c, const struct varve_nbd_req *req)
{
    size_t most = varve_nbd_status_extents_max(&req->hdr);
    size_t now = varve_nbd_pool_room(c) / varve_nbd_status_cost(c, req->nctx, 1);

    if (most <= now || c->tx.held ||
        varve_nbd_pool_fits(c, varve_nbd_status_cost(c, req->nctx, most)))
        return most;
    return now;
}

/* Bytes that the next job of the request takes from the budget. */
static size_t next_cost(const struct varve_nbd_conn *c, const struct varve_nbd_req *req,
                        uint64_t len)
{
    switch (req->hdr.type) {
    case VARVE_NBD_CMD_READ:
        if (!req_is_whole(c, req))
            return data_header_len(c) + (size_t)len;
        return req->whole ? 0 : data_header_len(c) + (size_t)req->hdr.len;
    case VARVE_NBD_CMD_BLOCK_STATUS:
        return varve_nbd_status_cost(c, req->nctx, status_extents(c, req));
    default:
        return 0;
    }
}

static uint64_t next_len(const struct varve_nbd_req *req)
{
    uint64_t step, room;

    switch (req->hdr.type) {
    case VARVE_NBD_CMD_READ:
        step = VARVE_EXPORT_READ_MAX;
        break;
    case VARVE_NBD_CMD_CACHE:
        step = VARVE_EXPORT_CACHE_MAX;
        break;
    default:
        return req->left;
    }
    room = step - req->next % step;
    return req->left < room ? req->left : room;
}

static int job_prepare_read(struct varve_nbd_conn *c, struct varve_nbd_job *job, size_t cost)
{
    struct varve_nbd_req *req = job->req;

    job->run = varve_nbd_read_run;
    if (!req_is_whole(c, req)) {
        job->out = varve_nbd_out_new(cost);
        if (!job->out)
            return -ENOMEM;
        job->out->held = cost;
        job->data = job->out->data + data_header_len(c);
        return 0;
    }
    if (!req->whole) {
        req->whole = varve_nbd_out_new(cost);
        if (!req->whole)
            return -ENOMEM;
        req->whole->held = cost;
        req->whole->data_len = req->hdr.len;
    }
    job->data = req->whole->data + data_header_len(c) + (job->off - req->hdr.off);
    return 0;
}

static int job_prepare(struct varve_nbd_conn *c, struct varve_nbd_job *job, size_t cost)
{
    switch (job->req->hdr.type) {
    case VARVE_NBD_CMD_READ:
        return job_prepare_read(c, job, cost);
    case VARVE_NBD_CMD_BLOCK_STATUS:
        job->run = varve_nbd_status_run;
        job->extents_max = status_extents(c, job->req);
        job->held = cost;
        return 0;
    default:
        job->run = cache_run;
        return 0;
    }
}

/* The piece's place in the request is taken; the request goes to the tail if more is left. */
static void req_advance(struct varve_nbd_conn *c, struct varve_nbd_req *req, uint64_t len)
{
    TAILQ_REMOVE(&c->tx.ready, req, link);
    req->next += len;
    req->left -= len;
    req->running++;
    if (req->left)
        TAILQ_INSERT_TAIL(&c->tx.ready, req, link);
}

/* False: there was no memory, and an error was answered. */
static bool launch(struct varve_nbd_conn *c, struct varve_nbd_req *req, uint64_t len, size_t cost)
{
    struct varve_nbd_job *job = calloc(1, sizeof(*job));
    struct varve_err err;
    int rc;

    if (!job)
        goto err_memory;
    job->conn = c;
    job->req = req;
    job->export = c->tx.export;
    job->off = req->next;
    job->len = len;
    if (job_prepare(c, job, cost))
        goto err_memory;
    job->work.data = job;
    varve_nbd_pool_hold(c, cost);
    req_advance(c, req, len);
    c->tx.jobs[c->tx.njobs++] = job;
    varve_nbd_pool_started(&c->host->pool, c->tx.share);
    rc = uv_queue_work(c->host->loop, &job->work, job_run, on_job_done);
    assert(rc == 0);
    (void)rc;
    return true;

err_memory:
    free(job);
    varve_err_set(&err, ENOMEM, "the server is short of memory");
    req_fail(c, req, &err, req->next);
    if (!req->running)
        req_finish(c, req, false);
    return false;
}

static size_t req_cost(const struct varve_nbd_conn *c, const struct varve_nbd_req *req)
{
    return next_cost(c, req, next_len(req));
}

/* Which request's turn it is.  When the first must wait for the budget, only those go on that need
 * none: they hold what the first waits for. */
static struct varve_nbd_req *req_pick(struct varve_nbd_conn *c)
{
    struct varve_nbd_req *req = TAILQ_FIRST(&c->tx.ready);

    if (!req || varve_nbd_pool_has_room(c, req_cost(c, req)))
        return req;
    TAILQ_FOREACH(req, &c->tx.ready, link)
    {
        if (!req_cost(c, req))
            break;
    }
    return req;
}

enum varve_nbd_turn varve_nbd_transmit_turn(struct varve_nbd_conn *c)
{
    struct varve_nbd_req *req = c->tx.njobs < VARVE_NBD_JOBS_MAX ? req_pick(c) : NULL;

    if (!req)
        return VARVE_NBD_TURN_NONE;
    if (!launch(c, req, next_len(req), req_cost(c, req)))
        return VARVE_NBD_TURN_FAILED;
    return VARVE_NBD_TURN_TAKEN;
}

void varve_nbd_transmit_pump(struct varve_nbd_conn *c)
{
    if (c->tx.njobs < VARVE_NBD_JOBS_MAX && !TAILQ_EMPTY(&c->tx.ready))
        varve_nbd_pool_wait(c);
    varve_nbd_pool_turns(&c->host->pool);
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
    touch_export(c);
}

void varve_nbd_transmit_abandon(struct varve_nbd_conn *c)
{
    struct varve_nbd_req *req;
    struct varve_err err;

    varve_err_set(&err, ESHUTDOWN, "the export is going away");
    while ((req = TAILQ_FIRST(&c->tx.ready))) {
        req_fail(c, req, &err, req->next);
        if (!req->running)
            req_finish(c, req, false);
    }
}

void varve_nbd_transmit_drop(struct varve_nbd_conn *c)
{
    struct varve_nbd_req *req;

    varve_nbd_pool_leave_lines(c);
    while ((req = TAILQ_FIRST(&c->tx.ready))) {
        req_stop(c, req);
        if (!req->running)
            req_free(req);
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
    varve_nbd_pool_part(c);
    c->tx.export = NULL;
    varve_export_unref(e);
}
