/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/epoch-file-internal.h"

#include "include/varve.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* --- head and mark ---------------------------------------------------------------------------- */

int varve_epoch_file_unusable(const char *path, const char *why, struct varve_err *err)
{
    return varve_err_set(err, EUCLEAN, "%s cannot be used: %s", path, why);
}

int varve_epoch_head_read(struct varve_world *w, int fd, const char *path, const uint8_t *uuid,
                          const struct varve_geometry *g, uint64_t first, uint64_t last,
                          struct varve_epoch_head *head, struct varve_err *err)
{
    ssize_t got = w->pread(w, fd, head, sizeof(*head), 0);
    uint32_t version;

    if (got < 0)
        return varve_err_sys(err, (int)-got, "cannot read %s", path);
    if (got < (ssize_t)sizeof(*head) ||
        memcmp(head->magic, VARVE_EPOCH_MAGIC, sizeof(head->magic)) != 0)
        return varve_epoch_file_unusable(path, "it is not an epoch's map", err);
    version = le32toh(head->version);
    if (version < VARVE_EPOCH_NO_TABLE || version > VARVE_EPOCH_VERSION)
        return varve_err_set(err, ENOTSUP,
                             "%s has format %" PRIu32
                             ", this varve knows formats 1 to %u only: use "
                             "the version of varve that wrote it",
                             path, version, VARVE_EPOCH_VERSION);
    if (version <= VARVE_EPOCH_NO_ID)
        memset(head->id, 0, sizeof(head->id));
    if (le64toh(head->first) != first || le64toh(head->last) != last ||
        le64toh(head->prev) >= first)
        return varve_epoch_file_unusable(path, "its name and its head tell different epochs", err);
    if (uuid && memcmp(head->uuid, uuid, sizeof(head->uuid)) != 0)
        return varve_epoch_file_unusable(path, "it belongs to another disk", err);
    if (g && le32toh(head->shift) != g->shift)
        return varve_epoch_file_unusable(path, "it is of another granularity than the disk", err);
    if (le64toh(head->size) > VARVE_DISK_SIZE_MAX)
        return varve_epoch_file_unusable(path, "it is of no size that a disk can have", err);
    return 0;
}

int varve_epoch_head_fits(const struct varve_epoch_head *head, const char *path,
                          const struct varve_geometry *g, struct varve_err *err)
{
    if (le64toh(head->size) != g->size)
        return varve_epoch_file_unusable(path, "it is of another size than the disk", err);
    return 0;
}

int varve_epoch_mark_check(const struct varve_epoch_mark *mark, uint8_t check[VARVE_DIGEST_LEN],
                           struct varve_err *err)
{
    struct varve_digest d;
    int rc = varve_digest_init(&d, err);

    if (rc < 0)
        return rc;
    varve_digest_update(&d, mark, offsetof(struct varve_epoch_mark, check));
    return varve_digest_final(&d, check, err);
}

int varve_epoch_mark_read(struct varve_world *w, int fd, const char *path,
                          enum varve_epoch_state *state, uint8_t digest[VARVE_DIGEST_LEN],
                          struct varve_err *err)
{
    struct varve_epoch_mark mark;
    uint8_t check[VARVE_DIGEST_LEN];
    ssize_t got = w->pread(w, fd, &mark, sizeof(mark), VARVE_EPOCH_MARK_OFF);
    uint32_t said;
    int rc;

    if (got < 0)
        return varve_err_sys(err, (int)-got, "cannot read %s", path);
    if (got < (ssize_t)sizeof(mark))
        return varve_epoch_file_unusable(path, "it ends before its mark", err);
    rc = varve_epoch_mark_check(&mark, check, err);
    if (rc < 0)
        return rc;
    said = le32toh(mark.state);
    if (memcmp(check, mark.check, sizeof(check)) != 0 ||
        (said != VARVE_EPOCH_FILE_CLEAN && said != VARVE_EPOCH_FILE_SEALED)) {
        *state = VARVE_EPOCH_FILE_OPEN;
        return 0;
    }
    *state = (enum varve_epoch_state)said;
    memcpy(digest, mark.digest, VARVE_DIGEST_LEN);
    return 0;
}

/* --- reading ---------------------------------------------------------------------------------- */

int varve_epoch_file_info(struct varve_world *w, const struct varve_paths *p,
                          const uint8_t uuid[16], const struct varve_geometry *g, uint64_t first,
                          uint64_t last, struct varve_epoch_file *info, struct varve_err *err)
{
    char path[PATH_MAX];
    struct varve_epoch_head head;
    uint8_t digest[VARVE_DIGEST_LEN];
    int fd, rc;

    varve_path_epoch(p, first, last, path);
    fd = w->open(w, path, O_RDONLY, 0);
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot open %s", path);
    rc = varve_epoch_head_read(w, fd, path, uuid, g, first, last, &head, err);
    if (rc == 0)
        rc = varve_epoch_mark_read(w, fd, path, &info->state, digest, err);
    w->close(w, fd);
    if (rc < 0)
        return rc;
    info->first = first;
    info->last = last;
    info->prev = le64toh(head.prev);
    info->size = le64toh(head.size);
    memcpy(info->id, head.id, sizeof(info->id));
    return 0;
}

/* The table as it stands in the file; of a file without one, all chunks. */
static int table_read(struct varve_world *w, int fd, const char *path,
                      const struct varve_epoch_head *head, const struct varve_geometry *g,
                      uint8_t table[VARVE_EPOCH_TABLE_LEN], struct varve_err *err)
{
    uint64_t nchunks = varve_epoch_nchunks(g);
    ssize_t got;

    if (le32toh(head->version) == VARVE_EPOCH_NO_TABLE) {
        memset(table, 0, VARVE_EPOCH_TABLE_LEN);
        for (uint64_t i = 0; i < nchunks; i++)
            table[i / 8] |= (uint8_t)(1u << (i % 8));
        return 0;
    }
    got = w->pread(w, fd, table, VARVE_EPOCH_TABLE_LEN, VARVE_EPOCH_TABLE_OFF);
    if (got < 0)
        return varve_err_sys(err, (int)-got, "cannot read %s", path);
    if (got < (ssize_t)VARVE_EPOCH_TABLE_LEN)
        return varve_epoch_file_unusable(path, "it is too short", err);
    for (uint64_t i = nchunks; i < (uint64_t)VARVE_EPOCH_TABLE_LEN * 8; i++) {
        if (varve_epoch_chunk_is_set(table, i))
            return varve_epoch_file_unusable(path, "its table does not fit its map", err);
    }
    return 0;
}

/* Chunks of the table that follow each other: bytes [at, at+len) of the bits, from chunk *next on,
 * which is then the one behind them.  len 0: there are none any more. */
static uint64_t run_next(const uint8_t table[VARVE_EPOCH_TABLE_LEN], const struct varve_geometry *g,
                         uint64_t *next, uint64_t *at)
{
    uint64_t bytes = varve_epoch_chunk_bytes(g), nchunks = varve_epoch_nchunks(g), end;

    while (*next < nchunks && !varve_epoch_chunk_is_set(table, *next))
        ++*next;
    *at = *next * bytes;
    while (*next < nchunks && varve_epoch_chunk_is_set(table, *next))
        ++*next;
    end = *next * bytes;
    if (end > varve_map_bytes(g))
        end = varve_map_bytes(g);
    return end > *at ? end - *at : 0;
}

/* Reads the table's chunks, one behind the other, and compares the checksum. */
static int chunks_read(struct varve_world *w, int fd, const char *path,
                       const struct varve_epoch_head *head, const struct varve_geometry *g,
                       const uint8_t table[VARVE_EPOCH_TABLE_LEN],
                       const uint8_t want[VARVE_DIGEST_LEN], uint8_t *buf, struct varve_err *err)
{
    uint8_t digest[VARVE_DIGEST_LEN];
    uint64_t next = 0, at, len;
    struct varve_digest d;
    int rc = varve_digest_init(&d, err), final;

    if (rc < 0)
        return rc;
    varve_digest_update(&d, head, varve_epoch_head_bytes(head));
    while (rc == 0 && (len = run_next(table, g, &next, &at)) > 0) {
        ssize_t got = w->pread(w, fd, buf, (size_t)len, VARVE_EPOCH_BITS_OFF + at);

        if (got < 0)
            rc = varve_err_sys(err, (int)-got, "cannot read %s", path);
        else if ((size_t)got < len)
            rc = varve_epoch_file_unusable(path, "it is too short", err);
        else
            varve_digest_update(&d, buf, (size_t)len);
        buf += len;
    }
    if (le32toh(head->version) != VARVE_EPOCH_NO_TABLE)
        varve_digest_update(&d, table, VARVE_EPOCH_TABLE_LEN);
    final = varve_digest_final(&d, digest, rc < 0 ? NULL : err);
    if (rc < 0 || final < 0)
        return rc < 0 ? rc : final;
    if (memcmp(digest, want, sizeof(digest)) != 0)
        return varve_epoch_file_unusable(path, "its checksum does not match its contents", err);
    return 0;
}

static uint64_t chunks_or(const uint8_t table[VARVE_EPOCH_TABLE_LEN],
                          const struct varve_geometry *g, uint64_t *words,
                          struct varve_bitmap *into)
{
    uint64_t next = 0, at, len, added = 0;

    while ((len = run_next(table, g, &next, &at)) > 0) {
        for (uint64_t i = 0; i < len / 8; i++)
            words[i] = le64toh(words[i]);
        added += varve_bitmap_or_words_cut(into, (size_t)(at / 8), words, (size_t)(len / 8));
        words += len / 8;
    }
    return added;
}

static int load_fd(struct varve_world *w, int fd, const char *path, const uint8_t uuid[16],
                   const struct varve_geometry *disk, uint64_t first, uint64_t last,
                   struct varve_bitmap *into, uint64_t *added, struct varve_err *err)
{
    struct varve_geometry own, *g = &own;
    uint8_t digest[VARVE_DIGEST_LEN], table[VARVE_EPOCH_TABLE_LEN];
    uint64_t next = 0, at, len, all = 0, *words;
    struct varve_epoch_head head;
    enum varve_epoch_state state;
    struct varve_stat st;
    int rc = varve_epoch_head_read(w, fd, path, uuid, disk, first, last, &head, err);

    if (rc == 0)
        rc = varve_epoch_mark_read(w, fd, path, &state, digest, err);
    if (rc == 0) /* the disk's as it was then */
        rc = varve_geometry_init(g, le64toh(head.size), varve_block_size(disk), err);
    if (rc < 0)
        return rc;
    if (state == VARVE_EPOCH_FILE_OPEN)
        return varve_epoch_file_unusable(path, "it was not sealed", err);
    /* Before memory is taken for bits that are not there. */
    rc = w->stat(w, fd, &st);
    if (rc < 0)
        return varve_err_sys(err, -rc, "cannot look at %s", path);
    if (st.size < varve_epoch_file_bytes(g))
        return varve_epoch_file_unusable(path, "it is too short", err);
    rc = table_read(w, fd, path, &head, g, table, err);
    if (rc < 0)
        return rc;
    while ((len = run_next(table, g, &next, &at)) > 0)
        all += len;
    if (all >= VARVE_EPOCH_LIST_MIN && state == VARVE_EPOCH_FILE_SEALED &&
        varve_epoch_list_load(w, fd, &head, g, into, added))
        return 0;
    words = malloc((size_t)all + 8);
    if (!words)
        return varve_err_sys(err, ENOMEM, "cannot read %s", path);
    rc = chunks_read(w, fd, path, &head, g, table, digest, (uint8_t *)words, err);
    if (rc == 0) {
        uint64_t set = chunks_or(table, g, words, into);

        if (added)
            *added += set;
    }
    free(words);
    return rc;
}

int varve_epoch_file_load_counting(struct varve_world *w, const struct varve_paths *p,
                                   const uint8_t uuid[16], const struct varve_geometry *g,
                                   uint64_t first, uint64_t last, struct varve_bitmap *into,
                                   uint64_t *added, struct varve_err *err)
{
    char path[PATH_MAX];
    int fd, rc;

    varve_path_epoch(p, first, last, path);
    if (into->nbits != g->nblks)
        return varve_err_set(err, EINVAL, "%s does not fit a map of %" PRIu64 " bits", path,
                             into->nbits);
    fd = w->open(w, path, O_RDONLY, 0);
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot open %s", path);
    rc = load_fd(w, fd, path, uuid, g, first, last, into, added, err);
    w->close(w, fd);
    return rc;
}

int varve_epoch_file_load(struct varve_world *w, const struct varve_paths *p,
                          const uint8_t uuid[16], const struct varve_geometry *g, uint64_t first,
                          uint64_t last, struct varve_bitmap *into, struct varve_err *err)
{
    return varve_epoch_file_load_counting(w, p, uuid, g, first, last, into, NULL, err);
}
