/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A program that serves exports made of arithmetic through the daemon's real NBD server, so that
 * tests can drive it over a socket.  It is started by test scripts, one process a server; every
 * thread of it may run an export's functions.  It keeps no data and touches no disk.  It is long:
 * every option is one more thing that a test can make the server meet.
 */
#include "lib/err.h"
#include "server/nbd/export.h"
#include "server/nbd/nbd-server.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

#define FIXTURE_LISTENERS_MAX 8
#define FIXTURE_EXPORTS_MAX   4096
#define FIXTURE_CONTEXTS_MAX  8
#define FIXTURE_ERRORS_MAX    8
#define FIXTURE_CLOSE_MS      2000
#define POOL_THREADS          "8" /* fewer than varved has */
#define NETWORK_THREADS       2

#define PATTERN_XOR 0x5a5a5a5a5a5a5a5aull

enum fixture_content {
    CONTENT_ZERO,
    CONTENT_PATTERN,
    CONTENT_HALF,
    CONTENT_STRIPED,
};

struct fixture_context {
    char *name;
    uint64_t unit; /* bytes; every odd unit is dirty.  0: base:allocation */
};

struct fixture_range {
    uint64_t off, len;
};

struct fixture_export {
    struct varve_export base; /* first */
    enum fixture_content content;
    struct fixture_context contexts[FIXTURE_CONTEXTS_MAX];
    const char *names[FIXTURE_CONTEXTS_MAX];
    struct fixture_range errors[FIXTURE_ERRORS_MAX];
    unsigned nerrors;
    struct fixture_range status_errors[FIXTURE_ERRORS_MAX];
    unsigned nstatus_errors;
    struct fixture_range now; /* len 0: none */
    char *slow;               /* reads wait while this file exists; may be NULL */
    bool last_status_fails;   /* that is, errors are of the last context only */
};

struct fixture {
    uv_loop_t loop;
    uv_signal_t sigterm, sigint, sigusr1, sighup;
    struct varve_exports *exports;
    struct varve_nbd_server *server;
    struct varve_tls_options tls;
    const char *access; /* file, or NULL */
    struct fixture_export *all[FIXTURE_EXPORTS_MAX];
    unsigned nexports;
    bool first_withdrawn;
    bool stats;
    unsigned fail_alloc;
    bool closing;
};

static const char usage[] =
    "Usage: nbd-fixture --listen WHERE [--listen WHERE]... --export NAME:SIZE[:OPTS]...\n"
    "\n"
    "Serves exports made of arithmetic through varved's NBD server, for tests.  When it\n"
    "listens it prints, for each listener, one line \"ready WHERE\" on stdout, with the\n"
    "real port.\n"
    "\n"
    "  --listen WHERE            unix:PATH or tcp:HOST:PORT (tcp:127.0.0.1:0, tcp:[::1]:0)\n"
    "  --export NAME:SIZE[:OPTS] SIZE in bytes or with suffix K, M, G, T; OPTS are separated\n"
    "                            by commas.  NAME has no colon.\n"
    "  --max-request BYTES       largest read (default 32M)\n"
    "  --max-connections N       in all (default 1024)\n"
    "  --max-per-peer N          of one address or user (default: as many)\n"
    "  --network-threads N       loops of connections (default 2; 0: the main loop)\n"
    "  --handshake-timeout MS    default 10000\n"
    "  --idle-timeout MS         0: never (default)\n"
    "  --write-timeout MS        a peer that takes nothing of a reply (default 60000)\n"
    "  --tls MODE, --tls-certificates DIR, --tls-psk FILE, --tls-verify-peer, --access FILE\n"
    "                            as varved's\n"
    "  --fail-alloc N            once it listens every Nth allocation of the server fails\n"
    "  --stats                   at the end print for each export, in the order given,\n"
    "                            \"stats NAME clients=N bytes=N requests=N\" on stdout\n"
    "  --help                    this text\n"
    "\n"
    "OPTS, any of:\n"
    "  zero              all bytes are zero (default); base:allocation says hole,zero (3)\n"
    "  pattern           each 8 bytes at offset o, o a multiple of 8, are the big-endian\n"
    "                    number o ^ 0x5a5a5a5a5a5a5a5a; base:allocation says 0\n"
    "  half              first half pattern (0), second half zero and a hole (3); the border\n"
    "                    is SIZE/2 rounded down to a multiple of 8\n"
    "  striped           every odd 256 KiB are zero, the others pattern;\n"
    "                    base:allocation says hole,zero (3)\n"
    "  dirty=NAME        context qemu:dirty-bitmap:NAME, every odd 64 KiB unit is dirty (1)\n"
    "  allfine=NAME      the same, every odd 4 KiB unit\n"
    "  context=FULLNAME  a context of any name, every odd 64 KiB unit has status 1\n"
    "  errors=OFF+LEN    reads that touch it fail with EIO and the message \"lost\"\n"
    "  statuserrors=OFF+LEN  block status that touches it fails with EIO and \"lost\"\n"
    "  now=OFF+LEN       what is asked within it is answered on the loop, whatever slow= says\n"
    "  lastfails         statuserrors are of the last context only\n"
    "  slow=PATH         reads wait while the file PATH exists (looked at every 5 ms)\n"
    "  unlisted          does not stand in LIST; found by its name\n"
    "  description=TEXT  no comma in it\n"
    "  pref=BYTES        preferred block size (default 4096)\n"
    "\n"
    "Every export with OPTS offers base:allocation as its first context; one without OPTS\n"
    "offers no context.  Contexts are offered in the order given.\n"
    "\n"
    "Signals: TERM or INT closes the server (deadline 2 s) and exits with 0.  USR1 withdraws\n"
    "the first export given and disconnects its clients.  HUP reads the files of --tls-... and\n"
    "--access again and prints \"reload ok\" or \"reload failed\".\n"
    "Exit status: 0 closed, 1 failed, 2 usage.\n";

/* --- allocations that fail ------------------------------------------------------------------ */

/* The linker sends the server's calls here (--wrap). */
void *__real_malloc(size_t len);
void *__real_calloc(size_t n, size_t len);
void *__real_realloc(void *p, size_t len);
void *__wrap_malloc(size_t len);
void *__wrap_calloc(size_t n, size_t len);
void *__wrap_realloc(void *p, size_t len);

static atomic_uint fail_every; /* 0: none fails */

static bool fails_now(void)
{
    static atomic_uint calls;
    unsigned every = atomic_load(&fail_every);

    return every && atomic_fetch_add(&calls, 1) % every == every - 1;
}

void *__wrap_malloc(size_t len)
{
    return fails_now() ? NULL : __real_malloc(len);
}

void *__wrap_calloc(size_t n, size_t len)
{
    return fails_now() ? NULL : __real_calloc(n, len);
}

void *__wrap_realloc(void *p, size_t len)
{
    return fails_now() ? NULL : __real_realloc(p, len);
}

/* --- exports -------------------------------------------------------------------------------- */

static struct fixture_export *fixture_export(struct varve_export *e)
{
    return (struct fixture_export *)((char *)e - offsetof(struct fixture_export, base));
}

static uint64_t half_of(const struct varve_export *e)
{
    return e->size / 2 / 8 * 8;
}

static bool touches(const struct fixture_range *r, uint64_t off, uint64_t len)
{
    return off < r->off + r->len && r->off < off + len;
}

static void pattern_fill(uint8_t *buf, uint64_t off, uint64_t len)
{
    uint64_t i = 0;

    while (i < len) {
        uint64_t at = (off + i) & 7;
        uint64_t word = htobe64(((off + i) & ~7ull) ^ PATTERN_XOR);
        uint64_t n = 8 - at < len - i ? 8 - at : len - i;

        memcpy(buf + i, (uint8_t *)&word + at, n);
        i += n;
    }
}

static void slow_wait(const char *path)
{
    struct timespec pause = {0, 5 * 1000 * 1000};

    while (access(path, F_OK) == 0)
        nanosleep(&pause, NULL);
}

/* What stands there, errors or not. */
static void fixture_fill(struct varve_export *e, void *buf, uint64_t off, uint32_t len)
{
    struct fixture_export *f = fixture_export(e);
    uint64_t data_end = 0;

    if (f->content == CONTENT_PATTERN)
        data_end = e->size;
    else if (f->content == CONTENT_HALF)
        data_end = half_of(e);
    else if (f->content == CONTENT_STRIPED && off / VARVE_EXPORT_READ_MAX % 2 == 0)
        data_end = e->size; /* a read lies in one stripe */
    memset(buf, 0, len);
    if (off < data_end)
        pattern_fill(buf, off, len < data_end - off ? len : data_end - off);
}

static int fixture_read_now(struct varve_export *e, void *buf, uint64_t off, uint32_t len)
{
    struct fixture_export *f = fixture_export(e);

    if (off < f->now.off || off + len > f->now.off + f->now.len)
        return -EAGAIN;
    fixture_fill(e, buf, off, len);
    return 0;
}

static int fixture_read(struct varve_export *e, void *buf, uint64_t off, uint32_t len,
                        uint64_t *bad_off, struct varve_err *err)
{
    struct fixture_export *f = fixture_export(e);
    bool bad = false;

    assert(len > 0 && len <= VARVE_EXPORT_READ_MAX && off <= e->size && len <= e->size - off);
    if (f->slow)
        slow_wait(f->slow);
    for (unsigned i = 0; i < f->nerrors; i++) {
        uint64_t at = f->errors[i].off > off ? f->errors[i].off : off;

        if (!touches(&f->errors[i], off, len))
            continue;
        if (!bad || at < *bad_off)
            *bad_off = at;
        bad = true;
    }
    if (bad) {
        memset(buf, 0xff, len); /* nobody may send this */
        return varve_err_set(err, EIO, "lost");
    }
    fixture_fill(e, buf, off, len);
    return 0;
}

/* There is nothing to fetch; what matters is how much is asked at once. */
static void fixture_cache(struct varve_export *e, uint64_t off, uint64_t len)
{
    assert(len > 0 && len <= VARVE_EXPORT_CACHE_MAX && off <= e->size && len <= e->size - off);
    (void)off;
    (void)len;
    (void)e;
}

/* The run that begins at off: its status, and its end, which may lie beyond the export. */
static uint32_t run_at(const struct fixture_export *f, unsigned ctx, uint64_t off, uint64_t *end)
{
    uint64_t unit = f->contexts[ctx].unit;

    if (unit) {
        *end = (off / unit + 1) * unit;
        return off / unit & 1;
    }
    *end = f->base.size;
    if (f->content == CONTENT_PATTERN)
        return 0;
    if (f->content == CONTENT_HALF && off < half_of(&f->base)) {
        *end = half_of(&f->base);
        return 0;
    }
    return 3;
}

static int fixture_status(struct varve_export *e, unsigned ctx, uint64_t off, uint64_t len,
                          struct varve_extent *out, size_t max, struct varve_err *err)
{
    struct fixture_export *f = fixture_export(e);
    uint64_t end = off + len;
    size_t n = 0;

    assert(ctx < e->ncontexts && len > 0 && max > 0 && off <= e->size && len <= e->size - off);
    for (unsigned i = 0; i < f->nstatus_errors; i++)
        if ((!f->last_status_fails || ctx == e->ncontexts - 1) &&
            touches(&f->status_errors[i], off, len))
            return varve_err_set(err, EIO, "lost");
    while (off < end && n < max) {
        uint64_t run_end;
        uint32_t flags = run_at(f, ctx, off, &run_end);

        if (run_end > end)
            run_end = end;
        out[n].len = run_end - off;
        out[n].flags = flags;
        n++;
        off = run_end;
    }
    return (int)n;
}

static int fixture_status_now(struct varve_export *e, unsigned ctx, uint64_t off, uint64_t len,
                              struct varve_extent *out, size_t max)
{
    const struct fixture_export *f = fixture_export(e);
    struct varve_err err;
    int n;

    if (off < f->now.off || off + len > f->now.off + f->now.len ||
        (n = fixture_status(e, ctx, off, len, out, max, &err)) < 0)
        return -EAGAIN;
    return n;
}

static void fixture_free(struct varve_export *e)
{
    struct fixture_export *f = fixture_export(e);

    for (unsigned i = 0; i < e->ncontexts; i++)
        free(f->contexts[i].name);
    free(f->slow);
    free(e->name);
    free(e->description);
    free(f);
}

static const struct varve_export_ops fixture_ops = {
    .read = fixture_read,
    .read_now = fixture_read_now,
    .status = fixture_status,
    .status_now = fixture_status_now,
    .cache = fixture_cache,
    .free = fixture_free,
};

/* --- the command line ----------------------------------------------------------------------- */

static void die_usage(const char *what, const char *arg)
{
    fprintf(stderr, "nbd-fixture: %s: %s\n", what, arg);
    exit(2);
}

static char *need_dup(const char *s, size_t len)
{
    char *copy = strndup(s, len);

    if (!copy)
        abort();
    return copy;
}

static uint64_t parse_size(const char *s, char **end)
{
    static const char suffixes[] = "KMGT";
    uint64_t v = strtoull(s, end, 0);
    const char *suffix;

    if (*end == s)
        die_usage("not a size", s);
    suffix = **end ? strchr(suffixes, **end) : NULL;
    if (suffix) {
        v <<= 10 * (suffix - suffixes + 1);
        ++*end;
    }
    return v;
}

static enum varve_tls_mode parse_tls_mode(const char *s)
{
    if (!strcmp(s, "off"))
        return VARVE_TLS_OFF;
    if (!strcmp(s, "on"))
        return VARVE_TLS_ON;
    if (strcmp(s, "require"))
        die_usage("not off, on or require", s);
    return VARVE_TLS_REQUIRE;
}

static uint64_t parse_whole_size(const char *s)
{
    char *end;
    uint64_t v = parse_size(s, &end);

    if (*end)
        die_usage("not a size", s);
    return v;
}

static void parse_range(const char *s, struct fixture_range *ranges, unsigned *n)
{
    char *end;

    if (*n == FIXTURE_ERRORS_MAX)
        die_usage("too many ranges", s);
    ranges[*n].off = parse_size(s, &end);
    if (*end != '+')
        die_usage("not OFF+LEN", s);
    ranges[*n].len = parse_whole_size(end + 1);
    ++*n;
}

static void add_context(struct fixture_export *f, const char *prefix, const char *name,
                        uint64_t unit)
{
    struct fixture_context *c = &f->contexts[f->base.ncontexts];

    if (f->base.ncontexts == FIXTURE_CONTEXTS_MAX)
        die_usage("too many contexts", name);
    if (asprintf(&c->name, "%s%s", prefix, name) < 0)
        abort();
    c->unit = unit;
    f->names[f->base.ncontexts++] = c->name;
}

static void apply_option(struct fixture_export *f, const char *opt)
{
    const char *eq = strchr(opt, '=');
    const char *value = eq ? eq + 1 : "";
    size_t len = eq ? (size_t)(eq - opt) : strlen(opt);

    if (!strcmp(opt, "zero"))
        f->content = CONTENT_ZERO;
    else if (!strcmp(opt, "pattern"))
        f->content = CONTENT_PATTERN;
    else if (!strcmp(opt, "half"))
        f->content = CONTENT_HALF;
    else if (!strcmp(opt, "striped"))
        f->content = CONTENT_STRIPED;
    else if (!strcmp(opt, "unlisted"))
        f->base.listed = false;
    else if (!strncmp(opt, "dirty=", len + 1))
        add_context(f, "qemu:dirty-bitmap:", value, 64 * 1024);
    else if (!strncmp(opt, "allfine=", len + 1))
        add_context(f, "qemu:dirty-bitmap:", value, 4096);
    else if (!strncmp(opt, "context=", len + 1))
        add_context(f, "", value, 64 * 1024);
    else if (!strncmp(opt, "errors=", len + 1))
        parse_range(value, f->errors, &f->nerrors);
    else if (!strncmp(opt, "statuserrors=", len + 1))
        parse_range(value, f->status_errors, &f->nstatus_errors);
    else if (!strncmp(opt, "now=", len + 1))
        parse_range(value, &f->now, &(unsigned){0});
    else if (!strcmp(opt, "lastfails"))
        f->last_status_fails = true;
    else if (!strncmp(opt, "slow=", len + 1) && !f->slow)
        f->slow = need_dup(value, strlen(value));
    else if (!strncmp(opt, "description=", len + 1) && !f->base.description)
        f->base.description = need_dup(value, strlen(value));
    else if (!strncmp(opt, "pref=", len + 1))
        f->base.block_pref = (uint32_t)parse_whole_size(value);
    else
        die_usage("unknown export option", opt);
}

static struct fixture_export *parse_export(const char *arg)
{
    struct fixture_export *f = calloc(1, sizeof *f);
    const char *colon = strchr(arg, ':');
    char *opts;

    if (!f)
        abort();
    if (!colon || colon == arg)
        die_usage("not NAME:SIZE", arg);
    f->base.ops = &fixture_ops;
    f->base.name = need_dup(arg, (size_t)(colon - arg));
    f->base.size = parse_size(colon + 1, &opts);
    f->base.block_pref = 4096;
    f->base.listed = true;
    f->base.contexts = f->names;
    f->base.refs = 1;
    if (*opts == ':') {
        char *copy = need_dup(opts + 1, strlen(opts + 1));
        char *save = NULL;

        add_context(f, "", "base:allocation", 0);
        for (char *o = strtok_r(copy, ",", &save); o; o = strtok_r(NULL, ",", &save))
            apply_option(f, o);
        free(copy);
    } else if (*opts) {
        die_usage("not NAME:SIZE", arg);
    }
    return f;
}

/* --- running -------------------------------------------------------------------------------- */

static void on_closed(void *arg)
{
    struct fixture *x = arg;

    uv_close((uv_handle_t *)&x->sigterm, NULL);
    uv_close((uv_handle_t *)&x->sigint, NULL);
    uv_close((uv_handle_t *)&x->sigusr1, NULL);
    uv_close((uv_handle_t *)&x->sighup, NULL);
}

static void on_end(uv_signal_t *handle, int signum)
{
    struct fixture *x = handle->data;

    (void)signum;
    if (x->closing)
        return;
    x->closing = true;
    varve_nbd_server_close(x->server, FIXTURE_CLOSE_MS, on_closed, x);
}

static void on_withdraw(uv_signal_t *handle, int signum)
{
    struct fixture *x = handle->data;

    (void)signum;
    if (x->closing || x->first_withdrawn)
        return;
    x->first_withdrawn = true;
    varve_exports_remove(x->exports, &x->all[0]->base);
    varve_nbd_server_kick(x->server);
}

static int load_security(struct fixture *x)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_access *access = NULL;
    struct varve_tls *tls = NULL;
    int rc = varve_tls_load(&x->tls, &tls, &err);

    if (rc == 0)
        varve_nbd_server_set_tls(x->server, tls);
    else
        fprintf(stderr, "nbd-fixture: %s\n", err.msg);
    if (!x->access)
        return rc;
    if (varve_access_load(x->access, &access, &err)) {
        fprintf(stderr, "nbd-fixture: %s\n", err.msg);
        return -1;
    }
    varve_nbd_server_set_access(x->server, access);
    return rc;
}

static void on_reload(uv_signal_t *handle, int signum)
{
    struct fixture *x = handle->data;

    (void)signum;
    if (x->closing)
        return;
    printf("reload %s\n", load_security(x) ? "failed" : "ok");
    fflush(stdout);
}

static void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

static void watch(struct fixture *x, uv_signal_t *handle, int signum, uv_signal_cb cb)
{
    if (uv_signal_init(&x->loop, handle) || uv_signal_start(handle, cb, signum))
        abort();
    handle->data = x;
}

static int serve(struct fixture *x, const struct varve_nbd_options *o, char **wheres,
                 unsigned nwheres)
{
    struct varve_err err = VARVE_ERR_INIT;
    int rc = 0;

    if (uv_loop_init(&x->loop))
        abort();
    if (varve_nbd_server_new(&x->loop, x->exports, o, &x->server, &err)) {
        fprintf(stderr, "nbd-fixture: %s\n", err.msg);
        return 1;
    }
    watch(x, &x->sigterm, SIGTERM, on_end);
    watch(x, &x->sigint, SIGINT, on_end);
    watch(x, &x->sigusr1, SIGUSR1, on_withdraw);
    watch(x, &x->sighup, SIGHUP, on_reload);
    if (load_security(x)) {
        rc = 1;
        on_end(&x->sigterm, SIGTERM);
    }
    for (unsigned i = 0; i < nwheres && !rc; i++) {
        char real[256];

        if (varve_nbd_server_listen(x->server, wheres[i], real, sizeof real, &err)) {
            fprintf(stderr, "nbd-fixture: %s\n", err.msg);
            rc = 1;
            on_end(&x->sigterm, SIGTERM);
        } else {
            printf("ready %s\n", real);
        }
    }
    fflush(stdout);
    atomic_store(&fail_every, x->fail_alloc);
    uv_run(&x->loop, UV_RUN_DEFAULT);
    varve_nbd_server_free(x->server);
    if (uv_loop_close(&x->loop))
        abort();
    return rc;
}

static void finish(struct fixture *x)
{
    for (unsigned i = 0; i < x->nexports; i++) {
        struct varve_export *e = &x->all[i]->base;

        if (x->stats)
            printf("stats %s clients=%u bytes=%" PRIu64 " requests=%" PRIu64 "\n", e->name,
                   e->clients, e->bytes_read, e->requests);
        varve_exports_remove(x->exports, e);
        assert(e->refs == 1);
        varve_export_unref(e);
    }
    varve_exports_free(x->exports);
    fflush(stdout);
}

enum {
    OPT_LISTEN = 256,
    OPT_EXPORT,
    OPT_MAX_REQUEST,
    OPT_MAX_CONNECTIONS,
    OPT_MAX_PER_PEER,
    OPT_NETWORK_THREADS,
    OPT_HANDSHAKE_TIMEOUT,
    OPT_IDLE_TIMEOUT,
    OPT_WRITE_TIMEOUT,
    OPT_FAIL_ALLOC,
    OPT_STATS,
    OPT_TLS,
    OPT_TLS_CERTIFICATES,
    OPT_TLS_PSK,
    OPT_TLS_VERIFY_PEER,
    OPT_ACCESS,
    OPT_HELP,
};

static const struct option long_options[] = {
    {"listen", required_argument, NULL, OPT_LISTEN},
    {"export", required_argument, NULL, OPT_EXPORT},
    {"max-request", required_argument, NULL, OPT_MAX_REQUEST},
    {"max-connections", required_argument, NULL, OPT_MAX_CONNECTIONS},
    {"max-per-peer", required_argument, NULL, OPT_MAX_PER_PEER},
    {"network-threads", required_argument, NULL, OPT_NETWORK_THREADS},
    {"handshake-timeout", required_argument, NULL, OPT_HANDSHAKE_TIMEOUT},
    {"idle-timeout", required_argument, NULL, OPT_IDLE_TIMEOUT},
    {"write-timeout", required_argument, NULL, OPT_WRITE_TIMEOUT},
    {"fail-alloc", required_argument, NULL, OPT_FAIL_ALLOC},
    {"stats", no_argument, NULL, OPT_STATS},
    {"tls", required_argument, NULL, OPT_TLS},
    {"tls-certificates", required_argument, NULL, OPT_TLS_CERTIFICATES},
    {"tls-psk", required_argument, NULL, OPT_TLS_PSK},
    {"tls-verify-peer", no_argument, NULL, OPT_TLS_VERIFY_PEER},
    {"access", required_argument, NULL, OPT_ACCESS},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

static void add_export(struct fixture *x, const char *arg)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct fixture_export *f = parse_export(arg);

    if (x->nexports == FIXTURE_EXPORTS_MAX)
        die_usage("too many exports", arg);
    if (varve_exports_add(x->exports, &f->base, &err))
        die_usage(err.msg, arg);
    varve_export_ref(&f->base); /* for the statistics, after it was withdrawn */
    x->all[x->nexports++] = f;
}

int main(int argc, char **argv)
{
    static struct fixture x;
    struct varve_nbd_options o;
    char *wheres[FIXTURE_LISTENERS_MAX];
    unsigned nwheres = 0;
    int opt, rc;

    setenv("UV_THREADPOOL_SIZE", POOL_THREADS, 1);
    signal(SIGPIPE, SIG_IGN);
    varve_nbd_options_default(&o);
    o.log = say;
    o.pool_threads = (unsigned)atoi(POOL_THREADS);
    o.network_threads = NETWORK_THREADS;
    x.exports = varve_exports_new();
    if (!x.exports)
        abort();
    while ((opt = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (opt) {
        case OPT_LISTEN:
            if (nwheres == FIXTURE_LISTENERS_MAX)
                die_usage("too many listeners", optarg);
            wheres[nwheres++] = optarg;
            break;
        case OPT_EXPORT:
            add_export(&x, optarg);
            break;
        case OPT_MAX_REQUEST:
            o.max_request = (uint32_t)parse_whole_size(optarg);
            break;
        case OPT_MAX_CONNECTIONS:
            o.max_connections = (unsigned)parse_whole_size(optarg);
            break;
        case OPT_MAX_PER_PEER:
            o.max_per_peer = (unsigned)parse_whole_size(optarg);
            break;
        case OPT_NETWORK_THREADS:
            o.network_threads = (unsigned)parse_whole_size(optarg);
            break;
        case OPT_HANDSHAKE_TIMEOUT:
            o.handshake_timeout_ms = (unsigned)parse_whole_size(optarg);
            break;
        case OPT_IDLE_TIMEOUT:
            o.idle_timeout_ms = (unsigned)parse_whole_size(optarg);
            break;
        case OPT_WRITE_TIMEOUT:
            o.write_timeout_ms = (unsigned)parse_whole_size(optarg);
            break;
        case OPT_FAIL_ALLOC:
            x.fail_alloc = (unsigned)parse_whole_size(optarg);
            break;
        case OPT_STATS:
            x.stats = true;
            break;
        case OPT_TLS:
            x.tls.mode = parse_tls_mode(optarg);
            break;
        case OPT_TLS_CERTIFICATES:
            x.tls.certificates = optarg;
            break;
        case OPT_TLS_PSK:
            x.tls.psk = optarg;
            break;
        case OPT_TLS_VERIFY_PEER:
            x.tls.verify_peer = true;
            break;
        case OPT_ACCESS:
            x.access = optarg;
            break;
        case OPT_HELP:
            fputs(usage, stdout);
            exit(0);
        default:
            return 2;
        }
    }
    if (optind < argc)
        die_usage("unexpected argument", argv[optind]);
    if (!nwheres || !x.nexports)
        die_usage("needs", "--listen and --export (see --help)");
    rc = serve(&x, &o, wheres, nwheres);
    finish(&x);
    return rc;
}
