/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The line.  Bytes stand in it, in the order in which they were asked for; `paid` moves along it
 * with the current rate.  A piece may begin once `paid` has come to its first byte:
 *
 *       used     used      waits    waits       tail: the next one takes its place here
 *     |--------|---------|--------|-----------|
 *                 ^ paid ──▶ rate bytes a second, never further than tail + a tenth of a second
 *
 * So whoever waits is served in order and is told when to come again; a change of the rate holds
 * at once for all who wait (who could begin earlier than they were told come within a second, or a
 * quarter of one where the rate may rise); and in any time T at most rate * T bytes begin, a tenth
 * of a second's and one piece.  Places that are given back close up behind; were their bytes added
 * to `paid` instead, clients that come and go would pull those ahead of them past the limit.
 *
 * The law of the adaptive mode is AIMD, additive increase and multiplicative decrease, which is the
 * one that lets several who share something without knowing each other come to fair and stable
 * shares (Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance
 * in Computer Networks", 1989); its signal is delay, as in TCP Vegas (Brakmo and Peterson, 1995):
 *
 *     a window   is a tenth of a second, longer when only few of the guest's writes ended in it
 *     base       is what a write takes when nobody disturbs: the least average of a window; it
 *                creeps up (to twice itself in a bit more than a minute) so that another load of
 *                the guest becomes the new normal
 *     congested  is a window whose average is more than twice the base and 1 ms above it, and one
 *                in which none of the writes ended that were under way at its beginning
 *     then       the rate is half of what was read in the window, or of itself if that is less;
 *                FLOOR at least
 *     else       it rises by a 64th of the limit, up to the limit.  Without a speed the limit is
 *                the most that was ever read in a window, and at twice that the rate is free again
 *
 * A guest that writes nothing is not disturbed.  A backup that read nothing disturbs nobody, and
 * does not slow down.  Writes that never end (their server was killed) stop to count after 10 s.
 */
#include "server/nbd/throttle.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define NS_PER_S  UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)

#define WINDOW_NS     (100 * NS_PER_MS)
#define WINDOW_MAX_NS NS_PER_S /* then it ends, however few writes were seen */
#define WINDOW_WRITES 4u
#define STUCK_MAX_NS  (10 * NS_PER_S)

#define DISTURBED_NS NS_PER_MS
#define FLOOR        (UINT64_C(1) << 20) /* bytes per second: a backup must get on */

/* Asked again after that long at most: the rate may have risen, or others have left the line. */
#define ASK_ADAPTIVE_MS 250u
#define ASK_MS          1000u

struct varve_throttle {
    _Atomic unsigned refs;
    uint64_t speed; /* constant, as are adaptive and guest */
    bool adaptive;
    struct varve_throttle_guest guest;
    uint64_t made_ns;

    pthread_mutex_t lock; /* guards all below; rank: a leaf (guest.look is called under it) */
    TAILQ_HEAD(, varve_ticket) line; /* those held, by `at` */
    uint64_t rate;                   /* 0: no limit */
    uint64_t tail, paid;             /* bytes, see above */
    uint64_t paid_frac;              /* and billionths of one */
    uint64_t paid_ns;                /* as of when */

    uint64_t looked_ns;
    uint64_t window_ns, window_bytes; /* its beginning; `bytes` then */
    struct varve_guest_writes seen;   /* at its beginning */
    uint64_t ended_ns;                /* when a write was last seen to have ended */
    uint64_t fastest;                 /* bytes per second in any window */
    uint64_t base_ns, last_ns;

    uint64_t bytes, waits, waited_ns, backoffs;
};

struct varve_throttle *varve_throttle_new(uint64_t speed, const struct varve_throttle_guest *guest,
                                          uint64_t now_ns)
{
    struct varve_throttle *t = calloc(1, sizeof(*t));

    if (!t) {
        if (guest && guest->free)
            guest->free(guest->arg);
        return NULL;
    }
    t->refs = 1;
    t->speed = speed;
    t->rate = speed;
    t->made_ns = t->paid_ns = t->looked_ns = t->window_ns = t->ended_ns = now_ns;
    pthread_mutex_init(&t->lock, NULL);
    TAILQ_INIT(&t->line);
    if (!guest)
        return t;
    t->adaptive = true;
    t->guest = *guest;
    /* Until now nobody read for this backup: what writes took so far is a first base. */
    if (guest->look(guest->arg, &t->seen) && t->seen.ended >= WINDOW_WRITES)
        t->base_ns = t->seen.ns / t->seen.ended;
    return t;
}

struct varve_throttle *varve_throttle_ref(struct varve_throttle *t)
{
    if (t)
        atomic_fetch_add(&t->refs, 1);
    return t;
}

void varve_throttle_unref(struct varve_throttle *t)
{
    if (!t || atomic_fetch_sub(&t->refs, 1) != 1)
        return;
    assert(TAILQ_EMPTY(&t->line));
    if (t->guest.free)
        t->guest.free(t->guest.arg);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

/* --- arithmetic ----------------------------------------------------------------------------- */

static uint64_t add(uint64_t a, uint64_t b)
{
    return a < UINT64_MAX - b ? a + b : UINT64_MAX;
}

/* What a rate is in ns; *frac has the billionths that were left over. */
static uint64_t bytes_in(uint64_t rate, uint64_t ns, uint64_t *frac)
{
    uint64_t s = ns / NS_PER_S, rest = ns % NS_PER_S;
    uint64_t small = rest * (rate % NS_PER_S) + *frac; /* < 2^60 + 2^30 */
    uint64_t whole = s && rate > UINT64_MAX / s ? UINT64_MAX : s * rate;

    *frac = small % NS_PER_S;
    return add(whole, rest * (rate / NS_PER_S) + small / NS_PER_S);
}

/* Bytes per second; ns is not 0. */
static uint64_t rate_of(uint64_t bytes, uint64_t ns)
{
    uint64_t ms = ns / NS_PER_MS ? ns / NS_PER_MS : 1;

    return bytes > UINT64_MAX / 1000 ? bytes / ms * 1000 : bytes * 1000 / ms;
}

/* Until `bytes` more are paid, rounded up, at most `most`. */
static unsigned ms_for(uint64_t bytes, uint64_t rate, unsigned most)
{
    uint64_t s = bytes / rate, rest = bytes % rate, ms;

    if (s >= most / 1000 + 1)
        return most;
    /* Where rest * 1000 does not fit, the rate is large enough to be divided instead. */
    ms = rest > UINT64_MAX / 1000 ? rest / (rate / 1000) : rest * 1000 / rate;
    ms += s * 1000 + 1;
    return ms < most ? (unsigned)ms : most;
}

/* --- the line ------------------------------------------------------------------------------- */

static void pay(struct varve_throttle *t, uint64_t now_ns)
{
    uint64_t most = add(t->tail, t->rate / 10);

    if (now_ns > t->paid_ns) {
        t->paid =
            t->rate ? add(t->paid, bytes_in(t->rate, now_ns - t->paid_ns, &t->paid_frac)) : t->tail;
        t->paid_ns = now_ns;
    } else if (!t->rate) {
        t->paid = t->tail;
    }
    if (t->paid > most)
        t->paid = most;
}

/* --- the guest ------------------------------------------------------------------------------ */

static uint64_t floor_of(const struct varve_throttle *t)
{
    uint64_t quarter = t->speed / 4 ? t->speed / 4 : 1;

    return t->speed && quarter < FLOOR ? quarter : FLOOR;
}

static void slow_down(struct varve_throttle *t, uint64_t read)
{
    uint64_t from = t->rate && t->rate < read ? t->rate : read, least = floor_of(t);
    uint64_t rate = from / 2 > least ? from / 2 : least;

    if (!read || (t->rate && rate >= t->rate))
        return;
    t->rate = rate;
    t->backoffs++;
}

static void speed_up(struct varve_throttle *t)
{
    uint64_t limit = t->speed ? t->speed : t->fastest;
    uint64_t step = limit / 64 > floor_of(t) / 16 ? limit / 64 : floor_of(t) / 16;

    if (!t->rate)
        return;
    t->rate = add(t->rate, step ? step : 1);
    if (t->speed && t->rate > t->speed)
        t->rate = t->speed;
    else if (!t->speed && t->rate / 2 >= limit)
        t->rate = 0;
}

/* `took_ns`: what a write took in this window; if none has ended, what one took at least. */
static bool is_congested(struct varve_throttle *t, uint64_t took_ns, bool ended)
{
    uint64_t crept = t->base_ns ? t->base_ns + t->base_ns / 1024 + 1 : UINT64_MAX;

    t->last_ns = took_ns;
    if (ended)
        t->base_ns = took_ns < crept ? took_ns : crept;
    if (!t->base_ns)
        return false;
    return took_ns / 2 > t->base_ns && took_ns - t->base_ns > DISTURBED_NS;
}

static void window_begin(struct varve_throttle *t, const struct varve_guest_writes *now,
                         uint64_t now_ns)
{
    t->seen = *now;
    t->window_ns = now_ns;
    t->window_bytes = t->bytes;
}

static void look(struct varve_throttle *t, uint64_t now_ns)
{
    struct varve_guest_writes now;
    uint64_t ended, read, since = now_ns - t->window_ns;
    bool stuck, congested = false;

    t->looked_ns = now_ns;
    if (!t->guest.look(t->guest.arg, &now))
        return;
    if (now.ended < t->seen.ended || now.ns < t->seen.ns) { /* counted anew: another page */
        window_begin(t, &now, now_ns);
        return;
    }
    ended = now.ended - t->seen.ended;
    if (ended)
        t->ended_ns = now_ns;
    stuck = !ended && t->seen.begun > t->seen.ended && now_ns - t->ended_ns < STUCK_MAX_NS;
    if (ended && ended < WINDOW_WRITES && since < WINDOW_MAX_NS)
        return;
    read = rate_of(t->bytes - t->window_bytes, since);
    if (read > t->fastest)
        t->fastest = read;
    if (ended || stuck)
        congested = is_congested(t, ended ? (now.ns - t->seen.ns) / ended : since, ended > 0);
    window_begin(t, &now, now_ns);
    if (congested)
        slow_down(t, read);
    else
        speed_up(t);
}

/* --- tickets -------------------------------------------------------------------------------- */

static unsigned ticket_wait(struct varve_throttle *t, struct varve_ticket *ticket, uint64_t now_ns)
{
    if (t->paid < ticket->at) {
        if (!ticket->waited)
            t->waits++;
        ticket->waited = true;
        return ms_for(ticket->at - t->paid, t->rate, t->adaptive ? ASK_ADAPTIVE_MS : ASK_MS);
    }
    if (ticket->waited && now_ns > ticket->taken_ns)
        t->waited_ns += now_ns - ticket->taken_ns;
    ticket->waited = false;
    ticket->at = 0; /* its turn stays, whatever comes */
    return 0;
}

unsigned varve_throttle_ask(struct varve_throttle *t, struct varve_ticket *ticket, uint64_t bytes,
                            uint64_t now_ns)
{
    unsigned ms;

    pthread_mutex_lock(&t->lock);
    pay(t, now_ns);
    if (t->adaptive && now_ns > t->looked_ns && now_ns - t->looked_ns >= WINDOW_NS) {
        look(t, now_ns);
        pay(t, now_ns);
    }
    if (!ticket->held) {
        *ticket =
            (struct varve_ticket){.held = true, .at = t->tail, .bytes = bytes, .taken_ns = now_ns};
        t->tail = add(t->tail, bytes);
        TAILQ_INSERT_TAIL(&t->line, ticket, link);
    }
    ms = ticket_wait(t, ticket, now_ns);
    pthread_mutex_unlock(&t->lock);
    return ms;
}

static void ticket_drop(struct varve_throttle *t, struct varve_ticket *ticket)
{
    TAILQ_REMOVE(&t->line, ticket, link);
    ticket->held = false;
}

void varve_throttle_use(struct varve_throttle *t, struct varve_ticket *ticket)
{
    pthread_mutex_lock(&t->lock);
    assert(ticket->held && ticket->at <= t->paid);
    t->bytes += ticket->bytes;
    ticket_drop(t, ticket);
    pthread_mutex_unlock(&t->lock);
}

void varve_throttle_give_back(struct varve_throttle *t, struct varve_ticket *ticket,
                              uint64_t now_ns)
{
    if (!ticket->held)
        return;
    pthread_mutex_lock(&t->lock);
    for (struct varve_ticket *b = TAILQ_NEXT(ticket, link); b; b = TAILQ_NEXT(b, link))
        b->at -= b->at < ticket->bytes ? b->at : ticket->bytes;
    t->tail -= ticket->bytes;
    if (ticket->waited && now_ns > ticket->taken_ns)
        t->waited_ns += now_ns - ticket->taken_ns;
    ticket_drop(t, ticket);
    pay(t, now_ns);
    pthread_mutex_unlock(&t->lock);
}

void varve_throttle_stats(struct varve_throttle *t, uint64_t now_ns,
                          struct varve_throttle_stats *out)
{
    pthread_mutex_lock(&t->lock);
    *out = (struct varve_throttle_stats){
        .speed = t->speed,
        .adaptive = t->adaptive,
        .current = t->rate,
        .bytes = t->bytes,
        .age_ns = now_ns > t->made_ns ? now_ns - t->made_ns : 0,
        .waits = t->waits,
        .waited_ns = t->waited_ns,
        .backoffs = t->backoffs,
        .guest_ns = t->last_ns,
        .guest_base_ns = t->base_ns,
    };
    pthread_mutex_unlock(&t->lock);
}
