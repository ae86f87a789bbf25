/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/sim/crash-life.h"

#include "lib/epoch-era.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static struct varve_bitmap *live_bits(struct life *l)
{
    struct varve_bitmap *bits = varve_bitmap_new(l->g.nblks);
    char path[PATH_MAX];

    if (!sim_peek(&l->sim, varve_path_live(&l->paths, l->live, path), bits->words, 0,
                  varve_map_bytes(&l->g)))
        broken(l, "the live map of epoch %" PRIu64 " is gone", l->live);
    return bits;
}

/* What the epochs [first, live] are said to have written, against what they have. */
static void compare(struct life *l, uint64_t first, const struct varve_bitmap *bits)
{
    uint32_t is = mask_of(bits), written = 0, maybe = 0, regions = 0;
    bool doubt = false, loose = l->sim.faults > 0;

    for (uint64_t e = first; e <= l->live; e++) {
        written |= l->epochs[e].written;
        maybe |= l->epochs[e].maybe;
        doubt |= l->epochs[e].doubt;
        loose |= l->epochs[e].doubt && !l->epochs[e].tight;
        regions |= l->epochs[e].regions;
    }
    if (written & ~is)
        broken(l, "blocks %" PRIx32 ", written since epoch %" PRIu64 ", are clean", written & ~is,
               first);
    if (!doubt &&
        (is & ~(written | maybe) || varve_bitmap_count(bits) != (uint64_t)__builtin_popcount(is)))
        broken(l, "blocks %" PRIx32 ", not written since epoch %" PRIu64 ", are dirty",
               is & ~(written | maybe), first);
    if (doubt && !loose && (is & ~(written | maybe | regions)))
        broken(l, "blocks %" PRIx32 ", not in doubt since epoch %" PRIu64 ", are dirty",
               is & ~(written | maybe | regions), first);
    l->tight_checks += doubt && !loose && regions != ALL;
}

/* No block that differs from what the appliance has is clean. */
static void check_chain(struct life *l, struct chain *c, const struct varve_bitmap *bits)
{
    uint32_t dirty = mask_of(bits);
    static char now[BYTES];

    look_at_image(l, now);
    for (uint32_t blk = 0; blk < BLKS; blk++) {
        if (!(dirty >> blk & 1) &&
            memcmp(now + blk * BLOCK, c->copy + blk * BLOCK, blk_end(blk) - blk * BLOCK) != 0)
            broken(l,
                   "block %" PRIu32 " differs from chain %d's backup at epoch %" PRIu64
                   ", and is clean",
                   blk, (int)(c - l->chains), c->base);
    }
    l->chain_checks++;
}

void check_disk(struct life *l)
{
    struct varve_world *w = sim_of(&l->sim, SIM_TEST);
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_bitmap *live;
    struct varve_timeline tl;
    struct epoch *e;

    if (!l->t || is_dead(l, l->server) || varve_tracker_private(l->t)) /* nobody can look into the last */
        return;
    live = live_bits(l);
    compare(l, l->live, live);
    e = &l->epochs[l->live];
    e->written |= e->maybe & mask_of(live);
    e->maybe = e->written;
    if (l->sealed_to != l->live) {
        free(live);
        return;
    }
    if (varve_timeline_scan(w, &l->paths, l->id.uuid, &l->g, &tl, &err) < 0)
        broken(l, "the timeline cannot be read: %s", err.msg);
    for (unsigned i = 0; i < CHAINS; i++) {
        struct chain *c = &l->chains[i];
        struct varve_bitmap *bits = varve_bitmap_new(l->g.nblks);
        int r;

        if (c->base) {
            varve_bitmap_or(bits, live);
            r = varve_timeline_union(w, &l->paths, l->id.uuid, &l->g, &tl, c->base, l->live, bits,
                                     &err);
            if (r < 0 && l->sim.faults == 0)
                broken(l, "what is dirty since epoch %" PRIu64 " is not known: %s", c->base,
                       err.msg);
            if (r == 0) {
                compare(l, c->base, bits);
                check_chain(l, c, bits);
            } else if (!c->view) {
                c->base = 0;
            }
        }
        free(bits);
    }
    varve_timeline_fini(&tl);
    free(live);
}

void check_foreign(struct life *l)
{
    struct varve_world *w = sim_of(&l->sim, SIM_TEST);
    struct varve_ctl_view_copy views[VARVE_CTL_VIEWS];
    struct varve_bitmap *bits = varve_bitmap_new(l->g.nblks);
    uint64_t live = varve_tracker_epoch(l->t);
    struct varve_timeline tl;

    if (varve_era(live) == varve_era(l->live))
        broken(l, "somebody else wrote to the image, and nobody has found out");
    if (varve_timeline_scan(w, &l->paths, l->id.uuid, &l->g, &tl, NULL) < 0)
        broken(l, "the timeline cannot be read");
    for (unsigned i = 0; i < CHAINS; i++) {
        uint64_t base = l->chains[i].base;

        if (base && varve_timeline_union(w, &l->paths, l->id.uuid, &l->g, &tl, base, live, bits,
                                         NULL) == 0)
            broken(l, "what is dirty since epoch %" PRIu64 " is told across a foreign write", base);
    }
    varve_timeline_fini(&tl);
    free(bits);
    if (!sim_peek(&l->sim, RUNTIME "/vda/control", views, offsetof(struct varve_ctl, views),
                  sizeof(views)))
        broken(l, "there is no control page");
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        if (views[i].state == VARVE_VIEW_OPEN)
            broken(l, "view %" PRIu64 " is open over a foreign write", views[i].id);
    }
    l->found_foreign++;
}
