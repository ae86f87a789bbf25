/* SPDX-License-Identifier: BSD-3-Clause */
#include "plugin/flusher.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* What a crash of the host costs grows with both: bits that were not written down, and regions that
 * count as written because nobody has looked whether they are quiet.  Looking costs a sync of the
 * image, so it is done less often. */
#define PERIOD_S   5
#define COOL_EVERY 6

struct varve_flusher {
    struct varve_tracker *tracker;
    const char *name;
    pthread_t thread;

    /* Guards stop.  Rank: a leaf. */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;

    bool failing; /* the thread's own: the last step failed, and that has been said */
};

/* True: it is time for a step; false: to end. */
static bool flusher_wait(struct varve_flusher *f)
{
    struct timespec until;
    bool stop;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += PERIOD_S;
    pthread_mutex_lock(&f->lock);
    while (!f->stop && pthread_cond_timedwait(&f->wake, &f->lock, &until) != ETIMEDOUT)
        ;
    stop = f->stop;
    pthread_mutex_unlock(&f->lock);
    return !stop;
}

static void flusher_step(struct varve_flusher *f, bool cool)
{
    struct varve_err err = VARVE_ERR_INIT;
    int r = varve_tracker_flush(f->tracker, cool, &err);

    if (r < 0 && !f->failing)
        fprintf(stderr, "varve: disk %s: %s\n", f->name, err.msg);
    else if (r == 0 && f->failing)
        fprintf(stderr, "varve: disk %s: what failed in its state directory works again\n",
                f->name);
    f->failing = r < 0;
}

static void *flusher_main(void *arg)
{
    struct varve_flusher *f = arg;

    for (unsigned n = 1; flusher_wait(f); n++)
        flusher_step(f, n % COOL_EVERY == 0);
    return NULL;
}

int varve_flusher_start(struct varve_tracker *t, const char *name, struct varve_flusher **out,
                        struct varve_err *err)
{
    struct varve_flusher *f = calloc(1, sizeof(*f));
    pthread_condattr_t attr;
    sigset_t all, before;
    int r;

    if (!f)
        return varve_err_set(err, ENOMEM, "no memory for the flusher");
    f->tracker = t;
    f->name = name;
    pthread_mutex_init(&f->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&f->wake, &attr);
    pthread_condattr_destroy(&attr);
    /* Signals are nbdkit's. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r = pthread_create(&f->thread, NULL, flusher_main, f);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r != 0) {
        pthread_cond_destroy(&f->wake);
        pthread_mutex_destroy(&f->lock);
        free(f);
        return varve_err_sys(err, r, "cannot start the flusher's thread");
    }
    *out = f;
    return 0;
}

void varve_flusher_stop(struct varve_flusher *f)
{
    pthread_mutex_lock(&f->lock);
    f->stop = true;
    pthread_cond_signal(&f->wake);
    pthread_mutex_unlock(&f->lock);
    pthread_join(f->thread, NULL);
    pthread_cond_destroy(&f->wake);
    pthread_mutex_destroy(&f->lock);
    free(f);
}
