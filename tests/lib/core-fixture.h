/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A disk with an image, a tracker that serves it and a source that reads it, in a directory and a
 * world of their own.  The world can be failed and crashed (fault-world.h), syncs nothing, and has
 * boots that tests decide.  For a test's own thread; only writes and reads of the disk may come from
 * others.  It checks nothing about contents: whatever it needs and does not get aborts the test.
 */
#ifndef VARVE_TESTS_LIB_CORE_FIXTURE_H
#define VARVE_TESTS_LIB_CORE_FIXTURE_H

#include "lib/timeline.h"
#include "lib/tracker.h"
#include "lib/view.h"
#include "tests/lib/fault-world.h"

struct core {
    char *top; /* holds state/, run/ and image */
    char state_dir[PATH_MAX], runtime_dir[PATH_MAX], image[PATH_MAX];

    struct varve_world machine; /* the real one but for syncs and boots */
    uint8_t boot;
    uint64_t booted_ns; /* monotonic: when this boot began; 0: the machine's own */
    bool image_sync_fails;
    struct fault_world fault; /* around machine */
    struct varve_world *w;    /* = &fault.world */

    int image_fd;
    struct varve_tracker_config cfg;
    struct varve_geometry g;
    struct varve_tracker *t; /* NULL: nobody serves it */
    char notes[256];
    struct varve_source *source; /* NULL: not opened */
};

/* A sparse image; nobody serves it. */
void core_init(struct core *c, uint64_t size, uint64_t block_size);
/* Whoever serves it is killed. */
void core_fini(struct core *c);

/* A server attaches. */
int core_try_start(struct core *c, struct varve_err *err);
void core_start(struct core *c);
/* It detaches. */
void core_stop(struct core *c);
/* kill -9: all its memory is gone, shared memory is as it was. */
void core_kill(struct core *c);
/* Another boot begins; all files are as they were. */
void core_reboot(struct core *c);
/* How long this boot lasts by now. */
uint64_t core_uptime_ns(struct core *c);
/* The host goes down, killing the server: the runtime folder is empty then. */
void core_host_crash(struct core *c);

/* Writes through pieces; nothing of the image changes for len 0. */
void core_write(struct core *c, uint64_t off, const void *buf, uint64_t len);
void core_fill(struct core *c, uint64_t off, uint64_t len, int byte);
/* Frees the range, so that it reads as zeroes; asks for cheap copies. */
void core_punch(struct core *c, uint64_t off, uint64_t len);
/* Reads the image as it is. */
void core_read_image(struct core *c, uint64_t off, void *buf, uint64_t len);

/* A boundary with a view (0: none), sealed.  The number of the epoch that begins. */
uint64_t core_boundary(struct core *c, uint64_t view_id);

/* The reader: opens its files, and fetches those of epochs and the done maps that it does not have. */
void core_open_source(struct core *c);
void core_fetch(struct core *c);
void core_close_source(struct core *c);

/* Bits of an epoch: of the live map file, or of the epoch's own file.  free() it. */
struct varve_bitmap *core_live_bits(struct core *c, uint64_t epoch);
struct varve_bitmap *core_sealed_bits(struct core *c, uint64_t epoch);

/* Whether a file of that path is there. */
bool core_exists(const char *path);

/* Overwrites, durably, what is there of the control page at offset off. */
void core_poke_control(struct core *c, uint64_t off, const void *buf, uint64_t len);

#endif
