/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Block status.  A server may answer less than was asked, and each context may end elsewhere
 * (qemu-nbd cuts each at 131072 extents): what counts as answered ends where the first of them
 * does.  The last extent may reach beyond the range that was asked, none beyond the export.
 */
#include "client/nbd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Fits the 32-bit form of the request and any alignment; small enough for a reply of 4 KiB blocks
 * to stay at 4 MiB on the wire. */
#define ASK_MAX ((uint64_t)2 << 30)

/* Extents kept of one reply; what is left of a longer one is asked again. */
#define EXTENTS_MAX ((size_t)1 << 19)

void varve_status_init(struct varve_status *s, struct nbd_handle *h, const char *const ctx[2],
                       uint64_t export_size)
{
    *s = (struct varve_status){.export_size = export_size};
    for (int i = 0; i < VARVE_STATUS_CONTEXTS; i++)
        if (ctx[i] && nbd_can_meta_context(h, ctx[i]) == 1)
            s->ctx[i] = ctx[i];
}

void varve_status_fini(struct varve_status *s)
{
    for (int i = 0; i < VARVE_STATUS_CONTEXTS; i++)
        free(s->replies[i].extents);
}

static struct varve_status_reply *status_reply(struct varve_status *s, const char *context,
                                               uint64_t off)
{
    for (int i = 0; i < VARVE_STATUS_CONTEXTS; i++) {
        if (s->ctx[i] && strcmp(s->ctx[i], context) == 0) {
            s->replies[i].times++;
            s->replies[i].off = off;
            return &s->replies[i];
        }
    }
    return NULL; /* not asked for: not looked at */
}

static int reply_add(struct varve_status_reply *r, uint64_t len, uint64_t flags)
{
    struct varve_status_extent *last = r->count ? &r->extents[r->count - 1] : NULL;

    if (last && last->flags == flags && len != 0 && last->len <= INT64_MAX - len) {
        last->len += len;
        return 0;
    }
    if (r->count == r->cap) {
        size_t cap = r->cap ? 2 * r->cap : 64;
        void *grown = realloc(r->extents, cap * sizeof(*r->extents));

        if (!grown)
            return ENOMEM;
        r->extents = grown;
        r->cap = cap;
    }
    r->extents[r->count++] = (struct varve_status_extent){len, flags};
    return 0;
}

/* libnbd 1.18 and later speak of extents beyond 4 GiB; before, an entry is two 32-bit numbers. */
#ifdef LIBNBD_HAVE_NBD_AIO_BLOCK_STATUS_64
static int status_extents(void *opaque, const char *context, uint64_t off, nbd_extent *entries,
                          size_t count, int *error)
{
    struct varve_status_reply *r = status_reply(opaque, context, off);

    for (size_t i = 0; r && i < count && r->count < EXTENTS_MAX && !*error; i++)
        *error = reply_add(r, entries[i].length, entries[i].flags);
    return *error ? -1 : 0;
}
#else
static int status_extents(void *opaque, const char *context, uint64_t off, uint32_t *entries,
                          size_t count, int *error)
{
    struct varve_status_reply *r = status_reply(opaque, context, off);

    for (size_t i = 0; r && i + 1 < count && r->count < EXTENTS_MAX && !*error; i += 2)
        *error = reply_add(r, entries[i], entries[i + 1]);
    return *error ? -1 : 0;
}
#endif

static int status_done(void *opaque, int *error)
{
    struct varve_status *s = opaque;

    s->error = *error;
    s->done = true;
    return 1;
}

int varve_status_ask(struct varve_status *s, struct nbd_handle *h, uint64_t off,
                     struct varve_err *err)
{
    nbd_completion_callback done = {.callback = status_done, .user_data = s};
    uint64_t len = s->export_size - off;
    int64_t cookie;

    if (len > ASK_MAX)
        len = ASK_MAX;
    s->done = false;
    s->error = 0;
    s->off = off;
    s->end = off + len;
    for (int i = 0; i < VARVE_STATUS_CONTEXTS; i++)
        s->replies[i].count = s->replies[i].times = 0;
    if (!s->ctx[0] && !s->ctx[1]) {
        s->done = true;
        return 0;
    }
#ifdef LIBNBD_HAVE_NBD_AIO_BLOCK_STATUS_64
    nbd_extent64_callback extents = {.callback = status_extents, .user_data = s};

    cookie = nbd_aio_block_status_64(h, len, off, extents, done, 0);
#else
    nbd_extent_callback extents = {.callback = status_extents, .user_data = s};

    cookie = nbd_aio_block_status(h, len, off, extents, done, 0);
#endif
    return cookie == -1 ? varve_nbd_failed(err, "asking for the block status") : 0;
}

/* Checks one context's answer; *end is lowered to where it ends. */
static int reply_check(const struct varve_status *s, int i, uint64_t *end, struct varve_err *err)
{
    const struct varve_status_reply *r = &s->replies[i];
    uint64_t at = s->off;

    if (r->times != 1 || r->count == 0)
        return varve_err_set(err, EPROTO,
                             "the server answered block status at %" PRIu64 " without context %s",
                             s->off, s->ctx[i]);
    if (r->off != s->off)
        return varve_err_set(err, EPROTO, "the server answered block status of another offset");
    for (size_t e = 0; e < r->count; e++) {
        if (r->extents[e].len == 0)
            return varve_err_set(err, EPROTO, "the server sent an extent of length 0 at %" PRIu64,
                                 at);
        if (r->extents[e].len > s->export_size - at)
            return varve_err_set(err, EPROTO,
                                 "the server sent an extent of %" PRIu64 " bytes at %" PRIu64
                                 ", beyond the end of the export",
                                 r->extents[e].len, at);
        at += r->extents[e].len;
    }
    if (at < *end)
        *end = at;
    return 0;
}

int varve_status_finish(struct varve_status *s, struct varve_err *err)
{
    uint64_t end = s->end;

    if (s->error)
        return varve_err_sys(err, s->error, "the server's block status at %" PRIu64, s->off);
    for (int i = 0; i < VARVE_STATUS_CONTEXTS; i++) {
        struct varve_status_reply *r = &s->replies[i];
        int rc;

        if (!s->ctx[i])
            continue;
        rc = reply_check(s, i, &end, err);
        if (rc != 0)
            return rc;
        r->at = 0;
        r->behind = s->off + r->extents[0].len;
    }
    s->end = end;
    return 0;
}

bool varve_status_next(struct varve_status *s, struct varve_status_run *run)
{
    uint64_t end = s->end;

    if (s->off >= s->end)
        return false;
    *run = (struct varve_status_run){.off = s->off};
    for (int i = 0; i < VARVE_STATUS_CONTEXTS; i++) {
        struct varve_status_reply *r = &s->replies[i];

        if (!s->ctx[i])
            continue;
        if (r->behind <= s->off)
            r->behind += r->extents[++r->at].len;
        run->flags[i] = r->extents[r->at].flags;
        if (r->behind < end)
            end = r->behind;
    }
    run->len = end - s->off;
    s->off = end;
    return true;
}

int varve_status_get(struct varve_status *s, struct nbd_handle *h, uint64_t off,
                     struct varve_err *err)
{
    int rc = varve_status_ask(s, h, off, err);

    while (rc == 0 && !s->done)
        if (nbd_poll(h, -1) == -1)
            rc = varve_nbd_failed(err, "waiting for the block status");
    return rc == 0 ? varve_status_finish(s, err) : rc;
}
