/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The comparison of a disk with its reference.
 *
 *     open both ─▶ extents of both ─▶ pieces ─▶ slots: read the reference (endpoint), then in the
 * pool ▲   (holes on both sides are skipped)      read the image and compare ─▶ map └──────────
 * until the end ◀────────────────────────┘ close both, and the job has ended
 *
 * At most VARVE_DIFF_SLOTS pieces are under way, and that is all the memory there is.  Extents of
 * either side are asked for as the cursor comes to them.  The image is read through a description
 * of our own, in pieces that are short (edges.md 20: file systems lock out writers while a cold one
 * is read), and nothing of it stays in the page cache that was not there before (quiet-io.h).
 *
 * What a peer says is believed so far: that a range is zeroes only with the flag that says so
 * (edges.md 16); its extents are cut to whole units, what is left counts as data.
 */
#include "server/diff-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#define SAVE_NS     UINT64_C(1000000000)  /* after that what was found is saved first, */
#define SAVE_MAX_NS UINT64_C(60000000000) /* then at longer and longer intervals up to this */
#define ASK_MAX     (UINT64_C(64) << 30)  /* of extents at once */

static void run_tick(struct varve_diff_run *run);

/* --- the end -------------------------------------------------------------------------------- */

static void on_side_closed(void *arg)
{
    struct varve_diff_side *s = arg;

    s->closed = true;
    varve_diff_maybe_ended(s->run);
}

static void side_close(struct varve_diff_side *s)
{
    if (s->e)
        varve_endpoint_close(s->e, on_side_closed, s);
    else
        s->closed = true;
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct varve_diff_run *run = handle->data;

    run->timer_closed = true;
    varve_diff_maybe_ended(run);
}

/* With rc 0: everything was compared.  The first reason counts. */
void varve_diff_end(struct varve_diff_run *run, int rc, const struct varve_err *err)
{
    if (run->ending)
        return;
    run->ending = true;
    run->rc = rc;
    if (rc < 0)
        run->err = *err;
    uv_close((uv_handle_t *)&run->timer, on_timer_closed);
    if (run->looking)
        uv_cancel((uv_req_t *)&run->look);
    side_close(&run->image);
    side_close(&run->reference);
    varve_diff_maybe_ended(run);
}

void varve_diff_maybe_ended(struct varve_diff_run *run)
{
    struct varve_diff *diff = run->diff;
    struct varve_err err = run->err;
    int rc = run->rc;

    if (!run->ending || !run->image.closed || !run->reference.closed || !run->timer_closed ||
        run->nbusy > 0 || run->looking)
        return;
    for (unsigned i = 0; i < VARVE_DIFF_SLOTS; i++)
        free(run->slots[i].buf);
    diff->run = NULL;
    free(run);
    varve_runner_ended(diff->runner, rc, &err);
}

void varve_diff_stop(struct varve_runner *r)
{
    struct varve_diff *diff = r->work;
    struct varve_err err = VARVE_ERR_INIT;

    varve_diff_end(diff->run, varve_err_set(&err, ECANCELED, "cancelled"), &err);
}

/* --- saving where it is --------------------------------------------------------------------- */

struct save {
    struct varve_job job;
    struct varve_runner *runner;
    uint64_t current;
    struct varve_bitmap *map;
};

/* On the clerk's thread; the runner's end comes behind it. */
static void save_job(struct varve_job *job, bool stopping)
{
    struct save *s = (struct save *)job;

    if (!stopping)
        varve_jobs_save(s->runner, s->current, s->map,
                        ((struct varve_diff *)s->runner->work)->proof);
    free(s->map);
    free(s);
}

/* Everything before it was compared. */
static uint64_t run_watermark(const struct varve_diff_run *run)
{
    uint64_t low = run->cursor;

    for (unsigned i = 0; i < VARVE_DIFF_SLOTS; i++) {
        if (run->slots[i].busy && run->slots[i].off < low)
            low = run->slots[i].off;
    }
    return low - low % varve_block_size(&run->g);
}

static void run_maybe_save(struct varve_diff_run *run)
{
    struct varve_diff *diff = run->diff;
    uint64_t now = uv_hrtime();
    struct save *s;

    if (!run->provable || run->ending || now - run->saved_ns < run->save_interval_ns)
        return;
    run->saved_ns = now;
    if (run->save_interval_ns < SAVE_MAX_NS)
        run->save_interval_ns *= 2;
    s = calloc(1, sizeof(*s));
    if (s)
        s->map = varve_bitmap_new(run->g.nblks);
    if (!s || !s->map) { /* another time */
        free(s);
        return;
    }
    varve_bitmap_or(s->map, diff->map);
    s->runner = run->r;
    s->current = run_watermark(run);
    s->job.run = save_job;
    varve_clerk_post(run->r->daemon->clerk, &s->job);
}

static void run_progress(struct varve_diff_run *run, uint64_t bytes)
{
    run->done += bytes;
    run->r->current = run->done;
}

void varve_diff_piece_done(struct varve_diff_slot *s)
{
    struct varve_diff_run *run = s->run;

    s->busy = false;
    run->nbusy--;
    if (run->ending) {
        varve_diff_maybe_ended(run);
        return;
    }
    run_progress(run, s->end - s->off);
    run_maybe_save(run);
    run_tick(run);
}

/* --- extents -------------------------------------------------------------------------------- */

static void on_extents(struct varve_extents *x, int rc, const struct varve_err *err)
{
    struct varve_diff_run *run =
        ((struct varve_diff_side *)((char *)x - offsetof(struct varve_diff_side, extents)))->run;

    if (run->ending)
        return;
    if (rc < 0)
        varve_diff_end(run, rc, err);
    else
        run_tick(run);
}

/* 1: the side's run from the cursor on is known, it is [cursor, *end).  0: it was asked for. */
static int side_run(struct varve_diff_side *s, uint64_t *end, bool *zero, struct varve_err *err)
{
    return varve_extents_at(&s->extents, s->e, s->run->cursor, s->run->end, end, zero, err);
}

/* --- what is next --------------------------------------------------------------------------- */

static void on_timer(uv_timer_t *timer)
{
    struct varve_diff_run *run = timer->data;

    run->waiting = false;
    run_tick(run);
}

static void run_wait(struct varve_diff_run *run, unsigned ms)
{
    run->waiting = true;
    uv_timer_start(&run->timer, on_timer, ms, 0);
}

static struct varve_diff_slot *free_slot(struct varve_diff_run *run)
{
    for (unsigned i = 0; i < VARVE_DIFF_SLOTS; i++) {
        if (!run->slots[i].busy)
            return &run->slots[i];
    }
    return NULL;
}

/* [cursor, *end) is one piece of data, or a hole on both sides; 0: it is not known yet. */
static int next_piece(struct varve_diff_run *run, uint64_t *end, bool *image_zero, bool *zero,
                      struct varve_err *err)
{
    uint64_t image_end, reference_end, most;
    int rc = side_run(&run->image, &image_end, image_zero, err), other;

    if (rc < 0)
        return rc;
    other = side_run(&run->reference, &reference_end, zero, err); /* both may be asked at once */
    if (other <= 0 || rc == 0)
        return other < 0 ? other : 0;
    *end = image_end < reference_end ? image_end : reference_end;
    if (*end < run->end)
        *end -= *end % run->unit;
    if (*end > run->cursor && *image_zero && *zero)
        return 1;
    if (*end <= run->cursor) { /* the unit is of this and of that */
        *image_zero = *zero = false;
        *end = run->cursor + run->unit;
    }
    most = VARVE_DIFF_PIECE > run->unit ? VARVE_DIFF_PIECE : run->unit;
    if (*end - run->cursor > most)
        *end = run->cursor + most;
    if (*end > run->end)
        *end = run->end;
    return 1;
}

/* False: there is nothing to do for now. */
static bool run_step(struct varve_diff_run *run)
{
    struct varve_diff_slot *s = free_slot(run);
    struct varve_err err = VARVE_ERR_INIT;
    bool image_zero, zero;
    uint64_t end;
    unsigned ms;
    int rc;

    if (!s || run->waiting || run->ending || run->cursor == run->end)
        return false;
    rc = next_piece(run, &end, &image_zero, &zero, &err);
    if (rc < 0)
        varve_diff_end(run, rc, &err);
    if (rc <= 0)
        return false;
    if (image_zero && zero) {
        run_progress(run, end - run->cursor);
        run->cursor = end;
        return true;
    }
    ms = varve_runner_pace(run->r, end - run->cursor);
    if (ms > 0) {
        run_wait(run, ms);
        return false;
    }
    if (varve_diff_piece_begin(s, run, end, image_zero, zero) < 0) {
        varve_diff_end(run, varve_err_set(&err, ENOMEM, "no memory for a comparison"), &err);
        return false;
    }
    return true;
}

static void run_well(struct varve_diff_run *run)
{
    struct varve_err none = VARVE_ERR_INIT;

    varve_diff_end(run, 0, &none);
}

static void run_tick(struct varve_diff_run *run)
{
    unsigned ms = varve_runner_pause(run->r);

    if (ms > 0) {
        if (!run->waiting && !run->ending)
            run_wait(run, ms);
        return;
    }
    while (run_step(run))
        ;
    if (!run->ending && run->cursor == run->end && run->nbusy == 0)
        varve_diff_look(run, true, run_well);
}

/* --- the beginning -------------------------------------------------------------------------- */

static int check_sizes(struct varve_diff_run *run, struct varve_err *err)
{
    const struct varve_endpoint_info *image = varve_endpoint_info(run->image.e);
    const struct varve_endpoint_info *reference = varve_endpoint_info(run->reference.e);
    const struct varve_diff *diff = run->diff;

    if (reference->size != run->g.size && !diff->resize)
        return varve_err_set(err, EINVAL,
                             "Disk '%s' has %" PRIu64 " bytes, reference %.200s has %" PRIu64
                             ": with \"resize\": true what it does not have counts as different",
                             diff->disk->name, run->g.size, varve_endpoint_name(run->reference.e),
                             reference->size);
    run->end = reference->size < run->g.size ? reference->size : run->g.size;
    if (run->end < run->g.size)
        varve_bitmap_set(diff->map, run->end >> run->g.shift, run->g.nblks);
    run->unit = varve_block_size(&run->g);
    if (run->unit < image->block_min)
        run->unit = image->block_min;
    if (run->unit < reference->block_min)
        run->unit = reference->block_min;
    if (image->size < run->end)
        return varve_err_set(err, EINVAL,
                             "Disk '%s': its image has %" PRIu64 " bytes instead of %" PRIu64,
                             diff->disk->name, image->size, run->g.size);
    return 0;
}

static void on_opened(void *arg, int rc, const struct varve_err *err)
{
    struct varve_diff_side *s = arg;
    struct varve_diff_run *run = s->run;
    struct varve_err mine = VARVE_ERR_INIT;

    if (run->ending)
        return;
    if (rc < 0) {
        varve_diff_end(run, rc, err);
        return;
    }
    s->open = true;
    if (!run->image.open || !run->reference.open)
        return;
    rc = check_sizes(run, &mine);
    if (rc < 0) {
        varve_diff_end(run, rc, &mine);
        return;
    }
    run->cursor = run->diff->from - run->diff->from % run->unit;
    if (run->cursor > run->end)
        run->cursor = run->end;
    run->done = run->cursor;
    run->r->current = run->done;
    run->r->total = run->end;
    run->saved_ns = uv_hrtime();
    run->save_interval_ns = SAVE_NS;
    run_tick(run);
}

static int open_sides(struct varve_diff_run *run, struct varve_err *err)
{
    struct varve_diff *diff = run->diff;
    int fd = fcntl(diff->image_fd, F_DUPFD_CLOEXEC, 0), rc;

    if (fd < 0)
        return varve_err_sys(err, errno, "Disk '%s': cannot open its image", diff->disk->name);
    rc = varve_endpoint_open_fd(run->r->loop, diff->disk->identity.image, fd, NULL, on_opened,
                                &run->image, &run->image.e, err);
    return rc < 0 ? rc
                  : varve_endpoint_open(run->r->loop, diff->reference, NULL, on_opened,
                                        &run->reference, &run->reference.e, err);
}

static void run_open(struct varve_diff_run *run)
{
    struct varve_err err = VARVE_ERR_INIT;
    int rc = open_sides(run, &err);

    if (rc < 0)
        varve_diff_end(run, rc, &err);
}

void varve_diff_run(struct varve_runner *r)
{
    struct varve_diff *diff = r->work;
    struct varve_diff_run *run = calloc(1, sizeof(*run));
    struct varve_err err = VARVE_ERR_INIT;

    if (!run) {
        varve_runner_ended(r, varve_err_set(&err, ENOMEM, "no memory for a comparison"), &err);
        return;
    }
    run->diff = diff;
    run->r = r;
    run->g = diff->disk->identity.geometry;
    run->image.run = run->reference.run = run;
    run->image.extents.ask_max = run->reference.extents.ask_max = ASK_MAX;
    run->image.extents.answered = run->reference.extents.answered = on_extents;
    diff->run = run;
    TAILQ_INIT(&run->queue);
    uv_timer_init(r->loop, &run->timer);
    run->timer.data = run;
    varve_diff_look(run, false, run_open);
}
