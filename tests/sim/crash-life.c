/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/sim/crash-life.h"

#include "tests/lib/sim-disk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

uint64_t rnd(struct life *l, uint64_t below)
{
    uint64_t z = l->random += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (z ^ (z >> 31)) % below;
}

void broken(struct life *l, const char *fmt, ...)
{
    char why[600];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(why, sizeof(why), fmt, ap);
    va_end(ap);
    fail_msg("SEED=%" PRIu64 ", step %" PRIu64 " (%s), crash %" PRIu64 ", boot %u: %s", l->seed,
             l->steps, l->what, l->kills + l->powers, l->sim.boot, why);
    abort();
}

void trace(struct life *l, const char *fmt, ...)
{
    static int on = -1;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(l->what, sizeof(l->what), fmt, ap);
    va_end(ap);
    if (on < 0)
        on = getenv("TRACE") != NULL;
    if (on)
        printf("# %6" PRIu64 " %7" PRIu64 " live %" PRIu64 "%s %s\n", l->steps, l->sim.calls,
               l->live, l->sim.in_hook ? "   >" : "", l->what);
}

uint32_t mask_of(const struct varve_bitmap *bits)
{
    uint32_t mask = 0;

    for (uint32_t blk = 0; blk < BLKS; blk++)
        mask |= (uint32_t)varve_bitmap_test(bits, disk_off(blk * BLOCK) / BLOCK) << blk;
    return mask;
}

void look_at_image(struct life *l, char *bytes)
{
    for (uint32_t at = 0; at < BYTES; at += SPOT_BYTES) {
        uint32_t len = BYTES - at < SPOT_BYTES ? BYTES - at : SPOT_BYTES;

        if (!sim_peek(&l->sim, IMAGE, bytes + at, disk_off(at), len))
            broken(l, "the image is gone");
    }
}

/* --- death ------------------------------------------------------------------------------------ */

/* Its memory is given back in a world where nothing is done any more. */
static void server_lost(struct life *l)
{
    heat_note(l);
    if (l->t)
        varve_tracker_detach(l->t, NULL);
    l->t = NULL;
    l->image_fd = -1;
    memset(l->held, 0, sizeof(l->held));
    if (l->live && !l->sim.power_off)
        trace(l, "a server has died");
}

static void daemon_lost(struct life *l)
{
    varve_source_unref(l->source);
    varve_catalogue_close(l->store);
    varve_catalogue_free(l->cat);
    l->source = NULL;
    l->store = NULL;
    l->cat = NULL;
}

static void view_lost(struct life *l, struct view *v)
{
    for (unsigned i = 0; i < CHAINS; i++) {
        if (l->chains[i].view == v)
            l->chains[i].view = NULL;
    }
    v->at.id = 0;
}

static void power_lost(struct life *l)
{
    l->powers++;
    sim_reboot(&l->sim);
    for (unsigned i = 0; i < VIEWS; i++)
        view_lost(l, &l->views[i]);
    doubt_after_power(l);
    trace(l, "the power has failed%s", l->clean ? ", on a clean disk" : "");
}

/* The log could be neither written nor durably removed: nothing durable tells that it is not kept, until
 * the image is two minutes newer (lib/intent-file.c, rule 2).  It takes at least two faults. */
static bool log_is_beyond_help(struct life *l)
{
    uint64_t told;

    return l->sim.failed_calls & (1u << SIM_UNLINK | 1u << SIM_SYNC_DIR) &&
           sim_peek(&l->sim, RUNTIME "/vda/control", &told, offsetof(struct varve_ctl, intent),
                    sizeof(told)) &&
           told & VARVE_CTL_INTENT_FAILED;
}

void reap(struct life *l)
{
    bool plugin = is_dead(l, SIM_PLUGIN), daemon = is_dead(l, SIM_DAEMON);

    if (l->doing != NOTHING && (l->sim.power_off || is_dead(l, l->doer)))
        return; /* what it was doing is still on the stack */
    if (l->can_end && l->sim.power_off && log_is_beyond_help(l)) {
        l->can_end = false;
        longjmp(l->over, 1);
    }
    if (plugin) {
        if (l->server == SIM_PLUGIN)
            server_lost(l);
        sim_bury(&l->sim, SIM_PLUGIN);
    }
    if (daemon) {
        if (l->server == SIM_DAEMON)
            server_lost(l);
        daemon_lost(l);
        sim_bury(&l->sim, SIM_DAEMON);
    }
    if (l->sim.power_off)
        power_lost(l);
    else
        l->kills += plugin || daemon;
}

/* --- the disk's server ------------------------------------------------------------------------ */

static uint64_t live_of(struct varve_tracker *t)
{
    return varve_tracker_epoch(t);
}

/* What a server that starts has found, against what could be there. */
static void compare_live(struct life *l, bool faults)
{
    uint64_t live = live_of(l->t), was = l->live;

    if (l->foreign) {
        check_foreign(l);
        longjmp(l->over, 1);
    }
    /* A number of another era: somebody had doubts, as after a fault he may. */
    if (live >= EPOCHS && l->sim.faults > 0)
        longjmp(l->over, 1);
    if (live >= EPOCHS)
        broken(l, "epoch %" PRIu64 " is of another era", live);
    if (l->next && live == l->next) { /* it happened before its server died */
        l->live = live;
    } else if (live != was) {
        /* After a power failure it may be one that was prepared.  Where a file could not be read it
         * may be another: who needs that file is told so. */
        if (l->born && !faults && (!l->epochs[was].doubt || live < was))
            broken(l, "epoch %" PRIu64 " was live, now it is %" PRIu64, was, live);
        for (uint64_t e = was + 1; e <= live; e++) {
            l->epochs[e].tight = l->epochs[was].tight;
            l->epochs[e].regions = l->epochs[was].regions;
        }
        for (uint64_t e = was; e <= live; e++)
            l->epochs[e].doubt = true;
        for (uint64_t e = live; e <= was; e++)
            l->epochs[e].doubt = true;
        l->live = live;
    }
    l->next = 0;
}

static bool view_is_known(struct life *l, uint64_t id)
{
    for (unsigned i = 0; i < VIEWS; i++) {
        if (l->views[i].at.id == id && &l->views[i] != l->opening)
            return true;
    }
    return false;
}

/* Their backups had not begun, or have ended, when a server died. */
static void end_unknown_views(struct life *l)
{
    struct varve_ctl_view_copy views[VARVE_CTL_VIEWS];

    if (varve_tracker_private(l->t)) { /* after a fault: a superset, and no views */
        if (l->opening)
            l->opening->at.id = 0;
        l->opening = NULL;
        return;
    }
    if (!sim_peek(&l->sim, RUNTIME "/vda/control", views, offsetof(struct varve_ctl, views),
                  sizeof(views)))
        broken(l, "there is no control page");
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        if (views[i].state == VARVE_VIEW_OPEN && !view_is_known(l, views[i].id) &&
            varve_tracker_end_view(l->t, views[i].id, NULL) < 0)
            broken(l, "a view cannot be ended");
    }
    if (l->opening)
        l->opening->at.id = 0;
    l->opening = NULL;
}

void note_failed_image(struct life *l)
{
    uint64_t told;

    if (!sim_peek(&l->sim, RUNTIME "/vda/control", &told, offsetof(struct varve_ctl, intent),
                  sizeof(told)) ||
        !(told & VARVE_CTL_IMAGE_FAILED))
        return;
    for (uint64_t e = l->sealed_to; e <= l->live; e++) /* those that are not sealed yet */
        l->epochs[e].doubt = true;
    for (unsigned i = 0; i < VIEWS; i++)
        l->views[i].faults = 0;
}

static bool server_start(struct life *l, enum sim_proc proc)
{
    struct varve_tracker_config cfg = {
        .state_dir = STATE,
        .runtime_dir = RUNTIME,
        .name = "vda",
        .image = proc == SIM_PLUGIN ? IMAGE : NULL,
        .image_fd = -1,
        .size = DISK_SIZE,
        .block_size = BLOCK,
        .role = proc == SIM_PLUGIN ? "nbdkit" : "varved",
        .existing_only = proc == SIM_DAEMON,
        .durable_process = proc == SIM_PLUGIN && rnd(l, 4) < l->careless,
    };
    struct varve_world *w = sim_of(&l->sim, proc);
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t faults = l->sim.faults;
    char notes[256] = "";
    int r = 0;

    l->server = proc;
    l->doing = STARTING;
    l->doer = proc;
    if (proc == SIM_PLUGIN)
        r = l->image_fd = cfg.image_fd = w->open(w, IMAGE, O_RDWR, 0);
    l->clean = false; /* from here on nobody knows whether the mark is still there */
    heat_starting(l, cfg.durable_process);
    if (r >= 0)
        r = varve_tracker_attach(w, &cfg, &l->t, notes, &err);
    l->doing = NOTHING;
    if (is_dead(l, proc)) {
        if (r < 0)
            l->t = NULL;
        if (!l->born)
            l->epochs[0].doubt = l->epochs[1].doubt = true;
        return false;
    }
    if (r < 0) {
        l->t = NULL;
        if (l->image_fd >= 0)
            w->close(w, l->image_fd);
        l->image_fd = -1;
        if (!l->born)
            l->epochs[0].doubt = l->epochs[1].doubt = true;
        if (no_faults_since(l, faults))
            broken(l, "a server cannot start: %s", err.msg);
        trace(l, "a server could not start: %s", err.msg);
        return false;
    }
    l->id = *varve_tracker_identity(l->t);
    compare_live(l, !no_faults_since(l, l->faults_at_start));
    if (!no_faults_since(l, faults))
        l->epochs[l->live].doubt = true; /* what it could not read is doubt */
    l->faults_at_start = l->sim.faults;
    note_failed_image(l);
    heat_started(l, proc);
    if (no_faults_since(l, faults))
        l->sealed_to = l->live;
    l->born = true;
    end_unknown_views(l);
    return !is_dead(l, proc);
}

void plugin_start(struct life *l)
{
    trace(l, "the plugin starts");
    if (!server_start(l, SIM_PLUGIN))
        return;
    open_source(l);
    check_disk(l);
}

void offline_start(struct life *l)
{
    trace(l, "the daemon takes the disk");
    if (!server_start(l, SIM_DAEMON))
        return;
    open_source(l);
    check_disk(l);
}

void server_stop(struct life *l)
{
    struct varve_world *w = sim_of(&l->sim, l->server);
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t faults = l->sim.faults;
    struct varve_tracker *t;
    int r;

    guest_let_all_go(l);
    if (is_dead(l, l->server))
        return;
    trace(l, "the server stops");
    l->doing = STARTING;
    l->doer = l->server;
    t = l->t;
    l->t = NULL; /* nobody may ask it any more */
    r = varve_tracker_detach(t, &err);
    if (l->image_fd >= 0)
        w->close(w, l->image_fd);
    l->image_fd = -1;
    l->doing = NOTHING;
    if (is_dead(l, l->server))
        return;
    if (r < 0 && no_faults_since(l, faults) && l->sim.faults == 0)
        broken(l, "a server cannot stop: %s", err.msg);
    if (r == 0) {
        char mark[4];
        char path[PATH_MAX];

        /* As it was found, by one that only made boundaries. */
        varve_path_epoch(&l->paths, l->live, l->live, path);
        l->clean = sim_peek(&l->sim, path, mark, 4096, 4) && mark[0] == 1;
        l->sealed_to = l->live;
    }
    trace(l, "the server has stopped%s", l->clean ? "" : ", not clean");
}

/* --- the daemon ------------------------------------------------------------------------------- */

void daemon_start(struct life *l)
{
    struct varve_world *w = sim_of(&l->sim, SIM_DAEMON);
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t faults = l->sim.faults;
    int r;

    trace(l, "the daemon starts");
    l->doing = STARTING;
    l->doer = SIM_DAEMON;
    r = w->mkdir(w, STATE, 0700);
    if (r == 0 || r == -EEXIST)
        r = w->sync_dir(w, "/");
    if (r == 0)
        r = varve_catalogue_open(w, STATE, &l->store, &l->cat, &err);
    l->doing = NOTHING;
    if (r < 0) {
        l->store = NULL;
        l->cat = NULL;
    }
    if (is_dead(l, SIM_DAEMON))
        return;
    if (r < 0) {
        if (no_faults_since(l, faults))
            broken(l, "the daemon cannot start: %s", err.msg);
        return;
    }
    catalogue_came_back(l);
    if (!is_dead(l, SIM_DAEMON) && l->t)
        open_source(l);
}

void daemon_restart(struct life *l)
{
    trace(l, "the daemon is killed");
    sim_kill(&l->sim, SIM_DAEMON);
    reap(l);
}

static void pass(struct life *l, int fd)
{
    if (fd >= 0)
        l->sim.disk->files[fd].proc = SIM_DAEMON;
}

static void fetch_all(struct life *l)
{
    struct varve_ctl_view_copy views[VARVE_CTL_VIEWS];
    struct varve_ctl_head head;
    uint64_t from;

    if (!l->source || !l->t || is_dead(l, l->server) || is_dead(l, SIM_DAEMON))
        return;
    if (varve_source_head(l->source, &head, NULL) < 0)
        return;
    from = head.prepared > 64 ? head.prepared - 64 : 1;
    for (uint64_t e = from; e <= head.prepared; e++) {
        int fds[3];

        if (varve_source_has_epoch(l->source, e) ||
            varve_tracker_open_epoch(l->t, e, fds, NULL) < 0)
            continue;
        for (unsigned i = 0; i < 3; i++)
            pass(l, fds[i]);
        varve_source_add_epoch(l->source, e, fds, NULL);
    }
    if (varve_source_views(l->source, views, NULL) < 0)
        return;
    varve_source_drop_done(l->source, views);
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        int fd;

        if (views[i].state != VARVE_VIEW_OPEN || views[i].done_ino == 0 ||
            varve_source_has_done(l->source, views[i].id, views[i].done_ino))
            continue;
        fd = varve_tracker_open_done(l->t, views[i].id, NULL);
        if (fd < 0)
            continue;
        pass(l, fd);
        varve_source_add_done(l->source, views[i].id, fd, NULL);
    }
}

/* With nothing meanwhile: who runs then may die, and what is used here with it. */
void fetch(struct life *l)
{
    bool was = l->sim.in_hook;

    l->sim.in_hook = true;
    fetch_all(l);
    l->sim.in_hook = was;
}

/* The page of the disk's server; the same one again is no news. */
void open_source(struct life *l)
{
    struct varve_world *w = sim_of(&l->sim, l->server), *reader = sim_of(&l->sim, SIM_DAEMON);
    int ctl_fd, image_fd;

    if (!l->store || !l->t)
        return;
    ctl_fd = varve_tracker_open_control(l->t, NULL);
    if (ctl_fd < 0)
        return;
    pass(l, ctl_fd);
    if (l->source && varve_source_same_control(l->source, ctl_fd)) {
        reader->close(reader, ctl_fd);
        fetch(l);
        return;
    }
    image_fd = is_dead(l, l->server) ? -1 : w->open(w, IMAGE, O_RDONLY, 0);
    if (image_fd < 0) {
        reader->close(reader, ctl_fd);
        return;
    }
    pass(l, image_fd);
    varve_source_unref(l->source);
    l->source = NULL;
    if (varve_source_new(reader, &l->g, l->id.uuid, ctl_fd, image_fd, &l->source, NULL) < 0)
        l->source = NULL;
    fetch(l);
}

/* --- all of it -------------------------------------------------------------------------------- */

void life_begin(struct life *l, uint64_t seed)
{
    struct varve_world *w;
    int fd;

    memset(l, 0, offsetof(struct life, epochs));
    for (uint64_t i = 0; i < EPOCHS; i++)
        l->epochs[i] = (struct epoch){0};
    memset(&l->next_view, 0, sizeof(*l) - offsetof(struct life, next_view));
    l->seed = l->random = seed;
    l->image_fd = -1;
    l->live = 1;
    l->sealed_to = 1;
    l->faulty = seed % 3 ? 0 : 6;
    l->careless = seed / 3 % 6 == 0 ? 4 : seed / 3 % 6 == 1;
    sim_init(&l->sim, seed ^ UINT64_C(0x5eed));
    l->sim.hook = meanwhile;
    l->sim.verbose = getenv("TRACE") != NULL;
    w = sim_of(&l->sim, SIM_TEST);
    if (varve_geometry_init(&l->g, DISK_SIZE, BLOCK, NULL) < 0 ||
        varve_paths_init(&l->paths, STATE, RUNTIME, NULL, "vda", NULL) < 0)
        broken(l, "the disk does not fit");
    w->mkdir(w, "/img", 0700);
    fd = w->open(w, IMAGE, O_RDWR | O_CREAT, 0600);
    w->truncate(w, fd, DISK_SIZE);
    w->sync(w, fd);
    w->sync_dir(w, "/");
    w->sync_dir(w, "/img");
    w->close(w, fd);
}

void life_end(struct life *l)
{
    sim_crash_in(&l->sim, 0, false);
    l->sim.hook = NULL;
    sim_kill(&l->sim, SIM_PLUGIN);
    sim_kill(&l->sim, SIM_DAEMON);
    reap(l);
    free(l->now.text);
    for (unsigned i = 0; i < l->nmaybe; i++)
        free(l->maybe[i].text);
    sim_fini(&l->sim);
}
