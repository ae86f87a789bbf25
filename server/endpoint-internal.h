/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Between endpoint.c, which keeps the promises that all endpoints make (rule 9, lengths, order of
 * the end), and the three kinds.  Private to endpoint*.c, on the loop's thread unless said
 * otherwise.  It knows neither files nor NBD.
 */
#ifndef VARVE_SERVER_ENDPOINT_INTERNAL_H
#define VARVE_SERVER_ENDPOINT_INTERNAL_H

#include "server/endpoint.h"

TAILQ_HEAD(varve_endpoint_line, varve_endpoint_req);

struct varve_endpoint_ops {
    /* Begins the request, which is checked and in e->running; varve_endpoint_end() tells its end,
     * maybe before this returns. */
    void (*start)(struct varve_endpoint *e, struct varve_endpoint_req *req);
    /* Ends all that runs, an opening too, as soon as can be; calls varve_endpoint_gone() when
     * nothing will call back any more.  Called once. */
    void (*stop)(struct varve_endpoint *e);
    /* After that: frees the kind's struct, whose first field is the endpoint. */
    void (*free)(struct varve_endpoint *e);
};

/* First field of each kind's struct. */
struct varve_endpoint {
    const struct varve_endpoint_ops *ops;
    uv_loop_t *loop;
    char *name;
    struct varve_endpoint_info info;
    void (*opened)(void *arg, int rc, const struct varve_err *err); /* NULL: told */
    void *opened_arg;
    void (*closed)(void *arg);
    void *closed_arg;
    struct varve_err failed;            /* code not 0: why nothing can be asked any more */
    struct varve_endpoint_line running; /* submitted, not ended */
    struct varve_endpoint_line ended;   /* done() is due */
    uv_idle_t tell;                     /* runs while something is due */
    bool open;                          /* or it failed to be */
    bool open_due;                      /* opened() is due */
    bool closing;
    bool gone;
};

/* What a kind's struct begins with.  -ENOMEM; then it can be freed. */
int varve_endpoint_init(struct varve_endpoint *e, const struct varve_endpoint_ops *ops,
                        uv_loop_t *loop, const char *name,
                        void (*opened)(void *arg, int rc, const struct varve_err *err), void *arg,
                        struct varve_err *err);

/* The opening has ended; e->info is set, or why is why not.  Once. */
void varve_endpoint_opened(struct varve_endpoint *e, const struct varve_err *why);

/* The request has ended; req->err is set if rc is not 0. */
void varve_endpoint_end(struct varve_endpoint *e, struct varve_endpoint_req *req, int rc);

void varve_endpoint_gone(struct varve_endpoint *e);

/* The text for -ECANCELED. */
int varve_endpoint_canceled(const struct varve_endpoint *e, struct varve_err *err);

/* Adds an extent behind those of req; neighbours that are alike become one.  False: no room. */
bool varve_endpoint_add_extent(struct varve_endpoint_req *req, uint64_t len, unsigned flags);

/* endpoint-nbd.c */
int varve_endpoint_open_nbd(uv_loop_t *loop, const char *uri,
                            const struct varve_endpoint_options *opts,
                            void (*opened)(void *arg, int rc, const struct varve_err *err),
                            void *arg, struct varve_endpoint **out, struct varve_err *err);
/* endpoint-file.c; fd -1: opens the path */
int varve_endpoint_open_file(uv_loop_t *loop, const char *path, int fd,
                             const struct varve_endpoint_options *opts,
                             void (*opened)(void *arg, int rc, const struct varve_err *err),
                             void *arg, struct varve_endpoint **out, struct varve_err *err);

#endif
