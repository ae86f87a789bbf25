/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Endpoints whose requests are plain code that may wait: it runs in the loop's pool, few requests
 * at once, since the pool's threads serve the daemon's NBD clients too.  Private to endpoint-*.c.
 * It cannot end what runs: a disk that does not answer holds its thread.
 */
#ifndef VARVE_SERVER_ENDPOINT_POOL_H
#define VARVE_SERVER_ENDPOINT_POOL_H

#include "server/endpoint-internal.h"

struct varve_endpoint_pool {
    struct varve_endpoint e; /* first */
    /* In a pool thread; sets info, or err. */
    int (*open)(struct varve_endpoint_pool *p, struct varve_endpoint_info *info,
                struct varve_err *err);
    /* In pool threads, several at once; sets req->err and the results. */
    int (*run)(struct varve_endpoint_pool *p, struct varve_endpoint_req *req);
    /* In a pool thread, last of all: what closing files may wait for.  NULL: nothing. */
    void (*close)(struct varve_endpoint_pool *p);
    uv_work_t opening, closing;
    struct varve_endpoint_info info; /* of open, until it has ended */
    struct varve_err open_err;
    int open_rc;
    unsigned nworks;                          /* in the pool, the opening included */
    TAILQ_HEAD(, varve_endpoint_req) waiting; /* a part of running: not in the pool yet */
    _Atomic bool stopping;                    /* what takes long ends with -ECANCELED */
};

/* What the kind's ops have for start and stop. */
void varve_endpoint_pool_start(struct varve_endpoint *e, struct varve_endpoint_req *req);
void varve_endpoint_pool_stop(struct varve_endpoint *e);

/* Behind varve_endpoint_init: begins the opening. */
void varve_endpoint_pool_begin(struct varve_endpoint_pool *p);

#endif
