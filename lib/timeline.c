/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The directory is the timeline: each file tells its epochs and the epoch before them, so files
 * form chains from the newest back to the oldest.
 *
 *     [1-4] <--prev-- [5] <--prev-- [6-7] <--prev-- [9 live] <--prev-- [10 prepared]
 *                                       ^--prev-- [8 prepared once, never entered]
 *
 * 1. Questions walk back along prev, never forward along numbers: what was prepared and never
 *    entered is on nobody's way, and a file that is gone is missed.
 * 2. A merged file is durable, its name too, before the first of its parts goes.  As long as both
 *    are there the parts do not count.
 * 3. Only sealed files are merged or removed.  A merged file has the first one's prev and the last
 *    one's number, so the neighbours' chains hold.
 * 4. What is damaged stays where it is, so that whoever needs it learns of it.
 */
#include "lib/timeline.h"

#include "lib/epoch-era.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* How often a directory is read again whose files vanish while we look at them. */
#define SCAN_TRIES 16

/* --- scan ------------------------------------------------------------------------------------- */

/* Epoch files by their names, and then by what is in them. */
struct file_list {
    struct varve_epoch_file *files;
    size_t nfiles, room;
    uint64_t highest;
};

/* What concerns one file only, as against our own lack of memory, files and the like. */
static bool is_damage(int rc)
{
    return rc == -EUCLEAN || rc == -EIO;
}

static int list_add(void *arg, const char *name)
{
    struct file_list *list = arg;
    uint64_t first, last;

    if (!varve_path_parse_epoch(name, &first, &last))
        return 0;
    if (list->nfiles == list->room) {
        size_t room = list->room ? 2 * list->room : 64;
        struct varve_epoch_file *files = reallocarray(list->files, room, sizeof(*files));

        if (!files)
            return -ENOMEM;
        list->files = files;
        list->room = room;
    }
    list->files[list->nfiles++] = (struct varve_epoch_file){.first = first, .last = last};
    if (last > list->highest)
        list->highest = last;
    return 0;
}

/* By first epoch; of those that begin together the longest is first. */
static int file_cmp(const void *va, const void *vb)
{
    const struct varve_epoch_file *a = va, *b = vb;

    if (a->first != b->first)
        return a->first < b->first ? -1 : 1;
    if (a->last != b->last)
        return a->last > b->last ? -1 : 1;
    return 0;
}

/* Reads heads and marks of the listed files; those that cannot be used leave the list.
 * -EAGAIN: one has vanished. */
static int list_look(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                     const struct varve_geometry *g, struct file_list *list, struct varve_err *err)
{
    size_t kept = 0;

    for (size_t i = 0; i < list->nfiles; i++) {
        struct varve_epoch_file *f = &list->files[i];
        struct varve_err why;
        int rc = varve_epoch_file_info(w, p, uuid, g, f->first, f->last, f, &why);

        if (rc == 0) {
            /* What was live when a state folder came back from a copy of another size: not any more. */
            if (f->state == VARVE_EPOCH_FILE_SEALED || f->size == g->size)
                list->files[kept++] = *f;
        } else if (rc == -ENOENT) {
            return -EAGAIN;
        } else if (!is_damage(rc)) {
            if (err)
                *err = why;
            return rc;
        }
    }
    list->nfiles = kept;
    return 0;
}

/* Moves the parts of sealed merged files behind the others; both stay sorted.  *nparts are parts.
 */
static int parts_apart(struct file_list *list, size_t *nparts)
{
    struct varve_epoch_file *parts = calloc(list->nfiles + 1, sizeof(*parts));
    uint64_t covered = 0;
    size_t kept = 0;

    if (!parts)
        return -ENOMEM;
    *nparts = 0;
    for (size_t i = 0; i < list->nfiles; i++) {
        struct varve_epoch_file f = list->files[i];

        /* What covers f begins at or before it, so it has come before it. */
        if (f.last <= covered) {
            parts[(*nparts)++] = f;
            continue;
        }
        list->files[kept++] = f;
        if (f.state == VARVE_EPOCH_FILE_SEALED && f.first < f.last)
            covered = f.last;
    }
    if (*nparts > 0)
        memcpy(list->files + kept, parts, *nparts * sizeof(*parts));
    free(parts);
    return 0;
}

/* The last *nparts of the list's files are parts of others.  Free list->files after success. */
static int list_read(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                     const struct varve_geometry *g, struct file_list *list, size_t *nparts,
                     struct varve_err *err)
{
    int rc = -EAGAIN;

    for (int tries = 0; tries < SCAN_TRIES && rc == -EAGAIN; tries++) {
        list->nfiles = 0;
        list->highest = 0;
        rc = w->list(w, p->state, list_add, list);
        if (rc < 0)
            varve_err_sys(err, -rc, "cannot list %s", p->state);
        else
            rc = list_look(w, p, uuid, g, list, err);
    }
    if (rc == -EAGAIN)
        varve_err_set(err, EAGAIN, "the files in %s keep changing", p->state);
    if (rc == 0 && list->nfiles > 0)
        qsort(list->files, list->nfiles, sizeof(*list->files), file_cmp);
    if (rc == 0) {
        rc = parts_apart(list, nparts);
        if (rc < 0)
            varve_err_sys(err, -rc, "cannot read %s", p->state);
    }
    if (rc < 0)
        free(list->files);
    return rc;
}

int varve_timeline_scan(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                        const struct varve_geometry *g, struct varve_timeline *tl,
                        struct varve_err *err)
{
    struct file_list list = {0};
    size_t nparts;
    int rc = list_read(w, p, uuid, g, &list, &nparts, err);

    if (rc < 0)
        return rc;
    tl->files = list.files;
    tl->nfiles = list.nfiles - nparts;
    tl->highest = list.highest;
    return 0;
}

void varve_timeline_fini(struct varve_timeline *tl)
{
    free(tl->files);
    tl->files = NULL;
    tl->nfiles = 0;
}

/* --- union ------------------------------------------------------------------------------------ */

static int missing(const struct varve_paths *p, uint64_t epoch, struct varve_err *err)
{
    if (varve_is_era_gap(epoch))
        return varve_err_set(err, EUCLEAN,
                             "nobody knows what others wrote to the image before epoch %" PRIu64,
                             epoch + 1);
    return varve_err_set(err, EUCLEAN,
                         "the map of epoch %" PRIu64 " is missing from %s, or damaged", epoch,
                         p->state);
}

/* Index of the file before index `before` whose last epoch is `last`, or `before`. */
static size_t find_last(const struct varve_timeline *tl, size_t before, uint64_t last)
{
    for (size_t i = before; i > 0; i--) {
        if (tl->files[i - 1].last == last)
            return i - 1;
    }
    return before;
}

/* The disk's size went from one to the other between two epochs. */
static void resized(const struct varve_geometry *g, uint64_t size1, uint64_t size2,
                    struct varve_bitmap *into, uint64_t *added)
{
    uint64_t had = added ? varve_bitmap_count(into) : 0;

    varve_bitmap_set(into, varve_resized_from(g, size1, size2), into->nbits);
    if (added)
        *added += varve_bitmap_count(into) - had;
}

int varve_timeline_union_counting(struct varve_world *w, const struct varve_paths *p,
                                  const uint8_t uuid[16], const struct varve_geometry *g,
                                  const struct varve_timeline *tl, uint64_t first, uint64_t end,
                                  struct varve_bitmap *into, uint64_t *added, struct varve_err *err)
{
    size_t at = 0;

    if (first == end)
        return 0;
    if (first > end)
        return varve_err_set(err, EINVAL, "epoch %" PRIu64 " is after epoch %" PRIu64, first, end);
    while (at < tl->nfiles && tl->files[at].first != end)
        at++;
    if (at == tl->nfiles)
        return missing(p, end, err);

    while (tl->files[at].first != first) {
        uint64_t prev = tl->files[at].prev;
        size_t before = find_last(tl, at, prev);
        const struct varve_epoch_file *f = &tl->files[before];
        int rc = 0;

        if (prev < first)
            return missing(p, first, err);
        if (before == at)
            return missing(p, prev, err);
        if (f->first < first)
            return varve_err_set(err, EUCLEAN,
                                 "there is no boundary at epoch %" PRIu64 " any more: the map of "
                                 "epochs %" PRIu64 " to %" PRIu64 " in %s spans it",
                                 first, f->first, f->last, p->state);
        if (f->state != VARVE_EPOCH_FILE_SEALED)
            return varve_err_set(err, EUCLEAN, "the map of epoch %" PRIu64 " in %s was not sealed",
                                 f->first, p->state);
        if (into)
            rc = varve_epoch_file_load_counting(w, p, uuid, g, f->first, f->last, into, added, err);
        if (rc == -ENOENT)
            return missing(p, prev, err);
        if (rc < 0)
            return rc;
        if (into && f->size != tl->files[at].size)
            resized(g, f->size, tl->files[at].size, into, added);
        at = before;
    }
    return 0;
}

int varve_timeline_union(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                         const struct varve_geometry *g, const struct varve_timeline *tl,
                         uint64_t first, uint64_t end, struct varve_bitmap *into,
                         struct varve_err *err)
{
    return varve_timeline_union_counting(w, p, uuid, g, tl, first, end, into, NULL, err);
}

const struct varve_epoch_file *varve_timeline_at(const struct varve_timeline *tl, uint64_t first)
{
    for (size_t i = 0; i < tl->nfiles; i++) {
        if (tl->files[i].first == first)
            return &tl->files[i];
    }
    return NULL;
}

/* --- tidy ------------------------------------------------------------------------------------- */

struct tidy {
    struct varve_world *w;
    const struct varve_paths *p;
    const uint8_t *uuid;
    const struct varve_geometry *g;
    uint64_t *needed; /* sorted */
    size_t nneeded;
    uint64_t highest;
    struct varve_err damage; /* the first that was met; told in the end, stops nothing */
};

static int damage_noted(struct tidy *t, int rc, const struct varve_err *err)
{
    if (!is_damage(rc))
        return rc;
    if (t->damage.code == 0)
        t->damage = *err;
    return 0;
}

static int number_cmp(const void *va, const void *vb)
{
    const uint64_t *a = va, *b = vb;

    return (*a > *b) - (*a < *b);
}

static bool boundary_needed(const struct tidy *t, uint64_t epoch)
{
    return t->nneeded > 0 &&
           bsearch(&epoch, t->needed, t->nneeded, sizeof(epoch), number_cmp) != NULL;
}

static int file_remove(const struct tidy *t, const struct varve_epoch_file *f,
                       struct varve_err *err)
{
    char path[PATH_MAX];
    int rc = t->w->unlink(t->w, varve_path_epoch(t->p, f->first, f->last, path));

    if (rc < 0 && rc != -ENOENT)
        return varve_err_sys(err, -rc, "cannot remove %s", path);
    return 0;
}

/* Removes what attempts that died left behind.  Merged files are made by one tidy at a time; a new
 * epoch's file is made while no file has a higher number. */
static int temporary_remove(void *arg, const char *name)
{
    const struct tidy *t = arg;
    char whole[NAME_MAX + 1], path[PATH_MAX];
    size_t len = strlen(name);
    uint64_t first, last;

    if (len < 4 || len > NAME_MAX || strcmp(name + len - 4, ".tmp") != 0)
        return 0;
    memcpy(whole, name, len - 4);
    whole[len - 4] = '\0';
    if (!varve_path_parse_epoch(whole, &first, &last) || (first == last && first >= t->highest))
        return 0;
    strcat(varve_path_epoch(t->p, first, last, path), ".tmp");
    t->w->unlink(t->w, path); /* costs only space */
    return 0;
}

/* Removes the parts that `whole` holds, once it has proved that it does. */
static int parts_remove(const struct tidy *t, const struct varve_epoch_file *whole,
                        const struct varve_epoch_file *parts, size_t nparts, struct varve_err *err)
{
    struct varve_bitmap *bits;
    bool any = false;
    int rc = 0;

    for (size_t i = 0; i < nparts; i++) {
        if (parts[i].first >= whole->first && parts[i].last <= whole->last &&
            parts[i].state == VARVE_EPOCH_FILE_SEALED)
            any = true;
    }
    if (!any)
        return 0;
    bits = varve_bitmap_new(t->g->nblks);
    if (!bits)
        return varve_err_sys(err, ENOMEM, "cannot tidy %s", t->p->state);
    rc = varve_epoch_file_load(t->w, t->p, t->uuid, t->g, whole->first, whole->last, bits, err);
    free(bits);
    for (size_t i = 0; i < nparts && rc == 0; i++) {
        if (parts[i].first >= whole->first && parts[i].last <= whole->last &&
            parts[i].state == VARVE_EPOCH_FILE_SEALED)
            rc = file_remove(t, &parts[i], err);
    }
    return rc;
}

/* Writes files[0, nfiles) as one, bits being their union, and removes them. */
static int merge(const struct tidy *t, const struct varve_geometry *g,
                 const struct varve_epoch_file *files, size_t nfiles,
                 const struct varve_bitmap *bits, struct varve_err *err)
{
    int rc;

    if (nfiles < 2)
        return 0;
    rc = varve_epoch_file_write_merged(t->w, t->p, t->uuid, g, files[0].first,
                                       files[nfiles - 1].last, files[0].prev, files[0].id, bits,
                                       err);
    for (size_t i = 0; i < nfiles && rc == 0; i++)
        rc = file_remove(t, &files[i], err);
    return rc;
}

/* Merges neighbours that nothing separates.  A damaged one separates: merging it would hide that.
 */
static int run_merge(struct tidy *t, const struct varve_epoch_file *files, size_t nfiles,
                     struct varve_err *err)
{
    struct varve_geometry g; /* the disk's in these epochs */
    struct varve_bitmap *bits;
    size_t from = 0;
    int rc = 0;

    if (nfiles < 2)
        return 0;
    rc = varve_geometry_init(&g, files[0].size, varve_block_size(t->g), err);
    if (rc < 0)
        return rc;
    bits = varve_bitmap_new(g.nblks);
    if (!bits)
        return varve_err_sys(err, ENOMEM, "cannot tidy %s", t->p->state);
    for (size_t i = 0; i < nfiles && rc == 0; i++) {
        rc = varve_epoch_file_load(t->w, t->p, t->uuid, &g, files[i].first, files[i].last, bits,
                                   err);
        if (is_damage(rc)) {
            damage_noted(t, rc, err);
            rc = merge(t, &g, files + from, i - from, bits, err);
            from = i + 1;
            memset(bits->words, 0, varve_bitmap_nwords(bits) * 8);
        }
    }
    if (rc == 0)
        rc = merge(t, &g, files + from, nfiles - from, bits, err);
    free(bits);
    return rc;
}

/* Sealed files[0, nfiles): merges each run of neighbours that neither a needed boundary nor another size
 * separates. */
static int runs_merge(struct tidy *t, const struct varve_epoch_file *files, size_t nfiles,
                      struct varve_err *err)
{
    int rc = 0;

    for (size_t from = 0, to; from < nfiles && rc == 0; from = to) {
        for (to = from + 1; to < nfiles; to++) {
            if (files[to].prev != files[to - 1].last || boundary_needed(t, files[to].first) ||
                files[to].size != files[to - 1].size)
                break;
        }
        rc = run_merge(t, files + from, to - from, err);
    }
    return rc;
}

/* Removes from sealed[0, *n) what ends before the oldest needed boundary. */
static int unneeded_remove(const struct tidy *t, struct varve_epoch_file *sealed, size_t *n,
                           struct varve_err *err)
{
    size_t unneeded = 0;

    while (unneeded < *n && (t->nneeded == 0 || sealed[unneeded].last < t->needed[0])) {
        int rc = file_remove(t, &sealed[unneeded], err);

        if (rc < 0)
            return rc;
        unneeded++;
    }
    if (unneeded > 0) {
        *n -= unneeded;
        memmove(sealed, sealed + unneeded, *n * sizeof(*sealed));
    }
    return 0;
}

static int tidy_list(struct tidy *t, struct file_list *list, size_t nparts, struct varve_err *err)
{
    size_t kept = list->nfiles - nparts;
    size_t nsealed = 0;
    int rc;

    if (nparts > 0) {
        /* The merged files' names may be in memory only, if their maker was killed. */
        rc = t->w->sync_dir(t->w, t->p->state);
        if (rc < 0)
            return varve_err_sys(err, -rc, "cannot make the names in %s durable", t->p->state);
        for (size_t i = 0; i < kept; i++) {
            if (list->files[i].state != VARVE_EPOCH_FILE_SEALED)
                continue;
            rc = parts_remove(t, &list->files[i], list->files + kept, nparts, err);
            rc = damage_noted(t, rc, err);
            if (rc < 0)
                return rc;
        }
    }
    for (size_t i = 0; i < kept; i++) {
        if (list->files[i].state == VARVE_EPOCH_FILE_SEALED)
            list->files[nsealed++] = list->files[i];
    }
    rc = unneeded_remove(t, list->files, &nsealed, err);
    return rc < 0 ? rc : runs_merge(t, list->files, nsealed, err);
}

int varve_timeline_tidy(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                        const struct varve_geometry *g, const uint64_t *needed, size_t nneeded,
                        struct varve_err *err)
{
    struct tidy t = {.w = w, .p = p, .uuid = uuid, .g = g, .nneeded = nneeded};
    struct varve_err why = VARVE_ERR_INIT;
    struct file_list list = {0};
    size_t nparts;
    int rc;

    t.needed = calloc(nneeded + 1, sizeof(*t.needed));
    if (!t.needed)
        return varve_err_sys(err, ENOMEM, "cannot tidy %s", p->state);
    if (nneeded > 0) {
        memcpy(t.needed, needed, nneeded * sizeof(*needed));
        qsort(t.needed, nneeded, sizeof(*t.needed), number_cmp);
    }
    rc = list_read(w, p, uuid, g, &list, &nparts, &why);
    if (rc == 0) {
        t.highest = list.highest;
        w->list(w, p->state, temporary_remove, &t);
        rc = tidy_list(&t, &list, nparts, &why);
        free(list.files);
    }
    free(t.needed);
    if (rc == 0 && t.damage.code != 0) {
        why = t.damage;
        rc = -why.code;
    }
    if (rc < 0 && err)
        *err = why;
    return rc;
}
