/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The file that varve pull and varve apply make or update; the marker FILE.partial beside it that
 * says that it is not (or no longer) a backup; and the stamp FILE.varve that says which one it is.
 * Opening, marking and finishing: one thread; writing, punching and comparing: any threads, on
 * ranges that do not overlap; saving: one thread, beside those.  It never touches a byte of the
 * file before the marker is durable, and never removes the marker before the file is.
 */
#ifndef VARVE_CLIENT_SINK_H
#define VARVE_CLIENT_SINK_H

#include "lib/err.h"
#include "lib/qmp.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum varve_sink_kind {
    VARVE_SINK_FULL,        /* a whole copy, into a new file or over an unfinished whole copy */
    VARVE_SINK_INCREMENTAL, /* changes, onto the backup that is there */
};

/* What stands behind the end of a file until it is finished: these words, a token of so many
 * digits, a newline. */
#define VARVE_SINK_TAIL_WORDS "varve: unfinished "
#define VARVE_SINK_TOKEN      32
#define VARVE_SINK_TAIL       ((int)sizeof(VARVE_SINK_TAIL_WORDS) - 1 + VARVE_SINK_TOKEN + 1)

struct varve_sink {
    const char *path; /* as the user named it; borrowed */
    char *real;       /* where that leads */
    char *marker;     /* base name of FILE.partial */
    int dir;          /* the folder of both */
    int fd;           /* -1: not there yet */
    enum varve_sink_kind kind;
    bool blank;    /* the file began as one hole */
    uint64_t kept; /* bytes from its start that an unfinished pull has copied of the same view */
    char token[VARVE_SINK_TOKEN + 1]; /* of its tail (sink-tail.c); "": it gets none */
    atomic_bool differs;              /* comparing found that it is not what was written */
};

/* What a pull asks for: the same again is what finishes an unfinished one. */
struct varve_sink_want {
    const char *uri;
    const char *context; /* NULL: none, a full copy */
    const char *base;    /* what the server says the changes are since; NULL: it does not say */
    const char *
        view; /* what the same view under the same name has, and nothing else; NULL: nobody knows */
    uint64_t epoch;      /* the number of its instant, later ones have higher ones; 0: nobody knows */
    uint64_t export_size;
};

/* Looks at the file and its marker and decides what this pull has to do.  Changes nothing.  0: *s
 * is set, to be closed; or -errno with a sentence that says what to do. */
int varve_sink_open(struct varve_sink *s, const char *path, const struct varve_sink_want *want,
                    struct varve_err *err);
void varve_sink_close(struct varve_sink *s);

/* The same for a file that has to be there, without a look at its marker. */
int varve_sink_open_backup(struct varve_sink *s, const char *path, struct varve_err *err);

/* The marker, json_decref it; NULL: there is none. */
int varve_sink_read_marker(struct varve_sink *s, json_t **marker, struct varve_err *err);

/* Makes a marker durable: of a pull that has copied so many bytes from the start; of deltas that
 * are being applied. */
int varve_sink_mark(struct varve_sink *s, const struct varve_sink_want *want, uint64_t copied,
                    struct varve_err *err);
struct varve_sink_apply {
    const char *deltas;       /* the folder */
    const char *first, *last; /* ids */
};
int varve_sink_mark_apply(struct varve_sink *s, const struct varve_sink_apply *a,
                          struct varve_err *err);

/* What a backup is. */
struct varve_stamp {
    bool found;      /* there is a stamp */
    bool holds;      /* and nobody has written to the file since, as far as its time tells */
    char point[256]; /* the instant whose copy it is; "": nobody said */
    char delta[33];  /* the id of the delta that was applied last; "": none was */
};
int varve_sink_read_stamp(struct varve_sink *s, struct varve_stamp *stamp, struct varve_err *err);
/* Of the synced file, before varve_sink_finish(), which makes it durable.  Both NULL: the file is
 * nothing that has a name, and there is no stamp. */
int varve_sink_put_stamp(struct varve_sink *s, const char *point, const char *delta,
                         struct varve_err *err);

/* Makes the marker durable, then makes or empties the file for a full copy; but what is kept stays.
 */
int varve_sink_begin(struct varve_sink *s, const struct varve_sink_want *want,
                     struct varve_err *err);

/* Makes the file durable, then a marker that says so: all that is wanted below `copied` is in it.
 */
int varve_sink_save(struct varve_sink *s, const struct varve_sink_want *want, uint64_t copied,
                    struct varve_err *err);

/* Sets s->kept if what the marker says can be believed and is of that view. */
void varve_sink_keep(struct varve_sink *s, const json_t *marker,
                     const struct varve_sink_want *want);
/* The tail: its token is made; it is put behind the file's end; it is gone durably, which the
 * marker has to outlive. */
int varve_sink_new_token(struct varve_sink *s, struct varve_err *err);
int varve_sink_put_tail(struct varve_sink *s, uint64_t export_size, struct varve_err *err);
int varve_sink_cut_tail(struct varve_sink *s, uint64_t export_size, struct varve_err *err);

/* For struct varve_copy; opaque is the sink. */
int varve_sink_data(void *opaque, const char *buf, uint64_t off, size_t len, struct varve_err *err);
int varve_sink_zero(void *opaque, uint64_t off, uint64_t len, struct varve_err *err);
int varve_sink_compare(void *opaque, const char *buf, uint64_t off, size_t len,
                       struct varve_err *err);

/* Makes the file durable. */
int varve_sink_sync(struct varve_sink *s, struct varve_err *err);

/* Asks the kernel to forget the synced file's cached pages, so that compare reads the disk. */
void varve_sink_forget(struct varve_sink *s);

/* Takes the marker away: the file is a backup. */
int varve_sink_finish(struct varve_sink *s, struct varve_err *err);

#endif
