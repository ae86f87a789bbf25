/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/endpoint-extents.h"

static void on_extents(struct varve_endpoint_req *req)
{
    struct varve_extents *x =
        (struct varve_extents *)((char *)req - offsetof(struct varve_extents, req));

    x->asking = false;
    x->from = x->to = req->off;
    for (size_t i = 0; req->rc == 0 && i < req->nextents; i++)
        x->to += x->kept[i].len;
    x->at = 0;
    x->answered(x, req->rc, &req->err);
}

int varve_extents_at(struct varve_extents *x, struct varve_endpoint *e, uint64_t cursor,
                     uint64_t end, uint64_t *run_end, bool *zero, struct varve_err *err)
{
    uint64_t left = end - cursor;

    while (!x->asking && x->from <= cursor && cursor < x->to) {
        const struct varve_endpoint_extent *here = &x->kept[x->at];

        if (x->from + here->len > cursor) {
            *run_end = x->from + here->len < end ? x->from + here->len : end;
            *zero = here->flags & VARVE_ENDPOINT_IS_ZERO;
            return 1;
        }
        x->from += here->len;
        x->at++;
    }
    if (x->asking)
        return 0;
    x->req = (struct varve_endpoint_req){.op = VARVE_ENDPOINT_EXTENTS,
                                         .off = cursor,
                                         .len = left < x->ask_max ? left : x->ask_max,
                                         .extents = x->kept,
                                         .max_extents = VARVE_EXTENTS_KEPT,
                                         .done = on_extents};
    x->asking = true;
    x->from = x->to = 0;
    return varve_endpoint_submit(e, &x->req, err);
}
