/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve pull --delta: an export's changes as a delta of their own.
 *
 *     folder made and locked | NNNNNN.delta.tmp ... synced, verified | renamed | folder synced
 *
 * What has its name is whole, so that one that was cut short is never taken for a delta; the next
 * pull into the folder replaces what is left of it.  A delta that was finished, although whoever
 * asked for it did not hear of that, is found by the instants between which it lies.
 */
#include "client/pull.h"
#include "client/zeroes.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int add_data(void *opaque, const char *buf, uint64_t off, size_t len, struct varve_err *err)
{
    return varve_delta_add(opaque, buf, off, len, err);
}

static int add_zeroes(void *opaque, uint64_t off, uint64_t len, struct varve_err *err)
{
    return varve_delta_add_zeroes(opaque, off, len, err);
}

static int add_split(void *opaque, const char *buf, uint64_t off, size_t len, struct varve_err *err)
{
    const struct varve_zeroes_to to = {add_data, add_zeroes, opaque};

    return varve_zeroes_split(buf, off, len, &to, err);
}

static int compare(void *opaque, const char *buf, uint64_t off, size_t len, struct varve_err *err)
{
    return varve_delta_compare(opaque, buf, off, len, err);
}

static const char *or_unknown(const char *instant)
{
    return instant[0] ? instant : "an instant that its server did not tell";
}

/* Does this delta begin where the folder's last one ends?  Where neither server tells an instant,
 * nobody knows, and what the user says is taken. */
static int delta_fits(struct varve_pull *p, const struct varve_delta_item *last,
                      struct varve_err *err)
{
    const struct varve_delta_head *head = &last->head;

    if (head->size != p->want.export_size)
        return varve_err_set(err, EINVAL,
                             "%.120s is of a disk of %" PRIu64 " bytes and the export has %" PRIu64
                             ": make a full copy, and name another folder for what follows it",
                             last->path, head->size, p->want.export_size);
    if (p->point[0] && p->base[0] && strcmp(head->point, p->point) == 0 &&
        strcmp(head->base, p->base) == 0) {
        p->there = true;
        return 0;
    }
    if (p->base[0] && strcmp(head->point, p->base) != 0)
        return varve_err_set(err, EEXIST,
                             "%.120s leads to %.80s, and this export has the changes since %.80s: "
                             "ask for those since the former, or name another folder",
                             last->path, or_unknown(head->point), p->base);
    return 0;
}

static int delta_head(const struct varve_pull *p, const struct varve_deltas *d,
                      struct varve_delta_head *head, struct varve_err *err)
{
    struct varve_world *w = varve_world_posix();
    int rc = w->random(w, head->id, sizeof(head->id));

    if (rc < 0)
        return varve_err_sys(err, -rc, "no random numbers");
    if (d->count > 0)
        memcpy(head->parent, d->items[d->count - 1].head.id, sizeof(head->parent));
    head->size = p->want.export_size;
    head->time_ns = w->realtime_ns(w);
    snprintf(head->point, sizeof(head->point), "%s", p->point);
    snprintf(head->base, sizeof(head->base), "%s", p->base);
    snprintf(head->context, sizeof(head->context), "%s", p->context);
    return 0;
}

/* So that verifying reads the disk.  Nothing depends on it. */
static void forget(const char *delta)
{
    char *tmp;
    int fd;

    if (asprintf(&tmp, "%s.tmp", delta) < 0)
        return;
    fd = open(tmp, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
    free(tmp);
}

static int delta_pull(struct varve_pull *p, const struct varve_deltas *d, struct varve_err *err)
{
    struct varve_delta_writer *writer = NULL;
    struct varve_delta_head head = {0};
    int rc = delta_head(p, d, &head, err);

    if (rc == 0)
        rc = varve_delta_create(varve_world_posix(), p->delta, &head, &writer, err);
    if (rc != 0)
        return rc;
    p->copy = (struct varve_copy){
        .target = &p->target,
        .what = "pulling",
        .dirty_ctx = p->context,
        .data = add_split,
        .zero = add_zeroes,
        .opaque = writer,
    };
    rc = varve_copy_run(&p->copy, p->h, err);
    if (rc == 0)
        rc = varve_delta_seal(writer, err);
    if (rc == 0 && p->verify) {
        forget(p->delta);
        rc = varve_pull_again(p, compare, writer, err);
    }
    if (rc == 0)
        rc = varve_delta_publish(writer, err);
    varve_delta_close(writer);
    return rc;
}

int varve_pull_delta(struct varve_pull *p, struct varve_err *err)
{
    struct varve_deltas d;
    int rc = varve_deltas_open(&d, p->deltas, true, err);

    if (rc != 0)
        return rc;
    if (d.count > 0)
        rc = delta_fits(p, &d.items[d.count - 1], err);
    if (rc == 0) {
        p->delta = p->there ? strdup(d.items[d.count - 1].path) : varve_deltas_next(&d);
        if (!p->delta)
            rc = varve_err_set(err, ENOMEM, "no memory");
    }
    if (rc == 0 && !p->there)
        rc = delta_pull(p, &d, err);
    varve_deltas_close(&d);
    return rc;
}
