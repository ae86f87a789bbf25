/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A view as an endpoint.  Reads go in pieces of VARVE_EXPORT_READ_MAX, as those of clients do: cold
 * ones hold locks that the guest's writes need.
 */
#include "server/endpoint-pool.h"
#include "server/nbd/export.h"
#include "server/served-view.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct view_endpoint {
    struct varve_endpoint_pool p; /* first */
    struct varve_served_view *view;
};

static struct varve_served_view *view_of(struct varve_endpoint_pool *p)
{
    return ((struct view_endpoint *)p)->view;
}

static int view_open(struct varve_endpoint_pool *p, struct varve_endpoint_info *info,
                     struct varve_err *err)
{
    struct varve_served_view *v = view_of(p);
    int rc = varve_served_view_check(v, err);

    *info = (struct varve_endpoint_info){
        .size = v->disk->identity.geometry.size,
        .block_min = 1,
        .has_extents = true,
    };
    return rc == -EAGAIN ? 0 : rc; /* reads wait for an epoch's files */
}

static int view_read(struct varve_endpoint_pool *p, struct varve_endpoint_req *req)
{
    while (req->at < req->len) {
        uint64_t left = req->len - req->at;
        uint32_t len = left < VARVE_EXPORT_READ_MAX ? (uint32_t)left : VARVE_EXPORT_READ_MAX;
        int rc = p->stopping
                     ? varve_endpoint_canceled(req->e, &req->err)
                     : varve_served_view_read(view_of(p), (char *)req->buf + req->at,
                                              req->off + req->at, len, &req->bad_off, &req->err);

        if (rc < 0)
            return rc;
        req->at += len;
    }
    return 0;
}

static int view_extents(struct varve_endpoint_pool *p, struct varve_endpoint_req *req)
{
    uint64_t at = req->off, end = req->off + req->len, to;

    while (at < end && !p->stopping) {
        int hole = varve_served_view_hole_run(view_of(p), at, end, &to, &req->err);

        if (hole < 0)
            return req->nextents > 0 ? 0 : hole;
        if (!varve_endpoint_add_extent(req, to - at,
                                       hole ? VARVE_ENDPOINT_IS_ZERO | VARVE_ENDPOINT_IS_HOLE : 0))
            return 0;
        at = to;
    }
    return req->nextents > 0 ? 0 : varve_endpoint_canceled(req->e, &req->err);
}

static int view_run(struct varve_endpoint_pool *p, struct varve_endpoint_req *req)
{
    int rc = req->op == VARVE_ENDPOINT_READ ? view_read(p, req) : view_extents(p, req);

    if (rc < 0 && rc != -ECANCELED && strncmp(req->err.msg, "Disk '", 6) != 0)
        varve_err_prefix(&req->err, "Disk '%s'", req->e->name);
    return rc;
}

static void view_free(struct varve_endpoint *e)
{
    varve_served_view_unref(((struct view_endpoint *)e)->view);
    free(e);
}

static const struct varve_endpoint_ops view_ops = {
    .start = varve_endpoint_pool_start,
    .stop = varve_endpoint_pool_stop,
    .free = view_free,
};

int varve_endpoint_open_view(uv_loop_t *loop, struct varve_served_view *view,
                             void (*opened)(void *arg, int rc, const struct varve_err *err),
                             void *arg, struct varve_endpoint **out, struct varve_err *err)
{
    struct view_endpoint *v = calloc(1, sizeof(*v));

    *out = NULL;
    if (!v ||
        varve_endpoint_init(&v->p.e, &view_ops, loop, view->disk->name, opened, arg, err) < 0) {
        free(v);
        return varve_err_set(err, ENOMEM, "Disk '%s': no memory", view->disk->name);
    }
    v->view = varve_served_view_ref(view);
    v->p.open = view_open;
    v->p.run = view_run;
    varve_endpoint_pool_begin(&v->p);
    *out = &v->p.e;
    return 0;
}
