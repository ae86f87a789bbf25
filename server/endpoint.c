/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What all kinds of endpoints have in common.
 *
 *     submit ──▶ running ──(the kind)──▶ ended ──(tell, from the loop)──▶ done()
 *     close  ──▶ the kind stops ──▶ gone, nothing is due ──▶ closed(), freed
 *
 * E1. Nothing calls back but `tell`, which the loop calls: so never before a submit, an open or a
 *     close has returned.
 * E2. done() comes once: a request is in one of the two lines from submit to done().
 * E3. closed() comes last: after opened() and after done() of all.
 */
#include "server/endpoint-internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool varve_endpoint_is_uri(const char *where)
{
    static const char *const schemes[] = {
        "nbd:", "nbds:", "nbd+unix:", "nbds+unix:", "nbd+vsock:", "nbds+vsock:"};

    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
        if (strncmp(where, schemes[i], strlen(schemes[i])) == 0)
            return true;
    }
    return false;
}

int varve_endpoint_open(uv_loop_t *loop, const char *where,
                        const struct varve_endpoint_options *opts,
                        void (*opened)(void *arg, int rc, const struct varve_err *err), void *arg,
                        struct varve_endpoint **out, struct varve_err *err)
{
    static const struct varve_endpoint_options defaults;

    *out = NULL;
    if (where[0] == '\0')
        return varve_err_set(err, EINVAL, "an empty name is neither a file nor an NBD URI");
    if (!opts)
        opts = &defaults;
    if (varve_endpoint_is_uri(where))
        return varve_endpoint_open_nbd(loop, where, opts, opened, arg, out, err);
    return varve_endpoint_open_file(loop, where, -1, opts, opened, arg, out, err);
}

int varve_endpoint_open_fd(uv_loop_t *loop, const char *name, int fd,
                           const struct varve_endpoint_options *opts,
                           void (*opened)(void *arg, int rc, const struct varve_err *err),
                           void *arg, struct varve_endpoint **out, struct varve_err *err)
{
    static const struct varve_endpoint_options defaults;

    return varve_endpoint_open_file(loop, name, fd, opts ? opts : &defaults, opened, arg, out, err);
}

/* --- telling
 * ---------------------------------------------------------------------------------------- */

static void endpoint_on_tell_closed(uv_handle_t *handle)
{
    struct varve_endpoint *e = handle->data;
    void (*closed)(void *arg) = e->closed;
    void *arg = e->closed_arg;

    free(e->name);
    e->ops->free(e);
    if (closed)
        closed(arg);
}

/* E3 */
static void endpoint_maybe_closed(struct varve_endpoint *e)
{
    if (!e->closing || !e->gone || e->open_due || !TAILQ_EMPTY(&e->ended) ||
        uv_is_closing((uv_handle_t *)&e->tell))
        return;
    assert(!e->opened && TAILQ_EMPTY(&e->running)); /* E2, E3 */
    uv_close((uv_handle_t *)&e->tell, endpoint_on_tell_closed);
}

static void endpoint_on_tell(uv_idle_t *idle)
{
    struct varve_endpoint *e = idle->data;
    struct varve_endpoint_line now = TAILQ_HEAD_INITIALIZER(now);
    struct varve_endpoint_req *req;

    uv_idle_stop(idle);
    if (e->open_due) {
        void (*opened)(void *arg, int rc, const struct varve_err *err) = e->opened;

        e->open_due = false;
        e->opened = NULL;
        opened(e->opened_arg, -e->failed.code, e->failed.code ? &e->failed : NULL);
    }
    TAILQ_CONCAT(&now, &e->ended, link); /* what done() submits has its turn later */
    while ((req = TAILQ_FIRST(&now))) {
        TAILQ_REMOVE(&now, req, link);
        req->submitted = false;
        req->done(req);
    }
    endpoint_maybe_closed(e);
}

static void endpoint_tell(struct varve_endpoint *e)
{
    uv_idle_start(&e->tell, endpoint_on_tell);
}

int varve_endpoint_init(struct varve_endpoint *e, const struct varve_endpoint_ops *ops,
                        uv_loop_t *loop, const char *name,
                        void (*opened)(void *arg, int rc, const struct varve_err *err), void *arg,
                        struct varve_err *err)
{
    e->name = strdup(name);
    if (!e->name)
        return varve_err_set(err, ENOMEM, "no memory for %.200s", name);
    e->ops = ops;
    e->loop = loop;
    e->opened = opened;
    e->opened_arg = arg;
    e->info.block_min = 1;
    TAILQ_INIT(&e->running);
    TAILQ_INIT(&e->ended);
    uv_idle_init(loop, &e->tell);
    e->tell.data = e;
    return 0;
}

void varve_endpoint_opened(struct varve_endpoint *e, const struct varve_err *why)
{
    assert(!e->open);
    if (why)
        e->failed = *why;
    e->open = e->open_due = true;
    endpoint_tell(e);
}

void varve_endpoint_end(struct varve_endpoint *e, struct varve_endpoint_req *req, int rc)
{
    assert(req->submitted && rc <= 0);
    req->rc = rc;
    TAILQ_REMOVE(&e->running, req, link);
    TAILQ_INSERT_TAIL(&e->ended, req, link);
    endpoint_tell(e);
}

void varve_endpoint_gone(struct varve_endpoint *e)
{
    e->gone = true;
    endpoint_tell(e);
}

int varve_endpoint_canceled(const struct varve_endpoint *e, struct varve_err *err)
{
    return varve_err_set(err, ECANCELED, "%.200s: closed before it was done", e->name);
}

/* --- asking
 * ----------------------------------------------------------------------------------------- */

static bool req_fits(const struct varve_endpoint_info *info, const struct varve_endpoint_req *req)
{
    if (req->op == VARVE_ENDPOINT_FLUSH)
        return true;
    if (req->len == 0 || req->off > info->size || req->len > info->size - req->off)
        return false;
    if (req->off % info->block_min != 0 ||
        (req->len % info->block_min != 0 && req->off + req->len != info->size))
        return false;
    if (req->op == VARVE_ENDPOINT_READ || req->op == VARVE_ENDPOINT_WRITE)
        return req->buf && req->len <= VARVE_ENDPOINT_IO_MAX;
    return req->op != VARVE_ENDPOINT_EXTENTS || (req->extents && req->max_extents > 0);
}

static bool req_changes(const struct varve_endpoint_req *req)
{
    return req->op == VARVE_ENDPOINT_WRITE || req->op == VARVE_ENDPOINT_ZERO ||
           req->op == VARVE_ENDPOINT_FLUSH;
}

int varve_endpoint_submit(struct varve_endpoint *e, struct varve_endpoint_req *req,
                          struct varve_err *err)
{
    if (e->failed.code) {
        varve_err_set(err, ENOTCONN, "%s", e->failed.msg);
        return -ENOTCONN;
    }
    if (!e->open || e->closing)
        return varve_err_set(err, ENOTCONN, "%.200s: not open", e->name);
    if (!req_fits(&e->info, req))
        return varve_err_set(err, EINVAL,
                             "%.200s: it has %" PRIu64 " bytes in units of %" PRIu32
                             ", and %" PRIu64 " bytes at %" PRIu64 " do not fit",
                             e->name, e->info.size, e->info.block_min, req->len, req->off);
    if (req_changes(req) && !e->info.writable)
        return varve_err_set(err, EINVAL, "%.200s: it is open for reading only", e->name);
    req->e = e;
    req->rc = 0;
    req->err.code = 0;
    req->nextents = 0;
    req->at = 0;
    req->bad_off = req->off;
    req->submitted = true;
    TAILQ_INSERT_TAIL(&e->running, req, link);
    e->ops->start(e, req);
    return 0;
}

bool varve_endpoint_add_extent(struct varve_endpoint_req *req, uint64_t len, unsigned flags)
{
    struct varve_endpoint_extent *last = req->nextents ? &req->extents[req->nextents - 1] : NULL;

    if (last && last->flags == flags) {
        last->len += len;
        return true;
    }
    if (req->nextents == req->max_extents)
        return false;
    req->extents[req->nextents++] = (struct varve_endpoint_extent){.len = len, .flags = flags};
    return true;
}

const struct varve_endpoint_info *varve_endpoint_info(const struct varve_endpoint *e)
{
    return &e->info;
}

const char *varve_endpoint_name(const struct varve_endpoint *e)
{
    return e->name;
}

void varve_endpoint_close(struct varve_endpoint *e, void (*closed)(void *arg), void *arg)
{
    assert(!e->closing);
    e->closing = true;
    e->closed = closed;
    e->closed_arg = arg;
    e->ops->stop(e);
}
