/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the daemon does, in the order in which it does it: boundaries, chains of backups, the
 * catalogue that remembers them, housekeeping, files of blocks.
 *
 *     begin    boundary with a view, seal; the union since the base; commit: there is a checkpoint
 *     pull     the dirty blocks, one by one, from the view
 *     end      commit: the former checkpoint is gone (or, after a failure, the new one); the view
 * ends
 */
#include "lib/blocks-file.h"
#include "tests/sim/crash-life.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- boundaries ------------------------------------------------------------------------------- */

static bool served(struct life *l)
{
    return l->t && !is_dead(l, l->server);
}

static void begin_doing(struct life *l, enum doing what, enum sim_proc who)
{
    l->doing = what;
    l->doer = who;
}

static void seal(struct life *l)
{
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t faults = l->sim.faults, live = l->live;
    int r;

    trace(l, "seal");
    begin_doing(l, CONTROLLING, l->server);
    r = varve_tracker_seal(l->t, &err);
    l->doing = NOTHING;
    if (!served(l))
        return;
    if (r == 0)
        l->sealed_to = live;
    else if (no_faults_since(l, faults))
        broken(l, "an epoch cannot be sealed: %s", err.msg);
}

static void open_view(struct life *l, struct view *v, uint64_t epoch)
{
    v->at = (struct varve_view){.id = ++l->next_view, .boundary = epoch};
    v->narrowed = v->chained = false;
    v->released = v->unneeded = v->maybe_gone = 0;
    v->faults = l->sim.faults;
    look_at_image(l, v->content);
    l->opening = v;
}

/* Enters the prepared epoch.  0, or an error: then nothing has happened. */
static int enter(struct life *l, uint64_t epoch, struct view *v)
{
    struct varve_err err = VARVE_ERR_INIT;
    bool hooked = l->sim.in_hook;
    int r;

    /* Nobody comes between: who writes must know the epoch. */
    l->sim.in_hook = true;
    r = varve_tracker_quiesce(l->t, &err);
    if (r == 0) {
        l->next = epoch;
        if (v)
            open_view(l, v, epoch);
        r = varve_tracker_swap(l->t, epoch, v ? v->at.id : 0, &err);
    }
    l->sim.in_hook = hooked;
    if (!served(l))
        return -EINTR;
    if (r < 0 && l->next)
        broken(l, "a boundary fails: %s", err.msg);
    l->next = 0;
    l->opening = NULL;
    if (r == 0) {
        note_failed_image(l); /* the file of the one that ends will have what may be lost */
        l->live = epoch;
    }
    return r;
}

/* With a view, or NULL.  0, or an error of which nothing is left but the number. */
static int make_boundary(struct life *l, struct view *v)
{
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t epoch, faults = l->sim.faults;
    int r;

    guest_let_all_go(l);
    if (!served(l))
        return -EINTR;
    if (varve_tracker_private(l->t)) /* it came after a fault, and makes none */
        return -ENOTRECOVERABLE;
    trace(l, "a boundary%s", v ? " with a view" : "");
    begin_doing(l, CONTROLLING, l->server);
    r = varve_tracker_prepare(l->t, v != NULL, &epoch, &err);
    if (served(l)) {
        if (r < 0 && no_faults_since(l, faults))
            broken(l, "no epoch can be prepared: %s", err.msg);
        if (r == 0 && (epoch <= l->live || epoch >= EPOCHS))
            broken(l, "epoch %" PRIu64 " is prepared", epoch);
        if (r == 0)
            r = enter(l, epoch, v);
    }
    l->doing = NOTHING;
    if (served(l) && r == 0)
        l->boundaries++;
    return served(l) ? r : -EINTR;
}

static struct view *closed_view(struct life *l)
{
    struct view *v = &l->views[rnd(l, VIEWS)];

    return v->at.id ? NULL : v;
}

void some_boundary(struct life *l)
{
    uint64_t epoch;
    int r;

    if (!served(l))
        return;
    switch (rnd(l, 8)) {
    case 0: /* left prepared, or given up */
        trace(l, "a boundary is prepared");
        begin_doing(l, CONTROLLING, l->server);
        r = varve_tracker_prepare(l->t, rnd(l, 2), &epoch, NULL);
        if (r == 0 && served(l) && rnd(l, 2)) {
            /* With writes under way it may not come about. */
            bool hooked = l->sim.in_hook;

            l->sim.in_hook = true;
            varve_tracker_quiesce(l->t, NULL);
            varve_tracker_abort(l->t);
            l->sim.in_hook = hooked;
        }
        l->doing = NOTHING;
        return;
    case 1:
        seal(l);
        return;
    default:
        break;
    }
    if (make_boundary(l, rnd(l, 2) ? closed_view(l) : NULL) == 0 && rnd(l, 4))
        seal(l);
}

/* --- the catalogue ---------------------------------------------------------------------------- */

static bool kept(struct life *l)
{
    return l->store && !is_dead(l, SIM_DAEMON);
}

static struct varve_cat_disk *disk_of(struct life *l, struct varve_catalogue *c)
{
    struct varve_cat_disk *d = varve_catalogue_add_disk(c, l->id.uuid, "vda");

    if (!d)
        broken(l, "no memory");
    return d;
}

static const char *name_of(const struct life *l, unsigned chain, uint64_t epoch, char name[32])
{
    (void)l;
    snprintf(name, 32, "c%u.%" PRIu64, chain, epoch);
    return name;
}

static void forget_maybes(struct life *l)
{
    while (l->nmaybe > 0)
        free(l->maybe[--l->nmaybe].text);
}

/* Takes the draft over. */
static int commit(struct life *l, struct varve_catalogue *draft, uint32_t blocks)
{
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t faults = l->sim.faults;
    struct committed *as = &l->maybe[l->nmaybe++];
    int r;

    if (l->nmaybe == MAYBES)
        broken(l, "the test has no room for so many failed commits");
    *as = (struct committed){varve_catalogue_dump(draft), blocks};
    begin_doing(l, KEEPING, SIM_DAEMON);
    r = varve_catalogue_commit(l->store, draft, &err);
    l->doing = NOTHING;
    if (r < 0 || is_dead(l, SIM_DAEMON)) {
        varve_catalogue_free(draft);
        if (is_dead(l, SIM_DAEMON))
            return -EINTR;
        if (no_faults_since(l, faults))
            broken(l, "nothing can be committed: %s", err.msg);
        if (!strstr(err.msg, "nor take")) /* else a crash may show it */
            free(l->maybe[--l->nmaybe].text);
        return r;
    }
    varve_catalogue_free(l->cat);
    l->cat = draft;
    free(l->now.text);
    l->now = *as;
    as->text = NULL;
    forget_maybes(l);
    for (unsigned i = 0; i < CHAINS; i++)
        l->chains[i].ending = false;
    return 0;
}

/* The chain's checkpoint at that epoch is there or not. */
static int commit_checkpoint(struct life *l, unsigned chain, uint64_t epoch, bool there)
{
    struct varve_catalogue *draft = varve_catalogue_clone(l->cat);
    struct varve_cat_disk *d = disk_of(l, draft);
    char name[32];

    name_of(l, chain, epoch, name);
    if (there && varve_catalogue_add_checkpoint(d, name, "", 1, epoch, NULL) < 0)
        broken(l, "a checkpoint of epoch %" PRIu64 " is there already", epoch);
    if (!there)
        varve_catalogue_remove_checkpoint(d, name);
    return commit(l, draft, l->now.blocks);
}

static bool has_checkpoint(struct life *l, unsigned chain, uint64_t epoch)
{
    char name[32];

    return varve_catalogue_checkpoint(varve_catalogue_disk(l->cat, l->id.uuid),
                                      name_of(l, chain, epoch, name)) != NULL;
}

static void blocks_came_back(struct life *l)
{
    struct varve_cat_bitmap *b =
        varve_catalogue_bitmap(varve_catalogue_disk(l->cat, l->id.uuid), "b");
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_bitmap *bits;

    if (!b)
        return;
    bits = varve_bitmap_new(l->g.nblks);
    if (varve_blocks_load(sim_of(&l->sim, SIM_TEST), &l->paths, l->id.uuid, &l->g, b->set.blocks,
                          bits, &err) < 0)
        broken(l, "blocks that are committed cannot be read: %s", err.msg);
    if (mask_of(bits) != l->now.blocks)
        broken(l, "a bitmap has blocks %" PRIx32 ", it had %" PRIx32, mask_of(bits), l->now.blocks);
    free(bits);
}

static void chain_came_back(struct life *l, unsigned i)
{
    struct chain *c = &l->chains[i];

    if (c->ending && has_checkpoint(l, i, c->boundary) && !has_checkpoint(l, i, c->base)) {
        c->base = c->boundary;
        memcpy(c->copy, c->next, sizeof(c->copy));
    }
    c->ending = false;
    if (c->base && !has_checkpoint(l, i, c->base))
        broken(l, "the catalogue has lost the checkpoint of epoch %" PRIu64, c->base);
    /* It had ended, or not begun. */
    if (c->view && (c->base == c->boundary || !has_checkpoint(l, i, c->boundary))) {
        view_close(l, c->view);
        c->view = NULL;
    }
}

/* Checkpoints that belong to no chain: of backups that were lost with their views. */
static void forget_orphans(struct life *l)
{
    struct varve_catalogue *draft = varve_catalogue_clone(l->cat);
    struct varve_cat_disk *d = disk_of(l, draft);
    bool any = false;

    for (size_t k = d->ncheckpoints; k-- > 0;) {
        const char *name = d->checkpoints[k].name;
        struct chain *c = &l->chains[name[1] - '0'];
        uint64_t epoch = d->checkpoints[k].epoch;

        if (epoch != c->base && !(c->view && epoch == c->boundary))
            any = varve_catalogue_remove_checkpoint(d, name);
    }
    if (any)
        commit(l, draft, l->now.blocks);
    else
        varve_catalogue_free(draft);
}

void catalogue_came_back(struct life *l)
{
    struct committed is = {varve_catalogue_dump(l->cat), l->now.blocks};
    unsigned i = 0;

    if (l->now.text && strcmp(is.text, l->now.text) != 0) {
        while (i < l->nmaybe && strcmp(is.text, l->maybe[i].text) != 0)
            i++;
        if (i == l->nmaybe)
            broken(l, "the catalogue is neither the old nor the new one");
        is.blocks = l->maybe[i].blocks;
    }
    free(l->now.text);
    l->now = is;
    forget_maybes(l);
    if (!l->born)
        return;
    blocks_came_back(l);
    for (i = 0; i < CHAINS; i++)
        chain_came_back(l, i);
    for (i = 0; i < VIEWS; i++) {
        struct view *v = &l->views[i];

        if (v->at.id && v->chained && l->chains[0].view != v && l->chains[1].view != v)
            view_close(l, v);
    }
    if (kept(l))
        forget_orphans(l);
}

/* --- backups ---------------------------------------------------------------------------------- */

/* What is dirty since the chain's base, as the daemon learns it.  False: it cannot. */
static bool learn_dirty(struct life *l, struct chain *c, uint64_t boundary)
{
    struct varve_world *w = sim_of(&l->sim, SIM_DAEMON);
    struct varve_bitmap *bits = varve_bitmap_new(l->g.nblks);
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t faults = l->sim.faults;
    struct varve_timeline tl;
    int r;

    begin_doing(l, KEEPING, SIM_DAEMON);
    r = varve_timeline_scan(w, &l->paths, l->id.uuid, &l->g, &tl, &err);
    if (r == 0) {
        r = varve_timeline_union(w, &l->paths, l->id.uuid, &l->g, &tl, c->base, boundary, bits,
                                 &err);
        varve_timeline_fini(&tl);
    }
    l->doing = NOTHING;
    c->dirty = mask_of(bits);
    free(bits);
    if (!kept(l))
        return false;
    if (r < 0 && l->sim.faults == 0)
        broken(l, "what is dirty since epoch %" PRIu64 " is not known: %s", c->base, err.msg);
    if (r < 0 && no_faults_since(l, faults))
        c->base = 0; /* inconsistent, and so named: a full backup has to follow */
    return r == 0;
}

void backup_begin(struct life *l)
{
    unsigned i = (unsigned)rnd(l, CHAINS);
    struct chain *c = &l->chains[i];
    struct view *v = closed_view(l);

    if (!served(l) || !kept(l) || c->view || !v)
        return;
    if (make_boundary(l, v) < 0)
        return;
    v->chained = true;
    c->boundary = l->live;
    seal(l);
    c->dirty = ALL;
    if (!served(l) || !kept(l) || l->sealed_to != l->live ||
        (c->base && !learn_dirty(l, c, c->boundary)) ||
        commit_checkpoint(l, i, c->boundary, true) < 0) {
        if (kept(l))
            view_close(l, v);
        return;
    }
    if (!v->at.id)
        return; /* the power has failed */
    trace(l, "backup %u begins: blocks %" PRIx32 " since epoch %" PRIu64, i, c->dirty, c->base);
    c->view = v;
    c->pulled = 0;
    if (c->base)
        memcpy(c->next, c->copy, sizeof(c->next));
    else
        memset(c->next, '?', sizeof(c->next));
}

static void backup_fail(struct life *l, unsigned i)
{
    struct chain *c = &l->chains[i];
    struct view *v = c->view;

    trace(l, "backup %u fails", i);
    c->view = NULL;
    if (commit_checkpoint(l, i, c->boundary, false) == -EINTR)
        return;
    view_close(l, v);
}

static void backup_succeed(struct life *l, unsigned i)
{
    struct chain *c = &l->chains[i];
    struct varve_catalogue *draft;
    struct view *v = c->view;
    char name[32];

    trace(l, "backup %u has all", i);
    for (uint32_t at = 0; at < BYTES; at++) {
        if (c->next[at] != v->content[at])
            broken(l,
                   "block %u of chain %u, clean since epoch %" PRIu64
                   ", differs from the backup at byte %" PRIu32,
                   at / BLOCK, i, c->base, at);
    }
    draft = varve_catalogue_clone(l->cat);
    if (c->base)
        varve_catalogue_remove_checkpoint(disk_of(l, draft), name_of(l, i, c->base, name));
    c->ending = true;
    if (commit(l, draft, l->now.blocks) < 0)
        return;
    l->backups++;
    l->incrementals += c->base != 0;
    c->base = c->boundary;
    memcpy(c->copy, c->next, sizeof(c->copy));
    c->view = NULL;
    view_close(l, v);
}

static bool is_wanted(const struct chain *c, uint32_t blk)
{
    return (c->dirty & ~c->pulled) >> blk & 1;
}

void backup_pull(struct life *l)
{
    struct chain *c = &l->chains[rnd(l, CHAINS)];

    if (!c->view || !kept(l) || !l->source)
        return;
    for (uint32_t n = 1 + (uint32_t)rnd(l, 8); n > 0 && c->dirty & ~c->pulled; n--) {
        uint32_t blk = (uint32_t)rnd(l, BLKS), end, at, len;

        while (!is_wanted(c, blk))
            blk = (blk + 1) % BLKS;
        for (end = blk + 1; end % SPOT_BLKS && is_wanted(c, end); end++)
            continue;
        at = blk * BLOCK;
        len = blk_end(end - 1) - at;
        trace(l, "pull %" PRIu32 "+%" PRIu32 " of backup %d", at, len, (int)(c - l->chains));
        if (read_view(l, c->view, at, len, c->next + at) < 0) {
            if (kept(l) && c->view && !no_faults_since(l, c->view->faults))
                backup_fail(l, (unsigned)(c - l->chains));
            return;
        }
        c->pulled |= blocks_of(at, len);
    }
}

void backup_end(struct life *l)
{
    unsigned i = (unsigned)rnd(l, CHAINS);

    if (!l->chains[i].view || !kept(l))
        return;
    if (rnd(l, 6) == 0)
        backup_fail(l, i);
    else if (!(l->chains[i].dirty & ~l->chains[i].pulled))
        backup_succeed(l, i);
}

/* --- housekeeping ----------------------------------------------------------------------------- */

void tidy(struct life *l)
{
    struct varve_cat_disk *d;
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t needed[16], faults = l->sim.faults;
    size_t n = 0;
    int r;

    if (!kept(l) || l->nmaybe || !l->born)
        return;
    d = varve_catalogue_disk(l->cat, l->id.uuid);
    for (size_t k = 0; d && k < d->ncheckpoints && n < 16; k++)
        needed[n++] = d->checkpoints[k].epoch;
    trace(l, "tidy");
    begin_doing(l, KEEPING, SIM_DAEMON);
    r = varve_timeline_tidy(sim_of(&l->sim, SIM_DAEMON), &l->paths, l->id.uuid, &l->g, needed, n,
                            &err);
    l->doing = NOTHING;
    if (kept(l) && r < 0 && no_faults_since(l, faults) && l->sim.faults == 0)
        broken(l, "the timeline cannot be tidied: %s", err.msg);
}

void keep_blocks(struct life *l)
{
    struct varve_world *w = sim_of(&l->sim, SIM_DAEMON);
    uint32_t blocks = (uint32_t)rnd(l, ALL + 1);
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t faults = l->sim.faults;
    struct varve_catalogue *draft;
    uint8_t digest[VARVE_DIGEST_LEN], old[VARVE_DIGEST_LEN];
    struct varve_cat_bitmap *b;
    struct varve_bitmap *bits;
    char path[PATH_MAX];
    bool had;
    int r;

    if (!kept(l) || !l->born || l->nmaybe)
        return;
    trace(l, "a bitmap gets blocks %" PRIx32, blocks);
    bits = varve_bitmap_new(l->g.nblks);
    for (uint32_t blk = 0; blk < BLKS; blk++) {
        if (blocks >> blk & 1)
            varve_bitmap_set(bits, disk_off(blk * BLOCK) / BLOCK,
                             disk_off(blk * BLOCK) / BLOCK + 1);
    }
    begin_doing(l, KEEPING, SIM_DAEMON);
    r = varve_blocks_write(w, &l->paths, l->id.uuid, &l->g, bits, digest, &err);
    l->doing = NOTHING;
    free(bits);
    if (!kept(l))
        return;
    if (r < 0) {
        if (no_faults_since(l, faults))
            broken(l, "blocks cannot be kept: %s", err.msg);
        return;
    }
    draft = varve_catalogue_clone(l->cat);
    b = varve_catalogue_bitmap(disk_of(l, draft), "b");
    had = b != NULL;
    if (b)
        memcpy(old, b->set.blocks, sizeof(old));
    else if (varve_catalogue_add_bitmap(disk_of(l, draft), "b", BLOCK, &b, NULL) < 0)
        broken(l, "no memory");
    b->set.has_blocks = true;
    memcpy(b->set.blocks, digest, sizeof(digest));
    if (commit(l, draft, blocks) < 0)
        return;
    if (had && memcmp(old, digest, sizeof(old)) != 0)
        w->unlink(w, varve_path_blocks(&l->paths, old, path));
}
