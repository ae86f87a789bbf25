/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/clerk.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define TICK_S 1

struct varve_clerk {
    pthread_t thread;
    pthread_mutex_t lock; /* guards first, last; rank: a leaf, nothing is taken inside */
    pthread_cond_t work;
    struct varve_job *first, **last;
    void (*tick)(void *arg), (*done)(void *arg);
    void *tick_arg, *done_arg;
    int stop_fd;
    _Atomic bool stopping;
};

static bool due(const struct timespec *at)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > at->tv_sec || (now.tv_sec == at->tv_sec && now.tv_nsec >= at->tv_nsec);
}

static void *clerk_main(void *arg)
{
    struct varve_clerk *c = arg;
    struct timespec next_tick;
    struct varve_job *job;

    clock_gettime(CLOCK_MONOTONIC, &next_tick);
    next_tick.tv_sec += TICK_S;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        if (!c->stopping && due(&next_tick)) {
            pthread_mutex_unlock(&c->lock);
            c->tick(c->tick_arg);
            clock_gettime(CLOCK_MONOTONIC, &next_tick);
            next_tick.tv_sec += TICK_S;
            pthread_mutex_lock(&c->lock);
        }
        job = c->first;
        if (job) {
            c->first = job->next;
            if (!c->first)
                c->last = &c->first;
            pthread_mutex_unlock(&c->lock);
            job->run(job, c->stopping);
            pthread_mutex_lock(&c->lock);
        } else if (c->stopping) {
            break;
        } else {
            pthread_cond_timedwait(&c->work, &c->lock, &next_tick);
        }
    }
    pthread_mutex_unlock(&c->lock);
    c->done(c->done_arg);
    return NULL;
}

int varve_clerk_start(void (*tick)(void *arg), void *tick_arg, void (*done)(void *arg),
                      void *done_arg, struct varve_clerk **out, struct varve_err *err)
{
    struct varve_clerk *c = calloc(1, sizeof(*c));
    pthread_condattr_t attr;
    int rc;

    if (!c)
        return varve_err_set(err, ENOMEM, "no memory for the policy thread");
    c->tick = tick;
    c->tick_arg = tick_arg;
    c->done = done;
    c->done_arg = done_arg;
    c->last = &c->first;
    c->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->stop_fd < 0) {
        rc = varve_err_sys(err, errno, "cannot start the policy thread");
        free(c);
        return rc;
    }
    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->work, &attr);
    pthread_condattr_destroy(&attr);
    *out = c; /* the first tick may look for it */
    rc = pthread_create(&c->thread, NULL, clerk_main, c);
    if (rc != 0) {
        *out = NULL;
        close(c->stop_fd);
        free(c);
        return varve_err_sys(err, rc, "cannot start the policy thread");
    }
    return 0;
}

void varve_clerk_post(struct varve_clerk *c, struct varve_job *job)
{
    job->next = NULL;
    pthread_mutex_lock(&c->lock);
    *c->last = job;
    c->last = &job->next;
    pthread_cond_signal(&c->work);
    pthread_mutex_unlock(&c->lock);
}

void varve_clerk_stop(struct varve_clerk *c)
{
    uint64_t one = 1;
    ssize_t done;

    pthread_mutex_lock(&c->lock);
    c->stopping = true;
    pthread_cond_signal(&c->work);
    pthread_mutex_unlock(&c->lock);
    done = write(c->stop_fd, &one, sizeof(one));
    (void)done; /* an eventfd that is full is readable too */
}

void varve_clerk_join(struct varve_clerk *c)
{
    struct varve_job *job;

    pthread_join(c->thread, NULL);
    while ((job = c->first) != NULL) { /* posted after the thread's last look */
        c->first = job->next;
        job->run(job, true);
    }
    pthread_cond_destroy(&c->work);
    pthread_mutex_destroy(&c->lock);
    close(c->stop_fd);
    free(c);
}

int varve_clerk_stop_fd(const struct varve_clerk *c)
{
    return c->stop_fd;
}

bool varve_clerk_stopping(const struct varve_clerk *c)
{
    return c->stopping;
}
