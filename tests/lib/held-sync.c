/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/held-sync.h"

#include "lib/intent.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Guards all below. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct {
    bool hold, held;
    unsigned failing, count;
} files[HELD_FILES];
static uint8_t durable_log[VARVE_INTENT_BYTES];
static void (*on_image)(int fd);

static int (*sound_sync)(struct varve_world *w, int fd);

static int file_of(int fd)
{
    char link[64], path[PATH_MAX];
    ssize_t len;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    len = readlink(link, path, sizeof(path) - 1);
    if (len < 0)
        return -1;
    path[len] = '\0';
    if (strstr(path, "/intent.log"))
        return HELD_LOG;
    if (strstr(path, ".map"))
        return HELD_MAP;
    return len > 6 && strcmp(path + len - 6, "/image") == 0 ? HELD_IMAGE : -1;
}

/* The descriptor need not be one to read. */
static int note_log(int fd)
{
    char path[64];
    int own, r;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    own = open(path, O_RDONLY | O_CLOEXEC);
    if (own < 0)
        return -errno;
    r = pread(own, durable_log, sizeof(durable_log), 0) < 0 ? -errno : 0;
    close(own);
    return r;
}

/* What was to be written is gone, as where its pages leave memory after such an error. */
static int lose(int fd, int file)
{
    if (file == HELD_MAP)
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8192, 1 << 20);
    if (file == HELD_LOG && pwrite(fd, durable_log, sizeof(durable_log), 0) < 0)
        return -errno;
    return -EIO;
}

static int the_sync(struct varve_world *w, int fd)
{
    int file = file_of(fd), r = 0;

    if (file < 0)
        return sound_sync(w, fd);
    if (file == HELD_IMAGE && on_image)
        on_image(fd);
    pthread_mutex_lock(&lock);
    files[file].count++;
    if (files[file].hold) {
        files[file].held = true;
        pthread_cond_broadcast(&changed);
        while (files[file].hold)
            pthread_cond_wait(&changed, &lock);
        files[file].held = false;
    }
    if (files[file].failing > 0) {
        files[file].failing--;
        r = lose(fd, file);
    }
    if (r == 0 && file == HELD_LOG)
        r = note_log(fd);
    pthread_mutex_unlock(&lock);
    return r < 0 ? r : sound_sync(w, fd);
}

void held_init(struct core *c)
{
    memset(files, 0, sizeof(files));
    memset(durable_log, 0, sizeof(durable_log));
    on_image = NULL;
    sound_sync = c->machine.sync;
    c->machine.sync = the_sync;
    c->machine.sync_all = the_sync;
}

void held_hold(enum held_file file)
{
    pthread_mutex_lock(&lock);
    files[file].hold = true;
    pthread_mutex_unlock(&lock);
}

void held_wait(enum held_file file)
{
    struct timespec until;
    int r = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    pthread_mutex_lock(&lock);
    while (r == 0 && !files[file].held)
        r = pthread_cond_timedwait(&changed, &lock, &until);
    pthread_mutex_unlock(&lock);
    if (r != 0) {
        fprintf(stderr, "held-sync: no sync of file %d came\n", (int)file);
        abort();
    }
}

void held_go(enum held_file file)
{
    pthread_mutex_lock(&lock);
    files[file].hold = false;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

void held_fail(enum held_file file, unsigned n)
{
    pthread_mutex_lock(&lock);
    files[file].failing = n;
    pthread_mutex_unlock(&lock);
}

unsigned held_count(enum held_file file)
{
    unsigned n;

    pthread_mutex_lock(&lock);
    n = files[file].count;
    pthread_mutex_unlock(&lock);
    return n;
}

void held_on_image(void (*each)(int fd))
{
    on_image = each;
}

bool held_log_has(uint64_t region)
{
    uint64_t bit = region % VARVE_INTENT_SECTOR_REGIONS;
    bool has;

    pthread_mutex_lock(&lock);
    has = durable_log[VARVE_INTENT_SECTOR * (1 + region / VARVE_INTENT_SECTOR_REGIONS) + 24 + bit / 8] >>
              bit % 8 & 1;
    pthread_mutex_unlock(&lock);
    return has;
}

void held_pause(unsigned n, const char *what)
{
    struct timespec ms = {.tv_nsec = 1000000};

    if (n > 60000) {
        fprintf(stderr, "held-sync: waited in vain for: %s\n", what);
        abort();
    }
    nanosleep(&ms, NULL);
}
