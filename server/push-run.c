/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The copy of a push.
 *
 *     file:  in the pool: found and marked ─┐                                  ┌─▶ in the pool:
 * unmarked NBD:                                  ├─▶ both are open ─▶ pieces ─▶ flush ┤ view: ┘ └─▶
 * (NBD: nothing)
 *
 * The cursor goes over what is dirty; what the view calls a hole there becomes zeroes on the
 * target, unless all of that reads as zeroes already (a new file); the rest goes through SLOTS
 * buffers, each read, looked through for zeroes, written.  That is all the memory there is, whoever
 * is slower. What ends it, ends it once; then both are closed, and with them all that was under
 * way.
 */
#include "server/push.h"

#include "server/endpoint-extents.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SLOTS    16u
#define PIECE    (256u * 1024u)
#define ZERO_MAX (UINT64_C(1) << 30) /* at once */
/* Zeroes of this length and alignment within data are kept as such; a multiple of what any endpoint
 * takes as its smallest unit. */
#define ZERO_CHUNK (64u * 1024u)
#define ASK_MAX    (UINT64_C(1) << 30) /* of extents at once */

struct side {
    struct varve_push_run *run;
    struct varve_endpoint *e; /* NULL: not opened, or closed */
    bool open, closed;
};

struct slot {
    struct varve_push_run *run;
    bool busy;
    uint64_t off, len;
    uint64_t at;   /* written up to here */
    uint64_t part; /* is being written now */
    struct varve_endpoint_req req;
    uint8_t *buf;
};

struct varve_push_run {
    struct varve_push *p;
    struct varve_runner *r;
    struct side from, to;
    struct varve_push_target target; /* where it is a file */
    bool is_file;
    uv_work_t work;
    bool in_pool;
    int work_rc;
    struct varve_err work_err;
    uv_timer_t timer;
    bool timer_closed, waiting;

    uint64_t unit;              /* what is dirty counts in these */
    uint64_t cursor, dirty_end; /* [cursor, dirty_end) is dirty and not begun */
    struct varve_extents extents; /* of the view */
    struct varve_endpoint_req flush;
    bool flushing;
    struct slot slots[SLOTS];
    unsigned nbusy;

    bool ending, closing_target;
    int rc;
    struct varve_err err;
};

static void run_tick(struct varve_push_run *run);
static void run_maybe_ended(struct varve_push_run *run);

/* --- the end -------------------------------------------------------------------------------- */

static void side_on_closed(void *arg)
{
    struct side *s = arg;

    s->closed = true;
    run_maybe_ended(s->run);
}

static void side_close(struct side *s)
{
    if (s->e)
        varve_endpoint_close(s->e, side_on_closed, s);
    else
        s->closed = true;
    s->e = NULL;
}

static void run_on_timer_closed(uv_handle_t *handle)
{
    struct varve_push_run *run = handle->data;

    run->timer_closed = true;
    run_maybe_ended(run);
}

/* rc 0: the target is whole.  The first reason counts. */
static void run_end(struct varve_push_run *run, int rc, const struct varve_err *err)
{
    if (run->ending)
        return;
    run->ending = true;
    run->rc = rc;
    if (rc < 0)
        run->err = *err;
    if (run->in_pool)
        uv_cancel((uv_req_t *)&run->work);
    uv_close((uv_handle_t *)&run->timer, run_on_timer_closed);
    side_close(&run->from);
    side_close(&run->to);
    run_maybe_ended(run);
}

static void work_close(uv_work_t *work)
{
    struct varve_push_run *run = work->data;

    varve_push_target_close(&run->target);
}

static void on_target_closed(uv_work_t *work, int status)
{
    struct varve_push_run *run = work->data;

    (void)status; /* nobody cancels it */
    run->in_pool = false;
    run_maybe_ended(run);
}

static void run_maybe_ended(struct varve_push_run *run)
{
    struct varve_runner *r = run->r;
    struct varve_err err = run->err;
    int rc = run->rc;

    if (!run->ending || run->in_pool || !run->timer_closed || !run->from.closed || !run->to.closed)
        return;
    if (run->is_file && !run->closing_target) { /* in the pool: its disk may be slow to let it go */
        run->closing_target = run->in_pool = true;
        uv_queue_work(r->loop, &run->work, work_close, on_target_closed);
        return;
    }
    for (unsigned i = 0; i < SLOTS; i++)
        free(run->slots[i].buf);
    run->p->run = NULL;
    free(run);
    varve_runner_ended(r, rc, &err);
}

void varve_push_stop(struct varve_runner *r)
{
    struct varve_push *p = r->work;
    struct varve_err err = VARVE_ERR_INIT;

    varve_err_set(&err, ECANCELED, "stopped");
    if (p->run)
        run_end(p->run, -ECANCELED, &err);
}

/* --- the last steps ------------------------------------------------------------------------- */

static void work_finish(uv_work_t *work)
{
    struct varve_push_run *run = work->data;

    run->work_rc = varve_push_target_finish(&run->target, &run->work_err);
}

static void on_finished(uv_work_t *work, int status)
{
    struct varve_push_run *run = work->data;

    run->in_pool = false;
    if (status < 0)
        run->work_rc = status; /* it was ended before that began */
    run_end(run, run->work_rc, &run->work_err);
    run_maybe_ended(run);
}

static void on_flushed(struct varve_endpoint_req *req)
{
    struct varve_push_run *run =
        (struct varve_push_run *)((char *)req - offsetof(struct varve_push_run, flush));

    if (req->rc < 0 || run->ending || !run->is_file) {
        run_end(run, req->rc, &req->err);
        return;
    }
    run->in_pool = true;
    uv_queue_work(run->r->loop, &run->work, work_finish, on_finished);
}

static void run_flush(struct varve_push_run *run)
{
    struct varve_err err = VARVE_ERR_INIT;
    int rc;

    run->flushing = true;
    run->flush = (struct varve_endpoint_req){.op = VARVE_ENDPOINT_FLUSH, .done = on_flushed};
    rc = varve_endpoint_submit(run->to.e, &run->flush, &err);
    if (rc < 0)
        run_end(run, rc, &err);
}

/* --- pieces --------------------------------------------------------------------------------- */

static bool is_zero(const uint8_t *p, size_t len)
{
    return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

static void slot_submit(struct slot *s, struct varve_endpoint *e)
{
    struct varve_err err = VARVE_ERR_INIT;
    int rc = varve_endpoint_submit(e, &s->req, &err);

    if (rc < 0)
        run_end(s->run, rc, &err);
}

static void slot_done(struct slot *s)
{
    struct varve_push_run *run = s->run;

    s->busy = false;
    run->nbusy--;
    run->r->current += s->len;
    run_tick(run);
}

static void slot_write(struct slot *s);

static void on_written(struct varve_endpoint_req *req)
{
    struct slot *s = (struct slot *)((char *)req - offsetof(struct slot, req));

    if (s->run->ending)
        return;
    if (req->rc < 0) {
        run_end(s->run, req->rc, &req->err);
        return;
    }
    s->at += s->part;
    slot_write(s);
}

/* The chunk of the buffer that begins at `at`. */
static uint64_t chunk_len(const struct slot *s, uint64_t at)
{
    uint64_t len = ZERO_CHUNK - (s->off + at) % ZERO_CHUNK;

    return len < s->len - at ? len : s->len - at;
}

/* Where the chunks that are alike from `at` on end. */
static uint64_t part_end(const struct slot *s, uint64_t at, bool *zero)
{
    uint64_t end = at + chunk_len(s, at);

    *zero = is_zero(s->buf + at, (size_t)(end - at));
    while (end < s->len && is_zero(s->buf + end, (size_t)chunk_len(s, end)) == *zero)
        end += chunk_len(s, end);
    return end;
}

/* What was read goes to the target, a part at a time. */
static void slot_write(struct slot *s)
{
    struct varve_push_run *run = s->run;
    bool zero;

    while (s->at < s->len) {
        s->part = part_end(s, s->at, &zero) - s->at;
        if (!zero || !run->target.fresh) {
            s->req =
                (struct varve_endpoint_req){.op = zero ? VARVE_ENDPOINT_ZERO : VARVE_ENDPOINT_WRITE,
                                            .off = s->off + s->at,
                                            .len = s->part,
                                            .buf = s->buf + s->at,
                                            .done = on_written};
            slot_submit(s, run->to.e);
            return;
        }
        s->at += s->part;
    }
    slot_done(s);
}

static void on_read(struct varve_endpoint_req *req)
{
    struct slot *s = (struct slot *)((char *)req - offsetof(struct slot, req));

    if (s->run->ending)
        return;
    if (req->rc < 0)
        run_end(s->run, req->rc, &req->err);
    else
        slot_write(s);
}

/* [off, off+len) is copied, or becomes zeroes. */
static void slot_begin(struct slot *s, uint64_t off, uint64_t len, bool zero)
{
    struct varve_push_run *run = s->run;

    s->busy = true;
    run->nbusy++;
    s->off = off;
    s->len = s->part = len;
    s->at = 0;
    s->req = (struct varve_endpoint_req){
        .op = VARVE_ENDPOINT_READ, .off = off, .len = len, .buf = s->buf, .done = on_read};
    if (!zero) {
        slot_submit(s, run->from.e);
        return;
    }
    s->req.op = VARVE_ENDPOINT_ZERO;
    s->req.done = on_written;
    slot_submit(s, run->to.e);
}

/* --- what is next --------------------------------------------------------------------------- */

/* The next run of dirty units; false: there is none. */
static bool next_dirty(struct varve_push_run *run)
{
    const struct varve_geometry *g = &run->p->g;
    struct varve_changed *changed = &run->p->changed;
    uint64_t blk = run->cursor >> g->shift, from, to, end;

    if (!varve_changed_run(changed, blk, g->nblks, &end)) {
        blk = end;
        if (blk < g->nblks)
            varve_changed_run(changed, blk, g->nblks, &end);
    }
    if (blk == g->nblks) {
        run->cursor = g->size;
        return false;
    }
    from = blk << g->shift;
    from -= from % run->unit;
    to = varve_block_end(g, end - 1);
    to = to > g->size - run->unit ? to : to + (run->unit - to % run->unit) % run->unit;
    run->cursor = from > run->cursor ? from : run->cursor;
    run->dirty_end = to < g->size ? to : g->size;
    return true;
}

static void on_extents(struct varve_extents *x, int rc, const struct varve_err *err)
{
    struct varve_push_run *run =
        (struct varve_push_run *)((char *)x - offsetof(struct varve_push_run, extents));

    if (run->ending)
        return;
    if (rc < 0)
        run_end(run, rc, err);
    else
        run_tick(run);
}

/* True: the run of the view from the cursor on ends at *end.  False: it was asked for. */
static bool next_extent(struct varve_push_run *run, uint64_t *end, bool *zero)
{
    struct varve_err err = VARVE_ERR_INIT;
    int rc = varve_extents_at(&run->extents, run->from.e, run->cursor, run->p->g.size, end, zero,
                              &err);

    if (rc < 0)
        run_end(run, rc, &err);
    return rc > 0;
}

static void run_on_timer(uv_timer_t *timer)
{
    struct varve_push_run *run = timer->data;

    run->waiting = false;
    run_tick(run);
}

static void run_wait(struct varve_push_run *run, unsigned ms)
{
    run->waiting = true;
    uv_timer_start(&run->timer, run_on_timer, ms, 0);
}

static struct slot *slot_free(struct varve_push_run *run)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        if (!run->slots[i].busy)
            return &run->slots[i];
    }
    return NULL;
}

/* False: there is nothing to do for now. */
static bool run_step(struct varve_push_run *run)
{
    struct slot *s = slot_free(run);
    uint64_t end, most, off = run->cursor;
    unsigned ms;
    bool zero;

    if (!s || run->waiting || run->ending)
        return false;
    if (run->cursor >= run->dirty_end && (run->cursor >= run->p->g.size || !next_dirty(run)))
        return false;
    if (!next_extent(run, &end, &zero))
        return false;
    off = run->cursor;
    most = zero ? ZERO_MAX : PIECE - off % PIECE;
    if (end > run->dirty_end)
        end = run->dirty_end;
    if (end - off > most)
        end = off + most;
    if (zero && run->target.fresh) {
        run->cursor = end;
        run->r->current += end - off;
        return true;
    }
    ms = zero ? 0 : varve_runner_pace(run->r, end - off);
    if (ms > 0) {
        run_wait(run, ms);
        return false;
    }
    run->cursor = end;
    slot_begin(s, off, end - off, zero);
    return true;
}

static void run_tick(struct varve_push_run *run)
{
    unsigned ms = varve_runner_pause(run->r);

    if (ms > 0) {
        if (!run->waiting && !run->ending)
            run_wait(run, ms);
        return;
    }
    while (run_step(run))
        ;
    if (!run->ending && !run->flushing && run->cursor >= run->p->g.size && run->nbusy == 0)
        run_flush(run);
}

/* --- the beginning -------------------------------------------------------------------------- */

static int run_check(struct varve_push_run *run, struct varve_err *err)
{
    const struct varve_endpoint_info *to = varve_endpoint_info(run->to.e);
    const struct varve_push *p = run->p;

    if (to->size != p->g.size)
        return varve_err_set(err, EINVAL,
                             "%.200s has %" PRIu64 " bytes and disk '%s' %" PRIu64
                             ": a target has to be as large as the disk",
                             p->where, to->size, p->want.disk, p->g.size);
    run->unit = varve_block_size(&p->g);
    if (run->unit < to->block_min)
        run->unit = to->block_min;
    return 0;
}

static void side_on_opened(void *arg, int rc, const struct varve_err *err)
{
    struct side *s = arg;
    struct varve_push_run *run = s->run;
    struct varve_err mine = VARVE_ERR_INIT;

    if (run->ending)
        return;
    if (rc < 0) {
        run_end(run, rc, err);
        return;
    }
    s->open = true;
    if (!run->from.open || !run->to.open)
        return;
    rc = run_check(run, &mine);
    if (rc < 0)
        run_end(run, rc, &mine);
    else
        run_tick(run);
}

static void work_prepare(uv_work_t *work)
{
    struct varve_push_run *run = work->data;

    run->work_rc = varve_push_target_open(&run->target, &run->p->want, &run->work_err);
    if (run->work_rc == 0)
        run->work_rc = varve_push_target_begin(&run->target, &run->p->want, &run->work_err);
}

static void run_open_file(struct varve_push_run *run)
{
    struct varve_endpoint_options opts = {.write = true};
    struct varve_err err = VARVE_ERR_INIT;
    int fd = fcntl(run->target.fd, F_DUPFD_CLOEXEC, 0), rc;

    if (fd < 0)
        rc = varve_err_sys(&err, errno, "%.200s", run->p->where);
    else
        rc = varve_endpoint_open_fd(run->r->loop, run->p->where, fd, &opts, side_on_opened,
                                    &run->to, &run->to.e, &err);
    if (rc < 0)
        run_end(run, rc, &err);
}

static void on_prepared(uv_work_t *work, int status)
{
    struct varve_push_run *run = work->data;

    run->in_pool = false;
    if (run->ending || status < 0)
        run_maybe_ended(run);
    else if (run->work_rc < 0)
        run_end(run, run->work_rc, &run->work_err);
    else
        run_open_file(run);
}

static int run_open(struct varve_push_run *run, struct varve_err *err)
{
    struct varve_endpoint_options opts = {.write = true};
    int rc = varve_endpoint_open_view(run->r->loop, run->p->view, side_on_opened, &run->from,
                                      &run->from.e, err);

    if (rc < 0)
        return rc;
    for (unsigned i = 0; i < SLOTS; i++) {
        run->slots[i].run = run;
        run->slots[i].buf = malloc(PIECE);
        if (!run->slots[i].buf)
            return varve_err_set(err, ENOMEM, "no memory for a copy");
    }
    run->is_file = !varve_endpoint_is_uri(run->p->where);
    if (!run->is_file)
        return varve_endpoint_open(run->r->loop, run->p->where, &opts, side_on_opened, &run->to,
                                   &run->to.e, err);
    run->target.fd = run->target.dir = -1;
    run->in_pool = true;
    uv_queue_work(run->r->loop, &run->work, work_prepare, on_prepared);
    return 0;
}

void varve_push_run(struct varve_runner *r)
{
    struct varve_push *p = r->work;
    struct varve_push_run *run = calloc(1, sizeof(*run));
    struct varve_err err = VARVE_ERR_INIT;
    int rc;

    if (!run) {
        varve_runner_ended(r, varve_err_set(&err, ENOMEM, "no memory for a copy"), &err);
        return;
    }
    run->p = p;
    run->r = r;
    run->from.run = run->to.run = run;
    run->extents.ask_max = ASK_MAX;
    run->extents.answered = on_extents;
    run->work.data = run;
    p->run = run;
    uv_timer_init(r->loop, &run->timer);
    run->timer.data = run;
    rc = run_open(run, &err);
    if (rc < 0)
        run_end(run, rc, &err);
}
