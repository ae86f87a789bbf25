/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Requests as they come: what is refused, what is answered at once, what is work.
 */
#include "server/nbd/nbd-conn.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool is_write(const struct varve_nbd_request *hdr)
{
    return hdr->type == VARVE_NBD_CMD_WRITE || hdr->type == VARVE_NBD_CMD_TRIM ||
           hdr->type == VARVE_NBD_CMD_WRITE_ZEROES;
}

/* Done with a range of a backup. */
static bool is_release(const struct varve_nbd_conn *c, const struct varve_nbd_request *hdr)
{
    return hdr->type == VARVE_NBD_CMD_TRIM && c->tx.export->releasable;
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

/* Whether the payload is of a command that has none, or one that could not be understood. */
static int check_payload(const struct varve_nbd_conn *c, const struct varve_nbd_request *hdr,
                         struct varve_err *err)
{
    bool payload = hdr->flags & VARVE_NBD_CMD_FLAG_PAYLOAD_LEN;

    if (!c->hs.extended)
        return 0;
    if (hdr->type == VARVE_NBD_CMD_WRITE)
        return payload ? 0 : varve_err_set(err, EINVAL, "a write needs the flag PAYLOAD_LEN");
    if (!payload)
        return 0;
    if (hdr->type != VARVE_NBD_CMD_BLOCK_STATUS)
        return varve_err_set(err, EINVAL, "the command takes no payload");
    return varve_err_set(err, EINVAL,
                         "the payload is not a length and numbers of negotiated meta contexts, "
                         "each once");
}

/* What speaks against the request; 0: nothing. */
static int check_request(const struct varve_nbd_conn *c, const struct varve_nbd_request *hdr,
                         struct varve_err *err)
{
    bool going = c->state == VARVE_NBD_LEAVING || c->host->going_down ||
                 atomic_load(&c->tx.export->withdrawn);
    int rc;

    if (going)
        return varve_err_set(err, ESHUTDOWN, "the export is going away");
    rc = check_payload(c, hdr, err);
    if (rc)
        return rc;
    if (is_write(hdr) && !is_release(c, hdr))
        return varve_err_set(err, EPERM,
                             c->tx.export->releasable ? "the export takes no writes, only TRIM"
                                                      : "the export is read-only");
    if (hdr->flags & ~flags_allowed(c, hdr->type))
        return varve_err_set(err, EINVAL, "the command does not have the flags 0x%x", hdr->flags);
    switch (hdr->type) {
    case VARVE_NBD_CMD_READ:
    case VARVE_NBD_CMD_CACHE:
    case VARVE_NBD_CMD_TRIM:
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

/* wanted: the contexts that a block status is asked for. */
static void take_request(struct varve_nbd_conn *c, const struct varve_nbd_request *hdr,
                         const struct varve_nbd_metactx *wanted)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_nbd_req *req;

    c->client.queue = ++c->tx.nreqs;
    varve_nbd_client_add(&c->client.requests, 1);
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
    /* A hint need not be followed to its end; with 64 bits that might take days. */
    if (hdr->type == VARVE_NBD_CMD_CACHE && req->left > UINT32_MAX)
        req->left = UINT32_MAX;
    if (hdr->type == VARVE_NBD_CMD_BLOCK_STATUS) {
        req->nctx = wanted->n;
        memcpy(req->ctx, wanted->ctx, sizeof(req->ctx));
    }
    TAILQ_INSERT_TAIL(&c->tx.ready, req, link);
}

static void skip_payload(struct varve_nbd_conn *c, const struct varve_nbd_request *hdr)
{
    uint64_t max = VARVE_NBD_WRITE_SKIP_MAX;

    if (c->hs.extended) {
        max = c->host->options.max_request;
        max = max > VARVE_NBD_PAYLOAD_MAX ? max : VARVE_NBD_PAYLOAD_MAX;
    }
    if (hdr->len > max) {
        varve_nbd_conn_hang_up(c);
        return;
    }
    c->skip = hdr->len;
    c->tx.skipped = true;
    c->tx.skip_hdr = *hdr;
}

/* --- payloads of block status --------------------------------------------------------------- */

/* Such a payload may be right; then it is this long, and short enough for the input's buffer. */
static bool status_payload_len_ok(const struct varve_nbd_conn *c,
                                  const struct varve_nbd_request *hdr)
{
    return hdr->type == VARVE_NBD_CMD_BLOCK_STATUS && hdr->len > VARVE_NBD_EFFECT_LEN &&
           (hdr->len - VARVE_NBD_EFFECT_LEN) % 4 == 0 &&
           hdr->len <= VARVE_NBD_EFFECT_LEN + 4u * c->hs.meta.n;
}

/* Adds the context to `wanted`; false: it is not one of the connection's, or there already. */
static bool status_want(const struct varve_nbd_metactx *meta, uint32_t id,
                        struct varve_nbd_metactx *wanted)
{
    for (unsigned i = 0; i < wanted->n; i++) {
        if (varve_nbd_metactx_id(wanted->ctx[i]) == id)
            return false;
    }
    for (unsigned i = 0; i < meta->n; i++) {
        if (varve_nbd_metactx_id(meta->ctx[i]) == id) {
            wanted->ctx[wanted->n++] = meta->ctx[i];
            return true;
        }
    }
    return false;
}

/* The request's length becomes the effect length, and the flag goes; where the payload is wrong the
 * flag stays, and check_payload() tells. */
static void take_filtered_status(struct varve_nbd_conn *c, struct varve_nbd_request *hdr,
                                 const uint8_t *payload)
{
    struct varve_nbd_metactx wanted = {.n = 0};
    bool ok = true;

    for (uint64_t at = VARVE_NBD_EFFECT_LEN; at < hdr->len; at += 4)
        ok = ok && status_want(&c->hs.meta, varve_nbd_get32(payload + at), &wanted);
    hdr->len = varve_nbd_get64(payload);
    if (ok)
        hdr->flags &= (uint16_t)~VARVE_NBD_CMD_FLAG_PAYLOAD_LEN;
    take_request(c, hdr, &wanted);
}

/* --- feeding -------------------------------------------------------------------------------- */

static bool has_payload(const struct varve_nbd_conn *c, const struct varve_nbd_request *hdr)
{
    if (c->hs.extended)
        return hdr->flags & VARVE_NBD_CMD_FLAG_PAYLOAD_LEN;
    return hdr->type == VARVE_NBD_CMD_WRITE;
}

static int decode_header(const struct varve_nbd_conn *c, const uint8_t *buf,
                         struct varve_nbd_request *hdr)
{
    if (c->hs.extended)
        return varve_nbd_decode_ext_request(buf, hdr, NULL);
    return varve_nbd_decode_request(buf, hdr, NULL);
}

size_t varve_nbd_transmit_feed(struct varve_nbd_conn *c, const uint8_t *buf, size_t len)
{
    size_t header_len = c->hs.extended ? VARVE_NBD_EXT_REQUEST_LEN : VARVE_NBD_REQUEST_LEN;
    struct varve_nbd_request hdr;

    if (c->tx.nreqs >= VARVE_NBD_REQUESTS_MAX)
        return 0;
    if (c->tx.skipped) {
        c->tx.skipped = false;
        take_request(c, &c->tx.skip_hdr, &c->hs.meta);
    }
    if (len < header_len || c->tx.nreqs >= VARVE_NBD_REQUESTS_MAX)
        return 0;
    if (decode_header(c, buf, &hdr)) {
        varve_nbd_conn_hang_up(c);
        return 0;
    }
    if (hdr.type == VARVE_NBD_CMD_DISC) {
        c->deaf = true;
    } else if (!has_payload(c, &hdr)) {
        take_request(c, &hdr, &c->hs.meta);
    } else if (!status_payload_len_ok(c, &hdr)) {
        skip_payload(c, &hdr);
    } else if (len < header_len + hdr.len) {
        return 0;
    } else {
        size_t payload_len = (size_t)hdr.len;

        take_filtered_status(c, &hdr, buf + header_len);
        return header_len + payload_len;
    }
    return header_len;
}
