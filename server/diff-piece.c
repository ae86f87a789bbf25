/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One piece of a comparison: the reference is read by its endpoint, then a thread of the pool reads
 * the image, compares, and notes the blocks that differ; the loop puts these into the map.  After a
 * read error, if that is wanted, the piece is gone through once more unit by unit, so that no more
 * than what is bad counts as different.
 */
#include "server/diff-internal.h"

#include "server/log.h"
#include "lib/quiet-io.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Threads of the pool that one comparison may have: they serve the daemon's NBD clients too. */
#define WORKS_MAX 2u

#define READ_MAX (128u * 1024u) /* of the image at once: what a CPU's cache has room for */

static void slot_read(struct varve_diff_slot *s);

/* The part was dealt with: the next one, or the piece is done. */
static void slot_next(struct varve_diff_slot *s)
{
    s->at += s->len;
    if (s->at == s->end || s->run->ending)
        varve_diff_piece_done(s);
    else
        slot_read(s);
}

static void slot_mark(struct varve_diff_slot *s, uint64_t off, uint64_t len)
{
    const struct varve_geometry *g = &s->run->g;

    varve_bitmap_set(s->run->diff->map, off >> g->shift, ((off + len - 1) >> g->shift) + 1);
}

/* Of a medium, not of a peer that is gone or of ourselves. */
static bool is_read_error(int rc)
{
    return rc == -EIO || rc == -ENODATA || rc == -EILSEQ || rc == -EBADMSG || rc == -EUCLEAN;
}

/* The part could not be read from one of the sides. */
static void slot_fail(struct varve_diff_slot *s, int rc, const struct varve_err *err)
{
    struct varve_diff_run *run = s->run;

    if (run->ending) {
        varve_diff_piece_done(s);
        return;
    }
    if (!run->diff->dirty_on_error || !is_read_error(rc)) {
        varve_diff_end(run, rc, err);
        varve_diff_piece_done(s);
        return;
    }
    if (s->len > run->unit) { /* once more, unit by unit: only what is bad is to be marked */
        s->len = run->unit;
        slot_read(s);
        return;
    }
    if (run->diff->unreadable == 0)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .job = run->r->id),
                        "Job '%s': %s; it counts as different", run->r->id, err->msg);
    run->diff->unreadable += s->len;
    slot_mark(s, s->at, s->len);
    slot_next(s);
}

/* --- in the pool ---------------------------------------------------------------------------- */

static bool all_zero(const uint8_t *buf, size_t len)
{
    return len == 0 || (buf[0] == 0 && memcmp(buf, buf + 1, len - 1) == 0);
}

/* theirs NULL: zeroes. */
static void compare(struct varve_diff_slot *s, uint64_t off, const uint8_t *ours,
                    const uint8_t *theirs, size_t len)
{
    const struct varve_geometry *g = &s->run->g;
    uint64_t first = s->at >> g->shift;

    if (theirs ? memcmp(ours, theirs, len) == 0 : all_zero(ours, len))
        return;
    for (size_t at = 0, n; at < len; at += n) {
        uint64_t blk = (off + at) >> g->shift;

        n = (size_t)(varve_block_end(g, blk) - (off + at));
        if (n > len - at)
            n = len - at;
        if (theirs ? memcmp(ours + at, theirs + at, n) != 0 : !all_zero(ours + at, n))
            s->differs[(blk - first) / 8] |= (uint8_t)(1u << ((blk - first) % 8));
    }
}

static void slot_work(uv_work_t *work)
{
    struct varve_diff_slot *s = work->data;
    struct varve_diff *diff = s->run->diff;
    static const uint8_t zeroes[READ_MAX];
    uint8_t ours[READ_MAX];

    memset(s->differs, 0, sizeof(s->differs));
    s->rc = 0;
    for (uint64_t at = 0; at < s->len; at += READ_MAX) {
        size_t n = s->len - at < READ_MAX ? (size_t)(s->len - at) : READ_MAX;
        const uint8_t *theirs = s->zero ? NULL : s->buf + at;
        ssize_t got;

        if (s->image_zero) {
            compare(s, s->at + at, zeroes, theirs, n);
            continue;
        }
        got = varve_quiet_pread(diff->image_fd, ours, n, s->at + at);
        if (got >= 0 && (size_t)got < n)
            memset(ours + got, 0,
                   n - (size_t)got); /* a file that was cut short: its end is a hole */
        if (got < 0) {
            s->rc =
                varve_err_sys(&s->err, (int)-got, "Disk '%s': cannot read its image at %" PRIu64,
                              diff->disk->name, s->at + at);
            return;
        }
        compare(s, s->at + at, ours, theirs, n);
    }
}

static void slot_worked(uv_work_t *work, int status);

static void turns(struct varve_diff_run *run)
{
    struct varve_diff_slot *s;

    while ((run->ending || run->nworks < WORKS_MAX) && (s = TAILQ_FIRST(&run->queue))) {
        TAILQ_REMOVE(&run->queue, s, turn);
        if (run->ending) {
            varve_diff_piece_done(s);
            continue;
        }
        run->nworks++;
        s->work.data = s;
        uv_queue_work(run->r->loop, &s->work, slot_work, slot_worked);
    }
}

static void slot_worked(uv_work_t *work, int status)
{
    struct varve_diff_slot *s = work->data;
    const struct varve_geometry *g = &s->run->g;
    uint64_t first = s->at >> g->shift, n = ((s->at + s->len - 1) >> g->shift) + 1 - first;

    assert(status == 0);
    s->run->nworks--;
    turns(s->run); /* nothing is freed by that: this one is busy still */
    if (s->rc < 0) {
        slot_fail(s, s->rc, &s->err);
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        if (s->differs[i / 8] >> (i % 8) & 1)
            varve_bitmap_set(s->run->diff->map, first + i, first + i + 1);
    }
    slot_next(s);
}

static void slot_compare(struct varve_diff_slot *s)
{
    TAILQ_INSERT_TAIL(&s->run->queue, s, turn);
    turns(s->run);
}

static void on_reference_read(struct varve_endpoint_req *req)
{
    struct varve_diff_slot *s =
        (struct varve_diff_slot *)((char *)req - offsetof(struct varve_diff_slot, req));

    if (req->rc < 0 || s->run->ending)
        slot_fail(s, req->rc, &req->err);
    else
        slot_compare(s);
}

static void slot_read(struct varve_diff_slot *s)
{
    struct varve_err err = VARVE_ERR_INIT;
    int rc;

    if (s->len > s->end - s->at)
        s->len = s->end - s->at;
    if (s->zero) {
        slot_compare(s);
        return;
    }
    s->req = (struct varve_endpoint_req){.op = VARVE_ENDPOINT_READ,
                                         .off = s->at,
                                         .len = s->len,
                                         .buf = s->buf,
                                         .done = on_reference_read};
    rc = varve_endpoint_submit(s->run->reference.e, &s->req, &err);
    if (rc < 0) {
        varve_diff_end(s->run, rc, &err);
        varve_diff_piece_done(s);
    }
}

int varve_diff_piece_begin(struct varve_diff_slot *s, struct varve_diff_run *run, uint64_t end,
                           bool image_zero, bool zero)
{
    if (!s->buf)
        s->buf = malloc(VARVE_DIFF_PIECE > run->unit ? VARVE_DIFF_PIECE : run->unit);
    if (!s->buf)
        return -ENOMEM;
    s->run = run;
    s->busy = true;
    run->nbusy++;
    s->off = s->at = run->cursor;
    s->end = end;
    s->len = end - s->off;
    s->image_zero = image_zero;
    s->zero = zero;
    run->cursor = end;
    slot_read(s);
    return 0;
}
