/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The guest's writes, readers of views, and what runs between two calls of somebody else: a reader
 * within a write, a write within a read or within whatever the control thread does.
 */
#include "tests/sim/crash-life.h"

#include "lib/tracker-internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- writes ----------------------------------------------------------------------------------- */

static bool serves(struct life *l)
{
    return l->t && l->server == SIM_PLUGIN && !is_dead(l, SIM_PLUGIN);
}

static bool held_overlaps(struct life *l, uint32_t at, uint32_t len)
{
    for (unsigned i = 0; i < HELD; i++) {
        if (l->held[i].on && at < l->held[i].at + l->held[i].len && l->held[i].at < at + len)
            return true;
    }
    return false;
}

static bool some_range(struct life *l, uint32_t *at, uint32_t *len)
{
    uint32_t room;

    *at = (uint32_t)rnd(l, BYTES);
    if (rnd(l, 4))
        *at -= *at % 512;
    if (rnd(l, 2))
        *at -= *at % BLOCK;
    room = SPOT_BYTES - *at % SPOT_BYTES;
    if (room > BYTES - *at)
        room = BYTES - *at;
    *len = (uint32_t)(rnd(l, 3) ? rnd(l, 2 * BLOCK) + 1 : rnd(l, 2) ? BLOCK : 512);
    if (*len > room)
        *len = room;
    return !held_overlaps(l, *at, *len);
}

/* The server's part before the image changes. */
static bool piece_begin(struct life *l, uint32_t at, uint32_t len, bool punch,
                        struct varve_piece *piece)
{
    struct epoch *e = &l->epochs[l->live];
    uint32_t blocks = blocks_of(at, len), hot = heat_before(l, at);

    e->maybe |= blocks;
    varve_piece_begin(l->t, disk_off(at), len, punch, piece);
    heat_after(l, at, hot);
    if (is_dead(l, SIM_PLUGIN))
        return false;
    e->written |= blocks;
    return true;
}

static void change_image(struct life *l, uint32_t at, uint32_t len, int byte)
{
    struct varve_world *w = sim_of(&l->sim, SIM_PLUGIN);
    char buf[SPOT_BYTES];

    memset(buf, byte, len);
    if (byte == 0 && rnd(l, 2))
        w->punch(w, l->image_fd, disk_off(at), len);
    else
        w->pwrite(w, l->image_fd, buf, len, disk_off(at));
}

void guest_write(struct life *l)
{
    enum doing was = l->doing;
    enum sim_proc doer = l->doer;
    int byte = rnd(l, 4) ? (int)rnd(l, 255) + 1 : 0;
    struct varve_piece piece;
    uint32_t at, len;

    if (!serves(l) || !some_range(l, &at, &len))
        return;
    trace(l, "write %" PRIu32 "+%" PRIu32 " of %d", at, len, byte);
    if (was == NOTHING) {
        l->doing = WRITING;
        l->doer = SIM_PLUGIN;
    }
    if (piece_begin(l, at, len, byte == 0, &piece)) {
        change_image(l, at, len, byte);
        if (!is_dead(l, SIM_PLUGIN))
            varve_piece_end(l->t, &piece);
    }
    l->doing = was;
    l->doer = doer;
}

/* A write that has begun, and changes the image some time later. */
void guest_hold(struct life *l)
{
    struct held *h = &l->held[rnd(l, HELD)];

    if (!serves(l) || h->on || !some_range(l, &h->at, &h->len))
        return;
    h->byte = rnd(l, 4) ? (int)rnd(l, 255) + 1 : 0;
    trace(l, "a write of %" PRIu32 "+%" PRIu32 " begins", h->at, h->len);
    l->doing = WRITING;
    l->doer = SIM_PLUGIN;
    h->on = piece_begin(l, h->at, h->len, h->byte == 0, &h->piece);
    l->doing = NOTHING;
}

void guest_let_go(struct life *l, unsigned i)
{
    struct held *h = &l->held[i];
    enum doing was = l->doing;
    enum sim_proc doer = l->doer;

    if (!h->on || !serves(l))
        return;
    trace(l, "the write of %" PRIu32 "+%" PRIu32 " goes on", h->at, h->len);
    if (was == NOTHING) {
        l->doing = WRITING;
        l->doer = SIM_PLUGIN;
    }
    change_image(l, h->at, h->len, h->byte);
    if (!is_dead(l, SIM_PLUGIN)) {
        varve_piece_end(l->t, &h->piece);
        h->on = false;
    }
    l->doing = was;
    l->doer = doer;
}

void guest_let_all_go(struct life *l)
{
    for (unsigned i = 0; i < HELD; i++)
        guest_let_go(l, i);
}

void guest_flush(struct life *l)
{
    struct varve_world *w = sim_of(&l->sim, SIM_PLUGIN);

    if (!serves(l))
        return;
    trace(l, "flush");
    if (w->sync(w, l->image_fd) < 0 && !is_dead(l, SIM_PLUGIN))
        varve_tracker_image_failed(l->t); /* before the guest is told */
}

static bool any_held(struct life *l)
{
    bool any = false;

    for (unsigned i = 0; i < HELD; i++)
        any |= l->held[i].on;
    return any;
}

/* The plugin says each second that it lives: nobody comes between. */
static void time_passes(struct life *l)
{
    bool hooked = l->sim.in_hook;

    l->sim.in_hook = true;
    l->doing = CONTROLLING;
    l->doer = SIM_PLUGIN;
    l->sim.now_ns += rnd(l, UINT64_C(5000000000));
    varve_tracker_beat(l->t);
    l->doing = NOTHING;
    l->sim.in_hook = hooked;
}

void flusher_step(struct life *l)
{
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t faults = l->sim.faults, touches[SPOTS];
    bool cool = rnd(l, 3) > 0;
    int r;

    if (!serves(l))
        return;
    if (cool && rnd(l, 3))
        guest_let_all_go(l);
    if (!serves(l))
        return;
    trace(l, "the flusher%s", cool ? ", cooling" : "");
    l->cooled += cool;
    time_passes(l);
    memcpy(touches, l->touches, sizeof(touches));
    l->doing = CONTROLLING;
    l->doer = SIM_PLUGIN;
    r = varve_tracker_flush(l->t, cool, &err);
    l->doing = NOTHING;
    if (is_dead(l, SIM_PLUGIN))
        return;
    if (r == 0)
        heat_flushed(l, cool && !any_held(l), touches);
    else if (no_faults_since(l, faults) && l->sim.faults == 0)
        broken(l, "the flusher failed: %s", err.msg);
    if (r < 0)
        l->epochs[l->live].doubt = true;
    note_failed_image(l);
}

/* --- views ------------------------------------------------------------------------------------ */

struct view *some_view(struct life *l)
{
    struct view *v = &l->views[rnd(l, VIEWS)];

    return v->at.id && v != l->opening ? v : NULL;
}

/* Blocks that the view must not give away, or cannot; and those of which that is not known. */
static uint32_t gone_of(struct life *l, const struct view *v, uint32_t *maybe)
{
    uint32_t written = 0, perhaps = 0;

    for (uint64_t e = v->at.boundary; e <= l->live; e++) {
        written |= l->epochs[e].written;
        perhaps |= l->epochs[e].maybe;
    }
    *maybe = v->maybe_gone | (v->unneeded & perhaps);
    return v->released | (v->unneeded & written);
}

int read_view(struct life *l, struct view *v, uint32_t at, uint32_t len, char *into)
{
    struct varve_err err = VARVE_ERR_INIT;
    enum doing was = l->doing;
    enum sim_proc doer = l->doer;
    uint32_t before, after, maybe, blocks = blocks_of(at, len);
    uint64_t id = v->at.id;
    struct varve_view as = v->at;
    char buf[SPOT_BYTES];
    int r = -EAGAIN;

    if (!l->source || is_dead(l, SIM_DAEMON))
        return -EINTR;
    before = gone_of(l, v, &maybe);
    if (was == NOTHING) {
        l->doing = READING;
        l->doer = SIM_DAEMON;
    }
    for (unsigned tries = 0; r == -EAGAIN && tries < 8 && !is_dead(l, SIM_DAEMON); tries++) {
        if (tries > 0)
            fetch(l);
        memset(buf, '?', len);
        r = varve_view_read(l->source, &as, buf, disk_off(at), len, NULL, &err);
    }
    l->doing = was;
    l->doer = doer;
    l->view_reads++;
    if (is_dead(l, SIM_DAEMON))
        return -EINTR;
    if (r == 0) {
        if (before & blocks & ~maybe & v->released)
            broken(l, "a released block was read from view %" PRIu64, id);
        for (uint32_t i = 0; i < len; i++) {
            if (buf[i] != v->content[at + i])
                broken(l,
                       "view %" PRIu64 " has byte %02x at %" PRIu32 ", it had %02x at its boundary",
                       id, (unsigned char)buf[i], at + i, (unsigned char)v->content[at + i]);
        }
        if (into)
            memcpy(into, buf, len);
        return 0;
    }
    after = gone_of(l, v, &maybe) | maybe;
    note_failed_image(l); /* a server that comes is acting on it, maybe */
    if (v->at.id != id || (r == -EIO && (after & blocks)) || !no_faults_since(l, v->faults) ||
        !l->t || is_dead(l, l->server))
        return r;
    broken(l, "view %" PRIu64 " cannot be read at %" PRIu32 "+%" PRIu32 ": %s", id, at, len,
           err.msg);
}

void read_some_view(struct life *l)
{
    struct view *v = some_view(l);
    uint32_t at = (uint32_t)rnd(l, BYTES), len;

    if (!v)
        return;
    if (rnd(l, 2))
        at -= at % SPOT_BYTES;
    len = (uint32_t)rnd(l, SPOT_BYTES - at % SPOT_BYTES) + 1;
    if (len > BYTES - at)
        len = BYTES - at;
    trace(l, "read %" PRIu32 "+%" PRIu32 " of view %" PRIu64, at, len, v->at.id);
    read_view(l, v, at, len, NULL);
}

void view_close(struct life *l, struct view *v)
{
    enum doing was = l->doing;
    enum sim_proc doer = l->doer;
    uint64_t id = v->at.id;

    v->at.id = 0; /* said first, so that readers meanwhile may find it ended */
    if (!l->t || is_dead(l, l->server))
        return; /* the next server ends it: until then nothing reads it */
    trace(l, "view %" PRIu64 " ends", id);
    if (was == NOTHING) {
        l->doing = CONTROLLING;
        l->doer = l->server;
    }
    varve_tracker_end_view(l->t, id, NULL);
    l->doing = was;
    l->doer = doer;
}

static struct view *free_view(struct life *l)
{
    struct view *v = some_view(l);

    return v && !v->chained ? v : NULL;
}

void end_view(struct life *l)
{
    struct view *v = free_view(l);

    if (v)
        view_close(l, v);
}

/* What the server does from time to time. */
void housekeep(struct life *l)
{
    if (!serves(l))
        return;
    trace(l, "housekeeping");
    l->doing = CONTROLLING;
    l->doer = SIM_PLUGIN;
    varve_tracker_housekeep(l->t);
    l->doing = NOTHING;
}

void narrow_view(struct life *l)
{
    struct varve_world *w;
    struct view *v = free_view(l);
    uint32_t unneeded = rnd(l, 2) ? (uint32_t)rnd(l, ALL + 1) : 0;
    struct varve_bitmap *map;
    int fd = -1, r;

    if (!v || !serves(l))
        return;
    trace(l, "view %" PRIu64 " does not need %" PRIx32, v->at.id, unneeded);
    w = sim_of(&l->sim, SIM_TEST);
    map = varve_bitmap_new(l->g.nblks);
    for (uint32_t blk = 0; blk < BLKS; blk++) {
        if (unneeded >> blk & 1)
            varve_bitmap_set(map, disk_off(blk * BLOCK) / BLOCK, disk_off(blk * BLOCK) / BLOCK + 1);
    }
    fd = w->open(w, "/run/map", O_RDWR | O_CREAT | O_TRUNC, 0600);
    w->pwrite(w, fd, map->words, (size_t)varve_map_bytes(&l->g), 0);
    w->close(w, fd);
    free(map);
    w = sim_of(&l->sim, SIM_PLUGIN);
    l->doing = CONTROLLING;
    l->doer = SIM_PLUGIN;
    v->maybe_gone |= unneeded;
    fd = w->open(w, "/run/map", O_RDONLY, 0);
    r = fd < 0 ? fd : varve_tracker_narrow(l->t, v->at.id, fd, NULL);
    if (fd >= 0)
        w->close(w, fd);
    l->doing = NOTHING;
    if (is_dead(l, SIM_PLUGIN))
        return;
    if (r < 0) {
        view_close(l, v);
        return;
    }
    v->narrowed = true;
    v->unneeded |= unneeded;
}

void release_view(struct life *l)
{
    struct view *v = free_view(l);
    uint32_t at = (uint32_t)rnd(l, BYTES), len, released = 0;
    struct varve_err err = VARVE_ERR_INIT;
    int r;

    if (!v || !v->narrowed || !serves(l))
        return;
    if (rnd(l, 3))
        at -= at % BLOCK;
    len = SPOT_BYTES - at % SPOT_BYTES;
    if (len > BYTES - at)
        len = BYTES - at;
    if (rnd(l, 2))
        len = (uint32_t)rnd(l, len) + 1;
    for (uint32_t blk = 0; blk < BLKS; blk++) {
        if (blk * BLOCK >= at && blk_end(blk) <= at + len)
            released |= UINT32_C(1) << blk;
    }
    trace(l, "release %" PRIu32 "+%" PRIu32 " of view %" PRIu64, at, len, v->at.id);
    v->maybe_gone |= released;
    l->doing = CONTROLLING;
    l->doer = SIM_PLUGIN;
    r = varve_tracker_release(l->t, v->at.id, disk_off(at), len, &err);
    l->doing = NOTHING;
    if (is_dead(l, SIM_PLUGIN))
        return;
    if (r < 0 && no_faults_since(l, v->faults))
        broken(l, "view %" PRIu64 " cannot be released: %s", v->at.id, err.msg);
    if (r < 0)
        return;
    v->released |= released;
    v->unneeded |= released;
    v->maybe_gone &= ~released;
}

/* --- between two calls ------------------------------------------------------------------------ */

void meanwhile(struct sim *s, enum sim_proc proc, enum sim_call call)
{
    struct life *l = (struct life *)((char *)s - offsetof(struct life, sim));

    (void)call;
    if (l->doing == NOTHING || rnd(l, 8) || s->power_off)
        return;
    switch (l->doing) {
    case STARTING:
        if (proc == SIM_PLUGIN)
            read_some_view(l);
        break;
    case WRITING:
        read_some_view(l);
        break;
    case CONTROLLING:
        /* A writer that needs the intent log while somebody writes it waits for him: a thread. */
        if (rnd(l, 2) && !(l->t && l->server == SIM_PLUGIN && l->t->intent->committing))
            guest_write(l);
        else
            read_some_view(l);
        break;
    case READING:
    case KEEPING:
        if (rnd(l, 3))
            guest_write(l);
        else
            guest_let_go(l, (unsigned)rnd(l, HELD));
        break;
    case NOTHING:
        break;
    }
    /* Whoever died in there, while another was doing something. */
    reap(l);
}
