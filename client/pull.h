/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the two kinds of varve pull share: into a file (pull.c), and into a folder of deltas
 * (pull-delta.c).  Single-threaded.
 */
#ifndef VARVE_CLIENT_PULL_H
#define VARVE_CLIENT_PULL_H

#include "client/copy.h"
#include "client/deltas.h"
#include "client/sink.h"

struct varve_pull {
    struct varve_nbd_target target;
    const char *file;   /* or NULL */
    const char *deltas; /* or NULL */
    char *context;      /* NULL: a full copy is asked */
    bool verify;
    struct nbd_handle *h;
    char *description;                                    /* of the export; NULL: it has none */
    char *view;                                           /* whose view that is, under which name */
    char point[VARVE_DELTA_TEXT], base[VARVE_DELTA_TEXT]; /* varve_instants() */
    struct varve_sink_want want;
    struct varve_copy copy;
    /* Of a pull into a folder. */
    char *delta; /* its path */
    bool there;  /* it was there before */
};

/* The connected export's changes, as the next delta of the folder p->deltas. */
int varve_pull_delta(struct varve_pull *p, struct varve_err *err);

/* Reads again what p->copy wanted, for the caller to compare. */
int varve_pull_again(struct varve_pull *p,
                     int (*compare)(void *opaque, const char *buf, uint64_t off, size_t len,
                                    struct varve_err *err),
                     void *opaque, struct varve_err *err);

#endif
