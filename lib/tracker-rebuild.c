/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Building the runtime folder anew from what the state folder knows.  Views are gone: nothing that
 * was kept for them can be proved any more.
 */
#include "lib/tracker-internal.h"

#include "lib/bitmap.h"
#include "lib/epoch-file.h"
#include "lib/scratch.h"
#include "lib/timeline.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MODE 0600

static int seal_with(struct varve_tracker *t, uint64_t number, const struct varve_bitmap *bits,
                     struct varve_err *err)
{
    return varve_epoch_file_finish(t->w, &t->paths, &t->id.geometry, number, bits->words,
                                   VARVE_EPOCH_FILE_SEALED, err);
}

int varve_tracker_seal_as_dirty(struct varve_tracker *t, uint64_t number, struct varve_err *err)
{
    struct varve_bitmap *all = varve_bitmap_new(t->id.geometry.nblks);
    int r;

    if (!all)
        return varve_err_set(err, ENOMEM, "no memory for a map");
    varve_bitmap_set(all, 0, all->nbits);
    r = seal_with(t, number, all, err);
    free(all);
    return r;
}

/* The log is not to be believed.  That is made durable before it is acted on: what counts as written
 * because of it is known to memory only, and the next one to come must find the same. */
static int distrust(struct varve_tracker *t, const char *why, struct varve_err *err)
{
    t->found.trusted = false;
    t->found.why = why;
    return varve_intent_drop(t->w, &t->paths, err);
}

/* What can be said of an epoch that was entered and not sealed: what was flushed to its file, and the
 * regions that were not durable.  Without a log that can be believed, or when the file cannot be read:
 * all of it. */
static int bits_after_crash(struct varve_tracker *t, uint64_t number, struct varve_bitmap *bits,
                            struct varve_err *err)
{
    int r = 0;

    if (t->found.trusted)
        r = varve_epoch_file_load_open(t->w, &t->paths, t->id.uuid, &t->id.geometry, number, bits,
                                       err);
    if (r == -EUCLEAN || r == -EIO)
        r = distrust(t, "a map cannot be read", err);
    if (r < 0) /* a shortage of ours, which says nothing of the file */
        return r;
    if (t->found.trusted)
        varve_tracker_add_regions(t, bits);
    else
        varve_bitmap_set(bits, 0, bits->nbits);
    return 0;
}

static int seal_after_crash(struct varve_tracker *t, uint64_t number, struct varve_err *err)
{
    struct varve_bitmap *bits = varve_bitmap_new(t->id.geometry.nblks);
    int r;

    if (!bits)
        return varve_err_set(err, ENOMEM, "no memory for a map");
    r = bits_after_crash(t, number, bits, err);
    if (r == 0)
        r = seal_with(t, number, bits, err);
    free(bits);
    return r;
}

struct stale {
    struct varve_tracker *t;
    const char *dir;
};

static int remove_runtime_file(void *arg, const char *name)
{
    struct stale *s = arg;
    char path[PATH_MAX];
    size_t len = strlen(name);
    uint64_t number;
    bool scratch = len > 8 && strcmp(name + len - 8, ".scratch") == 0;
    bool runtime = strcmp(name, "control") == 0 ||
                   (len > 5 && (strcmp(name + len - 5, ".live") == 0 ||
                                strcmp(name + len - 5, ".lost") == 0 ||
                                strcmp(name + len - 5, ".done") == 0)) ||
                   (len > 7 && strcmp(name + len - 7, ".failed") == 0);

    if (scratch && sscanf(name, "epoch-%" SCNu64 ".scratch", &number) == 1)
        varve_scratch_bury(s->t->w, &s->t->paths, number);
    if ((scratch || runtime) &&
        snprintf(path, sizeof(path), "%s/%s", s->dir, name) < (int)sizeof(path))
        s->t->w->unlink(s->t->w, path);
    return 0;
}

/* What the epoch files say of the live epoch. */
struct last_known {
    uint64_t number;  /* the live epoch's; 0: none was found */
    uint64_t highest; /* number that any file has */
    uint64_t prev;    /* for a new epoch: the one before it */
    bool clean;
    bool damaged; /* clean, but its bits do not pass their check */
};

/* Whether another epoch came after it. */
static bool is_followed(const struct varve_timeline *tl, uint64_t epoch)
{
    for (size_t i = 0; i < tl->nfiles; i++) {
        if (tl->files[i].prev == epoch)
            return true;
    }
    return false;
}

/* Whether the file's epoch was the live one when its server stopped in peace.  It was not if others
 * came behind that do not follow it: of a server that could not read the file, say, and began anew. */
static bool is_clean(const struct varve_timeline *tl, const struct varve_epoch_file *f)
{
    for (size_t i = 0; i < tl->nfiles; i++) {
        const struct varve_epoch_file *g = &tl->files[i];

        if (g->first > f->last && (g->state != VARVE_EPOCH_FILE_OPEN || g->prev != f->last))
            return false;
    }
    return f->state == VARVE_EPOCH_FILE_CLEAN;
}

/* Whether the epoch before that one has a file that cannot be read: it may have been the live one, and
 * this one only prepared. */
static bool prev_is_unreadable(struct varve_tracker *t, const struct varve_timeline *tl,
                               uint64_t number)
{
    struct varve_epoch_file info;
    uint64_t prev = 0;

    for (size_t i = 0; i < tl->nfiles; i++) {
        if (tl->files[i].first == number)
            prev = tl->files[i].prev;
    }
    for (size_t i = 0; i < tl->nfiles; i++) {
        if (tl->files[i].last == prev)
            return false;
    }
    return prev != 0 && varve_epoch_file_info(t->w, &t->paths, t->id.uuid, &t->id.geometry, prev,
                                              prev, &info, NULL) != -ENOENT;
}

static int learn(struct varve_tracker *t, const struct varve_timeline *tl, bool new_disk,
                 struct last_known *k, struct varve_err *err)
{
    uint64_t readable = 0;

    memset(k, 0, sizeof(*k));
    k->highest = tl->highest;
    for (size_t i = 0; i < tl->nfiles; i++) {
        const struct varve_epoch_file *f = &tl->files[i];

        if (is_clean(tl, f)) {
            k->number = f->last;
            k->clean = true;
        } else if (f->state == VARVE_EPOCH_FILE_OPEN && !k->clean) {
            k->number = f->last;
        } else if (f->state == VARVE_EPOCH_FILE_SEALED) {
            k->prev = f->last;
        }
        if (f->last > readable)
            readable = f->last;
    }
    /* The newest cannot be read: whatever it was, nobody may enter an older one again, nor its number. */
    if (readable < tl->highest || prev_is_unreadable(t, tl, k->number)) {
        k->number = 0;
        k->clean = false;
    }
    if (!new_disk && !k->clean && (k->number == 0 || !t->found.trusted))
        return distrust(t, k->number == 0 ? "there is no map of the live epoch" : t->found.why, err);
    return 0;
}

/* Seals or removes the files of epochs that are not the live one.  The live one has a file by now, so
 * whoever dies here leaves one from which numbers go on. */
static int settle(struct varve_tracker *t, const struct varve_timeline *tl, uint64_t live,
                  struct varve_err *err)
{
    char path[PATH_MAX];
    int r = 0;

    for (size_t i = 0; r == 0 && i < tl->nfiles; i++) {
        const struct varve_epoch_file *f = &tl->files[i];

        if (f->state == VARVE_EPOCH_FILE_SEALED || f->last == live)
            continue;
        /* Prepared and never entered.  Sealed it would stand beside the timeline, and a merge of its
         * neighbours would take it in. */
        if (f->last > live || !is_followed(tl, f->last))
            t->w->unlink(t->w, varve_path_epoch(&t->paths, f->first, f->last, path));
        else if (f->state == VARVE_EPOCH_FILE_OPEN)
            r = seal_after_crash(t, f->last, err);
        else /* passed by */
            r = varve_tracker_seal_as_dirty(t, f->last, err);
    }
    return r;
}

/* Finds or makes the live epoch's file. */
static int learn_live(struct varve_tracker *t, bool new_disk, struct last_known *k,
                      struct varve_err *err)
{
    struct varve_timeline tl;
    int r = varve_timeline_scan(t->w, &t->paths, t->id.uuid, &t->id.geometry, &tl, err);

    if (r < 0)
        return r;
    r = learn(t, &tl, new_disk, k, err);
    if (r == 0 && k->number == 0) {
        k->number = k->highest + 1;
        k->clean = false;
        r = varve_epoch_file_create(t->w, &t->paths, t->id.uuid, &t->id.geometry, k->number,
                                    k->prev, err);
    }
    if (r == 0)
        r = settle(t, &tl, k->number, err);
    varve_timeline_fini(&tl);
    return r;
}

/* The page's file, or memory where there is no runtime folder. */
static int control_make_room(struct varve_tracker *t, struct varve_err *err)
{
    char path[PATH_MAX];
    void *addr;
    int r;

    if (t->private_why[0]) {
        t->ctl = calloc(1, sizeof(struct varve_ctl));
        return t->ctl ? 0 : varve_err_set(err, ENOMEM, "no memory for a control page");
    }
    varve_path_control(&t->paths, path);
    t->ctl_fd = t->w->open(t->w, path, O_RDWR | O_CREAT | O_EXCL, FILE_MODE);
    if (t->ctl_fd < 0)
        return varve_err_sys(err, -t->ctl_fd, "cannot create %s", path);
    r = t->w->allocate(t->w, t->ctl_fd, 0, sizeof(struct varve_ctl));
    if (r == 0)
        r = t->w->map(t->w, t->ctl_fd, sizeof(struct varve_ctl), &addr);
    if (r < 0)
        return varve_err_sys(err, -r, "cannot reserve memory for %s", path);
    t->ctl = addr;
    return 0;
}

static int control_make(struct varve_tracker *t, const uint8_t boot_id[16], struct varve_err *err)
{
    int r = control_make_room(t, err);

    if (r < 0) {
        t->runtime_failed = true;
        return r;
    }
    atomic_store(&t->ctl->intent, t->image_failed);
    t->ctl->layout = VARVE_CTL_LAYOUT;
    t->ctl->shift = t->id.geometry.shift;
    t->ctl->size = t->id.geometry.size;
    memcpy(t->ctl->boot_id, boot_id, 16);
    memcpy(t->ctl->disk_uuid, t->id.uuid, 16);
    return 0;
}

/* What cannot be read any more is doubt: everything counts as written, and the guest gets its disk. */
static int load_live(struct varve_tracker *t, struct last_known *k, struct varve_err *err)
{
    struct varve_tracked_epoch *e = varve_tracker_find(t, k->number);
    const struct varve_geometry *g = &t->id.geometry;
    struct varve_bitmap *bits = varve_bitmap_new(g->nblks);
    int r = -EUCLEAN;

    if (!bits)
        return varve_err_set(err, ENOMEM, "no memory for a map");
    if (k->clean)
        r = varve_epoch_file_load(t->w, &t->paths, t->id.uuid, g, k->number, k->number, bits, err);
    if (k->clean && r == -EUCLEAN) {
        k->damaged = true;
        r = distrust(t, "its map is damaged", err);
        varve_bitmap_set(bits, 0, bits->nbits);
    } else if (!k->clean) {
        r = bits_after_crash(t, k->number, bits, err);
    }
    for (size_t i = 0; r == 0 && i < varve_bitmap_nwords(bits); i++)
        atomic_store_explicit(&e->bits[i], bits->words[i], memory_order_relaxed);
    free(bits);
    return r;
}

static void tell_crash(const struct varve_tracker *t, uint64_t epoch, char notes[256])
{
    uint64_t mib = (t->found.regions << varve_intent_shift(&t->id.geometry)) >> 20;
    static const char went[] = "the host went down without a clean stop";

    if (!t->found.trusted)
        snprintf(notes, 256, "%s, and %s: all of the disk counts as written in epoch %" PRIu64, went,
                 t->found.why, epoch);
    else if (t->found.regions == 0)
        snprintf(notes, 256, "%s: nothing was under way, all is known", went);
    else
        snprintf(notes, 256,
                 "%s: %" PRIu64 " region%s (%" PRIu64 "%c) of the disk count%s as written in epoch "
                 "%" PRIu64, went, t->found.regions, t->found.regions == 1 ? "" : "s",
                 mib % 1024 == 0 ? mib / 1024 : mib, mib % 1024 == 0 ? 'G' : 'M',
                 t->found.regions == 1 ? "s" : "", epoch);
}

int varve_tracker_rebuild(struct varve_tracker *t, const uint8_t boot_id[16], bool new_disk,
                   char notes[256], struct varve_err *err)
{
    struct stale stale = {t, t->paths.runtime};
    struct last_known k;
    int r = learn_live(t, new_disk, &k, err);

    if (r < 0)
        return r;
    t->w->list(t->w, t->paths.runtime, remove_runtime_file, &stale);
    stale.dir = t->paths.scratch;
    t->w->list(t->w, t->paths.scratch, remove_runtime_file, &stale);

    r = control_make(t, boot_id, err);
    if (r < 0)
        return r;
    varve_gate_init(&t->gate, &t->ctl->now);
    r = varve_tracked_epoch_create(t, k.number, false, err);
    /* A new disk has no past: nothing that anybody could have seen is missing from its first epoch. */
    if (r == 0 && !new_disk)
        r = load_live(t, &k, err);
    if (r < 0) {
        varve_tracker_forget(t);
        varve_gate_fini(&t->gate);
        return r;
    }
    if (k.damaged)
        snprintf(notes, 256, "the map of epoch %" PRIu64 " is damaged, so all of the disk counts as "
                             "written in it", k.number);
    else if (!new_disk && !k.clean)
        tell_crash(t, k.number, notes);
    atomic_fetch_or(&varve_tracker_find(t, k.number)->slot->flags, VARVE_EPOCH_ENTERED);
    atomic_store(&t->ctl->prepared, k.highest > k.number ? k.highest : k.number);
    atomic_store(&t->ctl->now, k.number << 1);
    atomic_thread_fence(memory_order_seq_cst);
    t->ctl->magic = VARVE_CTL_MAGIC; /* last: without it the page is rebuilt */
    t->found_clean = new_disk || (k.clean && !k.damaged);
    t->clean_mark = true; /* or so it may be: also of a file that reads as open that need not be durable */
    return 0;
}
