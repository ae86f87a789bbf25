/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/options.h"

#include "include/varve.h"
#include "lib/parse.h"

#include <errno.h>
#include <getopt.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <config.h>

#define THREADS_DEFAULT 16u
#define THREADS_MAX     512u

#define MAP_MEMORY_DEFAULT (UINT64_C(256) << 20)

/* More network threads than that move no more bytes than the machine's memory lets them. */
#define NETWORK_THREADS_DEFAULT 4u
#define NETWORK_THREADS_MAX     64u

#define FREEZE_HOOK_TIMEOUT_MS 10000u

#define MAX_REQUEST_MIN (UINT64_C(1) << 20)
#define MAX_REQUEST_MAX (UINT64_C(1) << 26)

static const char usage_text[] =
    "Usage: varved [--state-dir DIR] [--runtime-dir DIR] [--control PATH] [--listen WHERE]...\n"
    "\n"
    "Keeps checkpoints and backups of the disks that nbdkit's varve plugin serves, and\n"
    "offers the backups to NBD clients.  Runs in the foreground.\n"
    "\n"
    "  --state-dir DIR          one folder per disk, and the catalogue\n"
    "                           (default: " VARVE_DEFAULT_STATE_DIR ")\n"
    "  --runtime-dir DIR        sockets and live bitmaps; must be on tmpfs\n"
    "                           (default: " VARVE_DEFAULT_RUNTIME_DIR ")\n"
    "  --scratch-dir DIR        where the plugins keep preimages (default: the state directory)\n"
    "  --control PATH           control socket (default: RUNTIME/" VARVE_CONTROL_SOCKET ")\n"
    "  --listen WHERE           NBD listener, may be repeated: unix:PATH, tcp:HOST:PORT or\n"
    "                           vsock:PORT\n"
    "                           (default: unix:RUNTIME/" VARVE_NBD_SOCKET ")\n"
    "  --metrics WHERE          metrics for Prometheus over HTTP: GET /metrics (default: nowhere)\n"
    "  --web WHERE              a read-only page for browsers that shows disks and backups\n"
    "                           (default: nowhere)\n"
    "  --max-connections N      NBD connections at once (default: 1024)\n"
    "  --max-connections-per-peer N\n"
    "                           of one address or user (default: no other limit)\n"
    "  --handshake-timeout T    for an NBD client's handshake, e.g. 10s or 500ms (default: 10s)\n"
    "  --idle-timeout T         after which a silent NBD client is closed (default: never)\n"
    "  --write-timeout T        after which an NBD client that takes nothing of a reply is\n"
    "                           closed (default: 60s)\n"
    "  --max-request SIZE       longest read, e.g. 32M (default: 32M)\n"
    "  --threads N              threads that read disks (default: 16)\n"
    "  --network-threads N      threads that serve NBD clients (default: as there are\n"
    "                           processors, at most 4 and a fourth of --threads)\n"
    "  --map-memory SIZE        for maps of changes since other bases (default: 256M)\n"
    "  --list-bases             NBD clients see NAME@BASE in the list of exports\n"
    "  --tls off|on|require     TLS for NBD clients: none, offered, or demanded (default: off)\n"
    "  --tls-certificates DIR   holds ca-cert.pem, server-cert.pem, server-key.pem and, if\n"
    "                           there is one, ca-crl.pem\n"
    "  --tls-psk FILE           pre-shared keys of clients, as psktool(1) writes them\n"
    "  --tls-verify-peer        clients without a pre-shared key need a certificate\n"
    "  --access FILE            which NBD client may see which exports (default: all see all)\n"
    "  --freeze-hook PROGRAM    run with 'freeze' and 'thaw' around the instant of a backup that\n"
    "                           asks for it\n"
    "  --freeze-hook-timeout T  for each run, and for the time between (default: 10s)\n"
    "  --help, --version\n";

enum option_code {
    OPT_STATE_DIR = 256,
    OPT_RUNTIME_DIR,
    OPT_SCRATCH_DIR,
    OPT_CONTROL,
    OPT_LISTEN,
    OPT_METRICS,
    OPT_WEB,
    OPT_MAX_CONNECTIONS,
    OPT_MAX_PER_PEER,
    OPT_HANDSHAKE_TIMEOUT,
    OPT_IDLE_TIMEOUT,
    OPT_WRITE_TIMEOUT,
    OPT_MAX_REQUEST,
    OPT_THREADS,
    OPT_NETWORK_THREADS,
    OPT_MAP_MEMORY,
    OPT_LIST_BASES,
    OPT_TLS,
    OPT_TLS_CERTIFICATES,
    OPT_TLS_PSK,
    OPT_TLS_VERIFY_PEER,
    OPT_ACCESS,
    OPT_FREEZE_HOOK,
    OPT_FREEZE_HOOK_TIMEOUT,
    OPT_HELP,
    OPT_VERSION,
};

static const struct option long_options[] = {
    {"state-dir", required_argument, NULL, OPT_STATE_DIR},
    {"runtime-dir", required_argument, NULL, OPT_RUNTIME_DIR},
    {"scratch-dir", required_argument, NULL, OPT_SCRATCH_DIR},
    {"control", required_argument, NULL, OPT_CONTROL},
    {"listen", required_argument, NULL, OPT_LISTEN},
    {"metrics", required_argument, NULL, OPT_METRICS},
    {"web", required_argument, NULL, OPT_WEB},
    {"max-connections", required_argument, NULL, OPT_MAX_CONNECTIONS},
    {"max-connections-per-peer", required_argument, NULL, OPT_MAX_PER_PEER},
    {"handshake-timeout", required_argument, NULL, OPT_HANDSHAKE_TIMEOUT},
    {"idle-timeout", required_argument, NULL, OPT_IDLE_TIMEOUT},
    {"write-timeout", required_argument, NULL, OPT_WRITE_TIMEOUT},
    {"max-request", required_argument, NULL, OPT_MAX_REQUEST},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"network-threads", required_argument, NULL, OPT_NETWORK_THREADS},
    {"map-memory", required_argument, NULL, OPT_MAP_MEMORY},
    {"list-bases", no_argument, NULL, OPT_LIST_BASES},
    {"tls", required_argument, NULL, OPT_TLS},
    {"tls-certificates", required_argument, NULL, OPT_TLS_CERTIFICATES},
    {"tls-psk", required_argument, NULL, OPT_TLS_PSK},
    {"tls-verify-peer", no_argument, NULL, OPT_TLS_VERIFY_PEER},
    {"access", required_argument, NULL, OPT_ACCESS},
    {"freeze-hook", required_argument, NULL, OPT_FREEZE_HOOK},
    {"freeze-hook-timeout", required_argument, NULL, OPT_FREEZE_HOOK_TIMEOUT},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};

static int parse_count(const char *what, const char *text, unsigned min, unsigned max,
                       unsigned *out, struct varve_err *err)
{
    bool digits = text[0] >= '0' && text[0] <= '9'; /* no sign, no blank */
    unsigned long value;
    char *end;

    errno = 0;
    value = strtoul(text, &end, 10);
    if (!digits || errno || *end || value < min || value > max)
        return varve_err_set(err, EINVAL, "--%s '%s': expected a number from %u to %u", what, text,
                             min, max);
    *out = (unsigned)value;
    return 0;
}

static int parse_time(const char *what, const char *text, unsigned *out_ms, struct varve_err *err)
{
    int rc = varve_parse_time_ms(text, out_ms, err);

    return rc < 0 ? varve_err_prefix(err, "--%s", what) : 0;
}

static int parse_request_size(const char *what, const char *text, uint32_t *out,
                              struct varve_err *err)
{
    uint64_t bytes;
    int rc = varve_parse_size(text, &bytes, err);

    if (rc < 0)
        return varve_err_prefix(err, "--%s", what);
    if (bytes < MAX_REQUEST_MIN || bytes > MAX_REQUEST_MAX)
        return varve_err_set(err, EINVAL, "--%s '%s': expected a size from 1M to 64M", what, text);
    *out = (uint32_t)bytes;
    return 0;
}

static int parse_map_memory(const char *what, const char *text, uint64_t *out,
                            struct varve_err *err)
{
    int rc = varve_parse_size(text, out, err);

    return rc < 0 ? varve_err_prefix(err, "--%s", what) : 0;
}

static int parse_tls_mode(const char *text, enum varve_tls_mode *mode, struct varve_err *err)
{
    if (strcmp(text, "off") == 0)
        *mode = VARVE_TLS_OFF;
    else if (strcmp(text, "on") == 0)
        *mode = VARVE_TLS_ON;
    else if (strcmp(text, "require") == 0)
        *mode = VARVE_TLS_REQUIRE;
    else
        return varve_err_set(err, EINVAL, "--tls '%s': expected off, on or require", text);
    return 0;
}

static int where_add(struct varve_where *w, const char *name, const char *where,
                     struct varve_err *err)
{
    if (w->n == VARVE_LISTENERS_MAX)
        return varve_err_set(err, EINVAL, "more than %d times --%s", VARVE_LISTENERS_MAX, name);
    w->list[w->n] = strdup(where);
    if (!w->list[w->n])
        return varve_err_set(err, ENOMEM, "no memory");
    w->n++;
    return 0;
}

static void where_fini(struct varve_where *w)
{
    for (size_t i = 0; i < w->n; i++)
        free(w->list[i]);
}

/* One option; what it is called stands in `name`. */
static int options_take(struct varve_options *o, int code, const char *name, char *value,
                        struct varve_err *err)
{
    switch (code) {
    case OPT_STATE_DIR:
        o->state_dir = value;
        return 0;
    case OPT_RUNTIME_DIR:
        o->runtime_dir = value;
        return 0;
    case OPT_SCRATCH_DIR:
        o->scratch_dir = value;
        return 0;
    case OPT_CONTROL:
        free(o->control);
        o->control = strdup(value);
        return o->control ? 0 : varve_err_set(err, ENOMEM, "no memory");
    case OPT_LISTEN:
        return where_add(&o->listen, name, value, err);
    case OPT_METRICS:
        return where_add(&o->metrics, name, value, err);
    case OPT_WEB:
        return where_add(&o->web, name, value, err);
    case OPT_MAX_CONNECTIONS:
        return parse_count(name, value, 1, 1000000, &o->nbd.max_connections, err);
    case OPT_MAX_PER_PEER:
        return parse_count(name, value, 1, 1000000, &o->nbd.max_per_peer, err);
    case OPT_HANDSHAKE_TIMEOUT:
        return parse_time(name, value, &o->nbd.handshake_timeout_ms, err);
    case OPT_IDLE_TIMEOUT:
        return parse_time(name, value, &o->nbd.idle_timeout_ms, err);
    case OPT_WRITE_TIMEOUT:
        return parse_time(name, value, &o->nbd.write_timeout_ms, err);
    case OPT_MAX_REQUEST:
        return parse_request_size(name, value, &o->nbd.max_request, err);
    case OPT_THREADS:
        return parse_count(name, value, 1, THREADS_MAX, &o->threads, err);
    case OPT_NETWORK_THREADS:
        return parse_count(name, value, 1, NETWORK_THREADS_MAX, &o->nbd.network_threads, err);
    case OPT_MAP_MEMORY:
        return parse_map_memory(name, value, &o->map_memory, err);
    case OPT_LIST_BASES:
        o->list_bases = true;
        return 0;
    case OPT_TLS:
        return parse_tls_mode(value, &o->tls.mode, err);
    case OPT_TLS_CERTIFICATES:
        o->tls.certificates = value;
        return 0;
    case OPT_TLS_PSK:
        o->tls.psk = value;
        return 0;
    case OPT_TLS_VERIFY_PEER:
        o->tls.verify_peer = true;
        return 0;
    case OPT_ACCESS:
        o->access = value;
        return 0;
    case OPT_FREEZE_HOOK:
        if (value[0] != '/')
            return varve_err_set(err, EINVAL, "--%s '%s': expected an absolute path", name, value);
        o->freeze_hook = value;
        return 0;
    case OPT_FREEZE_HOOK_TIMEOUT:
        if (parse_time(name, value, &o->freeze_hook_timeout_ms, err) < 0)
            return -EINVAL;
        if (o->freeze_hook_timeout_ms == 0)
            return varve_err_set(err, EINVAL, "--%s must not be 0", name);
        return 0;
    default:
        return varve_err_set(err, EINVAL, "--%s is not known", name);
    }
}

/* Each has its part of the threads that read disks, and that should not be too few for a disk that
 * hangs beside others. */
static int options_network_threads(struct varve_options *o, struct varve_err *err)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned n = NETWORK_THREADS_DEFAULT, most;

    o->nbd.pool_threads = o->threads;
    most = o->threads / 4 ? o->threads / 4 : 1;
    if (o->nbd.network_threads > most)
        return varve_err_set(err, EINVAL,
                             "--network-threads %u: more than a fourth of --threads %u, of which "
                             "each takes its part; at most %u",
                             o->nbd.network_threads, o->threads, most);
    if (o->nbd.network_threads)
        return 0;
    if (cpus > 0 && (unsigned long)cpus < n)
        n = (unsigned)cpus;
    o->nbd.network_threads = n < most ? n : most;
    return 0;
}

static int options_defaults(struct varve_options *o, struct varve_err *err)
{
    if (varve_tls_options_check(&o->tls, err) < 0 || options_network_threads(o, err) < 0)
        return -EINVAL;
    if (!o->control && asprintf(&o->control, "%s/%s", o->runtime_dir, VARVE_CONTROL_SOCKET) < 0) {
        o->control = NULL;
        return varve_err_set(err, ENOMEM, "no memory");
    }
    o->default_listen = o->listen.n == 0;
    if (o->default_listen) {
        char *where;
        int rc;

        if (asprintf(&where, "unix:%s/%s", o->runtime_dir, VARVE_NBD_SOCKET) < 0)
            return varve_err_set(err, ENOMEM, "no memory");
        rc = where_add(&o->listen, "listen", where, err);
        free(where);
        return rc;
    }
    return 0;
}

enum varve_options_result varve_options_parse(struct varve_options *o, int argc, char **argv,
                                              struct varve_err *err)
{
    int code, which = 0;

    memset(o, 0, sizeof(*o));
    o->state_dir = VARVE_DEFAULT_STATE_DIR;
    o->runtime_dir = VARVE_DEFAULT_RUNTIME_DIR;
    o->threads = THREADS_DEFAULT;
    o->map_memory = MAP_MEMORY_DEFAULT;
    o->freeze_hook_timeout_ms = FREEZE_HOOK_TIMEOUT_MS;
    varve_nbd_options_default(&o->nbd);

    opterr = 0;
    while ((code = getopt_long(argc, argv, ":", long_options, &which)) != -1) {
        if (code == OPT_HELP) {
            fputs(usage_text, stdout);
            return VARVE_OPTIONS_DONE;
        }
        if (code == OPT_VERSION) {
            puts("varved " PACKAGE_VERSION);
            return VARVE_OPTIONS_DONE;
        }
        if (code == '?' || code == ':') {
            varve_err_set(err, EINVAL, code == ':' ? "%s needs a value" : "no such option: %s",
                          argv[optind - 1]);
            return VARVE_OPTIONS_USAGE;
        }
        if (options_take(o, code, long_options[which].name, optarg, err) < 0)
            return VARVE_OPTIONS_USAGE;
    }
    if (optind < argc) {
        varve_err_set(err, EINVAL, "unexpected argument: %s", argv[optind]);
        return VARVE_OPTIONS_USAGE;
    }
    return options_defaults(o, err) < 0 ? VARVE_OPTIONS_USAGE : VARVE_OPTIONS_RUN;
}

void varve_options_fini(struct varve_options *o)
{
    free(o->control);
    where_fini(&o->listen);
    where_fini(&o->metrics);
    where_fini(&o->web);
}
