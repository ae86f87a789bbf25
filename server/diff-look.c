/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a reference that is a file looks like: whether it is still what was compared.  In the pool,
 * as a file system may take its time to say so, or never say it.
 */
#include "server/diff-internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* A file whose time is as young as that may have been written to in the same tick. */
#define SETTLED_NS INT64_C(2000000000)

static void describe(const uv_stat_t *st, char proof[128])
{
    proof[0] = '\0'; /* devices do not tell when they are written to */
    if (S_ISREG(st->st_mode))
        snprintf(proof, 128, "%" PRIx64 ":%" PRIx64 " %" PRIu64 " %lld.%09ld", st->st_dev,
                 st->st_ino, st->st_size, (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec);
}

static bool is_settled(struct varve_world *w, const uv_stat_t *st)
{
    int64_t mtime_ns = (int64_t)st->st_mtim.tv_sec * INT64_C(1000000000) + st->st_mtim.tv_nsec;

    return (int64_t)w->realtime_ns(w) > mtime_ns + SETTLED_NS;
}

/* What a former daemon found is of something else, if of anything. */
static void begin_anew(struct varve_diff *diff)
{
    diff->from = 0;
    memset(diff->map->words, 0, varve_bitmap_nwords(diff->map) * 8);
}

static int look_first(struct varve_diff_run *run, const uv_stat_t *st, struct varve_err *err)
{
    struct varve_diff *diff = run->diff;
    char proof[sizeof(diff->proof)];

    if (st->st_dev == diff->image_dev && st->st_ino == diff->image_ino)
        return varve_err_set(
            err, EINVAL, "reference %.200s is the image of disk '%s' itself: name an older copy",
            diff->reference, diff->disk->name);
    describe(st, proof);
    if (!proof[0] || strcmp(proof, diff->proof) != 0)
        begin_anew(diff);
    memcpy(diff->proof, proof, sizeof(proof));
    run->provable = proof[0] && is_settled(diff->disk->daemon->w, st);
    return 0;
}

static int look_last(struct varve_diff_run *run, const uv_stat_t *st, struct varve_err *err)
{
    struct varve_diff *diff = run->diff;
    char proof[sizeof(diff->proof)];

    describe(st, proof);
    if (strcmp(proof, diff->proof) == 0)
        return 0;
    return varve_err_set(err, ESTALE,
                         "reference %.200s was written to or replaced meanwhile: begin again when "
                         "nobody does",
                         diff->reference);
}

static void on_looked(uv_fs_t *look)
{
    struct varve_diff_run *run = look->data;
    uv_stat_t st = look->statbuf;
    struct varve_err err = VARVE_ERR_INIT;
    int rc = (int)look->result;

    uv_fs_req_cleanup(look);
    run->looking = false;
    if (run->ending) {
        varve_diff_maybe_ended(run);
        return;
    }
    if (rc < 0)
        varve_err_sys(&err, -rc, "cannot look at reference %.300s", run->diff->reference);
    else
        rc = run->looked_last ? look_last(run, &st, &err) : look_first(run, &st, &err);
    if (rc < 0)
        varve_diff_end(run, rc, &err);
    else
        run->looked(run);
}

void varve_diff_look(struct varve_diff_run *run, bool last, void (*next)(struct varve_diff_run *))
{
    struct varve_diff *diff = run->diff;
    int rc;

    if (run->looking)
        return;
    if (varve_endpoint_is_uri(diff->reference)) {
        if (!last)
            begin_anew(diff); /* a server's bytes may be others by now */
        next(run);
        return;
    }
    run->looked_last = last;
    run->looked = next;
    run->look.data = run;
    rc = uv_fs_stat(run->r->loop, &run->look, diff->reference, on_looked);
    assert(rc == 0);
    run->looking = true;
}
