/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One worker a connection, each turning its own handle.  Worker 0, the caller's thread, also asks
 * for the block status, ahead of the reads, and puts the wanted ranges into a queue; all workers
 * cut pieces off the queue's head.
 *
 *     worker 0 --status--> runs [ off,len | off,len | ... ] --pieces--> workers 0..3
 *
 * Ranges are queued and pieces cut in the order of the disk, so all is dealt with below the lowest
 * of: the pieces in flight, the queue's head, the end of what status is known.  A saver tells that
 * now and then.
 *
 * The end: the whole disk's status is known, the queue is empty, nobody has a request in flight.
 * The first error makes everybody stop where they are; what is in flight dies with its handle.
 */
#include "client/copy.h"
#include "client/progress.h"
#include "include/varve.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* More bytes in flight than these 8 MiB fall out of the processor's caches: measured over a unix
 * socket, 16 requests of 512 KiB each take twice as long. */
#define WORKERS   4
#define DEPTH     8u              /* requests in flight a worker */
#define PIECE_MAX (256u * 1024u)  /* bytes of a request */
#define RUNS_LOW  ((size_t)16384) /* more status is asked for below this many queued ranges */
#define SAVE_MS   2000            /* between two words of how far it is */
#define TICK_MS   100             /* how soon a waiting worker notices that it should stop */

struct run {
    uint64_t off, len;
};

struct copy_state {
    struct varve_copy *copy;
    struct copy_worker *workers; /* WORKERS */
    uint64_t export_size;
    uint32_t piece_max;
    atomic_bool enough; /* no more connections are needed */
    atomic_bool stop;   /* failed */

    pthread_mutex_t lock; /* guards all below; no other lock is taken under it */
    pthread_cond_t more;  /* runs came, or all_known, or failed */
    struct run *runs;     /* a FIFO: [head, tail) */
    size_t head, tail, cap;
    uint64_t known; /* ranges below it are queued, zeroes below it dealt with */
    bool all_known; /* no more runs will come */
    bool failed;
    struct varve_err err;
    uint64_t data_bytes;
    bool ended; /* the saver is not needed any more */
    pthread_cond_t end;
};

struct slot {
    struct copy_worker *worker;
    char *buf;
    uint64_t off;
    uint32_t len;
    bool busy; /* from when the piece is cut until it was dealt with; guarded by the state's lock */
};

struct copy_worker {
    struct copy_state *state;
    struct nbd_handle *h;
    pthread_t thread;
    char *memory; /* all slots' buffers */
    struct slot slots[DEPTH];
    struct slot *free[DEPTH];
    unsigned nfree;
};

static void state_fail(struct copy_state *s, const struct varve_err *err)
{
    pthread_mutex_lock(&s->lock);
    if (!s->failed) {
        s->failed = true;
        s->err = *err;
    }
    pthread_cond_broadcast(&s->more);
    pthread_mutex_unlock(&s->lock);
    atomic_store(&s->stop, true);
    atomic_store(&s->enough, true);
}

/* Adds a range behind the others. */
static int state_push(struct copy_state *s, uint64_t off, uint64_t len)
{
    int rc = 0;

    pthread_mutex_lock(&s->lock);
    if (s->tail > s->head && s->runs[s->tail - 1].off + s->runs[s->tail - 1].len == off) {
        s->runs[s->tail - 1].len += len;
        goto out;
    }
    if (s->tail == s->cap && s->head > s->cap / 2) {
        memmove(s->runs, s->runs + s->head, (s->tail - s->head) * sizeof(*s->runs));
        s->tail -= s->head;
        s->head = 0;
    }
    if (s->tail == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 1024;
        struct run *grown = realloc(s->runs, cap * sizeof(*grown));

        if (!grown) {
            rc = -ENOMEM;
            goto out;
        }
        s->runs = grown;
        s->cap = cap;
    }
    s->runs[s->tail++] = (struct run){off, len};
    pthread_cond_signal(&s->more);
out:
    pthread_mutex_unlock(&s->lock);
    return rc;
}

/* Cuts a piece, aligned at its end, off the first range, for that slot.  False: none now. */
static bool state_take(struct copy_state *s, struct slot *slot)
{
    struct run *r;
    uint64_t left;
    bool taken = false;

    pthread_mutex_lock(&s->lock);
    if (!s->failed && s->head < s->tail) {
        r = &s->runs[s->head];
        left = s->piece_max - r->off % s->piece_max;
        slot->off = r->off;
        slot->len = (uint32_t)(r->len < left ? r->len : left);
        slot->busy = true;
        r->off += slot->len;
        r->len -= slot->len;
        if (r->len == 0)
            s->head++;
        taken = true;
    }
    pthread_mutex_unlock(&s->lock);
    return taken;
}

/* Waits for a range.  False: there will be none. */
static bool state_wait(struct copy_state *s)
{
    bool more;

    pthread_mutex_lock(&s->lock);
    while (!s->failed && !s->all_known && s->head == s->tail)
        pthread_cond_wait(&s->more, &s->lock);
    more = !s->failed && s->head < s->tail;
    pthread_mutex_unlock(&s->lock);
    return more;
}

static int worker_read_done(void *opaque, int *error)
{
    struct slot *slot = opaque;
    struct copy_worker *w = slot->worker;
    struct copy_state *s = w->state;
    struct varve_err err = VARVE_ERR_INIT;
    int rc;

    if (*error == ENOTCONN || *error == ESHUTDOWN)
        rc = varve_err_set(&err, *error, "the server closed the connection");
    else if (*error)
        rc = varve_err_sys(&err, *error, "the server cannot read %" PRIu32 " bytes at %" PRIu64,
                           slot->len, slot->off);
    else
        rc = s->copy->data(s->copy->opaque, slot->buf, slot->off, slot->len, &err);
    if (rc == 0) {
        pthread_mutex_lock(&s->lock);
        s->data_bytes += slot->len;
        slot->busy = false;
        pthread_mutex_unlock(&s->lock);
    } else {
        state_fail(s, &err);
    }
    w->free[w->nfree++] = slot;
    return 1;
}

/* Issues reads while there are slots and ranges. */
static int worker_issue(struct copy_worker *w, struct varve_err *err)
{
    while (w->nfree > 0 && state_take(w->state, w->free[w->nfree - 1])) {
        struct slot *slot = w->free[--w->nfree];
        nbd_completion_callback cb = {.callback = worker_read_done, .user_data = slot};

        if (nbd_aio_pread(w->h, slot->buf, slot->len, slot->off, cb, 0) == -1)
            return varve_nbd_failed(err, "reading from the server");
    }
    return 0;
}

static int worker_init(struct copy_worker *w, struct copy_state *s, struct nbd_handle *h)
{
    w->state = s;
    w->h = h;
    w->memory = malloc((size_t)DEPTH * s->piece_max);
    if (!w->memory)
        return -ENOMEM;
    for (unsigned i = 0; i < DEPTH; i++) {
        w->slots[i].worker = w;
        w->slots[i].buf = w->memory + (size_t)i * s->piece_max;
        w->free[i] = &w->slots[i];
    }
    w->nfree = DEPTH;
    return 0;
}

/* A worker with a connection of its own.  That it gets none is no failure: others do the work. */
static void *worker_main(void *opaque)
{
    struct copy_worker *w = opaque;
    struct copy_state *s = w->state;
    struct varve_err err = VARVE_ERR_INIT;
    const char *none[2] = {NULL, NULL};
    int rc = 0;

    if (varve_nbd_dial(&w->h, s->copy->target, &s->enough, NULL) != 0)
        return NULL;
    if (varve_nbd_go(w->h, s->copy->target, none, &s->enough, NULL) != 0 ||
        worker_init(w, s, w->h) != 0)
        goto out;
    while (rc == 0 && !atomic_load(&s->stop)) {
        rc = worker_issue(w, &err);
        if (rc == 0 && w->nfree == DEPTH) {
            if (!state_wait(s))
                break;
        } else if (rc == 0 && nbd_poll(w->h, TICK_MS) == -1) {
            rc = varve_nbd_failed(&err, "reading from the server");
        }
    }
    if (rc != 0)
        state_fail(s, &err);
out:
    varve_nbd_close(w->h);
    free(w->memory);
    return NULL;
}

/* --- the saver -------------------------------------------------------------------------- */

/* Called with the lock. */
static uint64_t state_reached(const struct copy_state *s)
{
    uint64_t off = s->head < s->tail ? s->runs[s->head].off : s->known;

    for (int i = 0; i < WORKERS; i++)
        for (unsigned k = 0; k < DEPTH; k++)
            if (s->workers[i].slots[k].busy && s->workers[i].slots[k].off < off)
                off = s->workers[i].slots[k].off;
    return off;
}

/* Waits until it is time to tell again.  False: it ended first. */
static bool saver_wait(struct copy_state *s)
{
    struct timespec at;
    int rc = 0;

    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += SAVE_MS / 1000;
    while (!s->ended && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&s->end, &s->lock, &at);
    return !s->ended;
}

static void *saver_main(void *opaque)
{
    struct copy_state *s = opaque;
    uint64_t told = s->copy->from, off;
    struct varve_err err = VARVE_ERR_INIT;
    bool last;
    int rc = 0;

    pthread_mutex_lock(&s->lock);
    do {
        last = !saver_wait(s);
        off = state_reached(s);
        pthread_mutex_unlock(&s->lock);
        if (off > told)
            rc = s->copy->reached(s->copy->opaque, off, &err);
        told = off;
        if (rc != 0)
            state_fail(s, &err);
        pthread_mutex_lock(&s->lock);
    } while (rc == 0 && !last);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static int saver_start(struct copy_state *s, pthread_t *thread, struct varve_err *err)
{
    int rc = pthread_create(thread, NULL, saver_main, s);

    return rc == 0 ? 0 : varve_err_sys(err, rc, "no thread");
}

static void saver_stop(struct copy_state *s, pthread_t thread)
{
    pthread_mutex_lock(&s->lock);
    s->ended = true;
    pthread_cond_signal(&s->end);
    pthread_mutex_unlock(&s->lock);
    pthread_join(thread, NULL);
}

/* --- worker 0 --------------------------------------------------------------------------- */

/* What it knows of the disk's status. */
struct asker {
    struct varve_status status;
    bool asking;
    uint64_t known; /* as the state's, for worker 0 alone */
};

/* Sorts what a finished status says into ranges to read and ranges of zeroes. */
static int asker_sort(struct asker *a, struct copy_state *s, struct varve_err *err)
{
    struct varve_copy *c = s->copy;
    struct varve_status_run run;

    while (varve_status_next(&a->status, &run)) {
        int rc;

        if (c->dirty_ctx && !(run.flags[0] & VARVE_NBD_DIRTY))
            continue;
        c->dirty_bytes += run.len;
        if (!(run.flags[1] & LIBNBD_STATE_ZERO) || c->read_zeroes) {
            rc = state_push(s, run.off, run.len);
            if (rc != 0)
                return varve_err_set(err, ENOMEM, "no memory for the list of ranges");
        } else {
            c->zero_bytes += run.len;
            rc = c->zero(c->opaque, run.off, run.len, err);
            if (rc != 0)
                return rc;
        }
    }
    a->known = a->status.end;
    return 0;
}

/* Keeps the queue filled. */
static int asker_tick(struct asker *a, struct copy_state *s, struct nbd_handle *h,
                      struct varve_err *err)
{
    for (;;) {
        size_t queued;
        int rc;

        if (a->asking && !a->status.done)
            return 0;
        if (a->asking) {
            a->asking = false;
            rc = varve_status_finish(&a->status, err);
            if (rc == 0)
                rc = asker_sort(a, s, err);
            if (rc != 0)
                return rc;
        }
        pthread_mutex_lock(&s->lock);
        queued = s->tail - s->head;
        s->known = a->known;
        s->all_known = a->known >= s->export_size;
        if (s->all_known)
            pthread_cond_broadcast(&s->more);
        pthread_mutex_unlock(&s->lock);
        if (queued >= RUNS_LOW || a->known >= s->export_size)
            return 0;
        rc = varve_status_ask(&a->status, h, a->known, err);
        if (rc != 0)
            return rc;
        a->asking = true;
    }
}

/* Worker 0's life.  Bytes that are known but queued count as not done, nearly. */
static int lead(struct copy_worker *w, struct copy_state *s, struct varve_err *err)
{
    const char *ctx[2];
    struct varve_progress progress;
    struct asker a = {.known = s->copy->from};
    int rc = 0;

    varve_copy_contexts(s->copy, ctx);
    varve_status_init(&a.status, w->h, ctx, s->export_size);
    varve_progress_begin(&progress, s->copy->what);
    while (rc == 0 && !atomic_load(&s->stop)) {
        uint64_t done, moved;

        rc = asker_tick(&a, s, w->h, err);
        if (rc == 0)
            rc = worker_issue(w, err);
        if (rc != 0)
            break;
        if (w->nfree == DEPTH && !a.asking) {
            if (!state_wait(s))
                break;
            continue;
        }
        if (nbd_poll(w->h, TICK_MS) == -1)
            rc = varve_nbd_failed(err, "reading from the server");
        pthread_mutex_lock(&s->lock);
        done = s->head < s->tail ? s->runs[s->head].off : a.known;
        moved = s->data_bytes;
        pthread_mutex_unlock(&s->lock);
        varve_progress_draw(&progress, done, s->export_size, moved);
    }
    varve_progress_end(&progress);
    varve_status_fini(&a.status);
    return rc;
}

void varve_copy_contexts(const struct varve_copy *c, const char *ctx[2])
{
    ctx[0] = c->dirty_ctx;
    ctx[1] = VARVE_CTX_ALLOCATION;
}

int varve_copy_run(struct varve_copy *c, struct nbd_handle *h, struct varve_err *err)
{
    struct copy_worker workers[WORKERS] = {{0}};
    struct copy_state s = {.copy = c, .workers = workers, .piece_max = PIECE_MAX, .known = c->from};
    pthread_condattr_t monotonic;
    pthread_t saver;
    bool saves = false;
    int64_t export_size = nbd_get_size(h);
    int64_t block_max = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);
    int nworkers = 1;
    int rc;

    c->dirty_bytes = c->data_bytes = c->zero_bytes = 0;
    if (export_size < 0)
        return varve_nbd_failed(err, "the export's size");
    s.export_size = (uint64_t)export_size;
    if (block_max > 0 && block_max < PIECE_MAX)
        s.piece_max = (uint32_t)block_max;
    pthread_mutex_init(&s.lock, NULL);
    pthread_cond_init(&s.more, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s.end, &monotonic);
    pthread_condattr_destroy(&monotonic);
    rc = worker_init(&workers[0], &s, h);
    if (rc != 0)
        varve_err_set(err, ENOMEM, "no memory for the buffers");
    if (rc == 0 && c->reached) {
        rc = saver_start(&s, &saver, err);
        saves = rc == 0;
    }

    while (rc == 0 && nworkers < WORKERS && nbd_can_multi_conn(h) == 1) {
        workers[nworkers].state = &s;
        if (pthread_create(&workers[nworkers].thread, NULL, worker_main, &workers[nworkers]) != 0)
            break;
        nworkers++;
    }
    if (rc == 0) {
        rc = lead(&workers[0], &s, err);
        if (rc != 0)
            state_fail(&s, err);
        atomic_store(&s.enough, true);
    }
    for (int i = 1; i < nworkers; i++)
        pthread_join(workers[i].thread, NULL);
    if (saves)
        saver_stop(&s, saver);
    if (rc == 0 && s.failed) {
        *err = s.err;
        rc = -s.err.code;
    }
    c->data_bytes = s.data_bytes;
    free(workers[0].memory);
    free(s.runs);
    pthread_cond_destroy(&s.end);
    pthread_cond_destroy(&s.more);
    pthread_mutex_destroy(&s.lock);
    return rc;
}
