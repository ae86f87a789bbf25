/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An exported disk: a folder with all that the daemon keeps of a disk nobody serves, and a manifest
 * that says which image belongs to it.  For the clerk's thread.  It knows nothing of the daemon's
 * disks and never touches an image.
 *
 *     FOLDER/export.json      {"sha256": of the text of the other, "export": {...}}, as compact
 * JSON with sorted keys; the export: format, disk, uuid, time-ns, witness, files [{name, size,
 * sha256}], catalogue (the disk's, as text), and digest, of the image (lib/image-digest.h), once
 * somebody has given it FOLDER/...              the files of STATE/NAME, but its lock The digests
 * find damage, not malice.
 */
#ifndef VARVE_SERVER_DISK_MOVE_H
#define VARVE_SERVER_DISK_MOVE_H

#include "lib/catalogue.h"
#include "lib/digest.h"
#include "lib/err.h"
#include "lib/paths.h"
#include "lib/qmp.h"
#include "lib/world.h"

#define VARVE_MOVE_FORMAT 1

/* Copies the disk's files and writes the manifest; durable, and FOLDER is there or it is not.
 * cat: a catalogue of this disk only.  -EEXIST: there is FOLDER, or FOLDER.tmp. */
int varve_move_write(struct varve_world *w, const struct varve_paths *p, const char *folder,
                     const char *disk, const uint8_t uuid[16], uint64_t witness,
                     const struct varve_catalogue *cat, struct varve_err *err);

struct varve_move {
    json_t *export;
    const char *disk;   /* its name, in the above */
    const char *digest; /* hexadecimal; NULL: there is none */
    uint64_t witness;   /* number of the image's witness that was the newest */
    uint8_t uuid[16];
    struct varve_catalogue *cat; /* of one disk, of that uuid */
};

/* -EINVAL: it is no export; -ENOTSUP: of a newer version; -EUCLEAN: damaged.  0: *m is to be freed.
 */
int varve_move_read(struct varve_world *w, const char *folder, struct varve_move *m,
                    struct varve_err *err);
void varve_move_fini(struct varve_move *m);

/* Notes the image's digest in the manifest, durably. */
int varve_move_note_digest(struct varve_world *w, const char *folder, struct varve_move *m,
                           const char *digest, struct varve_err *err);

/* Copies the files into the empty folder `to`, durably, each as the manifest says or -EUCLEAN. */
int varve_move_take(struct varve_world *w, const char *folder, const struct varve_move *m,
                    const char *to, struct varve_err *err);

#endif
