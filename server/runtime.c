/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/runtime.h"

#include "server/log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOCK_FILE "varved.lock"

/* Descriptors that a daemon without disks and clients has, and some to spare; what each network
 * thread has. */
#define DESCRIPTORS_MIN    64
#define DESCRIPTORS_THREAD 8

/* A piece of a reply (260 KiB) is made of memory that the process has, rather than of new pages
 * that the kernel must clear: what is free at the end of a heap stays, up to TRIM bytes. */
#define MMAP_BYTES (1 << 20)
#define TRIM_BYTES (16 << 20)

/* The folder is there, or is made; and files can be made in it.  Its name is not durable by that: who makes or
 * takes a disk in it sees to that first (tracker-attach.c), and without one there is nothing to lose. */
static int prepare_dir(const char *what, const char *path, struct varve_err *err)
{
    struct stat st;

    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return varve_err_sys(err, errno, "cannot make the %s directory %s", what, path);
    if (stat(path, &st) < 0)
        return varve_err_sys(err, errno, "%s directory %s", what, path);
    if (!S_ISDIR(st.st_mode))
        return varve_err_set(err, ENOTDIR, "%s directory %s: it is no directory", what, path);
    if (access(path, R_OK | W_OK | X_OK) < 0)
        return varve_err_sys(err, errno, "cannot write to the %s directory %s", what, path);
    return 0;
}

static int runtime_lock(struct varve_runtime *r, const char *dir, struct varve_err *err)
{
    char path[PATH_MAX], pid[32] = "";
    int len = snprintf(path, sizeof(path), "%s/%s", dir, LOCK_FILE), rc;

    if (len < 0 || (size_t)len >= sizeof(path))
        return varve_err_set(err, ENAMETOOLONG, "%s: the path is too long", dir);
    r->lock_fd = r->w->open(r->w, path, O_RDWR | O_CREAT, 0600);
    if (r->lock_fd < 0)
        return varve_err_sys(err, -r->lock_fd, "cannot open %s", path);
    rc = r->w->lock(r->w, r->lock_fd, true);
    if (rc == -EAGAIN) {
        ssize_t got = r->w->pread(r->w, r->lock_fd, pid, sizeof(pid) - 1, 0);

        pid[got > 0 ? strcspn(pid, "\n") : 0] = '\0';
        return varve_err_set(err, EBUSY,
                             "another varved, process %s, runs on %s: stop it, or give another "
                             "--runtime-dir",
                             pid[0] ? pid : "unknown", dir);
    }
    if (rc < 0)
        return varve_err_sys(err, -rc, "cannot lock %s", path);
    snprintf(pid, sizeof(pid), "%d\n", (int)getpid());
    rc = r->w->truncate(r->w, r->lock_fd, 0);
    if (rc == 0)
        rc = r->w->pwrite(r->w, r->lock_fd, pid, strlen(pid), 0);
    if (rc < 0) /* only who comes second would read it; backups can be ended on a full file system */
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING), "cannot write %s: %s", path,
                        strerror(-rc));
    return 0;
}

/* Each epoch of each open view costs three, each client one.  libuv ends the process without a word
 * where it cannot have those of its own. */
static int runtime_descriptors(const struct varve_options *o, struct varve_err *err)
{
    int least = DESCRIPTORS_MIN + DESCRIPTORS_THREAD * (int)o->nbd.network_threads;
    int fd = open("/", O_PATH | O_CLOEXEC), free_one;
    struct rlimit files = {.rlim_cur = 0};

    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    free_one = fcntl(fd, F_DUPFD_CLOEXEC, least);
    if (fd >= 0)
        close(fd);
    if (free_one < 0)
        return varve_err_sys(err, EMFILE,
                             "the limit of open files is %llu, varved needs more than %d (ulimit "
                             "-Hn, LimitNOFILE=)",
                             (unsigned long long)files.rlim_cur, least);
    close(free_one);
    return 0;
}

int varve_runtime_prepare(struct varve_runtime *r, struct varve_world *w,
                          const struct varve_options *o, struct varve_err *err)
{
    char threads[16];
    int rc;

    r->w = w;
    r->lock_fd = -1;
    rc = runtime_descriptors(o, err);
    if (rc == 0)
        rc = prepare_dir("runtime", o->runtime_dir, err);
    if (rc == 0)
        rc = prepare_dir("state", o->state_dir, err);
    if (rc == 0)
        rc = runtime_lock(r, o->runtime_dir, err);
    if (rc < 0)
        return rc;

    mallopt(M_MMAP_THRESHOLD, MMAP_BYTES);
    mallopt(M_TRIM_THRESHOLD, TRIM_BYTES);
    signal(SIGPIPE, SIG_IGN);
    snprintf(threads, sizeof(threads), "%u", o->threads);
    setenv("UV_THREADPOOL_SIZE", threads, 1);
    return 0;
}

void varve_runtime_release(struct varve_runtime *r)
{
    if (r->lock_fd >= 0)
        r->w->close(r->w, r->lock_fd);
}
