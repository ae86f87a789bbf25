/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The process that owns a thaw: varved, started anew with another main().
 *
 *     lock the record ── another has it ──▶ say so, leave
 *          │ freeze
 *          ▼
 *     HOOK freeze ── fails, is late, or the daemon is gone ──▶ HOOK thaw, "refused"
 *          │ "frozen"
 *          ▼
 *     wait for: "thaw" ──▶ HOOK thaw, "thawed"
 *               the deadline ──▶ HOOK thaw, "too late"
 *               the daemon's end ──▶ HOOK thaw
 *
 *  1. Whatever happened before, HOOK thaw runs once HOOK freeze was started.
 *  2. The record goes when a thaw has succeeded, and only then.
 *  3. No signal that a service manager sends to all processes of a service ends this one or the
 * thaw.
 *
 * One thread.  Its standard error is the daemon's log.
 */
#include "server/freeze.h"

#include "lib/qmp.h"
#include "lib/whole-file.h"
#include "server/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Between attempts to thaw. */
#define RETRY_MS 1000
/* How long a hook that was killed is waited for: the kernel may hold it in a system call. */
#define KILLED_MS 1000

struct keeper {
    struct varve_world *w;
    const char *path; /* of the record */
    int record_fd, sock, child_fd;
    json_t *record;
    const char *hook;
    uint64_t timeout_ms;
};

static void say(const struct keeper *k, enum varve_freeze_message what, const char *why)
{
    char msg[256];
    int len = snprintf(msg, sizeof(msg), "%c%s", (char)what, why);

    if (k->sock >= 0)
        send(k->sock, msg, len < (int)sizeof(msg) ? (size_t)len : sizeof(msg) - 1, MSG_NOSIGNAL);
}

static int left_ms(const struct keeper *k, uint64_t until_ns)
{
    uint64_t now = k->w->monotonic_ns(k->w);

    return now >= until_ns ? 0 : (int)((until_ns - now) / 1000000 + 1);
}

/* --- one run of the hook ---------------------------------------------------------------------- */

/* In the child.  Says by `fd` why it cannot run the hook. */
static void hook_exec(const struct keeper *k, const char *verb, bool deaf, int fd)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP, SIGPIPE};
    sigset_t none;
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC), why;

    setpgid(0, 0);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        signal(numbers[i], deaf ? SIG_IGN : SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    dup2(null, STDIN_FILENO);
    dup2(STDERR_FILENO, STDOUT_FILENO);
    execl(k->hook, k->hook, verb, (char *)NULL);
    why = errno;
    if (write(fd, &why, sizeof(why)) < 0)
        _exit(126);
    _exit(127);
}

/* 0: it has ended, *status says how.  -ETIME: it has not.  -EPIPE: the daemon is gone (if `heed`).
 */
static int hook_wait(const struct keeper *k, pid_t pid, uint64_t until_ns, bool heed, int *status)
{
    for (;;) {
        struct pollfd fds[2] = {{.fd = k->child_fd, .events = POLLIN},
                                {.fd = heed ? k->sock : -1, .events = POLLRDHUP}};
        struct signalfd_siginfo unused;
        int n;

        if (waitpid(pid, status, WNOHANG) == pid)
            return 0;
        n = poll(fds, 2, left_ms(k, until_ns));
        if (n == 0)
            return -ETIME;
        if (n > 0 && (fds[1].revents & (POLLRDHUP | POLLHUP)))
            return -EPIPE;
        if (n > 0 && fds[0].revents && read(k->child_fd, &unused, sizeof(unused)) < 0)
            continue;
    }
}

/* why[200] is set unless it returns true. */
static bool hook_run(const struct keeper *k, const char *verb, bool heed, char why[200])
{
    uint64_t until = k->w->monotonic_ns(k->w) + k->timeout_ms * 1000000;
    int fds[2], status = 0, no_exec = 0, rc;
    pid_t pid;

    if (pipe2(fds, O_CLOEXEC) < 0) {
        snprintf(why, 200, "%.100s cannot be run: %s", k->hook, strerror(errno));
        return false;
    }
    pid = fork();
    if (pid == 0)
        hook_exec(k, verb, !heed, fds[1]);
    close(fds[1]);
    if (pid < 0) {
        snprintf(why, 200, "%.100s cannot be run: %s", k->hook, strerror(errno));
        close(fds[0]);
        return false;
    }
    setpgid(pid, pid);
    rc = hook_wait(k, pid, until, heed, &status);
    if (rc < 0) {
        kill(-pid, SIGKILL);
        hook_wait(k, pid, k->w->monotonic_ns(k->w) + KILLED_MS * UINT64_C(1000000), false, &status);
    }
    if (read(fds[0], &no_exec, sizeof(no_exec)) != sizeof(no_exec))
        no_exec = 0;
    close(fds[0]);
    if (rc == -EPIPE)
        snprintf(why, 200, "the daemon has ended while '%.80s %s' ran", k->hook, verb);
    else if (rc < 0)
        snprintf(why, 200, "'%.100s %s' did not end within %llu ms", k->hook, verb,
                 (unsigned long long)k->timeout_ms);
    else if (no_exec)
        snprintf(why, 200, "%.100s cannot be run: %s", k->hook, strerror(no_exec));
    else if (WIFSIGNALED(status))
        snprintf(why, 200, "'%.100s %s' was ended by signal %d", k->hook, verb, WTERMSIG(status));
    else if (WEXITSTATUS(status) != 0)
        snprintf(why, 200, "'%.100s %s' failed with exit status %d", k->hook, verb,
                 WEXITSTATUS(status));
    else
        return true;
    return false;
}

/* --- the thaw --------------------------------------------------------------------------------- */

static void record_remove(const struct keeper *k)
{
    char dir[PATH_MAX];
    int rc = k->w->unlink(k->w, k->path);

    varve_path_folder(k->path, dir);
    if (rc == 0)
        rc = k->w->sync_dir(k->w, dir);
    if (rc < 0)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING), "cannot remove %s: %s", k->path,
                        strerror(-rc)); /* thawing twice does no harm */
}

static bool thaw(const struct keeper *k, char why[200])
{
    for (unsigned n = 0; n < VARVE_FREEZE_THAW_TRIES; n++) {
        if (n > 0)
            poll(NULL, 0, RETRY_MS);
        if (hook_run(k, "thaw", false, why)) {
            record_remove(k);
            return true;
        }
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING), "freeze hook: %s", why);
    }
    varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_ERROR),
                    "THE THAW FAILED, disks may still be frozen: %s; thaw by hand and remove %s",
                    why, k->path);
    return false;
}

static void freeze(const struct keeper *k)
{
    char why[200] = "", thaw_why[200], both[256];
    struct pollfd fd = {.fd = k->sock, .events = POLLIN | POLLRDHUP};
    char ask = 0;
    int n;

    if (!hook_run(k, "freeze", true, why)) {
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING), "freeze hook: %s", why);
        if (thaw(k, thaw_why))
            snprintf(both, sizeof(both), "the freeze hook refuses the backup: %s", why);
        else
            snprintf(both, sizeof(both), "%.100s; THE THAW FAILED TOO: %.120s", why, thaw_why);
        say(k, VARVE_FREEZE_REFUSED, both);
        return;
    }
    say(k, VARVE_FREEZE_FROZEN, "");
    do {
        n = poll(&fd, 1, (int)k->timeout_ms);
    } while (n < 0 && errno == EINTR);
    if (n > 0 && recv(k->sock, &ask, 1, MSG_DONTWAIT) != 1)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING),
                        "freeze hook: the daemon has ended while disks were frozen: thawing");
    if (n == 0)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING),
                        "freeze hook: frozen for %llu ms: thawing",
                        (unsigned long long)k->timeout_ms);
    if (!thaw(k, why))
        say(k, VARVE_FREEZE_STILL_OWED, why);
    else if (n == 0)
        say(k, VARVE_FREEZE_TOO_LATE,
            "the boundary took longer than --freeze-hook-timeout, and everything was thawed before "
            "it was made");
    else
        say(k, VARVE_FREEZE_THAWED, "");
}

static void thaw_owed(const struct keeper *k)
{
    char why[200];

    if (!thaw(k, why)) {
        say(k, VARVE_FREEZE_STILL_OWED, why);
        return;
    }
    varve_log("freeze hook: thawed what was owed");
    say(k, VARVE_FREEZE_THAWED, "");
}

/* --- the beginning ---------------------------------------------------------------------------- */

static int record_read(struct keeper *k, struct varve_err *err)
{
    json_t *disk, *disks = NULL;
    const char *backup = "";
    json_int_t format = 0, timeout_ms = 0;
    char names[4096] = "";
    size_t len, i;
    char *text;
    int rc = varve_whole_file_read(k->w, k->path, VARVE_FREEZE_RECORD_MAX, &text, &len, err);

    if (rc < 0)
        return rc;
    k->record = json_loadb(text, len, 0, NULL);
    free(text);
    if (json_unpack(k->record, "{s:I, s:s, s:I, s:s, s:o}", "format", &format, "hook", &k->hook,
                    "timeout-ms", &timeout_ms, "backup", &backup, "disks", &disks) < 0 ||
        format != 1 || k->hook[0] != '/' || timeout_ms < 1 || timeout_ms > INT32_MAX)
        return varve_err_set(err, EUCLEAN,
                             "%s cannot be read: thaw by hand what the freeze hook froze, and "
                             "remove it",
                             k->path);
    k->timeout_ms = (uint64_t)timeout_ms;
    json_array_foreach(disks, i, disk)
    {
        const char *name = json_string_value(disk);
        size_t at = strlen(names);

        if (name)
            snprintf(names + at, sizeof(names) - at, "%s%s", at ? " " : "", name);
    }
    setenv("VARVE_BACKUP", backup, 1);
    setenv("VARVE_DISKS", names, 1);
    return 0;
}

/* Whoever has it locked owns the thaw. */
static int record_lock(struct keeper *k)
{
    k->record_fd = k->w->open(k->w, k->path, O_RDWR, 0);
    if (k->record_fd < 0)
        return k->record_fd;
    return k->w->lock(k->w, k->record_fd, true);
}

static int child_fd_open(void)
{
    sigset_t child;

    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_SETMASK, &child, NULL);
    return signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
}

int varve_freeze_keeper(const char *mode, const char *record)
{
    static const int deaf[] = {SIGTERM, SIGINT, SIGHUP, SIGPIPE};
    bool alone = strcmp(mode, VARVE_FREEZE_MODE_ALONE) == 0;
    struct keeper k = {.w = varve_world_posix(), .path = record, .sock = VARVE_FREEZE_SOCK};
    struct varve_err err = VARVE_ERR_INIT;
    pid_t pid;
    int rc;

    for (size_t i = 0; i < sizeof(deaf) / sizeof(deaf[0]); i++)
        signal(deaf[i], SIG_IGN);
    pid = fork();
    if (pid > 0)
        _exit(0);
    setsid();
    if (alone || fcntl(k.sock, F_SETFD, FD_CLOEXEC) < 0)
        k.sock = -1;
    k.child_fd = child_fd_open();
    rc = record_lock(&k);
    if (rc == -EAGAIN || rc == -ENOENT) { /* another keeper thaws, or has just done it */
        say(&k, rc == -ENOENT ? VARVE_FREEZE_THAWED : VARVE_FREEZE_OTHER_KEEPER, "");
        return 0;
    }
    if (rc < 0)
        varve_err_sys(&err, -rc, "cannot open %s", record);
    else
        rc = record_read(&k, &err);
    if (rc < 0) {
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_ERROR), "%s", err.msg);
        json_decref(k.record);
        say(&k,
            strcmp(mode, VARVE_FREEZE_MODE) == 0 ? VARVE_FREEZE_REFUSED : VARVE_FREEZE_STILL_OWED,
            err.msg);
        return 1;
    }
    if (strcmp(mode, VARVE_FREEZE_MODE) == 0)
        freeze(&k);
    else
        thaw_owed(&k);
    json_decref(k.record);
    return 0;
}
