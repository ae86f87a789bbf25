/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Where things lie: the files of a disk below the state, runtime and scratch directories, and which
 * names are allowed.  Pure string work, any thread.  It never touches a file.
 *
 *     STATE/NAME/disk.json             who the disk is
 *     STATE/NAME/lock                  held by the disk's one server
 *     STATE/NAME/epoch-F-L.map         what was written in epochs F..L (lib/epoch-file.h)
 *     STATE/NAME/blocks-HEX.map        blocks that no epoch tells (lib/blocks-file.h)
 *     STATE/NAME/image-witness         what the image looked like (lib/image-witness.h)
 *     STATE/NAME/doubt                 what the daemon knows against it (lib/doubt-note.h)
 *     STATE/NAME/intent.log            regions that may not be durable (lib/intent.h)
 *     SCRATCH/NAME/epoch-N.scratch     preimages of epoch N, at their own offsets
 *     RUNTIME/NAME/control             lib/control.h
 *     RUNTIME/NAME/epoch-N.live        bits of epoch N as they are set
 *     RUNTIME/NAME/epoch-N.lost        blocks of epoch N whose preimage could not be kept
 *     RUNTIME/NAME/view-ID.done        what a view does not need (lib/control.h)
 *     RUNTIME/NAME/view-ID.failed      blocks of it that clients got errors for (server/failed-reads.h)
 *     RUNTIME/NAME/beat                when its server last wrote (lib/image-beat.h)
 *     RUNTIME/NAME/link.sock           the link
 */
#ifndef VARVE_LIB_PATHS_H
#define VARVE_LIB_PATHS_H

#include "lib/err.h"

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

/* [A-Za-z0-9][A-Za-z0-9._-]{0,63}.  `what` is what the message calls it ("disk name"). */
int varve_name_check(const char *name, const char *what, struct varve_err *err);

struct varve_paths {
    char state[PATH_MAX];   /* the disk's own folders */
    char runtime[PATH_MAX];
    char scratch[PATH_MAX];
};

/* scratch_dir NULL: state_dir.  -EINVAL: the name is not allowed or a directory's is empty;
 * -ENAMETOOLONG: no room for the names of the files below. */
int varve_paths_init(struct varve_paths *p, const char *state_dir, const char *runtime_dir,
                     const char *scratch_dir, const char *name, struct varve_err *err);

/* The folder that a path of a file lies in; "." if it names none. */
void varve_path_folder(const char *path, char folder[PATH_MAX]);

/* Each writes to buf of PATH_MAX bytes and returns it. */
char *varve_path_identity(const struct varve_paths *p, char *buf);
char *varve_path_intent(const struct varve_paths *p, char *buf);
char *varve_path_lock(const struct varve_paths *p, char *buf);
char *varve_path_epoch(const struct varve_paths *p, uint64_t first, uint64_t last, char *buf);
/* Of the file of explicit blocks with that SHA-256. */
char *varve_path_blocks(const struct varve_paths *p, const uint8_t digest[32], char *buf);
char *varve_path_witness(const struct varve_paths *p, char *buf);
char *varve_path_doubt(const struct varve_paths *p, char *buf);
char *varve_path_beat(const struct varve_paths *p, char *buf);
char *varve_path_scratch(const struct varve_paths *p, uint64_t epoch, char *buf);
/* A scratch that nobody needs any more (lib/scratch.h). */
char *varve_path_dead(const struct varve_paths *p, uint64_t epoch, char *buf);
char *varve_path_control(const struct varve_paths *p, char *buf);
char *varve_path_live(const struct varve_paths *p, uint64_t epoch, char *buf);
char *varve_path_lost(const struct varve_paths *p, uint64_t epoch, char *buf);
char *varve_path_done(const struct varve_paths *p, uint64_t view, char *buf);
char *varve_path_failed(const struct varve_paths *p, uint64_t view, char *buf);
char *varve_path_link(const struct varve_paths *p, char *buf);
/* Where the plugin listens if it cannot in the runtime folder. */
char *varve_path_spare_link(const struct varve_paths *p, char *buf);

/* "epoch-F-L.map" taken apart.  False: it is not such a name. */
bool varve_path_parse_epoch(const char *name, uint64_t *first, uint64_t *last);

#endif
