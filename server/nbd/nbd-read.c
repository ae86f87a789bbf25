/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reads of one piece, in the pool; how their data becomes chunks.
 */
#include "server/nbd/nbd-conn.h"

#include <assert.h>
#include <string.h>

static bool all_zero(const uint8_t *p, size_t len)
{
    /* The first bytes are zero, and each byte equals the one 16 before it. */
    static const uint8_t zeroes[16];

    return memcmp(p, zeroes, 16) == 0 && memcmp(p, p + 16, len - 16) == 0;
}

/* A whole, aligned block of zeroes begins at `at`. */
static bool hole_at(const struct varve_nbd_job *job, const uint8_t *src, size_t at)
{
    return (job->off + at) % VARVE_NBD_HOLE_GRAIN == 0 && job->len - at >= VARVE_NBD_HOLE_GRAIN &&
           all_zero(src + at, VARVE_NBD_HOLE_GRAIN);
}

/* Where the run that begins at `at` ends; all of it is a hole or nothing of it. */
static size_t run_end(const struct varve_nbd_job *job, const uint8_t *src, size_t at, bool hole)
{
    do {
        if (hole)
            at += VARVE_NBD_HOLE_GRAIN;
        else
            at += VARVE_NBD_HOLE_GRAIN - (job->off + at) % VARVE_NBD_HOLE_GRAIN;
    } while (at < job->len && hole_at(job, src, at) == hole);
    return at < job->len ? at : job->len;
}

/* The data stands in job->out behind the room for one data header.  Chunks are made in place, from
 * the front: before a run of data `pos` is at most `at`, so its header ends where its data stands,
 * or before; and what is written for a run ends before the end of a hole that follows, since a
 * hole is longer than all headers between. */
static void encode_chunks(struct varve_nbd_job *job)
{
    struct varve_nbd_out *out = job->out;
    const struct varve_nbd_request *hdr = &job->req->hdr;
    size_t ext = varve_nbd_extension(job->conn), data_header = ext + VARVE_NBD_DATA_HEADER_LEN;
    const uint8_t *src = out->data + data_header;
    size_t pos = 0;

    out->data_len = 0;
    for (size_t at = 0, end; at < job->len; at = end) {
        bool hole = hole_at(job, src, at);
        uint8_t *chunk = out->data + pos;

        end = run_end(job, src, at, hole);
        job->last_chunk = chunk;
        if (hole) {
            varve_nbd_encode_hole(chunk + ext, 0, hdr->cookie, job->off + at, (uint32_t)(end - at));
            pos += ext + VARVE_NBD_HOLE_LEN;
        } else {
            memmove(chunk + data_header, src + at, end - at);
            varve_nbd_encode_data_header(chunk + ext, 0, hdr->cookie, job->off + at,
                                         (uint32_t)(end - at));
            pos += data_header + (end - at);
            out->data_len += end - at;
        }
        if (ext)
            varve_nbd_extend_chunk(chunk, hdr->off);
    }
    out->len = pos;
}

bool varve_nbd_read_now(struct varve_nbd_job *job)
{
    struct varve_export *e = job->export;

    if (e->ops->read_now(e, job->data, job->off, (uint32_t)job->len))
        return false;
    job->err.code = 0;
    if (job->out)
        encode_chunks(job);
    return true;
}

/* Where not all can be read, what stands before that is read by itself: of a read that failed the
 * buffer tells nothing.  Each time there is less to read. */
void varve_nbd_read_run(struct varve_nbd_job *job)
{
    struct varve_export *e = job->export;
    struct varve_err err = VARVE_ERR_INIT;
    int code = 0, rc;

    do {
        uint64_t bad_off = job->off;

        rc = e->ops->read(e, job->data, job->off, (uint32_t)job->len, &bad_off, &err);
        if (!rc)
            break;
        assert(bad_off >= job->off && bad_off < job->off + job->len);
        code = -rc;
        job->err = err;
        job->len = bad_off - job->off;
    } while (job->len && job->out);
    job->err.code = code;
    if (job->out && job->len)
        encode_chunks(job);
}
