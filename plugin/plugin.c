/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdkit's callbacks, each a translation.  A request that changes the image goes through
 * plugin_change(): it is cut into pieces, and each piece is entered into the epoch, kept and marked
 * before the image is touched (lib/tracker.h).
 *
 * nbdkit calls get_ready before it forks and after_fork in the process that stays: the disk is
 * taken (locked) in the first, so that errors reach whoever started us; threads start in the second.
 */
#include "config.h"

#include "include/varve.h"
#include "lib/tracker.h"
#include "lib/world.h"
#include "plugin/flusher.h"
#include "plugin/params.h"
#include "plugin/image.h"
#include "plugin/link.h"
#include "plugin/nbdkit.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

/* nbdkit loads a plugin once per process and hands its callbacks no context before .open. */
static struct {
    struct varve_params config;
    struct varve_image image;
    struct varve_tracker *tracker;
    struct varve_link *link;
    struct varve_flusher *flusher;
} plugin;

static int plugin_fail(const struct varve_err *err)
{
    nbdkit_error("%s", err->msg);
    errno = err->code;
    return -1;
}

static void plugin_load(void)
{
    varve_params_init(&plugin.config);
    plugin.image.fd = -1;
}

static void plugin_unload(void)
{
    varve_params_fini(&plugin.config);
}

static int plugin_config(const char *key, const char *value)
{
    return varve_params_set(&plugin.config, key, value);
}

static int plugin_config_complete(void)
{
    return varve_params_complete(&plugin.config);
}

static void plugin_dump_plugin(void)
{
    printf("varve_version=%s\n", PACKAGE_VERSION);
    printf("varve_state_format=%d\n", VARVE_STATE_FORMAT);
    printf("varve_default_state_dir=%s\n", VARVE_DEFAULT_STATE_DIR);
    printf("varve_default_runtime_dir=%s\n", VARVE_DEFAULT_RUNTIME_DIR);
}

static int plugin_get_ready(void)
{
    const struct varve_params *c = &plugin.config;
    struct varve_err err = VARVE_ERR_INIT;
    char notes[256];

    if (varve_image_open(&plugin.image, c->image, c->state_dir, &err) < 0)
        return plugin_fail(&err);
    struct varve_tracker_config tc = {
        .state_dir = c->state_dir,
        .runtime_dir = c->runtime_dir,
        .scratch_dir = c->scratch_dir,
        .name = c->name,
        .image = c->image,
        .image_fd = plugin.image.fd,
        .size = plugin.image.size,
        .block_size = c->granularity,
        .scratch_max = c->scratch_max,
        .on_scratch_full = c->on_scratch_full,
        .scratch_wait_ms = c->scratch_wait_ms,
        .scratch_reserve = c->scratch_reserve,
        .freeze_timeout_ms = c->freeze_timeout_ms,
        .durable_process = c->durable_process,
        .role = "nbdkit",
    };
    if (varve_tracker_attach(varve_world_posix(), &tc, &plugin.tracker, notes, &err) < 0)
        return plugin_fail(&err);
    if (notes[0])
        fprintf(stderr, "varve: disk %s: %s\n", c->name, notes);
    if (varve_tracker_private(plugin.tracker))
        fprintf(stderr, "varve: disk %s: %s\n", c->name, varve_tracker_private(plugin.tracker));
    if (!plugin.image.writable)
        fprintf(stderr, "varve: disk %s: image %s can only be read\n", c->name, c->image);
    if (varve_link_listen(plugin.tracker, &plugin.image, c, &plugin.link, &err) < 0)
        return plugin_fail(&err);
    return 0;
}

static int plugin_after_fork(void)
{
    struct varve_err err = VARVE_ERR_INIT;

    if (varve_tracker_claim_pid(plugin.tracker, &err) < 0 ||
        varve_link_start(plugin.link, &err) < 0 ||
        varve_flusher_start(plugin.tracker, plugin.config.name, &plugin.flusher, &err) < 0)
        return plugin_fail(&err);
    return 0;
}

/* All connections are closed. */
static void plugin_cleanup(void)
{
    struct varve_err err = VARVE_ERR_INIT;

    if (plugin.link)
        varve_link_stop(plugin.link);
    if (plugin.flusher)
        varve_flusher_stop(plugin.flusher);
    if (plugin.tracker && varve_tracker_detach(plugin.tracker, &err) < 0)
        fprintf(stderr, "varve: disk %s was not stopped cleanly, after a reboot all of it will count "
                        "as written: %s\n", plugin.config.name, err.msg);
    varve_image_close(&plugin.image);
    plugin.link = NULL;
    plugin.flusher = NULL;
    plugin.tracker = NULL;
}

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static void *plugin_open(int readonly)
{
    (void)readonly;
    return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t plugin_get_size(void *handle)
{
    (void)handle;
    return (int64_t)plugin.image.size;
}

static int plugin_yes(void *handle)
{
    (void)handle;
    return 1;
}

static int plugin_can_write(void *handle)
{
    (void)handle;
    return plugin.image.writable;
}

static int plugin_can_fua(void *handle)
{
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

static int plugin_can_cache(void *handle)
{
    (void)handle;
    return NBDKIT_CACHE_NATIVE;
}

/* --- requests ----------------------------------------------------------------------------------- */

/* 0, or nbdkit's error for a negative errno value. */
static int plugin_result(int r, const char *what, uint64_t off)
{
    struct varve_err err = VARVE_ERR_INIT;

    if (r == 0)
        return 0;
    if (r != -EOPNOTSUPP) {
        varve_err_sys(&err, -r, "cannot %s disk %s at offset %" PRIu64, what, plugin.config.name,
                      off);
        nbdkit_error("%s", err.msg);
    }
    nbdkit_set_error(-r);
    return -1;
}

static int plugin_pread(void *handle, void *buf, uint32_t count, uint64_t off, uint32_t flags)
{
    (void)handle;
    (void)flags;
    return plugin_result(varve_image_read(&plugin.image, buf, count, off), "read", off);
}

/* The kernel tells an error of writing back once: the tracker has to know before the guest does. */
static int plugin_sync(void)
{
    int r = varve_image_flush(&plugin.image);

    if (r < 0)
        varve_tracker_image_failed(plugin.tracker);
    return r;
}

static int plugin_flush(void *handle, uint32_t flags)
{
    (void)handle;
    (void)flags;
    return plugin_result(plugin_sync(), "flush", 0);
}

static uint64_t plugin_clock_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

enum change { CHANGE_WRITE, CHANGE_ZERO, CHANGE_PUNCH };

static int plugin_change_image(enum change change, const char *buf, uint32_t len, uint64_t off)
{
    switch (change) {
    case CHANGE_WRITE:
        return varve_image_write(&plugin.image, buf, len, off);
    case CHANGE_ZERO:
        return varve_image_zero(&plugin.image, off, len);
    case CHANGE_PUNCH:
        return varve_image_punch(&plugin.image, off, len);
    }
    return -EINVAL;
}

static int plugin_change_piece(enum change change, const char *buf, uint32_t len, uint64_t off)
{
    struct varve_piece piece;
    int r;

    varve_piece_begin(plugin.tracker, off, len, change != CHANGE_WRITE, &piece);
    r = plugin_change_image(change, buf, len, off);
    varve_piece_end(plugin.tracker, &piece);
    return r;
}

static int plugin_change(enum change change, const char *buf, uint64_t len, uint64_t off,
                         uint32_t flags)
{
    int r = 0;

    while (r == 0 && len > 0) {
        uint32_t piece_len = varve_piece_len(off, len);

        r = plugin_change_piece(change, buf, piece_len, off);
        if (r == -ENOSPC || r == -EDQUOT) { /* the guest goes before backups */
            varve_tracker_make_room(plugin.tracker);
            r = plugin_change_piece(change, buf, piece_len, off);
        }
        if (buf)
            buf += piece_len;
        off += piece_len;
        len -= piece_len;
    }
    if (r == 0 && (flags & NBDKIT_FLAG_FUA))
        r = plugin_sync();
    return r;
}

/* One write of so many of a thread is measured, from nbdkit's call to our answer: waiting for a
 * boundary, keeping what is overwritten, writing, and the flush of FUA.  The others pay for a count
 * that only their thread has, the one for two readings of the clock and three additions to memory
 * that is shared: 20 ns a write on the average, where a write of 4 KiB to tmpfs takes 2300 in this
 * callback.  Nothing is locked or allocated. */
#define SAMPLED 8

static int plugin_write_measured(const char *buf, uint32_t count, uint64_t off, uint32_t flags)
{
    uint64_t weight = 1 + (count - 1) / VARVE_PIECE_MAX, begun, ended;
    int r;

    varve_tracker_sample_begin(plugin.tracker, weight);
    begun = plugin_clock_ns();
    r = plugin_change(CHANGE_WRITE, buf, count, off, flags);
    ended = plugin_clock_ns();
    varve_tracker_sample_end(plugin.tracker, weight, ended - begun);
    return r;
}

static int plugin_pwrite(void *handle, const void *buf, uint32_t count, uint64_t off,
                         uint32_t flags)
{
    /* Initial-exec: part of the thread from its start.  Otherwise the first write of each thread would
     * allocate it, and the loader frees it behind the back of tools that look for races. */
    static _Thread_local unsigned writes __attribute__((tls_model("initial-exec")));
    int r;

    (void)handle;
    if (writes++ % SAMPLED == 0 && count > 0)
        r = plugin_write_measured(buf, count, off, flags);
    else
        r = plugin_change(CHANGE_WRITE, buf, count, off, flags);
    return plugin_result(r, "write", off);
}

static int plugin_trim(void *handle, uint32_t count, uint64_t off, uint32_t flags)
{
    int r = -EOPNOTSUPP;

    (void)handle;
    if (atomic_load_explicit(&plugin.image.can_punch, memory_order_relaxed))
        r = plugin_change(CHANGE_PUNCH, NULL, count, off, flags);
    if (r == -EOPNOTSUPP) /* a trim is advice */
        r = flags & NBDKIT_FLAG_FUA ? plugin_sync() : 0;
    return plugin_result(r, "trim", off);
}

/* -EOPNOTSUPP: nbdkit writes zeroes instead, or tells a client that wanted it fast. */
static int plugin_zero(void *handle, uint32_t count, uint64_t off, uint32_t flags)
{
    int r = -EOPNOTSUPP;

    (void)handle;
    if ((flags & NBDKIT_FLAG_MAY_TRIM) &&
        atomic_load_explicit(&plugin.image.can_punch, memory_order_relaxed))
        r = plugin_change(CHANGE_PUNCH, NULL, count, off, flags);
    if (r == -EOPNOTSUPP &&
        atomic_load_explicit(&plugin.image.can_zero_range, memory_order_relaxed))
        r = plugin_change(CHANGE_ZERO, NULL, count, off, flags);
    return plugin_result(r, "zero", off);
}

static int plugin_cache(void *handle, uint32_t count, uint64_t off, uint32_t flags)
{
    (void)handle;
    (void)flags;
    return plugin_result(-posix_fadvise(plugin.image.fd, (off_t)off, (off_t)count,
                                        POSIX_FADV_WILLNEED), "cache", off);
}

static int plugin_extents(void *handle, uint32_t count, uint64_t off, uint32_t flags,
                          struct nbdkit_extents *extents)
{
    uint64_t end = off + count;

    (void)handle;
    while (off < end) {
        off_t data = lseek(plugin.image.fd, (off_t)off, SEEK_DATA), hole;

        if (data < 0 && errno == ENXIO)
            data = (off_t)end; /* holes to the end */
        if (data < 0)
            return nbdkit_add_extent(extents, off, end - off, 0);
        if ((uint64_t)data > off) {
            if (nbdkit_add_extent(extents, off, (uint64_t)data - off,
                                  NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO) < 0)
                return -1;
            off = (uint64_t)data;
            if (flags & NBDKIT_FLAG_REQ_ONE)
                return 0;
            continue;
        }
        hole = lseek(plugin.image.fd, (off_t)off, SEEK_HOLE);
        if (hole < 0 || (uint64_t)hole <= off)
            hole = (off_t)end;
        if (nbdkit_add_extent(extents, off, (uint64_t)hole - off, 0) < 0)
            return -1;
        off = (uint64_t)hole;
        if (flags & NBDKIT_FLAG_REQ_ONE)
            return 0;
    }
    return 0;
}

static struct nbdkit_plugin plugin_table = {
    .name = "varve",
    .longname = "varve: incremental backup for raw disks",
    .version = PACKAGE_VERSION,
    .description = "Serves a raw image, tracks what is written to it, and keeps what is\n"
                   "overwritten while a backup of it is open.  See varved(8).",
    .load = plugin_load,
    .unload = plugin_unload,
    .config = plugin_config,
    .config_complete = plugin_config_complete,
    .config_help = varve_params_help,
    .magic_config_key = "file",
    .dump_plugin = plugin_dump_plugin,
    .get_ready = plugin_get_ready,
    .after_fork = plugin_after_fork,
    .cleanup = plugin_cleanup,
    .open = plugin_open,
    .get_size = plugin_get_size,
    .can_write = plugin_can_write,
    .can_flush = plugin_yes,
    .can_trim = plugin_can_write,
    .can_zero = plugin_can_write,
    .can_fast_zero = plugin_can_write,
    .can_extents = plugin_yes,
    .can_multi_conn = plugin_yes,
    .can_fua = plugin_can_fua,
    .can_cache = plugin_can_cache,
    .pread = plugin_pread,
    .pwrite = plugin_pwrite,
    .flush = plugin_flush,
    .trim = plugin_trim,
    .zero = plugin_zero,
    .cache = plugin_cache,
    .extents = plugin_extents,
    .errno_is_preserved = 0,
};

NBDKIT_REGISTER_PLUGIN(plugin_table)
