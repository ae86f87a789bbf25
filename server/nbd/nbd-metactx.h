/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which meta contexts of an export a client's queries mean, and which ones a connection selected.
 * Called on the connection's loop.  It sends nothing and never asks for a block's status.
 */
#ifndef VARVE_SERVER_NBD_METACTX_H
#define VARVE_SERVER_NBD_METACTX_H

#include "lib/nbd-proto.h"
#include "server/nbd/export.h"

/* Contexts that one connection may have selected. */
#define VARVE_NBD_METACTX_MAX 16u

/* What a connection selected.  All zero: nothing. */
struct varve_nbd_metactx {
    struct varve_export *export; /* a reference, or NULL */
    unsigned n;
    unsigned ctx[VARVE_NBD_METACTX_MAX]; /* the export's numbers of them */
};

/* The number by which the wire knows the export's context ctx; never 0. */
static inline uint32_t varve_nbd_metactx_id(unsigned ctx)
{
    return ctx + 1;
}

/* LIST: context ctx of e is meant by one of the queries, exactly or by a wildcard; without queries
 * every context is. */
bool varve_nbd_metactx_listed(const struct varve_export *e, unsigned ctx,
                              const struct varve_nbd_meta_request *req);

/* SET: selects what the queries name exactly, each once, in the export's order.  m must be empty;
 * it takes a reference of its own to e.  -E2BIG: too many; m is empty then. */
int varve_nbd_metactx_select(struct varve_nbd_metactx *m, struct varve_export *e,
                             const struct varve_nbd_meta_request *req, struct varve_err *err);

/* Forgets the selection and the export. */
void varve_nbd_metactx_clear(struct varve_nbd_metactx *m);

#endif
