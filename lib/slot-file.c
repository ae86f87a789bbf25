/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Why two files and no rename: they are allocated before they are needed, so that a commit also
 * works on a full file system (edges.md 17), and a sync of one file is all that a commit costs.
 *
 *  1. Only the slot that does not hold the text in force is ever written.
 *  2. A slot counts only if its checksum fits: a torn write leaves it void, and the other in force.
 *  3. A write that failed is made void before anything else happens, so that the text that its
 * caller was told of is what a crash leaves.
 *  4. What was read is written again, as it is, and synced before it is returned: after a kill -9 the
 *     page cache may show what a power loss would take back, and a sync of what an earlier sync could
 *     not write says that all is well.
 */
#include "lib/slot-file.h"

#include "lib/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLOT_HEAD  4096u
#define SLOT_ALLOC ((uint64_t)256 * 1024)

struct slot {
    int fd;
    bool blank; /* never written: nothing but zeroes, or no file before us */
    bool valid;
    unsigned format; /* as the head says, 0: there is no head */
    uint64_t sequence;
    uint64_t allocated; /* bytes */
    char *text;
    char path[PATH_MAX];
};

struct varve_slot_file {
    struct varve_world *w;
    unsigned format;
    uint64_t sequence; /* of the newest write, successful or not */
    unsigned in_force; /* the slot that is never written next */
    struct slot slots[2];
};

static int slot_digest(unsigned format, uint64_t sequence, const char *text, size_t len,
                       char hex[2 * VARVE_DIGEST_LEN + 1], struct varve_err *err)
{
    uint8_t sum[VARVE_DIGEST_LEN];
    struct varve_digest digest;
    char head[80];
    int rc;

    snprintf(head, sizeof(head), "%u %" PRIu64 " %zu\n", format, sequence, len);
    rc = varve_digest_init(&digest, err);
    if (rc < 0)
        return rc;
    varve_digest_update(&digest, head, strlen(head));
    varve_digest_update(&digest, text, len);
    rc = varve_digest_final(&digest, sum, err);
    if (rc < 0)
        return rc;
    for (unsigned i = 0; i < VARVE_DIGEST_LEN; i++)
        snprintf(hex + 2 * i, 3, "%02x", sum[i]);
    return 0;
}

/* Judges the slot's content.  What is damaged is not an error here. */
static int slot_read(struct varve_world *w, struct slot *s, struct varve_err *err)
{
    char head[SLOT_HEAD + 1] = "", want[2 * VARVE_DIGEST_LEN + 1], is[2 * VARVE_DIGEST_LEN + 1];
    struct varve_stat st;
    ssize_t got;
    size_t len, zeroes = 0;
    int end = 0, rc;

    rc = w->stat(w, s->fd, &st);
    if (rc < 0)
        return varve_err_sys(err, -rc, "%s", s->path);
    s->allocated = st.size;
    got = w->pread(w, s->fd, head, SLOT_HEAD, 0);
    if (got < 0)
        return varve_err_sys(err, (int)-got, "%s", s->path);
    while (zeroes < (size_t)got && head[zeroes] == 0)
        zeroes++;
    s->blank = zeroes == (size_t)got;

    if (sscanf(head, "varve-slot %u %" SCNu64 " %zu %64[0-9a-f]%n", &s->format, &s->sequence, &len,
               want, &end) != 4 ||
        head[end] != '\n' || len > VARVE_SLOT_TEXT_MAX)
        return 0;
    /* Before memory is taken for a text that is not there. */
    if (st.size < SLOT_HEAD || len > st.size - SLOT_HEAD)
        return 0;
    s->text = malloc(len + 1);
    if (!s->text)
        return varve_err_set(err, ENOMEM, "%s: no memory", s->path);
    got = w->pread(w, s->fd, s->text, len, SLOT_HEAD);
    if (got < 0)
        return varve_err_sys(err, (int)-got, "%s", s->path);
    if ((size_t)got != len)
        return 0;
    s->text[len] = '\0';
    rc = slot_digest(s->format, s->sequence, s->text, len, is, err);
    if (rc < 0)
        return rc;
    s->valid = strcmp(want, is) == 0 && strlen(s->text) == len;
    return 0;
}

/* Makes `text` durable in the slot, or the slot void where that fails. */
static int slot_write(struct varve_slot_file *f, struct slot *s, const char *text,
                      struct varve_err *err)
{
    struct varve_world *w = f->w;
    size_t len = strlen(text), total = SLOT_HEAD + len;
    char hex[2 * VARVE_DIGEST_LEN + 1];
    struct varve_err undo = VARVE_ERR_INIT;
    char *buf;
    int rc;

    if (len > VARVE_SLOT_TEXT_MAX)
        return varve_err_set(err, EFBIG, "%s: %zu bytes are more than it can hold", s->path, len);
    buf = calloc(1, total);
    if (!buf)
        return varve_err_set(err, ENOMEM, "%s: no memory", s->path);
    rc = slot_digest(f->format, f->sequence + 1, text, len, hex, err);
    if (rc < 0) {
        free(buf);
        return rc;
    }
    if (total > s->allocated) {
        uint64_t want = (total + SLOT_ALLOC - 1) / SLOT_ALLOC * SLOT_ALLOC;

        rc = w->allocate(w, s->fd, 0, want);
        if (rc == 0)
            rc = w->sync(w, s->fd);
        if (rc < 0) {
            free(buf);
            return varve_err_sys(err, -rc, "%s: cannot get %" PRIu64 " bytes", s->path, want);
        }
        s->allocated = want;
    }
    f->sequence++;
    snprintf(buf, SLOT_HEAD, "varve-slot %u %" PRIu64 " %zu %s\n", f->format, f->sequence, len,
             hex);
    memcpy(buf + SLOT_HEAD, text, len);
    rc = w->pwrite(w, s->fd, buf, total, 0);
    if (rc == 0)
        rc = w->sync(w, s->fd);
    if (rc == 0) {
        free(buf);
        return 0;
    }
    varve_err_sys(err, -rc, "cannot write %s", s->path);
    memset(buf, 0, SLOT_HEAD);
    strcpy(buf, "varve-slot void\n"); /* not blank: a blank pair is taken for a new one */
    rc = w->pwrite(w, s->fd, buf, SLOT_HEAD, 0);
    if (rc == 0)
        rc = w->sync(w, s->fd);
    free(buf);
    if (rc < 0 && err) {
        undo = *err;
        return varve_err_set(err, undo.code, "%.400s, nor take the attempt back", undo.msg);
    }
    return err ? -err->code : -EIO;
}

/* The same bytes again, durable now: rule 4. */
static int slot_write_again(struct varve_world *w, struct slot *s, struct varve_err *err)
{
    size_t total = SLOT_HEAD + strlen(s->text);
    char *buf = malloc(total);
    ssize_t got;
    int rc;

    if (!buf)
        return varve_err_set(err, ENOMEM, "%s: no memory", s->path);
    got = w->pread(w, s->fd, buf, total, 0);
    rc = got < 0 ? (int)got : (size_t)got < total ? -EIO : w->pwrite(w, s->fd, buf, total, 0);
    free(buf);
    if (rc == 0)
        rc = w->sync(w, s->fd);
    return rc < 0 ? varve_err_sys(err, -rc, "cannot make %s durable", s->path) : 0;
}

static int slot_open(struct varve_world *w, const char *dir, const char *name, unsigned number,
                     struct slot *s, struct varve_err *err)
{
    int len = snprintf(s->path, sizeof(s->path), "%s/%s-%u", dir, name, number);

    if (len < 0 || (size_t)len >= sizeof(s->path))
        return varve_err_set(err, ENAMETOOLONG, "%s: the path is too long", dir);
    s->fd = w->open(w, s->path, O_RDWR | O_CREAT, 0600);
    if (s->fd < 0)
        return varve_err_sys(err, -s->fd, "cannot open %s", s->path);
    return 0;
}

/* A pair whose making was not finished has a blank second file, and nothing was ever committed; or the
 * first file is whole, and both names are durable before there is anything in the second. */
static int slot_file_create(struct varve_slot_file *f, const char *dir, const char *initial,
                            struct varve_err *err)
{
    int rc = slot_write(f, &f->slots[0], initial, err);

    if (rc < 0)
        return rc;
    rc = f->w->sync_dir(f->w, dir);
    if (rc < 0)
        return varve_err_sys(err, -rc, "cannot sync %s", dir);
    rc = slot_write(f, &f->slots[1], initial, err);
    if (rc < 0)
        return rc;
    f->in_force = 1;
    return 0;
}

static int slot_file_load(struct varve_slot_file *f, const char *dir, const char *initial,
                          char **text, struct varve_err *err)
{
    struct slot *a = &f->slots[0], *b = &f->slots[1];
    int rc;

    for (unsigned i = 0; i < 2; i++) {
        rc = slot_read(f->w, &f->slots[i], err);
        if (rc < 0)
            return rc;
        if (f->slots[i].format > f->format)
            return varve_err_set(err, ENOTSUP,
                                 "%s is of format %u, this version knows up to %u: "
                                 "use the newer version that wrote it",
                                 f->slots[i].path, f->slots[i].format, f->format);
    }
    if (!a->valid && !b->valid) {
        if (!b->blank)
            return varve_err_set(err, EUCLEAN,
                                 "%s and %s are both damaged: restore one of them from a backup, "
                                 "or remove both and begin with full backups",
                                 a->path, b->path);
        rc = slot_file_create(f, dir, initial, err);
        if (rc < 0)
            return rc;
        *text = strdup(initial);
        return *text ? 0 : varve_err_set(err, ENOMEM, "%s: no memory", dir);
    }

    f->in_force = !a->valid || (b->valid && b->sequence > a->sequence) ? 1 : 0;
    f->sequence = f->slots[f->in_force].sequence;
    rc = slot_write_again(f->w, &f->slots[f->in_force], err);
    if (rc < 0)
        return rc;
    rc = f->w->sync_dir(f->w, dir);
    if (rc < 0)
        return varve_err_sys(err, -rc, "cannot sync %s", dir);
    *text = f->slots[f->in_force].text;
    f->slots[f->in_force].text = NULL;
    return 0;
}

int varve_slot_file_open(struct varve_world *w, const char *dir, const char *name, unsigned format,
                         const char *initial, struct varve_slot_file **out, char **text,
                         struct varve_err *err)
{
    struct varve_slot_file *f = calloc(1, sizeof(*f));
    int rc;

    if (!f)
        return varve_err_set(err, ENOMEM, "%s: no memory", dir);
    f->w = w;
    f->format = format;
    f->slots[0].fd = f->slots[1].fd = -1;
    rc = slot_open(w, dir, name, 0, &f->slots[0], err);
    if (rc < 0)
        goto err_close;
    rc = w->lock(w, f->slots[0].fd, true);
    if (rc < 0) {
        rc = rc == -EAGAIN
                 ? varve_err_set(err, EBUSY, "%s: another varved uses it", f->slots[0].path)
                 : varve_err_sys(err, -rc, "cannot lock %s", f->slots[0].path);
        goto err_close;
    }
    rc = slot_open(w, dir, name, 1, &f->slots[1], err);
    if (rc < 0)
        goto err_close;
    rc = slot_file_load(f, dir, initial, text, err);
    if (rc < 0)
        goto err_close;
    for (unsigned i = 0; i < 2; i++) {
        free(f->slots[i].text);
        f->slots[i].text = NULL;
    }
    *out = f;
    return 0;

err_close:
    varve_slot_file_close(f);
    return rc;
}

void varve_slot_file_close(struct varve_slot_file *s)
{
    if (!s)
        return;
    for (unsigned i = 0; i < 2; i++) {
        free(s->slots[i].text);
        if (s->slots[i].fd >= 0)
            s->w->close(s->w, s->slots[i].fd);
    }
    free(s);
}

int varve_slot_file_commit(struct varve_slot_file *s, const char *text, struct varve_err *err)
{
    unsigned target = 1 - s->in_force;
    int rc = slot_write(s, &s->slots[target], text, err);

    if (rc < 0)
        return rc;
    s->in_force = target;
    return 0;
}
