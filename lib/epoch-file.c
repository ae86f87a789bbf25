/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/epoch-file-internal.h"

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

    if (got < 0)
        return varve_err_sys(err, (int)-got, "cannot read %s", path);
    if (got < (ssize_t)sizeof(*head) ||
        memcmp(head->magic, VARVE_EPOCH_MAGIC, sizeof(head->magic)) != 0)
        return varve_epoch_file_unusable(path, "it is not an epoch's map", err);
    if (le32toh(head->version) != VARVE_EPOCH_VERSION)
        return varve_err_set(err, ENOTSUP,
                             "%s has format %" PRIu32 ", this varve knows format %u only: use the "
                             "version of varve that wrote it",
                             path, le32toh(head->version), VARVE_EPOCH_VERSION);
    if (le64toh(head->first) != first || le64toh(head->last) != last ||
        le64toh(head->prev) >= first)
        return varve_epoch_file_unusable(path, "its name and its head tell different epochs", err);
    if (uuid && memcmp(head->uuid, uuid, sizeof(head->uuid)) != 0)
        return varve_epoch_file_unusable(path, "it belongs to another disk", err);
    if (g && (le32toh(head->shift) != g->shift || le64toh(head->size) != g->size))
        return varve_epoch_file_unusable(path, "it is of another size or granularity than the disk",
                                         err);
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
    return 0;
}

/* Reads the bits into words (varve_map_bytes() of them) and compares the checksum. */
static int bits_read(struct varve_world *w, int fd, const char *path,
                     const struct varve_epoch_head *head, const struct varve_geometry *g,
                     const uint8_t want[VARVE_DIGEST_LEN], uint64_t *words, struct varve_err *err)
{
    size_t bytes = (size_t)varve_map_bytes(g);
    ssize_t got = w->pread(w, fd, words, bytes, VARVE_EPOCH_BITS_OFF);
    uint8_t digest[VARVE_DIGEST_LEN];
    struct varve_digest d;
    int rc;

    if (got < 0)
        return varve_err_sys(err, (int)-got, "cannot read %s", path);
    if ((size_t)got < bytes)
        return varve_epoch_file_unusable(path, "it is too short", err);
    rc = varve_digest_init(&d, err);
    if (rc < 0)
        return rc;
    varve_digest_update(&d, head, sizeof(*head));
    varve_digest_update(&d, words, bytes);
    rc = varve_digest_final(&d, digest, err);
    if (rc < 0)
        return rc;
    if (memcmp(digest, want, sizeof(digest)) != 0)
        return varve_epoch_file_unusable(path, "its checksum does not match its contents", err);
    return 0;
}

static int load_fd(struct varve_world *w, int fd, const char *path, const uint8_t uuid[16],
                   const struct varve_geometry *g, uint64_t first, uint64_t last,
                   struct varve_bitmap *into, struct varve_err *err)
{
    struct varve_epoch_head head;
    enum varve_epoch_state state;
    uint8_t digest[VARVE_DIGEST_LEN];
    struct varve_stat st;
    struct varve_bitmap *bits;
    int rc = varve_epoch_head_read(w, fd, path, uuid, g, first, last, &head, err);

    if (rc == 0)
        rc = varve_epoch_mark_read(w, fd, path, &state, digest, err);
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
    bits = varve_bitmap_new(g->nblks);
    if (!bits)
        return varve_err_sys(err, ENOMEM, "cannot read %s", path);
    rc = bits_read(w, fd, path, &head, g, digest, bits->words, err);
    if (rc == 0) {
        for (size_t i = 0; i < varve_bitmap_nwords(bits); i++)
            bits->words[i] = le64toh(bits->words[i]);
        varve_bitmap_or(into, bits);
    }
    free(bits);
    return rc;
}

int varve_epoch_file_load(struct varve_world *w, const struct varve_paths *p,
                          const uint8_t uuid[16], const struct varve_geometry *g, uint64_t first,
                          uint64_t last, struct varve_bitmap *into, struct varve_err *err)
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
    rc = load_fd(w, fd, path, uuid, g, first, last, into, err);
    w->close(w, fd);
    return rc;
}
