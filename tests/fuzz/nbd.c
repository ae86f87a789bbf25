/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The NBD server, whole: listener, connection, handshake, requests, replies, the pool, its end.
 * The input is what a client sends and how it behaves:
 *
 *     0   flags, below
 *     1   seed of the places where its stream is cut into writes
 *     2   the event, if any, happens after so many writes
 *     3   the stream
 *
 * A guarded server has TLS and shows only some exports.  With TLS inside, the client says STARTTLS
 * behind the stream's flags, shakes hands, and sends the rest under TLS.
 *
 * Each input has a server of its own, which must be gone afterwards, without its deadline's help.
 */
#include "lib/nbd-proto.h"
#include "server/nbd/export.h"
#include "server/nbd/nbd-server.h"
#include "tests/fuzz/alloc.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/nbd-check.h"
#include "tests/fuzz/peer-tls.h"
#include "tests/fuzz/peer.h"
#include "tests/lib/tmpdir.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>

#define FLAG_LAZY     0x01 /* reads nothing while it can write */
#define FLAG_WITHDRAW 0x02 /* event: the exports are withdrawn */
#define FLAG_CLOSE    0x04 /* event: the server closes */
#define FLAG_HANG_UP  0x08 /* event: the client closes its socket, with what is unread in it */
#define FLAG_ONE      0x10 /* one export is listed, so that the empty name finds it */
#define FLAG_MEMORY   0x20 /* the server runs out of memory at the allocation that byte 2 tells, */
#define FLAG_NO_MORE  0x40 /* and gets no more until the client has gone */
#define FLAG_GUARDED  0x80 /* the seed's two lowest bits say more: */
#define SEED_OFFERED  0x01 /* TLS is offered, else required */
#define SEED_INSIDE   0x02 /* TLS inside */

#define KEY "00112233445566778899aabbccddeeff"

/* Longer than VARVE_EXPORT_READ_MAX, so that reads are done in parts. */
#define MAX_REQUEST (320u * 1024u)

/* Only a server that hangs would need it. */
#define DEADLINE_MS (FUZZ_HANG_MS + 5000u)

/* --- exports -------------------------------------------------------------------------------- */

#define CONTEXTS 3

struct fuzz_export {
    struct varve_export base;
    uint64_t unit;  /* bytes; every odd one of these is a hole, and dirty */
    bool bad;       /* [64 KiB, 68 KiB) cannot be read, nor its status be told */
};

static const char *const context_names[CONTEXTS] = {
    "base:allocation",
    "qemu:dirty-bitmap:b",
    "varve:lost",
};

static uint8_t byte_at(uint64_t off)
{
    uint64_t blk = off / 4096;

    if ((blk ^ blk >> 3) & 1)
        return 0;
    return (uint8_t)((off ^ off >> 8) | 1);
}

static bool is_bad(const struct varve_export *e, uint64_t off, uint64_t len)
{
    return ((const struct fuzz_export *)e)->bad && off < 68 * 1024 && off + len > 64 * 1024;
}

static int fuzz_read(struct varve_export *e, void *buf, uint64_t off, uint32_t len,
                     uint64_t *bad_off, struct varve_err *err)
{
    FUZZ_CHECK(len > 0 && len <= VARVE_EXPORT_READ_MAX && off <= e->size && len <= e->size - off);
    if (is_bad(e, off, len)) {
        *bad_off = off > 64 * 1024 ? off : 64 * 1024;
        memset(buf, 0xff, len); /* nobody may send this */
        return varve_err_set(err, EIO, "lost");
    }
    for (uint32_t i = 0; i < len; i++)
        ((uint8_t *)buf)[i] = byte_at(off + i);
    return 0;
}

/* Every other piece is "in memory". */
static int fuzz_read_now(struct varve_export *e, void *buf, uint64_t off, uint32_t len)
{
    struct varve_err unsaid = VARVE_ERR_INIT;
    uint64_t bad_off;

    if (off / VARVE_EXPORT_READ_MAX % 2)
        return -EAGAIN;
    return fuzz_read(e, buf, off, len, &bad_off, &unsaid) ? -EAGAIN : 0;
}

static int fuzz_status(struct varve_export *e, unsigned ctx, uint64_t off, uint64_t len,
                       struct varve_extent *out, size_t max, struct varve_err *err)
{
    uint64_t unit = ((struct fuzz_export *)e)->unit << ctx;
    uint64_t end = off + len;
    size_t n = 0;

    FUZZ_CHECK(ctx < e->ncontexts && len > 0 && max > 0);
    FUZZ_CHECK(off <= e->size && len <= e->size - off);
    if (is_bad(e, off, len))
        return varve_err_set(err, EIO, "lost");
    while (off < end && n < max) {
        uint64_t here = unit - off % unit;

        if (here > end - off)
            here = end - off;
        out[n].len = here;
        out[n].flags = (off / unit & 1) * (ctx == 0 ? 3 : 1);
        n++;
        off += here;
    }
    return (int)n;
}

static void fuzz_cache(struct varve_export *e, uint64_t off, uint64_t len)
{
    FUZZ_CHECK(len > 0 && off <= e->size && len <= e->size - off);
}

static void fuzz_free(struct varve_export *e)
{
    free(e);
}

static const struct varve_export_ops fuzz_ops = {
    .read = fuzz_read,
    .read_now = fuzz_read_now,
    .status = fuzz_status,
    .cache = fuzz_cache,
    .free = fuzz_free,
};

static void publish(struct varve_exports *x, struct varve_export **e, const char *name,
                    uint64_t size, uint64_t unit, bool bad, bool listed)
{
    struct fuzz_export *f = calloc(1, sizeof(*f));
    struct varve_err err = VARVE_ERR_INIT;

    FUZZ_CHECK(f);
    f->base.ops = &fuzz_ops;
    f->base.name = (char *)name;
    f->base.description = bad ? NULL : (char *)"arithmetic";
    f->base.size = size;
    f->base.block_pref = 4096;
    f->base.listed = listed;
    f->base.ncontexts = bad ? 1 : CONTEXTS;
    f->base.contexts = context_names;
    f->base.refs = 1;
    f->unit = unit;
    f->bad = bad;
    FUZZ_CHECK(varve_exports_add(x, &f->base, &err) == 0);
    *e = &f->base;
}

/* --- one client ----------------------------------------------------------------------------- */

#define EXPORTS 5

struct run {
    uint8_t flags;
    struct varve_exports *exports;
    struct varve_export *all[EXPORTS]; /* NULL: withdrawn */
    struct varve_nbd_server *server;
    bool closing, closed;
    struct fuzz_peer peer;
    struct nbd_check_guard guard;
    struct nbd_check *check;
};

static uv_loop_t loop;
static char *top; /* holds the socket and the key */
static struct varve_tls *tls[2]; /* required, offered */

static void fuzz_end(void)
{
    varve_tls_unref(tls[0]);
    varve_tls_unref(tls[1]);
    uv_loop_close(&loop);
    tmpdir_remove(top);
}

static void load_tls(void)
{
    char path[PATH_MAX];
    FILE *f;

    snprintf(path, sizeof(path), "%s/keys.psk", top);
    f = fopen(path, "w");
    FUZZ_CHECK(f && fprintf(f, "alice:%s\n", KEY) > 0 && fclose(f) == 0);
    for (unsigned i = 0; i < 2; i++) {
        struct varve_tls_options o = {.mode = i ? VARVE_TLS_ON : VARVE_TLS_REQUIRE, .psk = path};
        struct varve_err err = VARVE_ERR_INIT;

        FUZZ_CHECK(varve_tls_load(&o, &tls[i], &err) == 0);
    }
}

static void fuzz_begin(void)
{
    if (top)
        return;
    signal(SIGPIPE, SIG_IGN);
    setenv("UV_THREADPOOL_SIZE", "4", 0);
    FUZZ_CHECK(uv_loop_init(&loop) == 0);
    top = tmpdir_new();
    load_tls();
    atexit(fuzz_end);
}

static void withdraw(struct run *r)
{
    for (unsigned i = 0; i < EXPORTS; i++) {
        if (r->all[i])
            varve_exports_remove(r->exports, r->all[i]);
        r->all[i] = NULL;
    }
}

static void on_closed(void *arg)
{
    struct run *r = arg;

    FUZZ_CHECK(!r->closed);
    r->closed = true;
}

static void on_event(void *arg)
{
    struct run *r = arg;

    if (r->flags & FLAG_WITHDRAW) {
        withdraw(r);
        varve_nbd_server_kick(r->server);
    }
    if (r->flags & FLAG_CLOSE) {
        r->closing = true;
        varve_nbd_server_close(r->server, DEADLINE_MS, on_closed, r);
    }
    if (r->flags & FLAG_HANG_UP)
        fuzz_peer_hang_up(&r->peer);
}

static void on_bytes(void *arg, const uint8_t *buf, size_t len)
{
    fuzz_alloc_exempt = true;
    nbd_check_feed(((struct run *)arg)->check, buf, len);
    fuzz_alloc_exempt = false;
}

/* The server's log goes nowhere, but is put together. */
__attribute__((format(printf, 1, 2))) static void log_line(const char *fmt, ...)
{
    char line[2048];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
}

static void server_begin(struct run *r, const char *where)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_nbd_options o;
    char real[PATH_MAX];
    bool listed = !(r->flags & FLAG_ONE);

    r->exports = varve_exports_new();
    FUZZ_CHECK(r->exports);
    publish(r->exports, &r->all[0], "a", (1u << 20) + 511, 4096, false, true);
    publish(r->exports, &r->all[1], "bad", 200 * 1024, 65536, true, false);
    publish(r->exports, &r->all[2], "empty", 0, 512, false, listed);
    publish(r->exports, &r->all[3], "huge", INT64_MAX, 1ull << 55, false, listed);
    publish(r->exports, &r->all[4], "fine", 300 * 1024, 512, false, false);
    varve_nbd_options_default(&o);
    o.max_request = MAX_REQUEST;
    o.handshake_timeout_ms = DEADLINE_MS;
    o.log = log_line;
    FUZZ_CHECK(varve_nbd_server_new(&loop, r->exports, &o, &r->server, &err) == 0);
    FUZZ_CHECK(varve_nbd_server_listen(r->server, where, real, sizeof(real), &err) == 0);
}

/* Shows what visible[] has. */
static void server_guard(struct run *r, bool offered)
{
    static const char rules[] = "any a bad\n";
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_access *access;

    FUZZ_CHECK(varve_access_parse("rules", rules, sizeof(rules) - 1, &access, &err) == 0);
    varve_nbd_server_set_access(r->server, access);
    varve_nbd_server_set_tls(r->server, varve_tls_ref(tls[offered]));
}

/* The stream with STARTTLS behind its flags; free() it. */
static uint8_t *with_starttls(const uint8_t *data, size_t *size)
{
    uint8_t *stream = malloc(*size + VARVE_NBD_OPTION_LEN);
    uint8_t *opt = stream + VARVE_NBD_CLIENT_FLAGS_LEN;

    FUZZ_CHECK(stream);
    memcpy(stream, data, VARVE_NBD_CLIENT_FLAGS_LEN);
    varve_nbd_put64(opt, VARVE_NBD_OPTION_MAGIC);
    varve_nbd_put32(opt + 8, VARVE_NBD_OPT_STARTTLS);
    varve_nbd_put32(opt + 12, 0);
    memcpy(opt + VARVE_NBD_OPTION_LEN, data + VARVE_NBD_CLIENT_FLAGS_LEN,
           *size - VARVE_NBD_CLIENT_FLAGS_LEN);
    *size += VARVE_NBD_OPTION_LEN;
    return stream;
}

static void server_end(struct run *r)
{
    uint64_t begin = fuzz_now_ms();

    if (!r->closing)
        varve_nbd_server_close(r->server, DEADLINE_MS, on_closed, r);
    uv_run(&loop, UV_RUN_DEFAULT);
    FUZZ_CHECK(r->closed && fuzz_now_ms() - begin < FUZZ_HANG_MS);
    varve_nbd_server_free(r->server);
    withdraw(r);
    varve_exports_free(r->exports);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const visible[] = {"a", "bad", NULL};
    uint8_t *stream = NULL;
    char where[PATH_MAX];
    struct run r = {0};
    bool offered, inside;

    if (size < 3)
        return -1;
    fuzz_begin();
    r.flags = data[0];
    offered = data[1] & SEED_OFFERED;
    inside = (r.flags & FLAG_GUARDED) && (data[1] & SEED_INSIDE) &&
             size - 3 >= VARVE_NBD_CLIENT_FLAGS_LEN;
    r.peer = (struct fuzz_peer){
        .loop = &loop,
        .stream = data + 3,
        .len = size - 3,
        .cuts = {data[1]},
        .lazy = r.flags & FLAG_LAZY,
        .event_at = data[2],
        .event = r.flags & (FLAG_WITHDRAW | FLAG_CLOSE | FLAG_HANG_UP) ? on_event : NULL,
        .got = on_bytes,
        .arg = &r,
        .disturbed = r.flags & FLAG_MEMORY,
    };
    if (inside) {
        r.peer.stream = stream = with_starttls(data + 3, &r.peer.len);
        r.peer.tls = fuzz_tls_new(KEY);
        r.peer.plain_len = VARVE_NBD_CLIENT_FLAGS_LEN + VARVE_NBD_OPTION_LEN;
        r.peer.plain_replies = VARVE_NBD_GREETING_LEN + VARVE_NBD_OPTION_REPLY_LEN;
    }
    if (r.flags & FLAG_GUARDED)
        r.guard = (struct nbd_check_guard){visible, !offered, inside};
    r.check = nbd_check_new(r.peer.stream, r.peer.len, MAX_REQUEST, byte_at, &r.guard);
    snprintf(where, sizeof(where), "unix:%s/s", top);
    server_begin(&r, where);
    if (r.flags & FLAG_GUARDED)
        server_guard(&r, offered);
    if (r.flags & FLAG_MEMORY)
        fuzz_alloc_fail(data[2] + 1u, r.flags & FLAG_NO_MORE);
    fuzz_peer_run(&r.peer, where + 5);
    fuzz_alloc_works();
    if (r.peer.in_full)
        nbd_check_answered(r.check);
    server_end(&r);
    nbd_check_free(r.check);
    fuzz_tls_free(r.peer.tls);
    free(stream);
    return 0;
}
