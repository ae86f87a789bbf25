/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/guest-writes.h"

#include <stdlib.h>

struct guest_disk {
    struct varve_source *source;
    struct varve_guest_writes last;
};

struct guest_disks {
    size_t n;
    struct guest_disk disks[];
};

/* A page that cannot be read adds what it last said, so that the sum does not go back. */
static bool guest_look(void *arg, struct varve_guest_writes *sum)
{
    struct guest_disks *g = arg;

    *sum = (struct varve_guest_writes){.begun = 0};
    for (size_t i = 0; i < g->n; i++) {
        struct guest_disk *d = &g->disks[i];
        struct varve_ctl_head head;

        if (varve_source_head(d->source, &head, NULL) == 0)
            d->last = (struct varve_guest_writes){
                .begun = head.writes_begun, .ended = head.writes_ended, .ns = head.writes_ns};
        sum->begun += d->last.begun;
        sum->ended += d->last.ended;
        sum->ns += d->last.ns;
    }
    return true;
}

static void guest_free(void *arg)
{
    struct guest_disks *g = arg;

    for (size_t i = 0; i < g->n; i++)
        varve_source_unref(g->disks[i].source);
    free(g);
}

bool varve_guest_writes_of(struct varve_source *const *sources, size_t n,
                           struct varve_throttle_guest *out)
{
    struct guest_disks *g = calloc(1, sizeof(*g) + n * sizeof(g->disks[0]));

    if (!g)
        return false;
    g->n = n;
    for (size_t i = 0; i < n; i++)
        g->disks[i].source = varve_source_ref(sources[i]);
    *out = (struct varve_throttle_guest){.look = guest_look, .free = guest_free, .arg = g};
    return true;
}
