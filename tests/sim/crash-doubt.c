/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a crash of the host may put in doubt, and nothing else: the regions that the intent log had
 * in its file when the power failed.
 *
 *     hot      what the log may have: what it wanted after the last step of the flusher that went
 * well, and all that it has wanted since calm     how many such steps found the region untouched:
 * after two it must have left the log
 *
 * As long as nothing has failed but programs and power, a log that is kept can be believed, and
 * each unsealed epoch has what was written and the blocks of those regions.  A server with
 * durability=process keeps none: then all may count as written, once.
 */
#include "tests/sim/crash-life.h"

#include "lib/epoch-file.h"
#include "lib/tracker-internal.h"

#include <inttypes.h>
#include <string.h>

#define REGIONS ((UINT32_C(1) << SPOTS) - 1)

static uint32_t wanted(struct life *l)
{
    uint32_t regions = 0;

    for (uint32_t i = 0; i < SPOTS; i++)
        regions |= (uint32_t)varve_intent_wants(l->t->intent, i) << i;
    return regions;
}

static uint32_t blocks_in(uint32_t regions)
{
    uint32_t blocks = 0;

    for (uint32_t blk = 0; blk < BLKS; blk++)
        blocks |= (regions >> blk / SPOT_BLKS & 1) << blk;
    return blocks;
}

void heat_note(struct life *l)
{
    if (l->t)
        l->hot |= wanted(l);
}

static void touched(struct life *l, uint32_t regions)
{
    for (uint32_t i = 0; i < SPOTS; i++) {
        if (!(regions >> i & 1))
            continue;
        l->calm[i] = 0;
        l->touches[i]++;
    }
}

uint32_t heat_before(struct life *l, uint32_t at)
{
    touched(l, UINT32_C(1) << at / SPOT_BYTES);
    return wanted(l);
}

void heat_after(struct life *l, uint32_t at, uint32_t before)
{
    /* Those that were heated because others go on there soon, too. */
    touched(l, (wanted(l) & ~before) | UINT32_C(1) << at / SPOT_BYTES);
    heat_note(l);
}

void heat_starting(struct life *l, bool process)
{
    if (!process)
        return;
    l->logless = true;
    l->hot = REGIONS; /* whoever makes a new one knows nothing */
}

void heat_started(struct life *l, enum sim_proc proc)
{
    bool kept = !l->t->intent->off;

    if (l->sim.faults == 0 && !l->logless && l->born && !l->t->found.trusted && !l->t->found_clean)
        broken(l, "the intent log is not believed: %s", l->t->found.why);
    if (!kept && proc != SIM_PLUGIN)
        return; /* it is as it was */
    l->logless = !kept;
    l->hot = kept ? wanted(l) : REGIONS;
    memset(l->calm, 0, sizeof(l->calm));
}

void heat_flushed(struct life *l, bool looked, const uint64_t touches[SPOTS])
{
    uint32_t now;

    if (l->t->intent->off)
        return;
    l->hot = now = wanted(l);
    for (uint32_t i = 0; looked && i < SPOTS; i++) {
        l->calm[i] += l->touches[i] == touches[i];
        if (l->calm[i] >= 2 && now >> i & 1 && l->sim.faults == 0)
            broken(l, "region %" PRIu32 " is quiet and stays in the intent log", i);
    }
}

/* --- after a power failure
 * ------------------------------------------------------------------------- */

static bool live_is_clean(struct life *l)
{
    struct varve_epoch_file info;

    return varve_epoch_file_info(sim_of(&l->sim, SIM_TEST), &l->paths, l->id.uuid, &l->g, l->live,
                                 l->live, &info, NULL) == 0 &&
           info.state == VARVE_EPOCH_FILE_CLEAN;
}

/* Blocks that will count as written because nobody knows better.  False: nobody can say which. */
static bool blocks_in_doubt(struct life *l, uint32_t *blocks)
{
    struct varve_intent_found found;
    uint32_t regions = 0;

    *blocks = 0;
    if (!l->born || l->sim.faults > 0)
        return false;
    if (!l->next &&
        live_is_clean(l)) /* its server died before it took the mark off, or behind it */
        return true;
    if (varve_intent_read(sim_of(&l->sim, SIM_TEST), &l->paths, l->id.uuid, &l->g, INT64_MIN,
                          &found, NULL) < 0 ||
        !found.trusted) {
        if (!l->logless)
            broken(l, "nothing has failed, and there is no intent log to believe: %s", found.why);
        return false;
    }
    for (uint32_t i = 0; i < SPOTS; i++)
        regions |= (uint32_t)(found.bits[0] >> i & 1) << i;
    if (regions & ~l->hot)
        broken(l, "the intent log has regions %" PRIx32 ", of which %" PRIx32 " were cold", regions,
               regions & ~l->hot);
    *blocks = blocks_in(regions);
    return true;
}

void doubt_after_power(struct life *l)
{
    uint64_t to = l->next > l->live ? l->next : l->live;
    uint32_t blocks;
    bool tight;

    if (l->clean || l->foreign)
        return;
    tight = blocks_in_doubt(l, &blocks);
    for (uint64_t e = l->sealed_to; e <= to; e++) {
        l->epochs[e].tight = tight && (l->epochs[e].tight || !l->epochs[e].doubt);
        l->epochs[e].regions |= blocks;
        l->epochs[e].doubt = true;
    }
}
