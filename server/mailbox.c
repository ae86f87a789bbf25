/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/mailbox.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

struct varve_mailbox {
    uv_async_t async;
    pthread_mutex_t lock; /* guards first and last; rank: a leaf, nothing is taken inside */
    struct varve_letter *first, **last;
};

static void mailbox_empty(struct varve_mailbox *m)
{
    struct varve_letter *letter, *next;

    pthread_mutex_lock(&m->lock);
    letter = m->first;
    m->first = NULL;
    m->last = &m->first;
    pthread_mutex_unlock(&m->lock);
    for (; letter; letter = next) {
        next = letter->next;
        letter->deliver(letter);
    }
}

static void mailbox_on_async(uv_async_t *async)
{
    mailbox_empty(async->data);
}

int varve_mailbox_new(uv_loop_t *loop, struct varve_mailbox **out, struct varve_err *err)
{
    struct varve_mailbox *m = calloc(1, sizeof(*m));
    int rc;

    if (!m)
        return varve_err_set(err, ENOMEM, "no memory for a mailbox");
    rc = uv_async_init(loop, &m->async, mailbox_on_async);
    if (rc < 0) {
        free(m);
        return varve_err_set(err, -rc, "cannot make a mailbox: %s", uv_strerror(rc));
    }
    m->async.data = m;
    pthread_mutex_init(&m->lock, NULL);
    m->last = &m->first;
    *out = m;
    return 0;
}

void varve_mailbox_post(struct varve_mailbox *m, struct varve_letter *letter)
{
    letter->next = NULL;
    pthread_mutex_lock(&m->lock);
    *m->last = letter;
    m->last = &letter->next;
    uv_async_send(&m->async); /* inside the lock: close cannot come between */
    pthread_mutex_unlock(&m->lock);
}

static void mailbox_on_closed(uv_handle_t *handle)
{
    struct varve_mailbox *m = handle->data;

    pthread_mutex_destroy(&m->lock);
    free(m);
}

void varve_mailbox_close(struct varve_mailbox *m)
{
    mailbox_empty(m);
    uv_close((uv_handle_t *)&m->async, mailbox_on_closed);
}
