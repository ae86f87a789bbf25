/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The engine under varve pull: walks the block status of an export and reads what is wanted, many
 * requests in flight over one to four connections, in bounded memory.  Call it from one thread; it
 * makes others, which call the two functions below.  It knows no file and never writes anything.
 */
#ifndef VARVE_CLIENT_COPY_H
#define VARVE_CLIENT_COPY_H

#include "client/nbd.h"

struct varve_copy {
    const struct varve_nbd_target *target;
    const char *what;      /* for the progress bar: "pulling" */
    const char *dirty_ctx; /* only ranges dirty in this context; NULL: all ranges */
    bool read_zeroes;      /* read also what base:allocation calls zeroes */
    uint64_t from;         /* nothing before it is wanted */

    /* A range was read.  Any thread, several at once, never two that overlap. */
    int (*data)(void *opaque, const char *buf, uint64_t off, size_t len, struct varve_err *err);
    /* A range reads as zeroes.  The calling thread.  Not used with read_zeroes. */
    int (*zero)(void *opaque, uint64_t off, uint64_t len, struct varve_err *err);
    /* All that is wanted below `off` was dealt with.  A thread of its own, every few seconds in
     * which it became more, and once more in the end, a good one or not.  NULL: nobody wants to
     * know. */
    int (*reached)(void *opaque, uint64_t off, struct varve_err *err);
    void *opaque;

    /* Results, in bytes. */
    uint64_t dirty_bytes; /* wanted */
    uint64_t data_bytes;  /* read */
    uint64_t zero_bytes;  /* given to zero() */
};

/* The contexts to open the export with. */
void varve_copy_contexts(const struct varve_copy *c, const char *ctx[2]);

/* h: an open export, with the contexts above; it stays the caller's, who may only close it when
 * this has failed.  More connections are opened when the server allows it.  0: all ranges were
 * dealt with.  -errno: the first error, not all were. */
int varve_copy_run(struct varve_copy *c, struct nbd_handle *h, struct varve_err *err);

#endif
