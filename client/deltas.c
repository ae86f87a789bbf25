/* SPDX-License-Identifier: BSD-3-Clause */
#include "client/deltas.h"
#include "include/varve.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* Of a name like 000001.delta; 0: it is another file. */
static uint64_t number_of(const char *name)
{
    size_t digits = strspn(name, "0123456789");

    if (digits < 6 || digits > 18 || strcmp(name + digits, ".delta") != 0)
        return 0;
    return strtoull(name, NULL, 10);
}

static int by_number(const void *a, const void *b)
{
    const struct varve_delta_item *x = a, *y = b;

    return x->number < y->number ? -1 : x->number > y->number;
}

static char *path_of(const struct varve_deltas *d, uint64_t number)
{
    char *path;

    return asprintf(&path, "%s/%06" PRIu64 ".delta", d->path, number) < 0 ? NULL : path;
}

static int deltas_list(struct varve_deltas *d, struct varve_err *err)
{
    DIR *dir = opendir(d->path);
    struct dirent *entry;
    int rc = 0;

    if (!dir)
        return varve_err_sys(err, errno, "%s", d->path);
    while (rc == 0 && (entry = readdir(dir)) != NULL) {
        struct varve_delta_item *grown;
        uint64_t number = number_of(entry->d_name);

        if (number == 0)
            continue;
        grown = realloc(d->items, (d->count + 1) * sizeof(*grown));
        if (grown) {
            d->items = grown;
            grown[d->count] = (struct varve_delta_item){.number = number};
            if (asprintf(&grown[d->count].path, "%s/%s", d->path, entry->d_name) >= 0) {
                d->count++;
                continue;
            }
        }
        rc = varve_err_set(err, ENOMEM, "no memory");
    }
    closedir(dir);
    if (rc == 0 && d->count > 1)
        qsort(d->items, d->count, sizeof(*d->items), by_number);
    return rc;
}

static int deltas_read(struct varve_deltas *d, struct varve_err *err)
{
    for (size_t i = 0; i < d->count; i++) {
        struct varve_delta_item *item = &d->items[i], *last = i > 0 ? item - 1 : NULL;
        struct varve_delta_reader r;
        int rc = varve_delta_open(varve_world_posix(), item->path, &r, err);

        if (rc != 0)
            return rc;
        item->head = r.head;
        varve_delta_reader_close(&r);
        if (last && (item->number != last->number + 1 ||
                     memcmp(item->head.parent, last->head.id, sizeof(last->head.id)) != 0))
            return varve_err_set(err, EUCLEAN,
                                 "%.200s does not begin where %.200s ends: a delta between them is "
                                 "missing, or one of them is from elsewhere",
                                 item->path, last->path);
        if (last && item->head.size != last->head.size)
            return varve_err_set(err, EUCLEAN, "%.200s is of a disk of another size than %.200s",
                                 item->path, last->path);
    }
    return 0;
}

/* The folder, durable and locked. */
static int deltas_lock(struct varve_deltas *d, struct varve_err *err)
{
    char *above;
    int fd, rc = 0;

    if (mkdir(d->path, 0700) == 0) {
        if (asprintf(&above, "%s/..", d->path) < 0)
            return varve_err_set(err, ENOMEM, "no memory");
        fd = open(above, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || fsync(fd) != 0)
            rc = varve_err_sys(err, errno, "making %s", d->path);
        if (fd >= 0)
            close(fd);
        free(above);
    } else if (errno != EEXIST) {
        rc = varve_err_sys(err, errno, "making %s", d->path);
    }
    if (rc != 0)
        return rc;
    d->fd = open(d->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d->fd < 0)
        return varve_err_sys(err, errno, "%s", d->path);
    if (flock(d->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return varve_err_set(err, EBUSY, "another varve pull adds to %s", d->path);
    /* One that died may have renamed its delta and not come to this. */
    if (fsync(d->fd) != 0)
        return varve_err_sys(err, errno, "syncing %s", d->path);
    return 0;
}

int varve_deltas_open(struct varve_deltas *d, const char *path, bool to_add, struct varve_err *err)
{
    int rc = 0;

    *d = (struct varve_deltas){.path = path, .fd = -1};
    if (to_add)
        rc = deltas_lock(d, err);
    if (rc == 0)
        rc = deltas_list(d, err);
    if (rc == 0)
        rc = deltas_read(d, err);
    if (rc != 0)
        varve_deltas_close(d);
    return rc;
}

void varve_deltas_close(struct varve_deltas *d)
{
    for (size_t i = 0; i < d->count; i++)
        free(d->items[i].path);
    free(d->items);
    if (d->fd >= 0)
        close(d->fd);
    *d = (struct varve_deltas){.fd = -1};
}

char *varve_deltas_next(const struct varve_deltas *d)
{
    return path_of(d, d->count > 0 ? d->items[d->count - 1].number + 1 : 1);
}

char *varve_delta_id_text(const uint8_t id[16], char text[VARVE_DELTA_ID_TEXT])
{
    for (size_t i = 0; i < 16; i++)
        snprintf(text + 2 * i, 3, "%02x", id[i]);
    return text;
}

size_t varve_deltas_find(const struct varve_deltas *d, const char *id_text)
{
    char text[VARVE_DELTA_ID_TEXT];

    for (size_t i = 0; i < d->count; i++)
        if (strcmp(varve_delta_id_text(d->items[i].head.id, text), id_text) == 0)
            return i;
    return d->count;
}

/* "the start of epoch N [uuid]". */
static void instant(const char *number, const char *uuid, char text[VARVE_DELTA_TEXT])
{
    size_t digits = strspn(number, "0123456789");

    if (digits > 0 && digits <= 20 && strlen(uuid) < 64)
        snprintf(text, VARVE_DELTA_TEXT, VARVE_DESC_INSTANT "%.*s %s", (int)digits, number, uuid);
}

char *varve_view_id(const char *description)
{
    const char *epoch = description ? strstr(description, VARVE_DESC_EPOCH) : NULL;
    const char *id;

    if (!epoch || strncmp(description, "disk ", 5) != 0)
        return NULL;
    epoch += strlen(VARVE_DESC_EPOCH);
    id = epoch + strspn(epoch, "0123456789");
    if (strncmp(id, VARVE_DESC_VIEW, strlen(VARVE_DESC_VIEW)) != 0)
        return NULL;
    id += strlen(VARVE_DESC_VIEW);
    return strspn(id, "0123456789abcdef") == 16 ? strndup(id, 16) : NULL;
}

void varve_instants(const char *description, char point[VARVE_DELTA_TEXT],
                    char base[VARVE_DELTA_TEXT])
{
    const char *epoch = description ? strstr(description, VARVE_DESC_EPOCH) : NULL;
    const char *uuid = epoch ? strrchr(epoch, '[') : NULL;
    const char *since = uuid ? strstr(epoch, VARVE_DESC_CHANGES VARVE_DESC_INSTANT) : NULL;

    point[0] = base[0] = '\0';
    if (!uuid || strncmp(description, "disk ", 5) != 0)
        return;
    instant(epoch + strlen(VARVE_DESC_EPOCH), uuid, point);
    if (since)
        instant(since + strlen(VARVE_DESC_CHANGES VARVE_DESC_INSTANT), uuid, base);
}
