/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading side of NBD for the verbs: opening an export with the meta contexts that are wanted, and
 * asking for block status without believing the server.  A handle and its status belong to one
 * thread at a time.  It never writes to an export, and it never waits for ever for a handshake.
 */
#ifndef VARVE_CLIENT_NBD_H
#define VARVE_CLIENT_NBD_H

#include "lib/err.h"

#include <libnbd.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How long a server may take to shake hands. */
#define VARVE_NBD_HANDSHAKE_MS 30000

/* Bit 0 of a dirty bitmap's status. */
#define VARVE_NBD_DIRTY 1u

struct varve_nbd_target {
    const char *uri;
    const char *since; /* not NULL: the export NAME@SINCE instead of the URI's NAME */
};

/* Connects up to the point where contexts can be listed.  *stop (may be NULL) set by another thread
 * ends it with -ECANCELED.  0: *h is the caller's to varve_nbd_close(). */
int varve_nbd_dial(struct nbd_handle **h, const struct varve_nbd_target *t, const atomic_bool *stop,
                   struct varve_err *err);

/* Says goodbye if it can be said without waiting.  NULL: nothing. */
void varve_nbd_close(struct nbd_handle *h);

/* Names of the dialled export's contexts that begin with prefix, separated by ", "; a new string,
 * NULL: none that is known. */
char *varve_nbd_list(struct nbd_handle *h, const char *prefix);

/* Ends the handshake with up to two contexts (NULL: none).  The first must be there or it is
 * -ENOENT with a sentence that says what the export offers; the second need not. */
int varve_nbd_go(struct nbd_handle *h, const struct varve_nbd_target *t, const char *const ctx[2],
                 const atomic_bool *stop, struct varve_err *err);

/* True: bit 0 of this context's status says that something changed. */
bool varve_nbd_is_dirty_context(const char *context);

/* -code with libnbd's last error of this thread, "what: " before it. */
int varve_nbd_failed(struct varve_err *err, const char *what);

#define VARVE_STATUS_CONTEXTS 2

/* The block status of one range of the export, in up to two contexts. */
struct varve_status {
    const char *ctx[VARVE_STATUS_CONTEXTS]; /* NULL: not asked, its flags are 0; borrowed */
    uint64_t export_size;
    bool done; /* the answer is here: varve_status_finish() can look at it */

    int error;
    uint64_t off, end; /* the range asked; once finished, that answered */
    struct varve_status_reply {
        struct varve_status_extent {
            uint64_t len, flags;
        } * extents;
        size_t count, cap;
        unsigned times;  /* how often it came: once */
        uint64_t off;    /* of the first extent */
        size_t at;       /* reading: extent */
        uint64_t behind; /* reading: end of that extent */
    } replies[VARVE_STATUS_CONTEXTS];
};

/* A run of bytes whose flags are equal in each context. */
struct varve_status_run {
    uint64_t off, len;
    uint64_t flags[VARVE_STATUS_CONTEXTS];
};

/* ctx as given to varve_nbd_go(); contexts that the server hasn't are left out. */
void varve_status_init(struct varve_status *s, struct nbd_handle *h, const char *const ctx[2],
                       uint64_t export_size);
void varve_status_fini(struct varve_status *s);

/* Asks for the status from off on, as far as is wise.  done is set within a later nbd_poll(h). */
int varve_status_ask(struct varve_status *s, struct nbd_handle *h, uint64_t off,
                     struct varve_err *err);

/* Judges the answer.  0: [off, end) is known, not empty; varve_status_next() gives it in runs. */
int varve_status_finish(struct varve_status *s, struct varve_err *err);

/* False: there are no more runs. */
bool varve_status_next(struct varve_status *s, struct varve_status_run *run);

/* Ask, wait, finish. */
int varve_status_get(struct varve_status *s, struct nbd_handle *h, uint64_t off,
                     struct varve_err *err);

#endif
