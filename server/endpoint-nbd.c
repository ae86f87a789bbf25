/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An NBD export of anybody's, through libnbd's asynchronous calls.
 *
 *     connecting   nbd_aio_connect_uri() in the pool, as it asks for names; then the loop
 *     ready        poll ──▶ notify ──▶ libnbd calls back ──▶ `finished` ──▶ next piece, or end
 *     dead         the handle is closed, every request ends with the reason
 *
 * N1. libnbd is never entered from its own callbacks: they only note what has finished.
 * N2. While the pool has the handle nobody else touches it, so what is given up then is closed
 * later. N3. A peer that is asked something has stall_ms for each answer, whatever else it says.
 * N4. Who was answered is asked by nbd_aio_command_completed(): only that knows whether a read's
 *     answer was whole.
 *
 * What a peer answers is believed as data, and nothing else of it: its sizes and its runs are
 * checked here.
 */
#include "server/endpoint-internal.h"

#include "include/varve.h"
#include "lib/nbd-uri.h"

#include <errno.h>
#include <inttypes.h>
#include <libnbd.h>
#include <stdlib.h>
#include <string.h>

#define CONNECT_MS 30000
#define STALL_MS   60000

/* One command's share of a request. */
#define PIECE_MAX (UINT32_C(1) << 20)
#define ZERO_MAX  (UINT64_C(128) << 20)
#define ASK_MAX   (UINT64_C(2) << 30)

#define BLOCK_MIN_MAX 65536

struct remote {
    struct varve_endpoint e; /* first */
    struct nbd_handle *h;    /* NULL: closed */
    uv_work_t connect;
    bool in_pool; /* N2 */
    bool stopping;
    struct varve_err last; /* the latest error that libnbd told of the connection */
    uv_poll_t *poll;       /* of fd; NULL: none */
    int fd;
    uv_timer_t timer;
    uint64_t connect_ms, stall_ms;
    unsigned strikes;  /* times that the timer fired since the last answer */
    unsigned nhandles; /* of the loop's, not closed yet */
    unsigned nasked;   /* commands without an answer */
    uint32_t piece_max;
    bool can_zero;
    TAILQ_HEAD(, varve_endpoint_req) finished; /* N1 */
};

static const char zeroes[PIECE_MAX];

static void remote_settle(struct remote *n);

/* Which function of the library failed is nothing to the user. */
static int failed_call(struct varve_err *err, const char *name)
{
    const char *text = nbd_get_error();
    int code = nbd_get_errno();

    if (!text)
        text = "unknown error";
    if (strncmp(text, "nbd_", 4) == 0 && strstr(text, ": "))
        text = strstr(text, ": ") + 2;
    return varve_err_set(err, code > 0 ? code : EIO, "%.200s: %s", name, text);
}

/* --- the end
 * ---------------------------------------------------------------------------------------- */

static void remote_maybe_gone(struct remote *n)
{
    if (n->stopping && !n->in_pool && n->nhandles == 0)
        varve_endpoint_gone(&n->e);
}

static void remote_on_poll_closed(uv_handle_t *handle)
{
    struct remote *n = handle->data;

    free(handle);
    n->nhandles--;
    remote_maybe_gone(n);
}

static void remote_drop_poll(struct remote *n)
{
    if (!n->poll)
        return;
    uv_poll_stop(n->poll);
    uv_close((uv_handle_t *)n->poll, remote_on_poll_closed);
    n->poll = NULL;
}

static void remote_drop_handle(struct remote *n)
{
    remote_drop_poll(n); /* before its descriptor is somebody else's */
    uv_timer_stop(&n->timer);
    if (!n->h || n->in_pool) /* N2 */
        return;
    nbd_close(n->h);
    n->h = NULL;
}

/* All that runs ends, for this reason.  The first reason stays. */
static void remote_give_up(struct remote *n, const struct varve_err *why)
{
    struct varve_endpoint_req *req;

    remote_drop_handle(n);
    TAILQ_INIT(&n->finished);
    if (!n->e.open)
        varve_endpoint_opened(&n->e, why);
    else if (!n->e.failed.code)
        n->e.failed = *why;
    while ((req = TAILQ_FIRST(&n->e.running))) {
        req->err = *why;
        varve_endpoint_end(&n->e, req, -why->code);
    }
}

static void remote_on_timer_closed(uv_handle_t *handle)
{
    struct remote *n = handle->data;

    n->nhandles--;
    remote_maybe_gone(n);
}

static void remote_stop(struct varve_endpoint *e)
{
    struct remote *n = (struct remote *)e;
    struct varve_err why = VARVE_ERR_INIT;

    n->stopping = true;
    if (n->in_pool)
        uv_cancel((uv_req_t *)&n->connect);
    else if (n->h && nbd_aio_is_ready(n->h) && n->nasked == 0)
        nbd_aio_disconnect(n->h, 0); /* a goodbye, if it can be said at once */
    varve_endpoint_canceled(e, &why);
    remote_give_up(n, &why);
    uv_close((uv_handle_t *)&n->timer, remote_on_timer_closed);
    remote_maybe_gone(n);
}

static void remote_free(struct varve_endpoint *e)
{
    free(e);
}

/* --- time
 * ------------------------------------------------------------------------------------------- */

/* It counts to two: what came while the whole program could not run is looked at in between. */
static void remote_on_timer(uv_timer_t *timer)
{
    struct remote *n = timer->data;
    struct varve_err why = VARVE_ERR_INIT;

    if (++n->strikes < 2)
        return;
    if (!n->e.open)
        varve_err_set(&why, ETIMEDOUT,
                      "%.200s: the server did not shake hands within %" PRIu64
                      " ms (busy with another client?)",
                      n->e.name, n->connect_ms);
    else
        varve_err_set(&why, ETIMEDOUT,
                      "%.200s: the server has not answered any of %u requests for %" PRIu64 " ms",
                      n->e.name, n->nasked, n->stall_ms);
    remote_give_up(n, &why);
}

static void remote_start_timer(struct remote *n, uint64_t ms)
{
    uint64_t half = ms / 2 + 1;

    n->strikes = 0;
    uv_timer_start(&n->timer, remote_on_timer, half, half);
}

/* N3 */
static void remote_asked(struct remote *n)
{
    if (n->nasked++ == 0)
        remote_start_timer(n, n->stall_ms);
}

static void remote_answered(struct remote *n)
{
    if (--n->nasked == 0)
        uv_timer_stop(&n->timer);
    else
        remote_start_timer(n, n->stall_ms);
}

/* --- commands
 * -------------------------------------------------------------------------------------- */

static int remote_on_finished(void *opaque, int *error)
{
    (void)error; /* N4 */
    struct varve_endpoint_req *req = opaque;
    struct remote *n = (struct remote *)req->e;

    TAILQ_INSERT_TAIL(&n->finished, req, turn);
    return 0; /* it stays until it is asked for */
}

static int remote_on_extents(void *opaque, const char *context, uint64_t off, uint32_t *entries,
                             size_t nentries, int *error)
{
    struct varve_endpoint_req *req = opaque;
    uint64_t left = req->len;

    (void)error;
    if (strcmp(context, VARVE_CTX_ALLOCATION) != 0)
        return 0;
    if (off != req->off || req->nextents > 0 || nentries < 2 || req->rc < 0) {
        req->rc = -EPROTO;
        return 0;
    }
    for (size_t i = 0; i + 1 < nentries && left > 0; i += 2) {
        uint64_t len = entries[i] < left ? entries[i] : left;
        unsigned flags = 0;

        if (len == 0) {
            req->rc = -EPROTO;
            return 0;
        }
        if (entries[i + 1] & LIBNBD_STATE_ZERO)
            flags |= VARVE_ENDPOINT_IS_ZERO;
        if (entries[i + 1] & LIBNBD_STATE_HOLE)
            flags |= VARVE_ENDPOINT_IS_HOLE;
        if (!varve_endpoint_add_extent(req, len, flags))
            break;
        left -= len;
    }
    return 0;
}

/* What of the rest of the request is asked now. */
static uint64_t remote_piece(const struct remote *n, const struct varve_endpoint_req *req)
{
    uint64_t left = req->len - req->at, max = n->piece_max;

    if (req->op == VARVE_ENDPOINT_EXTENTS)
        max = ASK_MAX;
    else if (req->op == VARVE_ENDPOINT_ZERO && n->can_zero)
        max = ZERO_MAX;
    return left < max ? left : max;
}

static int64_t remote_command(struct remote *n, struct varve_endpoint_req *req)
{
    nbd_completion_callback done = {.callback = remote_on_finished, .user_data = req};
    nbd_extent_callback extents = {.callback = remote_on_extents, .user_data = req};
    uint64_t off = req->off + req->at;

    switch (req->op) {
    case VARVE_ENDPOINT_READ:
        return nbd_aio_pread(n->h, (char *)req->buf + req->at, req->asked, off, done, 0);
    case VARVE_ENDPOINT_WRITE:
        return nbd_aio_pwrite(n->h, (char *)req->buf + req->at, req->asked, off, done, 0);
    case VARVE_ENDPOINT_ZERO:
        return req->by_zero ? nbd_aio_zero(n->h, req->asked, off, done, 0)
                            : nbd_aio_pwrite(n->h, zeroes, req->asked, off, done, 0);
    case VARVE_ENDPOINT_FLUSH:
        return nbd_aio_flush(n->h, done, 0);
    case VARVE_ENDPOINT_EXTENTS:
        return nbd_aio_block_status(n->h, req->asked, off, extents, done, 0);
    }
    abort();
}

static int req_failed(struct varve_endpoint_req *req, int code)
{
    static const char *const what[] = {
        [VARVE_ENDPOINT_READ] = "reading",          [VARVE_ENDPOINT_WRITE] = "writing",
        [VARVE_ENDPOINT_ZERO] = "zeroing",          [VARVE_ENDPOINT_FLUSH] = "flushing",
        [VARVE_ENDPOINT_EXTENTS] = "the status of",
    };

    if (req->op == VARVE_ENDPOINT_FLUSH)
        return varve_err_sys(&req->err, code, "%.200s: flushing", req->e->name);
    return varve_err_sys(&req->err, code, "%.200s: %s %" PRIu64 " bytes at %" PRIu64, req->e->name,
                         what[req->op], req->asked, req->off + req->at);
}

static void remote_ask(struct remote *n, struct varve_endpoint_req *req)
{
    req->by_zero = req->op == VARVE_ENDPOINT_ZERO && n->can_zero;
    req->asked = remote_piece(n, req);
    req->cookie = remote_command(n, req);
    if (req->cookie >= 0)
        remote_asked(n);
    else
        varve_endpoint_end(&n->e, req, failed_call(&req->err, n->e.name));
}

static void remote_start(struct varve_endpoint *e, struct varve_endpoint_req *req)
{
    struct remote *n = (struct remote *)e;

    if (req->op == VARVE_ENDPOINT_EXTENTS && !e->info.has_extents) {
        varve_endpoint_add_extent(req, req->len, 0);
        varve_endpoint_end(e, req, 0);
        return;
    }
    remote_ask(n, req);
    remote_settle(n);
}

/* One command of the request was answered. */
static void remote_next(struct remote *n, struct varve_endpoint_req *req)
{
    int code =
        nbd_aio_command_completed(n->h, (uint64_t)req->cookie) == 1 ? 0 : nbd_get_errno(); /* N4 */

    if (code == 0 && req->op == VARVE_ENDPOINT_EXTENTS && (req->rc < 0 || req->nextents == 0))
        code = EPROTO;
    if ((code == EOPNOTSUPP || code == ENOTSUP) && req->by_zero) {
        n->can_zero = false; /* it had said that it can */
        remote_ask(n, req);
        return;
    }
    if (code != 0) {
        varve_endpoint_end(&n->e, req, req_failed(req, code > 0 ? code : EIO));
        return;
    }
    req->at += req->asked;
    if (req->op == VARVE_ENDPOINT_FLUSH || req->op == VARVE_ENDPOINT_EXTENTS || req->at == req->len)
        varve_endpoint_end(&n->e, req, 0);
    else
        remote_ask(n, req);
}

/* --- the connection
 * -------------------------------------------------------------------------------- */

static int remote_learn(struct remote *n, bool write, struct varve_err *err)
{
    int64_t size = nbd_get_size(n->h), max = nbd_get_block_size(n->h, LIBNBD_SIZE_MAXIMUM),
            min = nbd_get_block_size(n->h, LIBNBD_SIZE_MINIMUM);

    if (size < 0)
        return failed_call(err, n->e.name);
    if (min <= 0)
        min = 1;
    if (max <= 0 || max > PIECE_MAX)
        max = PIECE_MAX;
    if (min > BLOCK_MIN_MAX || (min & (min - 1)) != 0 || max < min)
        return varve_err_set(err, EPROTO,
                             "%.200s: the server takes requests of %" PRId64 " to %" PRId64
                             " bytes, which makes no sense",
                             n->e.name, min, max);
    if (write && nbd_is_read_only(n->h) != 0)
        return varve_err_set(err, EROFS, "%.200s: the server offers it for reading only",
                             n->e.name);
    if (write && nbd_can_flush(n->h) != 1)
        return varve_err_set(err, ENOTSUP,
                             "%.200s: the server cannot flush, so nobody would know when what is "
                             "written there is durable",
                             n->e.name);
    n->piece_max = (uint32_t)(max - max % min);
    n->can_zero = nbd_can_zero(n->h) == 1;
    n->e.info = (struct varve_endpoint_info){
        .size = (uint64_t)size,
        .block_min = (uint32_t)min,
        .writable = write,
        .has_extents = nbd_can_meta_context(n->h, VARVE_CTX_ALLOCATION) == 1,
        .is_nbd = true,
    };
    return 0;
}

/* The loop looks at the handle's socket as the handle wants it. */
static int remote_watch(struct remote *n, struct varve_err *err);

static void remote_on_poll(uv_poll_t *poll, int status, int events)
{
    struct remote *n = poll->data;
    unsigned direction = nbd_aio_get_direction(n->h);
    int rc = 0;

    /* A handle that connects may change its socket for another one, of the same number. */
    if (!n->e.open)
        remote_drop_poll(n);
    if (status < 0)
        events = UV_READABLE | UV_WRITABLE; /* it finds out what is wrong */
    if ((events & UV_READABLE) && (direction & LIBNBD_AIO_DIRECTION_READ))
        rc = nbd_aio_notify_read(n->h);
    else if ((events & UV_WRITABLE) && (direction & LIBNBD_AIO_DIRECTION_WRITE))
        rc = nbd_aio_notify_write(n->h);
    if (rc < 0)
        failed_call(&n->last, n->e.name);
    remote_settle(n);
}

static int remote_watch(struct remote *n, struct varve_err *err)
{
    unsigned direction = nbd_aio_get_direction(n->h);
    int fd = nbd_aio_get_fd(n->h), rc;
    int events = ((direction & LIBNBD_AIO_DIRECTION_READ) ? UV_READABLE : 0) |
                 ((direction & LIBNBD_AIO_DIRECTION_WRITE) ? UV_WRITABLE : 0);

    if (fd < 0)
        return failed_call(err, n->e.name);
    if (n->poll && n->fd != fd)
        remote_drop_poll(n);
    if (!n->poll) {
        n->poll = malloc(sizeof(*n->poll));
        if (!n->poll)
            return varve_err_set(err, ENOMEM, "no memory for %.200s", n->e.name);
        rc = uv_poll_init(n->e.loop, n->poll, fd);
        if (rc < 0) {
            free(n->poll);
            n->poll = NULL;
            return varve_err_sys(err, -rc, "%.200s: watching its socket", n->e.name);
        }
        n->poll->data = n;
        n->fd = fd;
        n->nhandles++;
    }
    rc = uv_poll_start(n->poll, events, remote_on_poll);
    return rc < 0 ? varve_err_sys(err, -rc, "%.200s: watching its socket", n->e.name) : 0;
}

static bool remote_is_lost(struct remote *n, struct varve_err *why)
{
    if (!nbd_aio_is_dead(n->h) && !nbd_aio_is_closed(n->h))
        return false;
    if (n->last.code)
        *why = n->last;
    else
        varve_err_set(why, ENOTCONN, "%.200s: the server closed the connection", n->e.name);
    return true;
}

/* After whatever libnbd was told: looks what came of it. */
static void remote_settle(struct remote *n)
{
    struct varve_err why = VARVE_ERR_INIT;
    struct varve_endpoint_req *req;
    int rc = 0;

    if (remote_is_lost(n, &why)) {
        remote_give_up(n, &why);
        return;
    }
    while ((req = TAILQ_FIRST(&n->finished))) {
        TAILQ_REMOVE(&n->finished, req, turn);
        remote_answered(n);
        remote_next(n, req);
    }
    if (remote_is_lost(n, &why)) { /* by the next commands */
        remote_give_up(n, &why);
        return;
    }
    if (!n->e.open && nbd_aio_is_ready(n->h)) {
        uv_timer_stop(&n->timer);
        rc = remote_learn(n, n->e.info.writable, &why);
        if (rc == 0)
            rc = remote_watch(n, &why);
        if (rc == 0)
            varve_endpoint_opened(&n->e, NULL);
    } else {
        rc = remote_watch(n, &why);
    }
    if (rc < 0)
        remote_give_up(n, &why);
}

/* In a pool thread, which has the handle (N2). */
static void remote_on_connect(uv_work_t *work)
{
    struct remote *n = work->data;

    if (varve_nbd_uri_check_tls(n->e.name, true, &n->last) == 0 &&
        nbd_aio_connect_uri(n->h, n->e.name) < 0)
        failed_call(&n->last, n->e.name);
}

static void remote_on_connecting(uv_work_t *work, int status)
{
    struct remote *n = work->data;

    (void)status; /* canceled or not: it was given up in any case */
    n->in_pool = false;
    if (n->e.open || n->stopping) { /* given up by now */
        remote_drop_handle(n);
        remote_maybe_gone(n);
    } else if (n->last.code) {
        remote_give_up(n, &n->last);
    } else {
        remote_settle(n);
    }
}

static const struct varve_endpoint_ops remote_ops = {
    .start = remote_start,
    .stop = remote_stop,
    .free = remote_free,
};

/* No transport that runs a command is allowed, and local files are: they are the credentials that
 * whoever may command us names.  Alignment is checked here, but for the end of an odd export, which
 * the server judges. */
static struct nbd_handle *remote_make(const char *uri, struct varve_err *err)
{
    struct nbd_handle *h = nbd_create();

    if (!h) {
        failed_call(err, uri);
        return NULL;
    }
    if (nbd_set_uri_allow_transports(h, LIBNBD_ALLOW_TRANSPORT_TCP | LIBNBD_ALLOW_TRANSPORT_UNIX |
                                            LIBNBD_ALLOW_TRANSPORT_VSOCK) == 0 &&
        nbd_set_uri_allow_local_file(h, true) == 0 &&
        nbd_set_strict_mode(h, nbd_get_strict_mode(h) & ~(uint32_t)LIBNBD_STRICT_ALIGN) == 0 &&
        nbd_add_meta_context(h, VARVE_CTX_ALLOCATION) == 0 &&
        nbd_set_pread_initialize(h, false) == 0)
        return h;
    failed_call(err, uri);
    nbd_close(h);
    return NULL;
}

int varve_endpoint_open_nbd(uv_loop_t *loop, const char *uri,
                            const struct varve_endpoint_options *opts,
                            void (*opened)(void *arg, int rc, const struct varve_err *err),
                            void *arg, struct varve_endpoint **out, struct varve_err *err)
{
    struct remote *n = calloc(1, sizeof(*n));
    struct nbd_handle *h = n ? remote_make(uri, err) : NULL;

    *out = NULL;
    if (!h) {
        free(n);
        return n ? -err->code : varve_err_set(err, ENOMEM, "no memory for %.200s", uri);
    }
    if (varve_endpoint_init(&n->e, &remote_ops, loop, uri, opened, arg, err) < 0) {
        nbd_close(h);
        free(n);
        return -ENOMEM;
    }
    n->h = h;
    n->e.info.writable = opts->write;
    n->connect_ms = opts->connect_ms ? opts->connect_ms : CONNECT_MS;
    n->stall_ms = opts->stall_ms ? opts->stall_ms : STALL_MS;
    TAILQ_INIT(&n->finished);
    uv_timer_init(loop, &n->timer);
    n->timer.data = n;
    n->nhandles = 1;
    remote_start_timer(n, n->connect_ms);
    n->connect.data = n;
    n->in_pool = true;
    uv_queue_work(loop, &n->connect, remote_on_connect, remote_on_connecting);
    *out = &n->e;
    return 0;
}
