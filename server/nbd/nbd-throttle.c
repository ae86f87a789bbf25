/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reads of a throttled export.  A connection has one place in the backup's line
 * (server/nbd/throttle.h), for the next piece of the first of its reads that wait; where that is a
 * reply in one piece, for all of it, so that nobody waits with a reply's memory in hand.  It asks
 * when it has its turn at the pool, and lets the turn go while it waits: nothing but a timer is
 * held meanwhile.
 */
#include "server/nbd/nbd-conn.h"

#include <assert.h>

bool varve_nbd_throttle_lets(struct varve_nbd_conn *c, const struct varve_nbd_req *req,
                             uint64_t len)
{
    struct varve_throttle *t = c->tx.export->throttle;
    uint64_t now_ms = uv_now(c->host->loop);
    unsigned ms;

    if (!t || req->hdr.type != VARVE_NBD_CMD_READ || req->whole)
        return true;
    if (c->tx.throttled_ms > now_ms)
        return false;
    if (c->tx.ticket_req != req)
        varve_nbd_throttle_leave(c);
    c->tx.ticket_req = req;
    ms = varve_throttle_ask(t, &c->tx.ticket, varve_nbd_req_is_whole(c, req) ? req->hdr.len : len,
                            uv_hrtime());
    c->tx.throttled_ms = ms ? now_ms + ms : 0;
    if (ms)
        varve_nbd_conn_update_timer(c);
    return !ms;
}

void varve_nbd_throttle_use(struct varve_nbd_conn *c, const struct varve_nbd_req *req)
{
    if (c->tx.ticket_req != req || !c->tx.ticket.held)
        return;
    varve_throttle_use(c->tx.export->throttle, &c->tx.ticket);
    c->tx.ticket_req = NULL;
}

void varve_nbd_throttle_leave(struct varve_nbd_conn *c)
{
    if (c->tx.ticket.held)
        varve_throttle_give_back(c->tx.export->throttle, &c->tx.ticket, uv_hrtime());
    c->tx.ticket_req = NULL;
    c->tx.throttled_ms = 0;
}
