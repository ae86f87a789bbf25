/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Block status, in the pool or at once: one chunk for each selected context, all ending at the same
 * offset (virtnbdbackup lays them side by side and loses dirty data where they differ).
 */
#include "server/nbd/nbd-conn.h"

#include <errno.h>
#include <stdlib.h>

/* Extents asked of the export at once. */
#define STATUS_STEP 2048u

/* Exports know no finer grain than this; if one does, its answers are shorter than asked. */
#define STATUS_GRAIN 4096u

/* Before a chunk's extents: its header, the context's number, and their number if extended. */
static size_t status_header_len(bool extended)
{
    return VARVE_NBD_CHUNK_LEN + 4u + (extended ? VARVE_NBD_EXTENSION_LEN + 4u : 0);
}

static size_t status_extent_len(bool extended)
{
    return extended ? VARVE_NBD_EXT_EXTENT_LEN : VARVE_NBD_EXTENT_LEN;
}

size_t varve_nbd_status_extents_max(const struct varve_nbd_conn *c,
                                    const struct varve_nbd_request *hdr)
{
    uint64_t worst = hdr->len / STATUS_GRAIN + 2; /* one begun at each end */
    size_t max = c->host->options.max_request / status_extent_len(c->hs.extended);

    if (hdr->flags & VARVE_NBD_CMD_FLAG_REQ_ONE)
        return 1;
    if (max > VARVE_NBD_EXTENTS_MAX)
        max = VARVE_NBD_EXTENTS_MAX;
    return worst < max ? (size_t)worst : max;
}

size_t varve_nbd_status_cost(const struct varve_nbd_conn *c, unsigned ncontexts, size_t extents_max)
{
    return ncontexts *
           (status_header_len(c->hs.extended) + extents_max * status_extent_len(c->hs.extended));
}

/* A chunk that grows. */
struct chunk {
    bool extended;
    struct varve_nbd_out *out;
    size_t room;       /* extents */
    size_t nextents;   /* written */
    size_t max;        /* at most */
    uint64_t covered;  /* bytes, the last extent included */
    uint64_t last_len; /* the last extent, not yet written */
    uint32_t last_flags;
};

static uint8_t *chunk_extent(const struct chunk *k, size_t i)
{
    return k->out->data + status_header_len(k->extended) + i * status_extent_len(k->extended);
}

static void chunk_put_len(const struct chunk *k, size_t i, uint64_t len)
{
    if (k->extended)
        varve_nbd_put64(chunk_extent(k, i), len);
    else
        varve_nbd_put32(chunk_extent(k, i), (uint32_t)len);
}

static uint64_t chunk_get_len(const struct chunk *k, size_t i)
{
    const uint8_t *p = chunk_extent(k, i);

    return k->extended ? varve_nbd_get64(p) : varve_nbd_get32(p);
}

static bool chunk_grow(struct chunk *k)
{
    size_t room = k->room ? 2 * k->room : 64;
    struct varve_nbd_out *out;

    if (room > k->max)
        room = k->max;
    out = realloc(k->out, sizeof(*out) + status_header_len(k->extended) +
                              room * status_extent_len(k->extended));
    if (!out)
        return false;
    k->out = out;
    k->room = room;
    return true;
}

/* Writes the last extent down. */
static bool chunk_settle(struct chunk *k)
{
    size_t i;

    if (!k->last_len)
        return true;
    if (k->nextents == k->room && !chunk_grow(k))
        return false;
    i = k->nextents++;
    chunk_put_len(k, i, k->last_len);
    if (k->extended)
        varve_nbd_put64(chunk_extent(k, i) + 8, k->last_flags);
    else
        varve_nbd_put32(chunk_extent(k, i) + 4, k->last_flags);
    k->last_len = 0;
    return true;
}

/* No more extents fit behind the last one. */
static bool chunk_full(const struct chunk *k)
{
    return k->nextents + 1 >= k->max && k->last_len;
}

/* Adds runs, merging equal neighbours, until the chunk is full.  -ENOMEM. */
static int chunk_add(struct chunk *k, const struct varve_extent *runs, int nruns, uint64_t limit)
{
    for (int i = 0; i < nruns && k->covered < limit; i++) {
        uint64_t len = runs[i].len < limit - k->covered ? runs[i].len : limit - k->covered;

        if (k->last_len && k->last_flags != runs[i].flags) {
            if (chunk_full(k))
                return 0;
            if (!chunk_settle(k))
                return -ENOMEM;
        }
        k->last_len += len;
        k->last_flags = runs[i].flags;
        k->covered += len;
    }
    return 0;
}

/* At once: one step, then the pool has its turn. */
static int status_ask(struct varve_nbd_job *job, unsigned ctx, uint64_t off, uint64_t len,
                      struct varve_extent *runs, size_t step)
{
    const struct varve_export_ops *ops = job->export->ops;

    if (!job->at_once)
        return ops->status(job->export, ctx, off, len, runs, step, &job->err);
    return off > job->off ? -EAGAIN : ops->status_now(job->export, ctx, off, len, runs, step);
}

/* Asks the export for [job->off, job->off + len) in its context ctx. */
static int status_collect(struct varve_nbd_job *job, unsigned ctx, uint64_t len, struct chunk *k)
{
    struct varve_extent runs[STATUS_STEP];
    size_t step = job->extents_max < STATUS_STEP ? job->extents_max : STATUS_STEP;

    while (k->covered < len) {
        uint64_t before = k->covered;
        int n;

        if (atomic_load_explicit(&job->conn->dead, memory_order_relaxed))
            return varve_err_set(&job->err, ESHUTDOWN, "the connection is closing");
        n = status_ask(job, ctx, job->off + before, len - before, runs, step);
        if (n < 0) {
            job->err.code = -n;
            return n;
        }
        if (chunk_add(k, runs, n, len))
            return varve_err_set(&job->err, ENOMEM, "no memory for the block status");
        /* Full; or the export answered with nothing, which must not become an endless loop. */
        if (chunk_full(k) || k->covered == before)
            break;
    }
    if (!k->covered)
        return varve_err_set(&job->err, EIO, "the export knows no status of this range");
    if (!chunk_settle(k))
        return varve_err_set(&job->err, ENOMEM, "no memory for the block status");
    return 0;
}

/* Cuts the chunk at `len` bytes and puts its header before it. */
static void chunk_finish(struct chunk *k, const struct varve_nbd_job *job, unsigned ctx,
                         uint64_t len)
{
    const struct varve_nbd_request *hdr = &job->req->hdr;
    struct varve_nbd_out *out = k->out;
    size_t ext = k->extended ? VARVE_NBD_EXTENSION_LEN : 0, payload;
    uint8_t *chunk = out->data + ext, *body = chunk + VARVE_NBD_CHUNK_LEN;

    while (k->covered > len) {
        uint64_t extent = chunk_get_len(k, k->nextents - 1);

        if (k->covered - extent < len) {
            chunk_put_len(k, k->nextents - 1, extent - (k->covered - len));
            k->covered = len;
        } else {
            k->covered -= extent;
            k->nextents--;
        }
    }
    payload = (k->extended ? 8 : 4) + k->nextents * status_extent_len(k->extended);
    *out = (struct varve_nbd_out){.len = ext + VARVE_NBD_CHUNK_LEN + payload};
    out->held = out->len;
    varve_nbd_encode_chunk(chunk, 0,
                           k->extended ? VARVE_NBD_CHUNK_STATUS_EXT : VARVE_NBD_CHUNK_BLOCK_STATUS,
                           hdr->cookie, (uint32_t)payload);
    varve_nbd_put32(body, varve_nbd_metactx_id(ctx));
    if (k->extended) {
        varve_nbd_put32(body + 4, (uint32_t)k->nextents);
        varve_nbd_extend_chunk(out->data, hdr->off);
    }
}

void varve_nbd_status_run(struct varve_nbd_job *job)
{
    const struct varve_nbd_req *req = job->req;
    struct chunk chunks[VARVE_NBD_METACTX_MAX] = {{.max = 0}};
    uint64_t len = job->len;
    int rc = 0;

    job->err.code = 0;
    /* What a later context need not say, because an earlier one ended before, it is not asked. */
    for (unsigned i = 0; i < req->nctx && !rc; i++) {
        chunks[i].extended = job->conn->hs.extended;
        chunks[i].max = job->extents_max;
        rc = status_collect(job, req->ctx[i], len, &chunks[i]);
        if (!rc)
            len = chunks[i].covered;
    }
    for (unsigned i = 0; i < req->nctx; i++) {
        if (rc) {
            free(chunks[i].out);
            continue;
        }
        chunk_finish(&chunks[i], job, req->ctx[i], len);
        job->chunks[i] = chunks[i].out;
    }
}

bool varve_nbd_status_now(struct varve_nbd_job *job)
{
    if (job->req->hdr.len > UINT32_MAX) /* a map of gigabytes is looked through elsewhere */
        return false;
    job->at_once = true;
    varve_nbd_status_run(job);
    job->at_once = false;
    return job->err.code == 0;
}
