/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/blocks-file.h"

#include "lib/whole-file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCKS_MAGIC   "varveset"
#define BLOCKS_VERSION 1u

/* All integers little-endian. */
struct blocks_head {
    char magic[8];
    uint32_t version;
    uint32_t shift;
    uint8_t uuid[16];
    uint64_t size;
    uint8_t zero[24];
};

static_assert(sizeof(struct blocks_head) == 64, "the format's head");

static struct blocks_head head_make(const uint8_t uuid[16], const struct varve_geometry *g)
{
    struct blocks_head head = {
        .magic = BLOCKS_MAGIC, .version = BLOCKS_VERSION, .shift = g->shift, .size = g->size};

    memcpy(head.uuid, uuid, sizeof(head.uuid));
    return head;
}

static int digest_of(const void *buf, size_t len, uint8_t digest[VARVE_DIGEST_LEN],
                     struct varve_err *err)
{
    struct varve_digest d;
    int rc = varve_digest_init(&d, err);

    if (rc < 0)
        return rc;
    varve_digest_update(&d, buf, len);
    return varve_digest_final(&d, digest, err);
}

int varve_blocks_write(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                       const struct varve_geometry *g, const struct varve_bitmap *bits,
                       uint8_t digest[VARVE_DIGEST_LEN], struct varve_err *err)
{
    struct blocks_head head = head_make(uuid, g);
    size_t len = sizeof(head) + (size_t)varve_map_bytes(g);
    char path[PATH_MAX], *buf = malloc(len);
    int rc;

    assert(bits->nbits == g->nblks);
    if (!buf)
        return varve_err_set(err, ENOMEM, "no memory for a file of blocks");
    memcpy(buf, &head, sizeof(head));
    memcpy(buf + sizeof(head), bits->words, len - sizeof(head));
    rc = digest_of(buf, len, digest, err);
    if (rc == 0)
        rc = varve_whole_file_replace(w, varve_path_blocks(p, digest, path), buf, len, err);
    free(buf);
    return rc;
}

static int unusable(const char *path, const char *why, struct varve_err *err)
{
    return varve_err_set(err, EUCLEAN, "the file of blocks %s %s", path, why);
}

static int blocks_version_check(const char *path, const char *buf, struct varve_err *err)
{
    uint32_t version;

    memcpy(&version, buf + offsetof(struct blocks_head, version), sizeof(version));
    if (version <= BLOCKS_VERSION)
        return 0;
    return varve_err_set(err, ENOTSUP,
                         "%s has format %" PRIu32 ", this varve knows format %u only: use the "
                         "version of varve that wrote it",
                         path, version, BLOCKS_VERSION);
}

/* The disk's geometry when the file was written, as far as its head, which need not be true, makes sense;
 * else today's. */
static int geometry_then(struct varve_world *w, const char *path, const struct varve_geometry *g,
                         struct varve_geometry *then, struct varve_err *err)
{
    struct blocks_head head;
    int fd = w->open(w, path, O_RDONLY, 0);
    ssize_t got;

    if (fd == -ENOENT)
        return unusable(path, "is missing", err);
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot open %s", path);
    got = w->pread(w, fd, &head, sizeof(head), 0);
    w->close(w, fd);
    if (got < 0)
        return varve_err_sys(err, (int)-got, "cannot read %s", path);
    if ((size_t)got < sizeof(head) ||
        varve_geometry_init(then, head.size, varve_block_size(g), NULL) < 0)
        *then = *g;
    return 0;
}

int varve_blocks_load(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                      const struct varve_geometry *g, const uint8_t digest[VARVE_DIGEST_LEN],
                      struct varve_bitmap *into, struct varve_err *err)
{
    uint8_t found[VARVE_DIGEST_LEN];
    struct varve_geometry then;
    struct blocks_head head;
    char path[PATH_MAX], *buf;
    size_t want, len;
    int rc;

    assert(into->nbits == g->nblks);
    varve_path_blocks(p, digest, path);
    rc = geometry_then(w, path, g, &then, err);
    if (rc < 0)
        return rc;
    head = head_make(uuid, &then);
    want = sizeof(head) + (size_t)varve_map_bytes(&then);
    rc = varve_whole_file_read(w, path, want, &buf, &len, err);
    if (rc == -ENOENT)
        return unusable(path, "is missing", err);
    if (rc == -EFBIG)
        return unusable(path, "is damaged", err);
    if (rc < 0)
        return rc;
    rc = digest_of(buf, len, found, err);
    if (rc == 0 && (len != want || memcmp(found, digest, sizeof(found)) != 0))
        rc = unusable(path, "is damaged", err);
    /* The digest stands in the catalogue, but a catalogue may have been moved. */
    if (rc == 0 && memcmp(buf, head.magic, sizeof(head.magic)) == 0)
        rc = blocks_version_check(path, buf, err);
    if (rc == 0 && memcmp(buf, &head, sizeof(head)) != 0)
        rc = unusable(path, "is of another disk", err);
    for (size_t i = 0; rc == 0 && i < varve_map_bytes(&then) / 8; i++) {
        uint64_t word;

        memcpy(&word, buf + sizeof(head) + 8 * i, 8);
        varve_bitmap_or_words_cut(into, i, &word, 1);
    }
    free(buf);
    if (rc == 0 && then.size != g->size)
        varve_bitmap_set(into, varve_resized_from(g, then.size, g->size), into->nbits);
    return rc;
}

int varve_blocks_look(struct varve_world *w, const struct varve_paths *p,
                      const uint8_t digest[VARVE_DIGEST_LEN], struct varve_err *err)
{
    char path[PATH_MAX];
    int fd = w->open(w, varve_path_blocks(p, digest, path), O_RDONLY, 0);

    if (fd == -ENOENT)
        return unusable(path, "is missing", err);
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot open %s", path);
    w->close(w, fd);
    return 0;
}

/* --- tidy ----------------------------------------------------------------------------------- */

struct tidy {
    struct varve_world *w;
    const struct varve_paths *p;
    const uint8_t (*keep)[VARVE_DIGEST_LEN];
    size_t n;
};

static int tidy_look(void *arg, const char *name)
{
    const struct tidy *t = arg;
    size_t len = strlen(name);
    char path[PATH_MAX];
    const char *base;

    if (strncmp(name, "blocks-", 7) != 0 || len > NAME_MAX ||
        !(len > 4 && (strcmp(name + len - 4, ".map") == 0 || strcmp(name + len - 4, ".tmp") == 0)))
        return 0;
    for (size_t i = 0; i < t->n; i++) {
        base = strrchr(varve_path_blocks(t->p, t->keep[i], path), '/') + 1;
        if (strcmp(base, name) == 0)
            return 0;
    }
    if (snprintf(path, sizeof(path), "%s/%s", t->p->state, name) < (int)sizeof(path))
        t->w->unlink(t->w, path);
    return 0;
}

void varve_blocks_tidy(struct varve_world *w, const struct varve_paths *p,
                       const uint8_t (*keep)[VARVE_DIGEST_LEN], size_t n)
{
    struct tidy t = {.w = w, .p = p, .keep = keep, .n = n};

    w->list(w, p->state, tidy_look, &t);
}
