/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The extents of an endpoint, asked for as a job's cursor comes to them.  The loop's thread only; for
 * one cursor that goes forward.  Keeps the answer to one question, and asks none while one is open.
 */
#ifndef VARVE_SERVER_ENDPOINT_EXTENTS_H
#define VARVE_SERVER_ENDPOINT_EXTENTS_H

#include "server/endpoint.h"

#define VARVE_EXTENTS_KEPT 64u

struct varve_extents {
    /* set by the caller */
    uint64_t ask_max; /* bytes that are asked about at once */
    /* The question is answered: rc is 0, or why there is none, with the endpoint's err. */
    void (*answered)(struct varve_extents *x, int rc, const struct varve_err *err);

    /* its own */
    struct varve_endpoint_req req;
    struct varve_endpoint_extent kept[VARVE_EXTENTS_KEPT];
    bool asking;
    uint64_t from, to; /* what is kept covers this, */
    size_t at;         /* from this extent on */
};

/* 1: what is at `cursor` is known, and is the same up to *run_end, at most `end`; *zero: it reads as
 * zeroes.  0: it was asked for, answered() comes.  An error of submitting: nothing was begun. */
int varve_extents_at(struct varve_extents *x, struct varve_endpoint *e, uint64_t cursor,
                     uint64_t end, uint64_t *run_end, bool *zero, struct varve_err *err);

#endif
