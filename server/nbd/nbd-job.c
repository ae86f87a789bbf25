/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Pieces of requests: answered at once on the loop when memory has them, else on their way through
 * the pool; whose turn it is within a connection, what a piece costs, what becomes of its result. A
 * request that has more pieces goes to the tail, so a long read does not hold up short ones; the
 * first of the queue waits for the budget, and all wait behind it, so that one that needs much is
 * not starved by many that need little.
 */
#include "server/nbd/nbd-conn.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

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

static void release_run(struct varve_nbd_job *job)
{
    int rc = job->export->ops->release(job->export, job->off, job->len, &job->err);

    job->err.code = -rc;
}

/* Sends the chunks of a piece.  True: the request's last message was among them. */
static bool deliver_piece(struct varve_nbd_conn *c, struct varve_nbd_job *job, bool last)
{
    struct varve_nbd_out *out = job->out;

    if (!out->data_len) {
        varve_nbd_pool_release(c, out->held);
        varve_nbd_req_add_hole(c, job->req, job->off, job->len);
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
        if (job->out && job->len)
            deliver_piece(c, job, false);
        else if (job->out)
            varve_nbd_pool_release(c, job->out->held);
        varve_nbd_req_fail(c, req, &job->err, job->off + job->len);
    } else {
        replied = job_deliver(c, job, !req->left && req->running == 1 && !req->err.code);
    }
    varve_nbd_pool_release(c, job->held);
    req->running--;
    if (!req->left && !req->running)
        varve_nbd_req_finish(c, req, replied);
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
        varve_nbd_req_free(job->req);
    }
    (void)status;
    job_free(job);
    varve_nbd_conn_tick(c);
    varve_nbd_pool_turns(pool); /* c may be gone */
}

/* Bytes that a connection reads at once before others of its loop have their turn. */
#define NOW_BYTES (1024u * 1024u)

/* The next piece may be in memory: nobody has looked. */
static bool may_be_warm(const struct varve_nbd_conn *c, const struct varve_nbd_req *req)
{
    const struct varve_export_ops *ops = c->tx.export->ops;

    if (req->cold)
        return false;
    return (req->hdr.type == VARVE_NBD_CMD_READ && ops->read_now) ||
           (req->hdr.type == VARVE_NBD_CMD_BLOCK_STATUS && ops->status_now);
}

/* --- launching ------------------------------------------------------------------------------ */

/* Extents that the reply may have.  Where another holds the memory for a long one it is cut to what
 * this connection may have now: more than there ever are on most disks. */
static size_t status_extents(const struct varve_nbd_conn *c, const struct varve_nbd_req *req)
{
    size_t most = varve_nbd_status_extents_max(c, &req->hdr);
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
        if (!varve_nbd_req_is_whole(c, req))
            return varve_nbd_data_header_len(c) + (size_t)len;
        return req->whole ? 0 : varve_nbd_data_header_len(c) + (size_t)req->hdr.len;
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
    case VARVE_NBD_CMD_TRIM:
        step = VARVE_EXPORT_RELEASE_MAX;
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
    job->now = varve_nbd_read_now;
    if (!varve_nbd_req_is_whole(c, req)) {
        job->out = varve_nbd_out_new(cost);
        if (!job->out)
            return -ENOMEM;
        job->out->held = cost;
        job->data = job->out->data + varve_nbd_data_header_len(c);
        return 0;
    }
    if (!req->whole) {
        req->whole = varve_nbd_out_new(cost);
        if (!req->whole)
            return -ENOMEM;
        req->whole->held = cost;
        req->whole->data_len = req->hdr.len;
    }
    job->data = req->whole->data + varve_nbd_data_header_len(c) + (job->off - req->hdr.off);
    return 0;
}

static int job_prepare(struct varve_nbd_conn *c, struct varve_nbd_job *job, size_t cost)
{
    switch (job->req->hdr.type) {
    case VARVE_NBD_CMD_READ:
        return job_prepare_read(c, job, cost);
    case VARVE_NBD_CMD_BLOCK_STATUS:
        job->run = varve_nbd_status_run;
        job->now = varve_nbd_status_now;
        job->extents_max = status_extents(c, job->req);
        job->held = cost;
        return 0;
    default:
        job->run = job->req->hdr.type == VARVE_NBD_CMD_TRIM ? release_run : cache_run;
        return 0;
    }
}

/* The piece's place in the request is taken; the request goes to the tail if more is left. */
static void req_advance(struct varve_nbd_conn *c, struct varve_nbd_req *req, uint64_t len)
{
    TAILQ_REMOVE(&c->tx.ready, req, link);
    req->next += len;
    req->left -= len;
    req->cold = false;
    req->running++;
    if (req->left)
        TAILQ_INSERT_TAIL(&c->tx.ready, req, link);
}

/* Bytes that its next piece takes from the budget. */
static size_t req_cost(const struct varve_nbd_conn *c, const struct varve_nbd_req *req)
{
    return next_cost(c, req, next_len(req));
}

/* Makes the request's next piece, with room for its result.  -ENOMEM */
static int job_init(struct varve_nbd_conn *c, struct varve_nbd_job *job, struct varve_nbd_req *req,
                    size_t cost)
{
    *job = (struct varve_nbd_job){
        .conn = c, .req = req, .export = c->tx.export, .off = req->next, .len = next_len(req)};
    return job_prepare(c, job, cost);
}

/* False: there was no memory, and an error was answered. */
static bool launch(struct varve_nbd_conn *c, struct varve_nbd_req *req)
{
    struct varve_nbd_job *job = malloc(sizeof(*job));
    size_t cost = req_cost(c, req);
    struct varve_err err;
    int rc;

    if (!job || job_init(c, job, req, cost))
        goto err_memory;
    job->work.data = job;
    varve_nbd_pool_hold(c, cost);
    varve_nbd_throttle_use(c, req);
    req_advance(c, req, job->len);
    c->tx.jobs[c->tx.njobs++] = job;
    varve_nbd_pool_started(&c->host->pool, c->tx.share);
    rc = uv_queue_work(c->host->loop, &job->work, job_run, on_job_done);
    assert(rc == 0);
    (void)rc;
    return true;

err_memory:
    free(job);
    varve_nbd_throttle_leave(c);
    varve_err_set(&err, ENOMEM, "the server is short of memory");
    varve_nbd_req_fail(c, req, &err, req->next);
    if (!req->running)
        varve_nbd_req_finish(c, req, false);
    return false;
}

/* Which request's turn it is: the first that the throttle lets.  When that must wait for the
 * budget, only those go on that need none: they hold what it waits for. */
static struct varve_nbd_req *req_pick(struct varve_nbd_conn *c)
{
    struct varve_nbd_req *req;

    TAILQ_FOREACH(req, &c->tx.ready, link)
    {
        if (varve_nbd_throttle_lets(c, req, next_len(req)))
            break;
    }
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
    if (may_be_warm(c, req)) {
        varve_nbd_host_again(c);
        return VARVE_NBD_TURN_NONE;
    }
    if (!launch(c, req))
        return VARVE_NBD_TURN_FAILED;
    return VARVE_NBD_TURN_TAKEN;
}

/* --- at once -------------------------------------------------------------------------------- */

/* Answers the request's next piece if memory has it.  False: that is the pool's. */
static bool answer_now(struct varve_nbd_conn *c, struct varve_nbd_req *req)
{
    size_t cost = req_cost(c, req);
    struct varve_nbd_job job;

    if (job_init(c, &job, req, cost)) {
        req->cold = true; /* who launches it tells of the lack */
        return false;
    }
    if (!job.now(&job)) {
        req->cold = true;
        if (req->whole)
            varve_nbd_pool_hold(c, cost); /* the whole reply keeps its memory */
        free(job.out);
        return false;
    }
    varve_nbd_pool_hold(c, cost);
    varve_nbd_throttle_use(c, req);
    req_advance(c, req, job.len);
    job_done(c, &job);
    free(job.out);
    return true;
}

/* Until the pool, the budget or others are to have their turn.  True: others. */
static bool serve_now(struct varve_nbd_conn *c)
{
    uint64_t served = 0;
    struct varve_nbd_req *req;

    while (c->state != VARVE_NBD_CLOSING && (req = req_pick(c)) && may_be_warm(c, req)) {
        if (served >= NOW_BYTES)
            return true;
        served += next_len(req);
        if (!answer_now(c, req))
            break;
    }
    return false;
}

void varve_nbd_transmit_pump(struct varve_nbd_conn *c)
{
    if (serve_now(c))
        varve_nbd_host_again(c);
    else if (c->tx.njobs < VARVE_NBD_JOBS_MAX && !TAILQ_EMPTY(&c->tx.ready))
        varve_nbd_pool_wait(c);
    varve_nbd_pool_turns(&c->host->pool);
}
