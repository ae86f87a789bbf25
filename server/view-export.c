/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is told of a block, by allocation (of its 64 KiB unit) and changes:
 *
 *                      data    hole, clean    hole, dirty
 *  base:allocation     0       HOLE|ZERO      ZERO         virtnbdbackup skips "dirty and hole"
 *  qemu:dirty-bitmap   0 or 1  0              1            virtnbdbackup asserts 0 or 1
 *  varve:changes       0 or 1  0              3            bit 1: it reads as zeroes
 *  delta's allocation  HOLE|ZERO where clean, else 0, zeroes or not
 *
 * varve:lost is of its own: 1 where reads fail, because a preimage could not be kept, was released,
 * or was not to be kept.
 */
#include "server/view-export.h"

#include "lib/bitmap.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STATE_HOLE 1u
#define STATE_ZERO 2u

#define PREFERRED_MIN UINT64_C(4096)

#define CHANGES_DIRTY 1u
#define CHANGES_ZERO  2u

enum { CTX_ALLOCATION, CTX_DIRTY, CTX_CHANGES, CTX_LOST };

static struct varve_view_export *of(struct varve_export *e)
{
    return (struct varve_view_export *)e;
}

static int view_export_read(struct varve_export *e, void *buf, uint64_t off, uint32_t len,
                            uint64_t *bad_off, struct varve_err *err)
{
    return varve_served_view_read(of(e)->view, buf, off, len, bad_off, err);
}

static int view_export_read_now(struct varve_export *e, void *buf, uint64_t off, uint32_t len)
{
    return varve_served_view_read_now(of(e)->view, buf, off, len);
}

static void view_export_read_failed(struct varve_export *e, uint64_t off, uint64_t len)
{
    varve_failed_reads_note(of(e)->view->failed, off, len);
}

static int view_export_release(struct varve_export *e, uint64_t off, uint64_t len,
                               struct varve_err *err)
{
    return varve_served_view_release(of(e)->view, off, len, err);
}

/* Whether the block at off is dirty, and where in (off, end] that changes. */
static bool dirty_run(const struct varve_geometry *g, struct varve_changed *changed, uint64_t off,
                      uint64_t end, uint64_t *run_end)
{
    uint64_t last = ((end - 1) >> g->shift) + 1, to;
    bool dirty = varve_changed_run(changed, off >> g->shift, last, &to);

    *run_end = end;
    if (to < last)
        *run_end = to << g->shift;
    return dirty;
}

/* Flags at off, which lies in a run of `dirty` blocks up to end; uniform up to *run_end.
 * Negative: -errno. */
static int status_run(struct varve_view_export *x, unsigned ctx, bool dirty, uint64_t off,
                      uint64_t end, uint64_t *run_end, struct varve_err *err)
{
    int hole;

    *run_end = end;
    if (x->delta)
        return dirty ? 0 : (int)(STATE_HOLE | STATE_ZERO);
    if (ctx == CTX_DIRTY || (ctx == CTX_CHANGES && !dirty))
        return dirty;
    hole = varve_served_view_hole_run(x->view, off, end, run_end, err);
    if (hole < 0)
        return hole;
    if (ctx == CTX_CHANGES)
        return (int)(hole ? CHANGES_DIRTY | CHANGES_ZERO : CHANGES_DIRTY);
    if (!hole)
        return 0;
    return dirty ? (int)STATE_ZERO : (int)(STATE_HOLE | STATE_ZERO);
}

/* What is lost now, a run at a time; it may have become more when the next one is asked for. */
static int lost_status(struct varve_view_export *x, uint64_t off, uint64_t len,
                       struct varve_extent *out, size_t max, struct varve_err *err)
{
    uint64_t end = off + len;
    size_t n = 0;
    int rc = varve_served_view_look_lost(x->view, err);

    if (rc < 0)
        return rc;
    while (off < end && n < max) {
        uint64_t run_end;
        int lost = varve_served_view_lost_run(x->view, off, end, &run_end);

        if (!lost)
            lost = varve_served_view_gone_run(x->view, off, run_end, &run_end, err);
        if (lost < 0)
            return n > 0 ? (int)n : lost;
        if (n > 0 && out[n - 1].flags == (uint32_t)lost)
            out[n - 1].len += run_end - off;
        else
            out[n++] = (struct varve_extent){.len = run_end - off, .flags = (uint32_t)lost};
        off = run_end;
    }
    return (int)n;
}

static int changes_status(struct varve_view_export *x, struct varve_changed *changed, unsigned ctx,
                          uint64_t off, uint64_t len, struct varve_extent *out, size_t max,
                          struct varve_err *err)
{
    uint64_t end = off + len, dirty_end = off;
    bool dirty = false;
    size_t n = 0;

    while (off < end) {
        uint64_t run_end;
        int flags;

        if (off == dirty_end)
            dirty = dirty_run(&x->view->disk->identity.geometry, changed, off, end, &dirty_end);
        flags = status_run(x, ctx, dirty, off, dirty_end, &run_end, err);
        if (flags < 0)
            return n > 1 ? (int)n - 1 : flags; /* the last run may be unfinished */
        if (n > 0 && out[n - 1].flags == (uint32_t)flags) {
            out[n - 1].len += run_end - off;
        } else {
            if (n == max)
                break;
            out[n].len = run_end - off;
            out[n].flags = (uint32_t)flags;
            n++;
        }
        off = run_end;
    }
    return (int)n;
}

static int view_export_status(struct varve_export *e, unsigned ctx, uint64_t off, uint64_t len,
                              struct varve_extent *out, size_t max, struct varve_err *err)
{
    struct varve_view_export *x = of(e);
    struct varve_changed changed;
    int n;

    if (ctx == CTX_LOST)
        return lost_status(x, off, len, out, max, err);
    n = varve_changes_get(x->changes, &changed, err);
    if (n < 0)
        return n;
    n = changes_status(x, &changed, ctx, off, len, out, max, err);
    varve_changes_put(x->changes);
    return n;
}

/* What the map alone tells. */
static int view_export_status_now(struct varve_export *e, unsigned ctx, uint64_t off, uint64_t len,
                                  struct varve_extent *out, size_t max)
{
    struct varve_view_export *x = of(e);
    struct varve_changed changed;
    int n;

    if ((ctx != CTX_DIRTY && !x->delta) || !varve_changes_get_now(x->changes, &changed))
        return -EAGAIN;
    n = changes_status(x, &changed, ctx, off, len, out, max, NULL);
    varve_changes_put(x->changes);
    return n;
}

static void view_export_free(struct varve_export *e)
{
    struct varve_view_export *x = of(e);

    varve_throttle_unref(x->e.throttle);
    varve_served_view_unref(x->view);
    varve_changes_unref(x->changes);
    free(x->changes_context);
    free(x->dirty_context);
    free(x->e.description);
    free(x->e.name);
    free(x);
}

static const struct varve_export_ops view_export_ops = {
    .read = view_export_read,
    .read_now = view_export_read_now,
    .read_failed = view_export_read_failed,
    .release = view_export_release,
    .status = view_export_status,
    .status_now = view_export_status_now,
    .free = view_export_free,
};

static char *view_describe(const struct varve_served_view *view, const char *base)
{
    const uint8_t *uuid = view->disk->identity.uuid;
    char *text;

    if (asprintf(&text,
                 "disk %s" VARVE_DESC_EPOCH "%" PRIu64 VARVE_DESC_VIEW "%016" PRIx64
                 "%s%s [%02x%02x%02x%02x%02x%02x%02x%02x]",
                 view->disk->name, view->view.boundary, view->view.id,
                 base ? VARVE_DESC_CHANGES : "", base ? base : "", uuid[0], uuid[1], uuid[2],
                 uuid[3], uuid[4], uuid[5], uuid[6], uuid[7]) < 0)
        return NULL;
    return text;
}

struct varve_view_export *varve_view_export_new(const char *name, const char *bitmap, bool listed,
                                                struct varve_served_view *view,
                                                struct varve_changes *changes, const char *base,
                                                struct varve_throttle *throttle)
{
    const struct varve_geometry *g = &view->disk->identity.geometry;
    struct varve_view_export *x = calloc(1, sizeof(*x));
    uint64_t block = varve_block_size(g) > PREFERRED_MIN ? varve_block_size(g) : PREFERRED_MIN;

    if (!x)
        return NULL;
    x->e.name = strdup(name);
    x->e.description = view_describe(view, base);
    if (bitmap && asprintf(&x->dirty_context, "%s%s", VARVE_CTX_DIRTY_PREFIX, bitmap) < 0)
        x->dirty_context = NULL;
    if (bitmap && asprintf(&x->changes_context, "%s%s", VARVE_CTX_CHANGES_PREFIX, bitmap) < 0)
        x->changes_context = NULL;
    if (!x->e.name || (bitmap && (!x->dirty_context || !x->changes_context))) {
        free(x->changes_context);
        free(x->dirty_context);
        free(x->e.description);
        free(x->e.name);
        free(x);
        return NULL;
    }
    x->e.ops = &view_export_ops;
    x->e.size = g->size;
    x->e.block_pref = (uint32_t)block;
    x->e.listed = listed;
    x->e.refs = 1;
    x->contexts[CTX_ALLOCATION] = VARVE_CTX_ALLOCATION;
    x->contexts[CTX_DIRTY] = x->dirty_context;
    x->contexts[CTX_CHANGES] = x->changes_context;
    x->contexts[CTX_LOST] = VARVE_CTX_LOST;
    x->e.contexts = x->contexts;
    x->e.ncontexts = bitmap ? 4 : 1;
    x->e.disk = view->disk;
    x->e.throttle = varve_throttle_ref(throttle);
    x->delta = !bitmap;
    x->view = varve_served_view_ref(view);
    x->changes = varve_changes_ref(changes);
    return x;
}
