/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/endpoint-pool.h"

#include <errno.h>

/* Of the pool's threads that one endpoint may have. */
#define WORKS_MAX 2u

static void pool_turns(struct varve_endpoint_pool *p);

static void pool_on_close(uv_work_t *work)
{
    struct varve_endpoint_pool *p = work->data;

    if (p->close)
        p->close(p);
}

static void pool_on_closed(uv_work_t *work, int status)
{
    (void)status; /* nobody cancels it */
    varve_endpoint_gone(&((struct varve_endpoint_pool *)work->data)->e);
}

static void pool_maybe_gone(struct varve_endpoint_pool *p)
{
    if (!p->stopping || p->nworks > 0 || p->closing.data)
        return;
    p->closing.data = p;
    uv_queue_work(p->e.loop, &p->closing, pool_on_close, pool_on_closed);
}

static void req_on_work(uv_work_t *work)
{
    struct varve_endpoint_req *req = work->data;

    req->rc =
        ((struct varve_endpoint_pool *)req->e)->run((struct varve_endpoint_pool *)req->e, req);
}

static void req_on_worked(uv_work_t *work, int status)
{
    struct varve_endpoint_req *req = work->data;
    struct varve_endpoint_pool *p = (struct varve_endpoint_pool *)req->e;

    p->nworks--;
    if (status == UV_ECANCELED)
        req->rc = varve_endpoint_canceled(&p->e, &req->err);
    varve_endpoint_end(&p->e, req, req->rc);
    pool_turns(p);
    pool_maybe_gone(p);
}

static void pool_turns(struct varve_endpoint_pool *p)
{
    struct varve_endpoint_req *req;

    while (p->nworks < WORKS_MAX && (req = TAILQ_FIRST(&p->waiting))) {
        TAILQ_REMOVE(&p->waiting, req, turn);
        req->work.data = req;
        p->nworks++;
        uv_queue_work(p->e.loop, &req->work, req_on_work, req_on_worked);
    }
}

void varve_endpoint_pool_start(struct varve_endpoint *e, struct varve_endpoint_req *req)
{
    struct varve_endpoint_pool *p = (struct varve_endpoint_pool *)e;

    TAILQ_INSERT_TAIL(&p->waiting, req, turn);
    pool_turns(p);
}

void varve_endpoint_pool_stop(struct varve_endpoint *e)
{
    struct varve_endpoint_pool *p = (struct varve_endpoint_pool *)e;
    struct varve_endpoint_req *req;

    p->stopping = true;
    while ((req = TAILQ_FIRST(&p->waiting))) {
        TAILQ_REMOVE(&p->waiting, req, turn);
        varve_endpoint_end(e, req, varve_endpoint_canceled(e, &req->err));
    }
    TAILQ_FOREACH(req, &e->running, link)
    uv_cancel((uv_req_t *)&req->work);
    if (!e->open)
        uv_cancel((uv_req_t *)&p->opening);
    pool_maybe_gone(p);
}

static void pool_on_open(uv_work_t *work)
{
    struct varve_endpoint_pool *p = work->data;

    p->open_rc = p->open(p, &p->info, &p->open_err);
}

static void pool_on_opened(uv_work_t *work, int status)
{
    struct varve_endpoint_pool *p = work->data;

    p->nworks--;
    if (p->stopping || status == UV_ECANCELED)
        p->open_rc = varve_endpoint_canceled(&p->e, &p->open_err);
    if (p->open_rc == 0)
        p->e.info = p->info;
    varve_endpoint_opened(&p->e, p->open_rc < 0 ? &p->open_err : NULL);
    pool_maybe_gone(p);
}

void varve_endpoint_pool_begin(struct varve_endpoint_pool *p)
{
    TAILQ_INIT(&p->waiting);
    p->opening.data = p;
    p->nworks = 1;
    uv_queue_work(p->e.loop, &p->opening, pool_on_open, pool_on_opened);
}
