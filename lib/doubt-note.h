/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The doubt note: what the daemon knows against a disk's state folder, for whoever takes the disk next
 * (lib/tracker-doubt.c): its epochs go on in another era then, behind a number that was used.  Written
 * by the daemon while a server has the disk, or before it takes the disk itself; removed by who has
 * acted on it.  It changes nothing by itself.
 *
 * STATE/NAME/doubt: one line, "varve-doubt 1 NUMBER", and one of text: why
 */
#ifndef VARVE_LIB_DOUBT_NOTE_H
#define VARVE_LIB_DOUBT_NOTE_H

#include "lib/err.h"
#include "lib/image-witness.h"
#include "lib/paths.h"
#include "lib/world.h"

struct varve_doubt_note {
    uint64_t used; /* the highest number of an epoch that was ever named */
    char why[VARVE_WITNESS_TEXT];
};

/* Durable when it returns. */
int varve_doubt_note_write(struct varve_world *w, const struct varve_paths *p,
                           const struct varve_doubt_note *note, struct varve_err *err);
/* 0: there is none; 1: there is.  What cannot be read as one is a doubt, too.  -ENOTSUP: of a newer
 * format; or as of the world. */
int varve_doubt_note_read(struct varve_world *w, const struct varve_paths *p,
                          struct varve_doubt_note *note, struct varve_err *err);
/* Not durable: who finds it again doubts again. */
void varve_doubt_note_remove(struct varve_world *w, const struct varve_paths *p);

#endif
