/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Requests as they come: what is refused, what is answered at once, what is work.
 */
#include "server/nbd-conn.h"

#include <errno.h>
#include <stdlib.h>

static bool is_write(const struct varve_nbd_request *hdr)
{
    return hdr->type == VARVE_NBD_CMD_WRITE || hdr->type == VARVE_NBD_CMD_TRIM ||
           hdr->type == VARVE_NBD_CMD_WRITE_ZEROES;
}

static uint16_t flags_allowed(const struct varve_nbd_conn *c, uint16_t type)
{
    if (type == VARVE_NBD_CMD_READ && c->hs.structured)
        return VARVE_NBD_CMD_FLAG_DF;
    if (type == VARVE_NBD_CMD_BLOCK_STATUS)
        return VARVE_NBD_CMD_FLAG_REQ_ONE;
    return 0;
}

static int check_range(const struct varve_nbd_conn *c, const struct varve_nbd_request *hdr,
                       struct varve_err *err)
{
    const struct varve_export *e = c->tx.export;

    if (hdr->off > e->size || hdr->len > e->size - hdr->off)
        return varve_err_set(err, EINVAL, "the request lies beyond the end of the export");
    /* Only clients that know chunks know what EOVERFLOW means for a read. */
    if (hdr->type == VARVE_NBD_CMD_READ && hdr->len > c->host->options.max_request)
        return varve_err_set(err, c->hs.structured ? EOVERFLOW : EINVAL,
                             "the read is longer than %u bytes", c->host->options.max_request);
    return 0;
}

static int check_status(const struct varve_nbd_conn *c, const struct varve_nbd_request *hdr,
                        struct varve_err *err)
{
    if (!c->hs.structured || !c->hs.meta.n)
        return varve_err_set(err, EINVAL, "no meta context was negotiated");
    if (!hdr->len)
        return varve_err_set(err, EINVAL, "the block status of nothing was asked");
    return 0;
}

/* What speaks against the request; 0: nothing. */
static int check_request(const struct varve_nbd_conn *c, const struct varve_nbd_request *hdr,
                         struct varve_err *err)
{
    bool going = c->state == VARVE_NBD_LEAVING || atomic_load(&c->tx.export->withdrawn);
    int rc;

    if (going)
        return varve_err_set(err, ESHUTDOWN, "the export is going away");
    if (is_write(hdr))
        return varve_err_set(err, EPERM, "the export is read-only");
    if (hdr->flags & ~flags_allowed(c, hdr->type))
        return varve_err_set(err, EINVAL, "the command does not have the flags 0x%x", hdr->flags);
    switch (hdr->type) {
    case VARVE_NBD_CMD_READ:
    case VARVE_NBD_CMD_CACHE:
        return check_range(c, hdr, err);
    case VARVE_NBD_CMD_BLOCK_STATUS:
        rc = check_status(c, hdr, err);
        return rc ? rc : check_range(c, hdr, err);
    case VARVE_NBD_CMD_FLUSH:
        if (hdr->off || hdr->len)
            return varve_err_set(err, EINVAL, "a flush has no range");
        return 0;
    default:
        return varve_err_set(err, EINVAL, "unknown command %u", hdr->type);
    }
}

static bool needs_pool(const struct varve_nbd_conn *c, const struct varve_nbd_request *hdr)
{
    if (!hdr->len)
        return false;
    return hdr->type != VARVE_NBD_CMD_CACHE || c->tx.export->ops->cache;
}

static void take_request(struct varve_nbd_conn *c, const struct varve_nbd_request *hdr)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_nbd_req *req;

    c->tx.nreqs++;
    atomic_fetch_add(&c->tx.export->requests, 1);
    if (check_request(c, hdr, &err)) {
        varve_nbd_reply_error(c, hdr, err.code, err.msg, NULL);
        return;
    }
    if (!needs_pool(c, hdr)) {
        varve_nbd_reply_ok(c, hdr);
        return;
    }
    req = calloc(1, sizeof(*req));
    if (!req) {
        varve_nbd_reply_error(c, hdr, ENOMEM, "the server is short of memory", NULL);
        return;
    }
    req->hdr = *hdr;
    req->next = hdr->off;
    req->left = hdr->len;
    TAILQ_INSERT_TAIL(&c->tx.ready, req, link);
}

static void skip_write(struct varve_nbd_conn *c, const struct varve_nbd_request *hdr)
{
    if (hdr->len > VARVE_NBD_WRITE_SKIP_MAX) {
        varve_nbd_conn_close(c);
        return;
    }
    c->skip = hdr->len;
    c->tx.skipped = true;
    c->tx.skip_hdr = *hdr;
}

size_t varve_nbd_transmit_feed(struct varve_nbd_conn *c, const uint8_t *buf, size_t len)
{
    struct varve_nbd_request hdr;

    if (c->tx.nreqs >= VARVE_NBD_REQUESTS_MAX)
        return 0;
    if (c->tx.skipped) {
        c->tx.skipped = false;
        take_request(c, &c->tx.skip_hdr);
    }
    if (len < VARVE_NBD_REQUEST_LEN || c->tx.nreqs >= VARVE_NBD_REQUESTS_MAX)
        return 0;
    if (varve_nbd_decode_request(buf, &hdr, NULL)) {
        varve_nbd_conn_close(c);
        return 0;
    }
    if (hdr.type == VARVE_NBD_CMD_DISC)
        c->deaf = true;
    else if (hdr.type == VARVE_NBD_CMD_WRITE)
        skip_write(c, &hdr);
    else
        take_request(c, &hdr);
    return VARVE_NBD_REQUEST_LEN;
}
