/* SPDX-License-Identifier: BSD-3-Clause
 *
 *     record "thaw owed", durable          from here on somebody will thaw, whatever dies
 *     keeper starts, locks the record, runs HOOK freeze
 *     "frozen"                             the boundary is made
 *     "thaw"                               keeper runs HOOK thaw, removes the record, says so
 *
 * The keeper thaws when it is asked to, at its deadline, or when our end of the socket is gone.  If
 * it dies as well (the machine does), the next daemon finds the record and starts another keeper.
 */
#include "server/freeze.h"

#include "lib/json.h"
#include "lib/qmp.h"
#include "lib/whole-file.h"
#include "server/log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a keeper may need beyond its hooks' deadlines. */
#define GRACE_MS 10000

static int record_path(struct varve_daemon *d, char path[PATH_MAX], struct varve_err *err)
{
    int len = snprintf(path, PATH_MAX, "%s/%s", d->options->state_dir, VARVE_FREEZE_RECORD);

    if (len < 0 || len >= PATH_MAX)
        return varve_err_set(err, ENAMETOOLONG, "the state directory's path is too long");
    return 0;
}

static bool record_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static int record_write(struct varve_freeze *f, const char *path,
                        const struct varve_boundary_disk *disks, size_t ndisks,
                        struct varve_err *err)
{
    const struct varve_options *o = f->daemon->options;
    json_t *names = json_array(), *record;
    char *text;
    int rc;

    for (size_t i = 0; i < ndisks; i++)
        json_array_append_new(names, json_string(disks[i].disk->name));
    record =
        json_pack("{s:i, s:s, s:I, s:s, s:o}", "format", 1, "hook", o->freeze_hook, "timeout-ms",
                  (json_int_t)o->freeze_hook_timeout_ms, "backup", f->backup, "disks", names);
    text = record ? varve_json_dump(record, JSON_INDENT(1)) : NULL;
    json_decref(record);
    if (!text)
        return varve_err_set(err, ENOMEM, "no memory for the freeze hook");
    rc = varve_whole_file_replace(f->daemon->w, path, text, strlen(text), err);
    free(text);
    return rc;
}

/* Starts a keeper.  sock: its end, or -1. */
static int keeper_start(const char *mode, const char *record, int sock, struct varve_err *err)
{
    char name[] = "varved", arg[] = VARVE_FREEZE_KEEPER_ARG, how[16], path[PATH_MAX];
    char *argv[] = {name, arg, how, path, NULL};
    posix_spawn_file_actions_t files;
    pid_t pid;
    int rc;

    snprintf(how, sizeof(how), "%s", mode);
    snprintf(path, sizeof(path), "%s", record);
    posix_spawn_file_actions_init(&files);
    if (sock >= 0)
        posix_spawn_file_actions_adddup2(&files, sock, VARVE_FREEZE_SOCK);
    rc = posix_spawn(&pid, "/proc/self/exe", &files, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    if (rc != 0)
        return varve_err_sys(err, rc, "cannot start the freeze hook's keeper");
    /* It forks at once, so that it is nobody's child and outlives us; this is its parent half. */
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    return 0;
}

static int keeper_start_listened(struct varve_freeze *f, const char *mode, const char *record,
                                 struct varve_err *err)
{
    int pair[2], rc;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return varve_err_sys(err, errno, "cannot start the freeze hook's keeper");
    rc = keeper_start(mode, record, pair[1], err);
    close(pair[1]);
    if (rc < 0)
        close(pair[0]);
    else
        f->sock = pair[0];
    return rc;
}

static void keeper_leave(struct varve_freeze *f)
{
    if (f->sock >= 0)
        close(f->sock);
    f->sock = -1;
}

/* The keeper's next message: its first byte, the rest in why[256].  Negative: err says what became
 * of it, and the keeper is left to itself. */
static int keeper_hear(struct varve_freeze *f, unsigned hooks, char why[256], struct varve_err *err)
{
    uint64_t timeout_ms = (uint64_t)f->daemon->options->freeze_hook_timeout_ms * hooks + GRACE_MS;
    struct pollfd fds[2] = {{.fd = f->sock, .events = POLLIN},
                            {.fd = varve_clerk_stop_fd(f->daemon->clerk), .events = POLLIN}};
    char msg[256] = "";
    ssize_t got = 0;
    int n;

    do {
        n = poll(fds, 2, timeout_ms > INT_MAX ? INT_MAX : (int)timeout_ms);
    } while (n < 0 && errno == EINTR);
    if (n > 0 && fds[0].revents) {
        got = recv(f->sock, msg, sizeof(msg) - 1, MSG_DONTWAIT);
        /* It left without having read what we asked.  What it said before is there nevertheless. */
        if (got < 0 && errno == ECONNRESET)
            got = recv(f->sock, msg, sizeof(msg) - 1, MSG_DONTWAIT);
    }
    if (got > 0) {
        msg[got] = '\0';
        snprintf(why, 256, "%s", msg + 1);
        return (unsigned char)msg[0];
    }
    keeper_leave(f);
    if (n > 0 && !fds[0].revents)
        return varve_err_set(err, ESHUTDOWN, "the daemon ends");
    return varve_err_set(err, EIO, "the freeze hook's keeper %s; %s/%s says what may be frozen",
                         n == 0 ? "does not answer" : "has died", f->daemon->options->state_dir,
                         VARVE_FREEZE_RECORD);
}

/* What a former keeper could not thaw. */
static int owed_thaw(struct varve_freeze *f, const char *path, struct varve_err *err)
{
    char why[256];
    int rc = keeper_start_listened(f, VARVE_FREEZE_MODE_THAW, path, err);

    if (rc == 0)
        rc = keeper_hear(f, VARVE_FREEZE_THAW_TRIES, why, err);
    keeper_leave(f);
    if (rc < 0)
        return rc;
    if (rc == VARVE_FREEZE_THAWED)
        return 0;
    if (rc == VARVE_FREEZE_OTHER_KEEPER)
        return varve_err_set(err, EBUSY,
                             "the freeze hook of an earlier backup still runs: try again");
    return varve_err_set(err, EBUSY,
                         "an earlier backup's freeze hook still owes a thaw (%s): thaw by hand and "
                         "remove %s",
                         why, path);
}

int varve_freeze_check(struct varve_daemon *d, struct varve_err *err)
{
    if (d->options->freeze_hook)
        return 0;
    return varve_err_set(err, EINVAL,
                         "There is no freeze hook: start varved with --freeze-hook, or begin the "
                         "backup without 'freeze'");
}

void varve_freeze_init(struct varve_freeze *f, struct varve_daemon *d, const char *backup)
{
    *f = (struct varve_freeze){.daemon = d, .backup = backup, .sock = -1};
}

int varve_freeze_freeze(struct varve_freeze *f, const struct varve_boundary_disk *disks,
                        size_t ndisks, struct varve_err *err)
{
    char path[PATH_MAX], why[256];
    int rc = record_path(f->daemon, path, err);

    if (rc == 0 && record_exists(path))
        rc = owed_thaw(f, path, err);
    if (rc == 0)
        rc = record_write(f, path, disks, ndisks, err);
    if (rc < 0)
        return rc;
    rc = keeper_start_listened(f, VARVE_FREEZE_MODE, path, err);
    if (rc < 0) {
        f->daemon->w->unlink(f->daemon->w, path); /* nothing has run */
        return rc;
    }
    rc = keeper_hear(f, 1 + VARVE_FREEZE_THAW_TRIES, why, err);
    if (rc == VARVE_FREEZE_FROZEN)
        return 0;
    keeper_leave(f);
    return rc < 0 ? rc : varve_err_set(err, EIO, "%s", why);
}

static void thaw_failed(struct varve_freeze *f, const char *why)
{
    snprintf(f->thaw_error, sizeof(f->thaw_error), "%s", why);
    varve_log_about(
        VARVE_ABOUT(.level = VARVE_LOG_ERROR, .backup = f->backup),
        "Backup '%s': THE THAW FAILED, what the freeze hook froze may still be frozen: %s",
        f->backup, why);
    varve_events_send(f->daemon->events, "THAW_FAILED",
                      json_pack("{s:s, s:s}", "id", f->backup, "reason", why));
}

int varve_freeze_thaw(struct varve_freeze *f, struct varve_err *err)
{
    struct varve_err lost = VARVE_ERR_INIT;
    char ask = VARVE_FREEZE_ASK_THAW, why[256];
    int rc;

    if (send(f->sock, &ask, 1, MSG_NOSIGNAL) < 0 && errno != EPIPE)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .backup = f->backup),
                        "Backup '%s': cannot ask for the thaw: %s", f->backup, strerror(errno));
    rc = keeper_hear(f, VARVE_FREEZE_THAW_TRIES, why, &lost);
    keeper_leave(f);
    if (rc == VARVE_FREEZE_THAWED)
        return 0;
    if (rc == VARVE_FREEZE_TOO_LATE)
        return varve_err_set(err, ETIME, "%s", why);
    if (rc == -ESHUTDOWN)
        return varve_err_set(err, -rc, "%s", lost.msg); /* the keeper goes on without us */
    /* A keeper that died may have thawed at its deadline: no believing in this boundary. */
    if (rc < 0) {
        thaw_failed(f, lost.msg);
        return varve_err_set(err, -rc, "%s", lost.msg);
    }
    thaw_failed(f, why);
    return 0;
}

void varve_freeze_redeem(struct varve_daemon *d)
{
    struct varve_err err = VARVE_ERR_INIT;
    char path[PATH_MAX];

    if (record_path(d, path, &err) < 0 || !record_exists(path))
        return;
    varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING),
                    "a thaw is owed since a former daemon: running the freeze hook of %s", path);
    if (keeper_start(VARVE_FREEZE_MODE_ALONE, path, -1, &err) < 0)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_ERROR),
                        "%s; WHAT IT FROZE MAY STILL BE FROZEN", err.msg);
}
