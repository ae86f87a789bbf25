/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The intent log in use (I4, I5): how a region becomes hot and cold again.
 *
 *     COLD ──heat: write, sync──▶ IDLE ◀──nobody came since the last look── TOUCHED
 *      ▲                           │ └────────────a writer came───────────────▶ ▲
 *      │                     next look                                          │
 *      │                           ▼                                            │
 *      └──grace, bits, image── COOLING ──────────────a writer came──────────────┘
 *
 * 1. A region is hot only when a sync that began after its bit was in the page has returned.  `want`
 *    is what the file shall say, `asked` what has been wanted since the last commit began: only what
 *    it took along becomes hot by it.  So who comes while another writes waits for him, and then
 *    writes for himself and for all who came meanwhile: one sync for many.
 * 2. Who asks is a writer inside the gate, for each piece, whatever the bits of its blocks say: a
 *    block that is dirty already may be written into a region that has cooled since.  He waits outside
 *    of it.  A warm write loads one byte, which nobody stores to while it says TOUCHED.
 * 3. Cooling.  The flusher marks the region COOLING; waits until all who were inside the gate have
 *    left it; makes bits and image durable; makes it COLD.  A writer who was let go on before the mark
 *    was inside before it, so the flusher has waited for him, and what he set and wrote is durable.
 *    One who looks later finds the mark and takes it away: entering the gate, marking and looking are
 *    sequentially consistent.  Only one of his exchange and the flusher's can win.
 * 4. In the file a region stays hot until any later write of it: that costs dirty blocks, no more.
 * 5. A file that could not be written is failed: the guest goes on (I8), each region that it writes is
 *    in `want`, and nobody waits.  Whoever found out first says so durably, as intent-file.c tells,
 *    before anybody goes on.  It heals when the whole page was written and synced, first as not kept,
 *    then as kept, while who wants a cold region waits as for any commit.
 *    An image whose sync failed is another matter: what it lost nobody knows until the host is started
 *    anew, and the kernel tells each failure once.  So that is said in shared memory, for all servers
 *    of this boot, before the guest is told.
 * 6. Who heats the region behind one that is hot probably goes on: then as many regions more are
 *    heated in the same commit as were hot before it, up to AHEAD regions and AHEAD_BYTES.  So
 *    sequential writing into cold regions costs a sync for some 32 MiB, and what it over-estimates is
 *    bounded by what was written.
 */
#include "lib/intent.h"

#include "lib/control.h"
#include "lib/whole-file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define AHEAD       32u
#define AHEAD_BYTES (UINT64_C(64) << 20)

static bool bit_test(const uint64_t *bits, uint64_t i)
{
    return bits[i / 64] >> (i % 64) & 1;
}

/* The lock is held, here and in all that is called *_locked. */
static void tell_locked(struct varve_intent *l)
{
    uint64_t told = l->image_failed ? VARVE_CTL_IMAGE_FAILED : 0;

    if (!l->off)
        told |= l->nhot | (l->failed ? VARVE_CTL_INTENT_FAILED : VARVE_CTL_INTENT_KEPT);
    atomic_store(l->told, told);
}

/* --- life ---------------------------------------------------------------------------- */

struct varve_intent *varve_intent_new(struct varve_world *w, const struct varve_paths *p,
                                      const uint8_t uuid[16], const struct varve_geometry *g,
                                      _Atomic uint64_t *told)
{
    struct varve_intent *l = calloc(1, sizeof(*l));

    if (!l)
        return NULL;
    l->w = w;
    l->p = p;
    memcpy(l->uuid, uuid, sizeof(l->uuid));
    l->g = *g;
    l->shift = varve_intent_shift(g);
    l->nregions = varve_intent_nregions(g);
    l->off = true;
    l->fd = -1;
    l->told = told;
    l->state = malloc((size_t)l->nregions + 1);
    if (!l->state) {
        free(l);
        return NULL;
    }
    for (uint64_t i = 0; i < l->nregions; i++)
        atomic_init(&l->state[i], VARVE_INTENT_TOUCHED);
    l->image_failed = l->image_doubt = atomic_load(told) & VARVE_CTL_IMAGE_FAILED;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->committed, NULL);
    tell_locked(l);
    return l;
}

void varve_intent_free(struct varve_intent *l)
{
    if (l->fd >= 0)
        l->w->close(l->w, l->fd);
    pthread_cond_destroy(&l->committed);
    pthread_mutex_destroy(&l->lock);
    free(l->state);
    free(l);
}

/* --- the file
 * ------------------------------------------------------------------------------------- */

static int page_write(struct varve_intent *l, const uint8_t page[VARVE_INTENT_BYTES])
{
    int r = l->fd < 0 ? -EBADF : l->w->pwrite(l->w, l->fd, page, VARVE_INTENT_BYTES, 0);

    return r < 0 ? r : l->w->sync(l->w, l->fd);
}

static int file_open(struct varve_intent *l)
{
    char path[PATH_MAX];

    if (l->fd >= 0)
        l->w->close(l->w, l->fd);
    l->fd = l->w->open(l->w, varve_path_intent(l->p, path), O_RDWR, 0);
    return l->fd < 0 ? l->fd : 0;
}

/* A new file, durable: written blocks, so that later syncs drag no journal along. */
static int file_replace(struct varve_intent *l, const uint8_t page[VARVE_INTENT_BYTES],
                        struct varve_err *err)
{
    char path[PATH_MAX];
    int r = varve_whole_file_replace(l->w, varve_path_intent(l->p, path), page, VARVE_INTENT_BYTES,
                                     err);

    if (r == 0 && (r = file_open(l)) < 0)
        varve_err_sys(err, -r, "cannot open %s", path);
    return r;
}

/* No file under its name, if that can be: then the next one is a new one.  What was open is not
 * what anybody will read. */
static int file_drop(struct varve_intent *l, struct varve_err *err)
{
    if (l->fd >= 0)
        l->w->close(l->w, l->fd);
    l->fd = -1;
    l->dropped = true;
    return varve_intent_drop(l->w, l->p, err);
}

/* The file is not to be believed: rule 5. */
static void file_disown(struct varve_intent *l)
{
    uint8_t page[VARVE_INTENT_BYTES];
    uint64_t all[VARVE_INTENT_WORDS];

    /* Of a page that is torn the old head may stay, which says that the log is kept. */
    memset(all, 0xff, sizeof(all));
    varve_intent_encode(page, l->uuid, &l->g, all, false, 0);
    if (!l->dropped && page_write(l, page) == 0)
        return;
    file_drop(l, NULL);
}

int varve_intent_start(struct varve_intent *l, const uint64_t *bits, bool in_place,
                       struct varve_err *err)
{
    struct varve_err why = VARVE_ERR_INIT;
    uint8_t page[VARVE_INTENT_BYTES];
    int r = -ENOENT;

    l->off = false;
    l->written_ns = l->w->realtime_ns(l->w);
    for (uint64_t i = 0; i < l->nregions; i++) {
        bool hot = !bits || bit_test(bits, i);

        atomic_store(&l->state[i], hot ? VARVE_INTENT_IDLE : VARVE_INTENT_COLD);
        if (hot)
            l->want[i / 64] |= (uint64_t)1 << (i % 64);
        l->nhot += hot;
    }
    varve_intent_encode(page, l->uuid, &l->g, l->want, true, l->written_ns);
    if (in_place && file_open(l) == 0)
        r = page_write(l, page);
    if (r < 0)
        r = file_replace(l, page, &why);
    if (r < 0) {
        l->failed = true;
        r = file_drop(l, err);
    }
    tell_locked(l);
    return r;
}

void varve_intent_stop(struct varve_intent *l)
{
    uint64_t none[VARVE_INTENT_WORDS] = {0};
    uint8_t page[VARVE_INTENT_BYTES];

    if (l->off)
        return;
    atomic_store(l->told, 0); /* no image that failed is left cleanly */
    if (l->dropped)
        return;
    varve_intent_encode(page, l->uuid, &l->g, none, false, 0);
    page_write(l, page);
}

/* --- commits
 * ---------------------------------------------------------------------------------------- */

/* The lock is given away for a moment. */
static void commit_begin_locked(struct varve_intent *l)
{
    uint64_t now_ns;

    l->committing = true;
    pthread_mutex_unlock(&l->lock);
    now_ns = l->w->realtime_ns(l->w);
    pthread_mutex_lock(&l->lock);
    l->written_ns = now_ns;
    l->changed = false;
}

static void commit_end_locked(struct varve_intent *l, const uint64_t *took, int r)
{
    for (uint64_t i = 0; r == 0 && i < l->nregions; i++) {
        uint8_t state = VARVE_INTENT_COLD;

        if (bit_test(took, i)) /* what was let through while it failed is hot already */
            atomic_compare_exchange_strong(&l->state[i], &state, VARVE_INTENT_IDLE);
    }
    /* It is wanted still, and nobody knows whether it stands in the file. */
    for (unsigned i = 0; r < 0 && i < VARVE_INTENT_WORDS; i++)
        l->asked[i] |= took[i];
    l->failed = r < 0;
    l->committing = false;
    tell_locked(l);
    pthread_cond_broadcast(&l->committed);
}

/* Nobody else is committing; the lock is given away meanwhile, and is held again at the end. */
static int commit_locked(struct varve_intent *l)
{
    uint64_t took[VARVE_INTENT_WORDS];
    uint8_t page[VARVE_INTENT_BYTES];
    int r;

    commit_begin_locked(l);
    memcpy(took, l->asked, sizeof(took));
    memset(l->asked, 0, sizeof(l->asked));
    varve_intent_encode(page, l->uuid, &l->g, l->want, true, l->written_ns);
    pthread_mutex_unlock(&l->lock);

    r = page_write(l, page);
    if (r < 0)
        file_disown(l);

    pthread_mutex_lock(&l->lock);
    commit_end_locked(l, took, r);
    return r;
}

static void ask_locked(struct varve_intent *l, uint64_t region)
{
    uint64_t bit = (uint64_t)1 << (region % 64);

    if (l->want[region / 64] & bit)
        return;
    l->want[region / 64] |= bit;
    l->asked[region / 64] |= bit;
    l->nhot++;
}

/* Rule 6. */
static void ask_ahead_locked(struct varve_intent *l, uint64_t region)
{
    uint64_t most = AHEAD_BYTES >> l->shift, before = 0;

    if (most > AHEAD)
        most = AHEAD;
    while (before < most && before < region &&
           atomic_load(&l->state[region - 1 - before]) != VARVE_INTENT_COLD)
        before++;
    for (uint64_t i = 1; i <= before && region + i < l->nregions; i++) {
        if (atomic_load(&l->state[region + i]) == VARVE_INTENT_COLD)
            ask_locked(l, region + i);
    }
}

void varve_intent_heat(struct varve_intent *l, uint64_t off)
{
    uint64_t region = off >> l->shift;

    pthread_mutex_lock(&l->lock);
    while (atomic_load(&l->state[region]) == VARVE_INTENT_COLD) {
        if (!bit_test(l->want, region)) {
            ask_locked(l, region);
            ask_ahead_locked(l, region);
        }
        if (l->failed) { /* rule 5 */
            atomic_store(&l->state[region], VARVE_INTENT_TOUCHED);
            tell_locked(l);
        } else if (l->committing) {
            pthread_cond_wait(&l->committed, &l->lock);
        } else {
            commit_locked(l);
        }
    }
    pthread_mutex_unlock(&l->lock);
}

bool varve_intent_touch(struct varve_intent *l, uint64_t region)
{
    uint8_t state = atomic_load(&l->state[region]);

    while (state != VARVE_INTENT_COLD) {
        if (state >= VARVE_INTENT_TOUCHED ||
            atomic_compare_exchange_weak(&l->state[region], &state, VARVE_INTENT_TOUCHED))
            return true;
    }
    return false;
}

/* --- the flusher's thread
 * ----------------------------------------------------------------------------- */

uint64_t varve_intent_begin_cool(struct varve_intent *l)
{
    uint64_t n = 0;

    if (l->off)
        return 0;
    for (uint64_t i = 0; i < l->nregions; i++) {
        uint8_t state = VARVE_INTENT_TOUCHED;

        if (atomic_compare_exchange_strong(&l->state[i], &state, VARVE_INTENT_IDLE))
            continue;
        if (state == VARVE_INTENT_IDLE)
            n += atomic_compare_exchange_strong(&l->state[i], &state, VARVE_INTENT_COOLING);
    }
    return n;
}

void varve_intent_end_cool(struct varve_intent *l, bool cold)
{
    pthread_mutex_lock(&l->lock);
    for (uint64_t i = 0; i < l->nregions; i++) {
        uint8_t state = VARVE_INTENT_COOLING;

        if (!atomic_compare_exchange_strong(&l->state[i], &state,
                                            cold ? VARVE_INTENT_COLD : VARVE_INTENT_IDLE) ||
            !cold)
            continue;
        l->want[i / 64] &= ~((uint64_t)1 << (i % 64));
        l->nhot--;
        l->changed = true;
    }
    tell_locked(l);
    pthread_mutex_unlock(&l->lock);
}

void varve_intent_stick(struct varve_intent *l)
{
    for (uint64_t i = 0; !l->off && i < l->nregions; i++) {
        uint8_t state = atomic_load(&l->state[i]);

        while (state != VARVE_INTENT_COLD &&
               !atomic_compare_exchange_weak(&l->state[i], &state, VARVE_INTENT_STUCK))
            ;
    }
}

/* --- the image that failed
 * ---------------------------------------------------------------------------- */

void varve_intent_fail_image(struct varve_intent *l)
{
    pthread_mutex_lock(&l->lock);
    l->image_failed = l->image_doubt = true;
    tell_locked(l);
    pthread_mutex_unlock(&l->lock);
}

bool varve_intent_image_failed(struct varve_intent *l)
{
    bool failed;

    pthread_mutex_lock(&l->lock);
    failed = l->image_failed;
    pthread_mutex_unlock(&l->lock);
    return failed;
}

bool varve_intent_take_image_doubt(struct varve_intent *l)
{
    bool doubt;

    pthread_mutex_lock(&l->lock);
    doubt = l->image_doubt;
    l->image_doubt = false;
    pthread_mutex_unlock(&l->lock);
    return doubt;
}

/* Rule 5: what is wanted, not kept; then kept. */
static int heal_locked(struct varve_intent *l, struct varve_err *err)
{
    uint64_t took[VARVE_INTENT_WORDS];
    uint8_t page[VARVE_INTENT_BYTES];
    int r = 0;

    l->failed = false; /* who comes waits from here on */
    commit_begin_locked(l);
    memcpy(took, l->asked, sizeof(took));
    memset(l->asked, 0, sizeof(l->asked));
    varve_intent_encode(page, l->uuid, &l->g, l->want, false, l->written_ns);
    pthread_mutex_unlock(&l->lock);

    if (!l->dropped && (r = page_write(l, page)) < 0)
        varve_err_sys(err, -r, "cannot write the intent log in %s", l->p->state);
    if (r == 0) {
        uint64_t want[VARVE_INTENT_WORDS];

        /* As they were: others may have asked since. */
        pthread_mutex_lock(&l->lock);
        for (unsigned i = 0; i < VARVE_INTENT_WORDS; i++)
            want[i] = l->want[i] & ~l->asked[i];
        pthread_mutex_unlock(&l->lock);
        varve_intent_encode(page, l->uuid, &l->g, want, true, l->written_ns);
        if (l->dropped)
            r = file_replace(l, page, err);
        else if ((r = page_write(l, page)) < 0)
            varve_err_sys(err, -r, "cannot write the intent log in %s", l->p->state);
    }
    if (r < 0)
        file_disown(l);
    else
        l->dropped = false;

    pthread_mutex_lock(&l->lock);
    commit_end_locked(l, took, r);
    return r;
}

int varve_intent_flush(struct varve_intent *l, struct varve_err *err)
{
    uint64_t now_ns;
    int r = 0;

    if (l->off)
        return 0;
    now_ns = l->w->realtime_ns(l->w);
    pthread_mutex_lock(&l->lock);
    while (l->committing)
        pthread_cond_wait(&l->committed, &l->lock);
    if (l->failed) {
        r = heal_locked(l, err);
    } else if (l->changed || now_ns < l->written_ns ||
               (l->nhot > 0 && now_ns - l->written_ns >= VARVE_INTENT_BEAT_NS)) {
        r = commit_locked(l);
        if (r < 0)
            varve_err_sys(err, -r, "cannot write the intent log in %s", l->p->state);
    }
    pthread_mutex_unlock(&l->lock);
    return r;
}

bool varve_intent_is_kept(struct varve_intent *l)
{
    bool kept;

    pthread_mutex_lock(&l->lock);
    kept = !l->off && !l->failed;
    pthread_mutex_unlock(&l->lock);
    return kept;
}

bool varve_intent_wants(struct varve_intent *l, uint64_t region)
{
    bool wants;

    pthread_mutex_lock(&l->lock);
    wants = !l->off && bit_test(l->want, region);
    pthread_mutex_unlock(&l->lock);
    return wants;
}
