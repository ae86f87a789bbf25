/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Taking a disk and letting it go.  What attach finds decides what is known about the live epoch:
 *
 *   control page of this boot, live map there    adopt both in place: exact, views go on
 *   else a file marked clean                     its bits: exact, views are gone
 *   else a file left open (the host went down)   nobody can say: every block is dirty
 *   else nothing                                 a new disk, or a new epoch behind the sealed ones
 *
 * In each case the clean mark is taken off durably before attach returns, so before the first write;
 * and runtime files that are not adopted are removed, never reused: who holds the old ones sees that
 * they are unlinked.
 */
#include "lib/tracker-internal.h"

#include "lib/bitmap.h"
#include "lib/epoch-file.h"
#include "lib/timeline.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DIR_MODE  0700
#define FILE_MODE 0600

/* How long a guest's server waits for the daemon to finish a boundary of an offline disk. */
#define LOCK_PATIENCE_MS 5000u
#define LOCK_RETRY_MS    10u

static int make_dir(struct varve_world *w, const char *path, struct varve_err *err)
{
    int r = w->mkdir(w, path, DIR_MODE);

    if (r < 0 && r != -EEXIST)
        return varve_err_sys(err, -r, "cannot create %s", path);
    return r;
}

/* path's parent, made durable to hold it. */
static int sync_parent(struct varve_world *w, const char *path, struct varve_err *err)
{
    char parent[PATH_MAX];
    char *slash;
    int r;

    snprintf(parent, sizeof(parent), "%s", path);
    slash = strrchr(parent, '/');
    if (slash && slash != parent)
        *slash = '\0';
    r = w->sync_dir(w, parent);
    return r < 0 ? varve_err_sys(err, -r, "cannot sync %s", parent) : 0;
}

/* --- the lock ----------------------------------------------------------------------------------- */

static int lock_claim(struct varve_tracker *t, struct varve_err *err)
{
    char who[64];
    int len = snprintf(who, sizeof(who), "%-15s %d\n", t->role, (int)getpid());
    int r = t->w->pwrite(t->w, t->lock_fd, who, (size_t)len, 0);

    if (r == 0)
        r = t->w->truncate(t->w, t->lock_fd, (uint64_t)len);
    return r < 0 ? varve_err_sys(err, -r, "cannot write the lock file of the disk") : 0;
}

static int lock_take(struct varve_tracker *t, const char *name, struct varve_err *err)
{
    char path[PATH_MAX], who[64], role[16] = "another process";
    int pid = 0, r;

    varve_path_lock(&t->paths, path);
    t->lock_fd = t->w->open(t->w, path, O_RDWR | O_CREAT, FILE_MODE);
    if (t->lock_fd < 0)
        return varve_err_sys(err, -t->lock_fd, "cannot open %s", path);
    for (unsigned waited = 0;; waited += LOCK_RETRY_MS) {
        ssize_t n;

        r = t->w->lock(t->w, t->lock_fd, true);
        if (r == 0)
            return lock_claim(t, err);
        if (r != -EAGAIN && r != -EACCES)
            return varve_err_sys(err, -r, "cannot lock %s", path);
        n = t->w->pread(t->w, t->lock_fd, who, sizeof(who) - 1, 0);
        who[n > 0 ? n : 0] = '\0';
        if (sscanf(who, "%15s %d", role, &pid) != 2)
            pid = 0;
        /* The daemon holds it for the moment of a boundary only, and a guest's server goes first. */
        if (strcmp(role, "varved") != 0 || waited >= LOCK_PATIENCE_MS)
            break;
        usleep(LOCK_RETRY_MS * 1000);
    }
    return varve_err_set(err, EBUSY, "disk %s is in use: %s, pid %d, serves it", name, role, pid);
}

int varve_tracker_claim_pid(struct varve_tracker *t, struct varve_err *err)
{
    return lock_claim(t, err);
}

/* --- the identity --------------------------------------------------------------------------------- */

static int identity_make(struct varve_tracker *t, const struct varve_tracker_config *cfg,
                         struct varve_err *err)
{
    int r = varve_geometry_init(&t->id.geometry, cfg->size, cfg->block_size, err);

    if (r < 0)
        return r;
    snprintf(t->id.image, sizeof(t->id.image), "%s", cfg->image);
    r = t->w->random(t->w, t->id.uuid, sizeof(t->id.uuid));
    if (r < 0)
        return varve_err_sys(err, -r, "cannot get random numbers");
    return varve_identity_write(t->w, &t->paths, &t->id, err);
}

static int identity_fits(struct varve_tracker *t, const struct varve_tracker_config *cfg,
                         struct varve_err *err)
{
    struct varve_geometry asked;
    int r;

    if (cfg->block_size != 0) {
        r = varve_geometry_init(&asked, cfg->size, cfg->block_size, err);
        if (r < 0)
            return r;
        if (asked.shift != t->id.geometry.shift)
            return varve_err_set(err, EINVAL,
                                 "disk %s was created with granularity %" PRIu64
                                 ", it cannot become %" PRIu64 ": leave granularity out",
                                 cfg->name, varve_block_size(&t->id.geometry), cfg->block_size);
    }
    if (cfg->image && strcmp(cfg->image, t->id.image) != 0)
        return varve_err_set(err, EINVAL,
                             "disk %s belongs to image %s, not to %s: give this image another name=",
                             cfg->name, t->id.image, cfg->image);
    if (cfg->image && cfg->size != t->id.geometry.size)
        return varve_err_set(err, EINVAL,
                             "image %s has %" PRIu64 " bytes, but disk %s was created with %" PRIu64
                             ": give it its size back, or another name=",
                             cfg->image, cfg->size, cfg->name, t->id.geometry.size);
    return 0;
}

static int identity_take(struct varve_tracker *t, const struct varve_tracker_config *cfg,
                         struct varve_err *err)
{
    int r = varve_identity_read(t->w, &t->paths, &t->id, err);

    if (r == -ENOENT && !cfg->existing_only)
        return identity_make(t, cfg, err);
    return r < 0 ? r : identity_fits(t, cfg, err);
}

/* --- adopting what a former server of this boot left ----------------------------------------------- */

static int control_open(struct varve_tracker *t, struct varve_err *err)
{
    char path[PATH_MAX];
    struct varve_stat st;
    void *addr;
    int r;

    varve_path_control(&t->paths, path);
    t->ctl_fd = t->w->open(t->w, path, O_RDWR, 0);
    if (t->ctl_fd < 0)
        return varve_err_sys(err, -t->ctl_fd, "cannot open %s", path);
    r = t->w->stat(t->w, t->ctl_fd, &st);
    if (r < 0)
        return varve_err_sys(err, -r, "cannot stat %s", path);
    if (st.size < sizeof(struct varve_ctl))
        return varve_err_set(err, EUCLEAN, "%s has been cut short", path);
    r = t->w->map(t->w, t->ctl_fd, sizeof(struct varve_ctl), &addr);
    if (r < 0)
        return varve_err_sys(err, -r, "cannot map %s", path);
    t->ctl = addr;
    return 0;
}

static void control_close(struct varve_tracker *t)
{
    if (t->ctl)
        t->w->unmap(t->w, t->ctl, sizeof(struct varve_ctl));
    if (t->ctl_fd >= 0)
        t->w->close(t->w, t->ctl_fd);
    t->ctl = NULL;
    t->ctl_fd = -1;
}

static int control_fits(struct varve_tracker *t, const uint8_t boot_id[16], struct varve_err *err)
{
    const struct varve_ctl *c = t->ctl;

    if (c->magic != VARVE_CTL_MAGIC)
        return varve_err_set(err, EUCLEAN, "the control page was not finished");
    if (c->layout > VARVE_CTL_LAYOUT)
        return varve_err_set(err, ENOTSUP,
                             "the runtime folder %s was made by a newer varve (layout %u, known is "
                             "%u): use that version",
                             t->paths.runtime, c->layout, VARVE_CTL_LAYOUT);
    if (c->layout != VARVE_CTL_LAYOUT || memcmp(c->boot_id, boot_id, 16) != 0 ||
        memcmp(c->disk_uuid, t->id.uuid, 16) != 0 || c->size != t->id.geometry.size ||
        c->shift != t->id.geometry.shift)
        return varve_err_set(err, EUCLEAN, "the control page is of another boot or disk");
    return 0;
}

/* Whether the epoch's own file says that it is sealed. */
static bool epoch_is_sealed(struct varve_tracker *t, uint64_t number)
{
    struct varve_epoch_file info;

    return varve_epoch_file_info(t->w, &t->paths, t->id.uuid, &t->id.geometry, number, number,
                                 &info, NULL) == 0 &&
           info.state == VARVE_EPOCH_FILE_SEALED;
}

/* Epochs before the live one that nobody sealed get all bits: nobody knows theirs any more. */
static int seal_as_dirty(struct varve_tracker *t, uint64_t number, struct varve_err *err)
{
    struct varve_bitmap *all = varve_bitmap_new(t->id.geometry.nblks);
    int r;

    if (!all)
        return varve_err_set(err, ENOMEM, "no memory for a map");
    varve_bitmap_set(all, 0, all->nbits);
    r = varve_epoch_file_finish(t->w, &t->paths, &t->id.geometry, number, all->words,
                                VARVE_EPOCH_FILE_SEALED, err);
    free(all);
    return r;
}

static void break_views(struct varve_tracker *t, uint64_t boundary_up_to)
{
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        struct varve_ctl_view *v = &t->ctl->views[i];

        if (atomic_load(&v->state) == VARVE_VIEW_OPEN &&
            atomic_load(&v->boundary) <= boundary_up_to)
            atomic_store(&v->state, VARVE_VIEW_ENDED);
    }
}

static int adopt_epochs(struct varve_tracker *t, struct varve_err *err)
{
    uint64_t live = varve_tracker_epoch(t);
    char path[PATH_MAX];

    for (unsigned i = 0; i < VARVE_CTL_EPOCHS; i++) {
        struct varve_ctl_epoch *slot = &t->ctl->epochs[i];
        uint64_t number = atomic_load(&slot->number);
        struct varve_tracked_epoch *e;
        int r;

        if (number == 0 || number % VARVE_CTL_EPOCHS != i)
            continue;
        if (number > live || !(atomic_load(&slot->flags) & VARVE_EPOCH_ENTERED)) {
            /* Prepared by a server that died before it was entered. */
            atomic_store(&slot->flags, 0);
            t->w->unlink(t->w, varve_path_live(&t->paths, number, path));
            t->w->unlink(t->w, varve_path_lost(&t->paths, number, path));
            t->w->unlink(t->w, varve_path_scratch(&t->paths, number, path));
            if (!epoch_is_sealed(t, number))
                t->w->unlink(t->w, varve_path_epoch(&t->paths, number, number, path));
            continue;
        }
        r = varve_tracked_epoch_adopt(t, number, err);
        if (r < 0 && number == live)
            return r;
        if (r < 0) {
            break_views(t, number);
            atomic_store(&slot->number, 0);
            r = epoch_is_sealed(t, number) ? 0 : seal_as_dirty(t, number, err);
            if (r < 0 && r != -EEXIST)
                return r;
            continue;
        }
        e = varve_tracker_find(t, number);
        e->sealed = number != live && epoch_is_sealed(t, number);
    }
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        struct varve_ctl_view *v = &t->ctl->views[i];

        /* The server died between opening the view and the swap. */
        if (atomic_load(&v->state) == VARVE_VIEW_OPEN && atomic_load(&v->boundary) > live)
            atomic_store(&v->state, VARVE_VIEW_FREE);
    }
    return varve_tracker_find(t, live)
               ? 0
               : varve_err_set(err, EUCLEAN, "the control page does not know its live epoch");
}

static void forget_epochs(struct varve_tracker *t)
{
    for (unsigned i = 0; i < VARVE_CTL_EPOCHS; i++) {
        if (t->epochs[i])
            varve_tracked_epoch_free(t, t->epochs[i]);
    }
    atomic_store(&t->scratch_used, 0);
}

static int adopt(struct varve_tracker *t, const uint8_t boot_id[16], struct varve_err *err)
{
    int r = control_open(t, err);

    if (r == 0)
        r = control_fits(t, boot_id, err);
    if (r == 0) {
        varve_gate_init(&t->gate, &t->ctl->now);
        r = adopt_epochs(t, err);
        if (r < 0) {
            forget_epochs(t);
            varve_gate_fini(&t->gate);
        }
    }
    if (r == 0) {
        uint64_t live = varve_tracker_epoch(t);
        struct varve_epoch_file info;

        r = varve_epoch_file_info(t->w, &t->paths, t->id.uuid, &t->id.geometry, live, live, &info,
                                  err);
        if (r == 0 && info.state == VARVE_EPOCH_FILE_CLEAN)
            r = varve_epoch_file_reopen(t->w, &t->paths, live, err);
        if (r < 0) {
            forget_epochs(t);
            varve_gate_fini(&t->gate);
        }
    }
    if (r < 0)
        control_close(t);
    return r;
}

/* --- building anew ---------------------------------------------------------------------------------- */

struct stale {
    struct varve_tracker *t;
    const char *dir;
};

static int remove_runtime_file(void *arg, const char *name)
{
    struct stale *s = arg;
    char path[PATH_MAX];
    size_t len = strlen(name);
    bool scratch = len > 8 && strcmp(name + len - 8, ".scratch") == 0;
    bool runtime = strcmp(name, "control") == 0 ||
                   (len > 5 && (strcmp(name + len - 5, ".live") == 0 ||
                                strcmp(name + len - 5, ".lost") == 0));

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
};

static int learn(struct varve_tracker *t, struct last_known *k, struct varve_err *err)
{
    struct varve_timeline tl;
    char path[PATH_MAX];
    int r = varve_timeline_scan(t->w, &t->paths, t->id.uuid, &t->id.geometry, &tl, err);

    if (r < 0)
        return r;
    memset(k, 0, sizeof(*k));
    for (size_t i = 0; i < tl.nfiles; i++) {
        const struct varve_epoch_file *f = &tl.files[i];

        if (f->last > k->highest)
            k->highest = f->last;
        if (f->state == VARVE_EPOCH_FILE_CLEAN) {
            k->number = f->last;
            k->clean = true;
        } else if (f->state == VARVE_EPOCH_FILE_OPEN && !k->clean) {
            k->number = f->last;
        } else if (f->state == VARVE_EPOCH_FILE_SEALED) {
            k->prev = f->last;
        }
    }
    for (size_t i = 0; r == 0 && i < tl.nfiles; i++) {
        const struct varve_epoch_file *f = &tl.files[i];

        if (f->state != VARVE_EPOCH_FILE_OPEN || f->last == k->number)
            continue;
        if (f->last > k->number)
            t->w->unlink(t->w, varve_path_epoch(&t->paths, f->first, f->last, path));
        else
            r = seal_as_dirty(t, f->last, err);
    }
    varve_timeline_fini(&tl);
    return r;
}

static int control_make(struct varve_tracker *t, const uint8_t boot_id[16], struct varve_err *err)
{
    char path[PATH_MAX];
    void *addr;
    int r;

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
    t->ctl->layout = VARVE_CTL_LAYOUT;
    t->ctl->shift = t->id.geometry.shift;
    t->ctl->size = t->id.geometry.size;
    memcpy(t->ctl->boot_id, boot_id, 16);
    memcpy(t->ctl->disk_uuid, t->id.uuid, 16);
    return 0;
}

static int load_live(struct varve_tracker *t, const struct last_known *k, struct varve_err *err)
{
    struct varve_tracked_epoch *e = varve_tracker_find(t, k->number);
    const struct varve_geometry *g = &t->id.geometry;
    struct varve_bitmap *bits;
    int r;

    if (!k->clean) {
        varve_abits_set(e->bits, 0, g->nblks);
        return 0;
    }
    bits = varve_bitmap_new(g->nblks);
    if (!bits)
        return varve_err_set(err, ENOMEM, "no memory for a map");
    r = varve_epoch_file_load(t->w, &t->paths, t->id.uuid, g, k->number, k->number, bits, err);
    for (size_t i = 0; r == 0 && i < varve_bitmap_nwords(bits); i++)
        atomic_store_explicit(&e->bits[i], bits->words[i], memory_order_relaxed);
    free(bits);
    return r == 0 ? varve_epoch_file_reopen(t->w, &t->paths, k->number, err) : r;
}

static int rebuild(struct varve_tracker *t, const uint8_t boot_id[16], bool new_disk,
                   char notes[256], struct varve_err *err)
{
    struct stale stale = {t, t->paths.runtime};
    struct last_known k;
    int r = learn(t, &k, err);

    if (r < 0)
        return r;
    t->w->list(t->w, t->paths.runtime, remove_runtime_file, &stale);
    stale.dir = t->paths.scratch;
    t->w->list(t->w, t->paths.scratch, remove_runtime_file, &stale);

    if (k.number == 0) {
        k.number = k.highest + 1;
        k.clean = false;
        r = varve_epoch_file_create(t->w, &t->paths, t->id.uuid, &t->id.geometry, k.number, k.prev,
                                    err);
        if (r < 0)
            return r;
    }
    r = control_make(t, boot_id, err);
    if (r < 0)
        return r;
    varve_gate_init(&t->gate, &t->ctl->now);
    r = varve_tracked_epoch_create(t, k.number, false, err);
    /* A new disk has no past: nothing that anybody could have seen is missing from its first epoch. */
    if (r == 0 && !new_disk)
        r = load_live(t, &k, err);
    if (r < 0) {
        forget_epochs(t);
        varve_gate_fini(&t->gate);
        return r;
    }
    if (!new_disk && !k.clean)
        snprintf(notes, 256, "the disk was not stopped cleanly before the host went down, so all of "
                             "it counts as written in epoch %" PRIu64, k.number);
    atomic_fetch_or(&varve_tracker_find(t, k.number)->slot->flags, VARVE_EPOCH_ENTERED);
    atomic_store(&t->ctl->prepared, k.highest > k.number ? k.highest : k.number);
    atomic_store(&t->ctl->now, k.number << 1);
    atomic_thread_fence(memory_order_seq_cst);
    t->ctl->magic = VARVE_CTL_MAGIC; /* last: without it the page is rebuilt */
    return 0;
}

/* --- attach and detach -------------------------------------------------------------------------------- */

static bool on_one_file_system(struct varve_tracker *t)
{
    struct varve_stat image, scratch;

    return t->image_fd >= 0 && t->w->stat(t->w, t->image_fd, &image) == 0 &&
           t->w->stat(t->w, t->lock_fd, &scratch) == 0 &&
           strcmp(t->paths.scratch, t->paths.state) == 0 && image.dev == scratch.dev;
}

static int make_dirs(struct varve_tracker *t, const struct varve_tracker_config *cfg,
                     struct varve_err *err)
{
    const char *parents[] = {cfg->state_dir, cfg->runtime_dir,
                             cfg->scratch_dir ? cfg->scratch_dir : cfg->state_dir};
    const char *dirs[] = {t->paths.state, t->paths.runtime, t->paths.scratch};

    for (unsigned i = 0; i < 3; i++) {
        int r = 0;

        if (!cfg->existing_only || i != 0) {
            r = make_dir(t->w, parents[i], err);
            if (r >= 0 || r == -EEXIST)
                r = make_dir(t->w, dirs[i], err);
            if (r == 0 && i == 0)
                r = sync_parent(t->w, dirs[i], err);
        }
        if (r < 0 && r != -EEXIST)
            return r;
    }
    return 0;
}

static void tracker_free(struct varve_tracker *t)
{
    control_close(t);
    if (t->lock_fd >= 0)
        t->w->close(t->w, t->lock_fd);
    for (unsigned i = 0; i < VARVE_STRIPES; i++)
        pthread_mutex_destroy(&t->stripes[i]);
    free(t);
}

static struct varve_tracker *tracker_alloc(struct varve_world *w,
                                           const struct varve_tracker_config *cfg)
{
    struct varve_tracker *t = calloc(1, sizeof(*t));

    if (!t)
        return NULL;
    t->w = w;
    t->image_fd = cfg->image_fd;
    t->scratch_max = cfg->scratch_max;
    t->on_scratch_full = cfg->on_scratch_full;
    t->freeze_timeout_ms = cfg->freeze_timeout_ms;
    snprintf(t->role, sizeof(t->role), "%s", cfg->role);
    t->lock_fd = t->ctl_fd = -1;
    for (unsigned i = 0; i < VARVE_STRIPES; i++)
        pthread_mutex_init(&t->stripes[i], NULL);
    return t;
}

int varve_tracker_attach(struct varve_world *w, const struct varve_tracker_config *cfg,
                         struct varve_tracker **out, char notes[256], struct varve_err *err)
{
    struct varve_tracker *t = tracker_alloc(w, cfg);
    struct varve_err why = VARVE_ERR_INIT;
    struct varve_geometry asked;
    struct varve_identity before;
    uint8_t boot_id[16];
    bool new_disk;
    int r;

    notes[0] = '\0';
    if (!t)
        return varve_err_set(err, ENOMEM, "no memory for disk %s", cfg->name);
    r = varve_geometry_init(&asked, cfg->size, cfg->block_size, err);
    if (r == 0)
        r = varve_paths_init(&t->paths, cfg->state_dir, cfg->runtime_dir, cfg->scratch_dir,
                             cfg->name, err);
    if (r == 0)
        r = make_dirs(t, cfg, err);
    if (r == 0)
        r = lock_take(t, cfg->name, err);
    if (r < 0)
        goto err_after_alloc;
    new_disk = varve_identity_read(w, &t->paths, &before, NULL) == -ENOENT;
    r = identity_take(t, cfg, err);
    if (r == 0 && (r = w->boot_id(w, boot_id)) < 0)
        varve_err_sys(err, -r, "cannot tell this boot of the machine from others");
    if (r < 0)
        goto err_after_alloc;
    t->may_clone = on_one_file_system(t);

    r = adopt(t, boot_id, &why);
    if (r < 0 && r != -ENOENT && r != -EUCLEAN) {
        varve_err_set(err, -r, "%s", why.msg);
        goto err_after_alloc;
    }
    if (r < 0)
        r = rebuild(t, boot_id, new_disk, notes, err);
    if (r < 0)
        goto err_after_alloc;
    atomic_fetch_add(&t->ctl->incarnation, 1);
    atomic_store(&t->ctl->served, 1);
    /* What was left unsealed by a former server; an error here is tried again at the next boundary. */
    varve_tracker_seal(t, NULL);
    *out = t;
    return 0;

err_after_alloc:
    tracker_free(t);
    return r;
}

int varve_tracker_detach(struct varve_tracker *t, struct varve_err *err)
{
    uint64_t live = varve_tracker_epoch(t);
    int r;

    varve_tracker_abort(t);
    r = varve_tracker_seal(t, err);
    if (r == 0)
        r = varve_epoch_file_finish(t->w, &t->paths, &t->id.geometry, live,
                                    varve_tracker_find(t, live)->bits, VARVE_EPOCH_FILE_CLEAN, err);
    atomic_store(&t->ctl->served, 0);
    forget_epochs(t);
    varve_gate_fini(&t->gate);
    tracker_free(t);
    return r;
}

/* --- for readers in other processes ---------------------------------------------------------------------- */

int varve_tracker_open_control(struct varve_tracker *t, struct varve_err *err)
{
    char path[PATH_MAX];
    int fd = t->w->open(t->w, varve_path_control(&t->paths, path), O_RDONLY, 0);

    return fd < 0 ? varve_err_sys(err, -fd, "cannot open %s", path) : fd;
}

int varve_tracker_open_epoch(struct varve_tracker *t, uint64_t epoch, int fds[3],
                             struct varve_err *err)
{
    struct varve_tracked_epoch *e = varve_tracker_find(t, epoch);
    char path[3][PATH_MAX];
    unsigned n = 1;

    fds[0] = fds[1] = fds[2] = -1;
    if (!e)
        return varve_err_set(err, ENOENT, "there is no epoch %" PRIu64 " to read from", epoch);
    varve_path_live(&t->paths, epoch, path[0]);
    varve_path_lost(&t->paths, epoch, path[1]);
    varve_path_scratch(&t->paths, epoch, path[2]);
    if (atomic_load(&e->slot->flags) & VARVE_EPOCH_ARMED)
        n = 3;
    for (unsigned i = 0; i < n; i++) {
        fds[i] = t->w->open(t->w, path[i], O_RDONLY, 0);
        if (fds[i] < 0) {
            int r = varve_err_sys(err, -fds[i], "cannot open %s", path[i]);

            while (i-- > 0)
                t->w->close(t->w, fds[i]);
            fds[0] = fds[1] = fds[2] = -1;
            return r;
        }
    }
    return 0;
}
