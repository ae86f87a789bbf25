/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The control socket with the whole daemon behind it: connection, requests, commands on the clerk's
 * thread, replies, the end.  There is one disk that nobody serves.  The input:
 *
 *     0   flags, below
 *     1   seed of the places where the stream is cut into writes
 *     2   the event, if any, happens after so many writes
 *     3   the stream
 *
 * Each message of the stream gets one reply, in order and with its id.
 */
#include "server/control.h"
#include "server/job.h"
#include "server/log.h"
#include "tests/fuzz/alloc.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/peer.h"
#include "tests/fuzz/world.h"
#include "tests/lib/tmpdir.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#define FLAG_LAZY    0x01 /* reads nothing while it can write */
#define FLAG_STOP    0x02 /* event: the daemon ends */
#define FLAG_HANG_UP 0x04 /* event: the client closes its socket */
#define FLAG_MEMORY  0x08 /* the daemon runs out of memory at the allocation that byte 2 tells, */
#define FLAG_NO_MORE 0x10 /* and gets no more until the client has gone */
#define FLAG_LATER   0x20 /* at one 256 later */

/* As of server/control-conn.c: it hangs up after so many refused messages in a row. */
#define GARBAGE_MAX 16u

#define IMAGE_SIZE (1u << 20)

struct run {
    uint8_t flags;
    struct varve_options options;
    struct varve_daemon daemon;
    struct varve_control *control;
    struct restore {
        struct varve_job job; /* first */
        struct varve_daemon *daemon;
    } restore;
    uv_async_t clerk; /* the clerk has ended */
    bool stopping, nbd_closed, clerk_ended, closed;

    struct fuzz_peer peer;
    struct varve_qmp_reader *asked, *answers;
    unsigned garbage; /* messages refused in a row */
    bool greeted;
    bool refused; /* too much of that, or too long: it hangs up */
};

static uv_loop_t loop;
static bool begun;
static char control_path[PATH_MAX];

/* In place of the daemon's own: a fuzzer has no use for its log. */
void varve_log(const char *fmt, ...)
{
    (void)fmt;
}

void varve_log_about(const struct varve_log_about *about, const char *fmt, ...)
{
    (void)about;
    (void)fmt;
}

/* --- the daemon, as server/main.c runs it ----------------------------------------------------- */

static void on_control_closed(void *arg)
{
    struct run *r = arg;

    varve_events_close(r->daemon.events);
    uv_close((uv_handle_t *)&r->clerk, NULL);
    r->closed = true;
}

static void on_jobs_closed(void *arg)
{
    struct run *r = arg;

    varve_clerk_join(r->daemon.clerk);
    varve_control_close(r->control, on_control_closed, r);
}

static void maybe_close(struct run *r)
{
    if (!r->clerk_ended || !r->nbd_closed)
        return;
    varve_jobs_close(r->daemon.jobs, on_jobs_closed, r);
}

static void on_nbd_closed(void *arg)
{
    struct run *r = arg;

    r->nbd_closed = true;
    maybe_close(r);
}

static void on_clerk_ended(uv_async_t *async)
{
    struct run *r = async->data;

    r->clerk_ended = true;
    maybe_close(r);
}

/* On the clerk's thread. */
static void clerk_on_end(void *arg)
{
    uv_async_send(&((struct run *)arg)->clerk);
}

static void clerk_restore(struct varve_job *job, bool stopping)
{
    if (!stopping)
        varve_daemon_restore(((struct restore *)job)->daemon);
}

static void on_quit(void *arg)
{
    (void)arg; /* asked, and answered; the input says when it really ends */
}

/* The folders, with a disk in them. */
static void make_state(struct run *r)
{
    static char state[PATH_MAX], runtime[PATH_MAX];
    char path[PATH_MAX], identity[2 * PATH_MAX];

    tmpdir_empty(fuzz_dir());
    snprintf(state, sizeof(state), "%s/state", fuzz_dir());
    snprintf(runtime, sizeof(runtime), "%s/run", fuzz_dir());
    snprintf(control_path, sizeof(control_path), "%s/c", fuzz_dir());
    snprintf(path, sizeof(path), "%s/state/disk", fuzz_dir());
    FUZZ_CHECK(mkdir(state, 0700) == 0 && mkdir(runtime, 0700) == 0 && mkdir(path, 0700) == 0);
    snprintf(path, sizeof(path), "%s/image", fuzz_dir());
    snprintf(identity, sizeof(identity),
             "{\"format\": 1, \"uuid\": \"00112233-4455-6677-8899-aabbccddeeff\", "
             "\"image\": \"%s\", \"size\": %u, \"block-size\": 4096}",
             path, IMAGE_SIZE);
    fuzz_write_file(path, "", 1, IMAGE_SIZE - 1);
    snprintf(path, sizeof(path), "%s/state/disk/disk.json", fuzz_dir());
    fuzz_write_file(path, identity, strlen(identity), 0);
    r->options.state_dir = state;
    r->options.runtime_dir = runtime;
    r->options.control = control_path;
    varve_nbd_options_default(&r->options.nbd);
}

static void daemon_begin(struct run *r)
{
    struct varve_daemon *d = &r->daemon;
    struct varve_err err = VARVE_ERR_INIT;

    d->w = fuzz_world();
    d->options = &r->options;
    varve_daemon_init(d);
    d->exports = varve_exports_new();
    FUZZ_CHECK(d->exports && uv_async_init(&loop, &r->clerk, on_clerk_ended) == 0);
    r->clerk.data = r;
    FUZZ_CHECK(varve_catalogue_open(d->w, r->options.state_dir, &d->store, &d->catalogue, &err) ==
               0);
    FUZZ_CHECK(varve_control_new(&loop, d, on_quit, r, &r->control, &err) == 0);
    FUZZ_CHECK(varve_events_new(&loop, varve_control_event, r->control, &d->events, &err) == 0);
    FUZZ_CHECK(varve_jobs_new(&loop, d, &err) == 0);
    FUZZ_CHECK(varve_nbd_server_new(&loop, d->exports, &r->options.nbd, &d->nbd, &err) == 0);
    FUZZ_CHECK(varve_clerk_start(varve_daemon_tick, d, clerk_on_end, r, &d->clerk, &err) == 0);
    r->restore.job.run = clerk_restore;
    r->restore.daemon = d;
    varve_clerk_post(d->clerk, &r->restore.job);
    FUZZ_CHECK(varve_control_listen(r->control, control_path, &err) == 0);
}

static void daemon_stop(struct run *r)
{
    if (r->stopping)
        return;
    r->stopping = true;
    varve_control_stop(r->control);
    varve_jobs_stop(r->daemon.jobs);
    varve_clerk_stop(r->daemon.clerk);
    varve_nbd_server_close(r->daemon.nbd, FUZZ_HANG_MS, on_nbd_closed, r);
}

static void daemon_end(struct run *r)
{
    uint64_t begin = fuzz_now_ms();

    daemon_stop(r);
    uv_run(&loop, UV_RUN_DEFAULT);
    FUZZ_CHECK(r->closed && fuzz_now_ms() - begin < FUZZ_HANG_MS);
    varve_daemon_fini(&r->daemon);
    varve_nbd_server_free(r->daemon.nbd);
    varve_exports_free(r->daemon.exports);
}

/* --- the client ----------------------------------------------------------------------------- */

static void on_event(void *arg)
{
    struct run *r = arg;

    if (r->flags & FLAG_STOP)
        daemon_stop(r);
    if (r->flags & FLAG_HANG_UP)
        fuzz_peer_hang_up(&r->peer);
}

/* Who could not take the message apart for want of memory does not know its id. */
static bool lacked_memory(const struct run *r, json_t *reply)
{
    const char *desc = json_string_value(json_object_get(json_object_get(reply, "error"), "desc"));

    return r->flags & FLAG_MEMORY && desc && strncmp(desc, "no memory for a message", 23) == 0;
}

static void judge_reply(struct run *r, json_t *reply)
{
    bool failed = json_is_object(json_object_get(reply, "error"));
    struct varve_err err = VARVE_ERR_INIT;
    json_t *message;
    int rc;

    FUZZ_CHECK(failed != (json_object_get(reply, "return") != NULL) && !r->refused);
    rc = varve_qmp_reader_next(r->asked, &message, &err);
    FUZZ_CHECK(rc != 0);
    if (rc == 1) {
        json_t *id = json_object_get(message, "id"), *same = json_object_get(reply, "id");

        FUZZ_CHECK(id && !lacked_memory(r, reply) ? json_equal(id, same) : !same);
        json_decref(message);
        r->garbage = 0;
        return;
    }
    FUZZ_CHECK(failed && !json_object_get(reply, "id"));
    r->refused = rc == -E2BIG || ++r->garbage == GARBAGE_MAX;
}

static void judge_bytes(struct run *r, const uint8_t *buf, size_t len)
{
    struct varve_err err = VARVE_ERR_INIT;
    json_t *reply;
    int rc;

    FUZZ_CHECK(varve_qmp_reader_feed(r->answers, (const char *)buf, len, &err) == 0);
    while ((rc = varve_qmp_reader_next(r->answers, &reply, &err)) != 0) {
        FUZZ_CHECK(rc == 1);
        if (!r->greeted)
            FUZZ_CHECK(json_object_get(reply, "QMP"));
        else if (!json_object_get(reply, "event"))
            judge_reply(r, reply);
        r->greeted = true;
        json_decref(reply);
    }
}

static void on_bytes(void *arg, const uint8_t *buf, size_t len)
{
    fuzz_alloc_exempt = true;
    judge_bytes(arg, buf, len);
    fuzz_alloc_exempt = false;
}

static void judge_end(struct run *r)
{
    struct varve_err err = VARVE_ERR_INIT;
    json_t *message;

    FUZZ_CHECK(r->greeted && varve_qmp_reader_idle(r->answers));
    FUZZ_CHECK(r->refused || varve_qmp_reader_next(r->asked, &message, &err) == 0);
}

static void fuzz_end(void)
{
    uv_loop_close(&loop);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct run r = {0};

    if (size < 3)
        return -1;
    if (!begun) {
        begun = true;
        signal(SIGPIPE, SIG_IGN);
        FUZZ_CHECK(uv_loop_init(&loop) == 0);
        atexit(fuzz_end);
    }
    r.flags = data[0];
    r.asked = varve_qmp_reader_new(VARVE_QMP_MESSAGE_MAX);
    r.answers = varve_qmp_reader_new(64 * VARVE_QMP_MESSAGE_MAX);
    FUZZ_CHECK(r.asked && r.answers);
    FUZZ_CHECK(varve_qmp_reader_feed(r.asked, (const char *)data + 3, size - 3, &err) == 0);
    r.peer = (struct fuzz_peer){
        .loop = &loop,
        .stream = data + 3,
        .len = size - 3,
        .cuts = {data[1]},
        .lazy = r.flags & FLAG_LAZY,
        .event_at = data[2],
        .event = r.flags & (FLAG_STOP | FLAG_HANG_UP) ? on_event : NULL,
        .got = on_bytes,
        .arg = &r,
        .disturbed = r.flags & FLAG_MEMORY,
    };
    make_state(&r);
    daemon_begin(&r);
    if (r.flags & FLAG_MEMORY)
        fuzz_alloc_fail(data[2] + (r.flags & FLAG_LATER ? 257u : 1u), r.flags & FLAG_NO_MORE);
    fuzz_peer_run(&r.peer, control_path);
    fuzz_alloc_works();
    if (r.peer.in_full)
        judge_end(&r);
    daemon_end(&r);
    varve_qmp_reader_free(r.asked);
    varve_qmp_reader_free(r.answers);
    return 0;
}
