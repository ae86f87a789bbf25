/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/events.h"

#include "server/mailbox.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

struct varve_events {
    struct varve_mailbox *mailbox;
    void (*deliver)(void *arg, const char *text, size_t len);
    void *arg;
};

struct event {
    struct varve_letter letter; /* first */
    struct varve_events *events;
    char *text;
    size_t len;
};

int varve_events_new(uv_loop_t *loop, void (*deliver)(void *arg, const char *text, size_t len),
                     void *arg, struct varve_events **out, struct varve_err *err)
{
    struct varve_events *e = calloc(1, sizeof(*e));
    int rc;

    if (!e)
        return varve_err_set(err, ENOMEM, "no memory for events");
    rc = varve_mailbox_new(loop, &e->mailbox, err);
    if (rc < 0) {
        free(e);
        return rc;
    }
    e->deliver = deliver;
    e->arg = arg;
    *out = e;
    return 0;
}

void varve_events_close(struct varve_events *e)
{
    varve_mailbox_close(e->mailbox);
    free(e);
}

static void event_deliver(struct varve_letter *letter)
{
    struct event *event = (struct event *)letter;

    event->events->deliver(event->events->arg, event->text, event->len);
    free(event->text);
    free(event);
}

void varve_events_send(struct varve_events *e, const char *name, json_t *data)
{
    struct event *event;
    struct timespec ts;
    json_t *message;

    if (!data)
        return;
    clock_gettime(CLOCK_REALTIME, &ts);
    message = varve_qmp_event(name, data, (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec);
    event = calloc(1, sizeof(*event));
    if (event && message)
        event->text = varve_qmp_dump(message, &event->len);
    json_decref(message);
    if (!event || !event->text) {
        free(event);
        return;
    }
    event->events = e;
    event->letter.deliver = event_deliver;
    varve_mailbox_post(e->mailbox, &event->letter);
}
