/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/nbd/export.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct varve_exports {
    pthread_mutex_t lock;      /* guards the list; rank: taken last, nothing is called under it but
                                * the callback of varve_exports_each */
    struct varve_export *head; /* in order of names */
};

struct varve_exports *varve_exports_new(void)
{
    struct varve_exports *x = calloc(1, sizeof(*x));

    if (x)
        pthread_mutex_init(&x->lock, NULL);
    return x;
}

void varve_exports_free(struct varve_exports *x)
{
    if (!x)
        return;
    assert(!x->head);
    pthread_mutex_destroy(&x->lock);
    free(x);
}

static uint64_t export_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int varve_exports_add(struct varve_exports *x, struct varve_export *e, struct varve_err *err)
{
    struct varve_export **at;
    int cmp = 1;

    assert(atomic_load(&e->refs) >= 1);
    pthread_mutex_lock(&x->lock);
    for (at = &x->head; *at; at = &(*at)->next) {
        cmp = strcmp((*at)->name, e->name);
        if (cmp >= 0)
            break;
    }
    if (*at && cmp == 0) {
        pthread_mutex_unlock(&x->lock);
        return varve_err_set(err, EEXIST, "export '%s' exists already", e->name);
    }
    /* Its time to live begins now, not when the machine was booted. */
    atomic_store(&e->last_client_ns, export_now_ns());
    e->next = *at;
    *at = e;
    pthread_mutex_unlock(&x->lock);
    return 0;
}

void varve_exports_remove(struct varve_exports *x, struct varve_export *e)
{
    struct varve_export **at;
    bool found;

    pthread_mutex_lock(&x->lock);
    for (at = &x->head; *at && *at != e; at = &(*at)->next)
        continue;
    found = *at != NULL;
    if (found) {
        *at = e->next;
        e->next = NULL;
        atomic_store(&e->withdrawn, true);
    }
    pthread_mutex_unlock(&x->lock);
    if (found)
        varve_export_unref(e);
}

static bool export_counts(void *arg, const struct varve_export *e)
{
    (void)arg;
    (void)e;
    return true;
}

struct varve_export *varve_exports_get_only(struct varve_exports *x,
                                            bool (*counts)(void *arg, const struct varve_export *e),
                                            void *arg)
{
    struct varve_export *only = NULL;
    unsigned found = 0;

    pthread_mutex_lock(&x->lock);
    for (struct varve_export *e = x->head; e; e = e->next) {
        if (!e->listed || !counts(arg, e))
            continue;
        only = e;
        found++;
    }
    if (found != 1)
        only = NULL;
    if (only)
        varve_export_ref(only);
    pthread_mutex_unlock(&x->lock);
    return only;
}

static struct varve_export *exports_find(struct varve_exports *x, const char *name, size_t len)
{
    for (struct varve_export *e = x->head; e; e = e->next) {
        if (strlen(e->name) == len && memcmp(e->name, name, len) == 0)
            return e;
    }
    return NULL;
}

struct varve_export *varve_exports_get(struct varve_exports *x, const char *name, size_t len)
{
    struct varve_export *e;

    if (!len)
        return varve_exports_get_only(x, export_counts, NULL);
    pthread_mutex_lock(&x->lock);
    e = exports_find(x, name, len);
    if (e)
        varve_export_ref(e);
    pthread_mutex_unlock(&x->lock);
    return e;
}

void varve_exports_each(struct varve_exports *x, void (*each)(void *arg, struct varve_export *e),
                        void *arg)
{
    pthread_mutex_lock(&x->lock);
    for (struct varve_export *e = x->head; e; e = e->next) {
        if (e->listed)
            each(arg, e);
    }
    pthread_mutex_unlock(&x->lock);
}

void varve_export_ref(struct varve_export *e)
{
    unsigned before = atomic_fetch_add_explicit(&e->refs, 1, memory_order_relaxed);

    assert(before > 0);
    (void)before;
}

void varve_export_unref(struct varve_export *e)
{
    unsigned before = atomic_fetch_sub_explicit(&e->refs, 1, memory_order_acq_rel);

    assert(before > 0);
    if (before == 1)
        e->ops->free(e);
}
