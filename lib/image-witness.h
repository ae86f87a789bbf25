/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The witness: what a disk's image looked like when we last knew it, kept in the disk's state
 * folder, and the judgement whether somebody else has written to the image since.  Written by
 * whoever has the disk's lock; read by anyone.  It never looks at the image's content, and changes
 * nothing of it.
 *
 * STATE/NAME/image-witness: two slots of 4096 bytes, written in turn, little-endian, version 1:
 *     magic "varvewit", version, kind, sequence, the disk's uuid, boot id, the fields of struct
 *     varve_witness in its order, SHA-256 of all that
 */
#ifndef VARVE_LIB_IMAGE_WITNESS_H
#define VARVE_LIB_IMAGE_WITNESS_H

#include "lib/err.h"
#include "lib/identity.h"
#include "lib/image-beat.h"
#include "lib/paths.h"
#include "lib/world.h"

#include <stdbool.h>
#include <stdint.h>

enum varve_witness_kind {
    VARVE_WITNESS_NONE = 0,
    VARVE_WITNESS_CLEAN = 1,  /* nobody of ours has written since */
    VARVE_WITNESS_SERVED = 2, /* a server may have; the rest is as of its last heartbeat */
};

/* How an image looks. */
struct varve_image_look {
    bool block;
    uint64_t dev, ino;         /* of a block device: rdev and 0 */
    uint64_t size;             /* bytes */
    int64_t mtime_ns;          /* of a block device: 0 */
    uint64_t diskseq, sectors; /* of a block device (lib/world.h) */
};

#define VARVE_WITNESS_TEXT 256u

struct varve_witness {
    enum varve_witness_kind kind;
    uint64_t seq;
    uint8_t boot_id[16]; /* of when it was written */
    struct varve_image_look look;
    uint64_t time_ns; /* real time of when it was written */

    /* The last doubt: epochs went on in another era at `doubt_epoch`, behind `doubt_from`; when
     * that was found, and why.  0: never. */
    uint64_t doubt_epoch, doubt_from, doubt_ns;
    char doubt[VARVE_WITNESS_TEXT];
    /* When it could not be proved that nobody else has written, and why.  0: never. */
    uint64_t unproved_ns;
    char unproved[VARVE_WITNESS_TEXT];
    /* What the last server found when it came, and what it did. */
    uint64_t found_ns;
    char found[VARVE_WITNESS_TEXT];
};

/* What can be told of the image behind fd.  Of a device, what others have in the page cache is
 * written back before its sectors are counted. */
int varve_image_look(struct varve_world *w, int fd, struct varve_image_look *look,
                     struct varve_err *err);

/* The same, once a later write by anybody would show: file systems stamp by the tick, so that waits
 * for a tick, or for a second where whole seconds are all there is, after the last write. */
int varve_image_look_settled(struct varve_world *w, int fd, struct varve_image_look *look,
                             struct varve_err *err);

/* The newest that is valid.  There is none, or none of this disk: kind is NONE, all else zero. */
int varve_witness_read(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                       struct varve_witness *out, struct varve_err *err);

/* Durable when it returns.  wit->seq is what was read or written last, and grows. */
int varve_witness_write(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                        struct varve_witness *wit, struct varve_err *err);

enum varve_verdict {
    VARVE_IMAGE_PROVED,   /* nobody else has written, as far as the host tells */
    VARVE_IMAGE_UNPROVED, /* nothing speaks against it, and nothing for it */
    VARVE_IMAGE_CHANGED,  /* somebody has, or it is another image */
};

/* What is known at the time of judging. */
struct varve_judge {
    const struct varve_witness *wit;
    const struct varve_beat_copy *beat; /* NULL: there is none */
    struct varve_resize resize; /* ours, that was begun: another size and time may be its doing */
    struct varve_image_look look;
    uint8_t boot_id[16];
    uint64_t now_ns;  /* real time */
    uint64_t boot_ns; /* real time when the machine was started */
    uint64_t served_ns; /* real time up to which the intent log says that it was served; 0: it does not */
};

/* Fills in boot id and clocks.  wit, beat, resize and look are the caller's. */
int varve_judge_init(struct varve_world *w, struct varve_judge *j, struct varve_err *err);

/* why: a part of a sentence about the image; empty if it is proved. */
enum varve_verdict varve_judge_image(const struct varve_judge *j, char why[VARVE_WITNESS_TEXT]);

/* For the clerk of a disk that nobody serves: reads witness and beat, and judges the image behind
 * fd. *wit as it was read. */
int varve_witness_check(struct varve_world *w, const struct varve_paths *p,
                        const struct varve_identity *id, int fd, struct varve_witness *wit, enum varve_verdict *verdict,
                        char why[VARVE_WITNESS_TEXT], struct varve_err *err);

/* "2026-11-27 12:00:00.000 UTC" */
#define VARVE_TIME_TEXT 32u
char *varve_time_text(uint64_t ns, char buf[VARVE_TIME_TEXT]);

#endif
