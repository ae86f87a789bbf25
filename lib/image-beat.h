/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The beat: a page in the disk's runtime folder in which its server leaves when it last wrote to
 * the image, for whoever comes after it was killed.  Only the server maps and changes it, through
 * the gate's counters; others read copies.  It outlives the server, not the boot.  Where there is
 * no memory for it, it is left out: then a kill counts as a crash of the host as far as the image
 * goes.
 */
#ifndef VARVE_LIB_IMAGE_BEAT_H
#define VARVE_LIB_IMAGE_BEAT_H

#include "lib/err.h"
#include "lib/gate.h"
#include "lib/paths.h"
#include "lib/world.h"

#define VARVE_BEAT_MAGIC UINT64_C(0x3154414542524156) /* "VARBEAT1" */

/* How often a server says that it is there. */
#define VARVE_BEAT_PERIOD_NS UINT64_C(1000000000)

struct varve_beat {
    uint64_t magic;
    uint8_t boot_id[16];
    uint8_t disk_uuid[16];
    _Atomic uint64_t dev, ino;
    _Atomic int64_t mtime_ns; /* of the image when the server came */
    _Atomic uint64_t beat_ns; /* real time */
    alignas(64) struct varve_gate_shard shards[VARVE_GATE_SHARDS];
};

struct varve_beat_copy {
    uint64_t dev, ino;
    int64_t mtime_ns;
    uint64_t beat_ns;
    uint64_t left_ns; /* when the last write that ended did so, by the files' clock; 0: none did */
    bool entered;     /* writes were begun */
    bool inside;      /* and some had not ended */
};

/* Opens or makes it, and maps it.  What is in it stays until varve_beat_begin.  NULL: it cannot be
 * had, and is not there any more. */
struct varve_beat *varve_beat_open(struct varve_world *w, const struct varve_paths *p);
void varve_beat_close(struct varve_world *w, struct varve_beat *b);

/* A server begins; the image looked like that.  Dying in it loses no evidence. */
void varve_beat_begin(struct varve_world *w, struct varve_beat *b, const uint8_t boot_id[16],
                      const uint8_t uuid[16], uint64_t dev, uint64_t ino, int64_t mtime_ns);

/* It is still there.  Any thread. */
void varve_beat_tick(struct varve_world *w, struct varve_beat *b);

/* false: there is none of this boot and disk. */
bool varve_beat_read(struct varve_world *w, const struct varve_paths *p, const uint8_t boot_id[16],
                     const uint8_t uuid[16], struct varve_beat_copy *out);

#endif
