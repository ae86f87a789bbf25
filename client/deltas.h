/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A folder of deltas (lib/delta-file.h), called 000001.delta, 000002.delta and so on, each
 * beginning where the one before it ends; and what instants are called, to tell that.  One thread.
 * It never changes a delta; who may add one has locked the folder.
 */
#ifndef VARVE_CLIENT_DELTAS_H
#define VARVE_CLIENT_DELTAS_H

#include "lib/delta-file.h"

struct varve_delta_item {
    uint64_t number;
    char *path;
    struct varve_delta_head head;
};

struct varve_deltas {
    const char *path;               /* borrowed */
    int fd;                         /* -1: not locked */
    struct varve_delta_item *items; /* ascending */
    size_t count;
};

/* Reads the heads of all.  to_add: makes the folder if there is none, and locks it.  0: *d is to be
 * closed.  -EUCLEAN: one is damaged, or missing between others. */
int varve_deltas_open(struct varve_deltas *d, const char *path, bool to_add, struct varve_err *err);
void varve_deltas_close(struct varve_deltas *d);

/* The next one's path; free() it.  NULL: no memory. */
char *varve_deltas_next(const struct varve_deltas *d);

#define VARVE_DELTA_ID_TEXT 33
char *varve_delta_id_text(const uint8_t id[16], char text[VARVE_DELTA_ID_TEXT]);

/* Index of the delta of that id, count: there is none. */
size_t varve_deltas_find(const struct varve_deltas *d, const char *id_text);

/* From the description of an export of varved's the instant that it shows and the one its changes
 * are since, in one way of writing: equal texts are the same instant of the same disk.  "" where
 * there is none: another server, no changes, or changes since no instant. */
void varve_instants(const char *description, char point[VARVE_DELTA_TEXT],
                    char base[VARVE_DELTA_TEXT]);

/* From the same: the view's id (include/varve.h), digits that the caller frees; NULL: there is
 * none, or no memory. */
char *varve_view_id(const char *description);

#endif
