/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How an epoch's map gets to disk and what a crash can leave of it.
 *
 *     create   name.tmp: allocate, head, sync     -- rename, sync dir -->  OPEN   (a zero mark)
 *     finish   OPEN:  bits, table, list, sync, mark, sync  ------------------->  CLEAN or SEALED
 *     reopen   CLEAN: zero mark, sync                ------------------->  OPEN
 *     merge    name.tmp: head, bits, table, mark, sync -- rename, sync dir -->  SEALED
 *
 * 1. A file under its final name has a whole head: it was durable before the name was.
 * 2. A mark that says clean or sealed is written after its bits and its table are durable, and is
 *    open again, durably, before they change.
 * 3. The mark has a check of its own.  Whatever does not pass it, a torn one too, reads as open.
 * 4. A failed finish leaves an open mark behind, so that trying again writes and syncs everything
 *    again: pages whose write-back failed look clean to the next sync.
 */
#include "lib/epoch-file-internal.h"

#include "lib/bulk.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Unit of writing bits: what is zero and was zero is not written. */
#define PAGE VARVE_EPOCH_PAGE
/* Unit of working through them and of giving space back. */
#define STEP_MIN 65536u

static bool is_zero(const uint8_t *p, size_t len)
{
    return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

static char *path_tmp(char *tmp, const struct varve_paths *p, uint64_t first, uint64_t last)
{
    varve_path_epoch(p, first, last, tmp);
    return strcat(tmp, ".tmp"); /* varve_paths_init has left room */
}

/* --- head and mark ---------------------------------------------------------------------------- */

static void head_encode(struct varve_epoch_head *head, const uint8_t uuid[16],
                        const struct varve_geometry *g, uint64_t first, uint64_t last,
                        uint64_t prev, const uint8_t id[VARVE_EPOCH_ID_LEN])
{
    memcpy(head->magic, VARVE_EPOCH_MAGIC, sizeof(head->magic));
    head->version = htole32(VARVE_EPOCH_VERSION);
    head->shift = htole32(g->shift);
    memcpy(head->uuid, uuid, sizeof(head->uuid));
    head->size = htole64(g->size);
    head->first = htole64(first);
    head->last = htole64(last);
    head->prev = htole64(prev);
    memcpy(head->id, id, sizeof(head->id));
}

/* Not durable yet.  The open mark is all zeroes.  record: of the list, NULL: there is none. */
static int mark_write(struct varve_world *w, int fd, const char *path, enum varve_epoch_state state,
                      const uint8_t digest[VARVE_DIGEST_LEN], struct varve_epoch_record *record,
                      struct varve_err *err)
{
    uint8_t sector[VARVE_EPOCH_MARK_SECTOR] = {0};
    int rc;

    if (state != VARVE_EPOCH_FILE_OPEN) {
        struct varve_epoch_mark mark = {.state = htole32(state)};

        memcpy(mark.digest, digest, VARVE_DIGEST_LEN);
        rc = varve_epoch_mark_check(&mark, mark.check, err);
        if (rc < 0)
            return rc;
        memcpy(sector, &mark, sizeof(mark));
        if (record && varve_epoch_record_finish(&mark, record))
            memcpy(sector + VARVE_EPOCH_RECORD_OFF, record, sizeof(*record));
    }
    rc = w->pwrite(w, fd, sector, sizeof(sector), VARVE_EPOCH_MARK_OFF);
    return rc < 0 ? varve_err_sys(err, -rc, "cannot write %s", path) : 0;
}

static int file_sync(struct varve_world *w, int fd, const char *path, struct varve_err *err)
{
    int rc = w->sync(w, fd);

    return rc < 0 ? varve_err_sys(err, -rc, "cannot make %s durable", path) : 0;
}

/* --- bits ------------------------------------------------------------------------------------- */

/* Bytes [at, at+len) of the map as they stand in a file, nothing behind the last block. */
static void bits_encode(uint8_t *out, const void *bits, const struct varve_geometry *g, uint64_t at,
                        size_t len)
{
    memcpy(out, (const uint8_t *)bits + at, len);
    for (size_t i = 0; i < len; i += 8) {
        uint64_t bit = (at + i) * 8;
        uint64_t word;

        memcpy(&word, out + i, 8);
        if (g->nblks - bit < 64)
            word &= ((uint64_t)1 << (g->nblks - bit)) - 1;
        word = htole64(word);
        memcpy(out + i, &word, 8);
    }
}

/* Writes the pages of now[0, len) where it or was[] is not zero; len is a multiple of PAGE. */
static int step_write(struct varve_world *w, int fd, const uint8_t *now, const uint8_t *was,
                      size_t len, uint64_t off)
{
    size_t from = 0;

    while (from < len) {
        size_t to = from;
        int rc;

        while (to < len && !(is_zero(now + to, PAGE) && is_zero(was + to, PAGE)))
            to += PAGE;
        if (to == from) {
            from += PAGE;
            continue;
        }
        rc = w->pwrite(w, fd, now + from, to - from, off + from);
        if (rc < 0)
            return rc;
        from = to;
    }
    return 0;
}

/* What is worked through and given back at once: whole chunks. */
static size_t step_bytes(const struct varve_geometry *g)
{
    uint64_t chunk = varve_epoch_chunk_bytes(g);

    return chunk < STEP_MIN ? STEP_MIN : (size_t)chunk;
}

/* Notes which chunks of now[0, len), bytes `at` and on of the map, are not zero, and brings those
 * into the digest and the list (may be NULL); without a table all of them. */
static void chunks_note(const uint8_t *now, size_t len, const struct varve_geometry *g, uint64_t at,
                        uint8_t *table, struct varve_epoch_list *list, struct varve_digest *d)
{
    size_t chunk = (size_t)varve_epoch_chunk_bytes(g);

    if (!table) {
        varve_digest_update(d, now, len);
        return;
    }
    for (size_t from = 0; from < len; from += chunk) {
        uint64_t n = (at + from) / chunk;
        size_t part = len - from < chunk ? len - from : chunk;

        if (is_zero(now + from, part))
            continue;
        table[n / 8] |= (uint8_t)(1u << (n % 8));
        varve_digest_update(d, now + from, part);
        if (list)
            varve_epoch_list_note(list, now + from, part, at + from);
    }
}

/* Brings the bits into the file, whose length is right, into the table (NULL: the file has none)
 * and into the digest.  Looks at each bit once: what is in the file is what table and digest tell.
 * Steps that are zero are set in zero_steps (may be NULL). */
static int bits_write(struct varve_world *w, int fd, const char *path,
                      const struct varve_geometry *g, const void *bits, uint8_t *table,
                      struct varve_epoch_list *list, struct varve_digest *d,
                      struct varve_bitmap *zero_steps, struct varve_err *err)
{
    size_t step = step_bytes(g);
    uint64_t bytes = varve_map_bytes(g);
    uint8_t *now = malloc(2 * step), *was;
    struct varve_bulk bulk = {.bytes = 0};
    int rc = 0;

    if (!now)
        return varve_err_sys(err, ENOMEM, "cannot write %s", path);
    was = now + step;
    for (uint64_t at = 0; at < bytes && rc == 0; at += step) {
        size_t len = bytes - at < step ? (size_t)(bytes - at) : step;
        size_t whole = (len + PAGE - 1) / PAGE * PAGE;
        ssize_t got;

        bits_encode(now, bits, g, at, len);
        memset(now + len, 0, whole - len);
        chunks_note(now, len, g, at, table, list, d);
        if (zero_steps && is_zero(now, whole))
            varve_bitmap_set(zero_steps, at / step, at / step + 1);
        got = w->pread(w, fd, was, whole, VARVE_EPOCH_BITS_OFF + at);
        if (got >= 0 && got < (ssize_t)whole)
            rc = varve_epoch_file_unusable(path, "it is shorter than it was made", err);
        else if (got < 0)
            rc = varve_err_sys(err, (int)-got, "cannot read %s", path);
        if (rc < 0)
            break;
        rc = step_write(w, fd, now, was, whole, VARVE_EPOCH_BITS_OFF + at);
        if (rc < 0)
            varve_err_sys(err, -rc, "cannot write %s", path);
        varve_bulk_worked(&bulk, len);
    }
    free(now);
    return rc;
}

/* Head as it stands in the file, bits, table, list, sync; then the mark and another sync. */
static int bits_and_mark_write(struct varve_world *w, int fd, const char *path,
                               const struct varve_epoch_head *head, const struct varve_geometry *g,
                               const void *bits, enum varve_epoch_state state,
                               struct varve_bitmap *zero_steps, struct varve_err *err)
{
    uint8_t digest[VARVE_DIGEST_LEN], table[VARVE_EPOCH_TABLE_LEN] = {0};
    bool has_table = le32toh(head->version) != VARVE_EPOCH_NO_TABLE;
    bool has_list = has_table && state == VARVE_EPOCH_FILE_SEALED;
    struct varve_epoch_list list = {0};
    struct varve_epoch_record record;
    struct varve_digest d;
    int rc = varve_digest_init(&d, err);
    int final;

    if (rc < 0)
        return rc;
    varve_digest_update(&d, head, varve_epoch_head_bytes(head));
    rc = bits_write(w, fd, path, g, bits, has_table ? table : NULL, has_list ? &list : NULL, &d,
                    zero_steps, err);
    if (rc == 0 && has_table) {
        varve_digest_update(&d, table, sizeof(table));
        rc = w->pwrite(w, fd, table, sizeof(table), VARVE_EPOCH_TABLE_OFF);
        if (rc < 0)
            varve_err_sys(err, -rc, "cannot write %s", path);
    }
    final = varve_digest_final(&d, digest, rc < 0 ? NULL : err);
    if (rc == 0)
        rc = final;
    has_list = rc == 0 && has_list && varve_epoch_list_write(w, fd, head, g, &list, &record);
    varve_epoch_list_fini(&list);
    if (rc == 0)
        rc = file_sync(w, fd, path, err);
    if (rc < 0)
        return rc;
    rc = mark_write(w, fd, path, state, digest, has_list ? &record : NULL, err);
    if (rc == 0)
        rc = file_sync(w, fd, path, err);
    if (rc < 0)
        mark_write(w, fd, path, VARVE_EPOCH_FILE_OPEN, NULL, NULL, NULL); /* rule 4 */
    return rc;
}

/* Gives back the blocks of a sealed file that hold only zeroes.  Failure costs space, nothing else.
 */
static void zero_steps_punch(struct varve_world *w, int fd, const struct varve_geometry *g,
                             const struct varve_bitmap *zero_steps)
{
    uint64_t most = VARVE_BULK_PIECE > step_bytes(g) ? VARVE_BULK_PIECE / step_bytes(g) : 1;
    uint64_t from = varve_bitmap_find(zero_steps, 0, true);
    struct varve_bulk bulk = {.bytes = 0};

    while (from < zero_steps->nbits) {
        uint64_t to = varve_bitmap_find_until(zero_steps, from, from + most, false);
        uint64_t off = VARVE_EPOCH_BITS_OFF + from * step_bytes(g);
        uint64_t end = VARVE_EPOCH_BITS_OFF + to * step_bytes(g);

        if (end > varve_epoch_file_bytes(g))
            end = varve_epoch_file_bytes(g);
        if (w->punch(w, fd, off, end - off) < 0)
            return;
        varve_bulk_worked(&bulk, end - off);
        from = varve_bitmap_find(zero_steps, to, true);
    }
}

/* --- making files ----------------------------------------------------------------------------- */

/* Gives the durable file `tmp` its name, durably. */
static int file_publish(struct varve_world *w, const struct varve_paths *p, const char *tmp,
                        const char *path, struct varve_err *err)
{
    int rc = w->rename(w, tmp, path);

    if (rc == 0)
        rc = w->sync_dir(w, p->state);
    return rc < 0 ? varve_err_sys(err, -rc, "cannot make %s durable", path) : 0;
}

uint64_t varve_epoch_file_room(const struct varve_geometry *g)
{
    return varve_epoch_file_bytes(g);
}

int varve_epoch_file_create(struct varve_world *w, const struct varve_paths *p,
                            const uint8_t uuid[16], const struct varve_geometry *g, uint64_t epoch,
                            uint64_t prev, struct varve_err *err)
{
    char path[PATH_MAX], tmp[PATH_MAX];
    struct varve_epoch_file info;
    struct varve_err why;
    struct varve_epoch_head head;
    uint8_t id[VARVE_EPOCH_ID_LEN];
    int fd, rc;

    if (prev >= epoch)
        return varve_err_set(err, EINVAL, "epoch %" PRIu64 " cannot follow epoch %" PRIu64, epoch,
                             prev);
    varve_path_epoch(p, epoch, epoch, path);
    path_tmp(tmp, p, epoch, epoch);
    rc = varve_epoch_file_info(w, p, uuid, g, epoch, epoch, &info, &why);
    if (rc < 0 && rc != -ENOENT) {
        if (err)
            *err = why;
        return rc;
    }
    if (rc == 0 && info.state != VARVE_EPOCH_FILE_OPEN)
        return varve_err_set(err, EEXIST, "%s exists and holds an epoch's bits", path);

    rc = w->random(w, id, sizeof(id));
    if (rc < 0)
        return varve_err_sys(err, -rc, "cannot get random numbers for %s", path);
    head_encode(&head, uuid, g, epoch, epoch, prev, id);
    fd = w->open(w, tmp, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot create %s", tmp);
    rc = w->allocate(w, fd, 0, varve_epoch_file_bytes(g));
    if (rc == 0)
        rc = w->pwrite(w, fd, &head, sizeof(head), 0);
    if (rc == 0)
        rc = w->sync(w, fd);
    w->close(w, fd);
    if (rc < 0)
        varve_err_sys(err, -rc, "cannot make %s with its %" PRIu64 " bytes", tmp,
                      varve_epoch_file_bytes(g));
    else
        rc = file_publish(w, p, tmp, path, err);
    if (rc < 0)
        w->unlink(w, tmp);
    return rc;
}

static int finish_fd(struct varve_world *w, int fd, const char *path,
                     const struct varve_geometry *g, uint64_t epoch, const void *bits,
                     enum varve_epoch_state state, struct varve_bitmap *zero_steps,
                     struct varve_err *err)
{
    struct varve_epoch_head head;
    enum varve_epoch_state was;
    uint8_t digest[VARVE_DIGEST_LEN];
    int rc = varve_epoch_head_read(w, fd, path, NULL, g, epoch, epoch, &head, err);

    if (rc == 0)
        rc = varve_epoch_head_fits(&head, path, g, err);
    if (rc == 0)
        rc = varve_epoch_mark_read(w, fd, path, &was, digest, err);
    if (rc < 0)
        return rc;
    if (was == VARVE_EPOCH_FILE_SEALED) {
        /* Whoever wrote the mark may have died before it was durable. */
        rc = file_sync(w, fd, path, err);
        return rc < 0 ? rc : varve_err_set(err, EEXIST, "%s is sealed already", path);
    }
    if (was == VARVE_EPOCH_FILE_CLEAN) {
        rc = mark_write(w, fd, path, VARVE_EPOCH_FILE_OPEN, NULL, NULL, err);
        if (rc == 0)
            rc = file_sync(w, fd, path, err);
        if (rc < 0)
            return rc;
    }
    rc = bits_and_mark_write(w, fd, path, &head, g, bits, state, zero_steps, err);
    if (rc == 0 && state == VARVE_EPOCH_FILE_SEALED)
        zero_steps_punch(w, fd, g, zero_steps);
    return rc;
}

int varve_epoch_file_finish(struct varve_world *w, const struct varve_paths *p,
                            const struct varve_geometry *g, uint64_t epoch, const void *bits,
                            enum varve_epoch_state state, struct varve_err *err)
{
    char path[PATH_MAX];
    struct varve_bitmap *zero_steps;
    int fd, rc;

    varve_path_epoch(p, epoch, epoch, path);
    if (state != VARVE_EPOCH_FILE_CLEAN && state != VARVE_EPOCH_FILE_SEALED)
        return varve_err_set(err, EINVAL, "%s can be finished as clean or sealed only", path);
    zero_steps = varve_bitmap_new((varve_map_bytes(g) + step_bytes(g) - 1) / step_bytes(g));
    if (!zero_steps)
        return varve_err_sys(err, ENOMEM, "cannot write %s", path);
    fd = w->open(w, path, O_RDWR, 0);
    if (fd < 0) {
        rc = varve_err_sys(err, -fd, "cannot open %s", path);
    } else {
        rc = finish_fd(w, fd, path, g, epoch, bits, state, zero_steps, err);
        w->close(w, fd);
    }
    free(zero_steps);
    return rc;
}

static int reopen_fd(struct varve_world *w, int fd, const char *path, uint64_t epoch,
                     struct varve_err *err)
{
    struct varve_epoch_head head;
    enum varve_epoch_state was;
    uint8_t digest[VARVE_DIGEST_LEN];
    int rc = varve_epoch_head_read(w, fd, path, NULL, NULL, epoch, epoch, &head, err);

    if (rc == 0)
        rc = varve_epoch_mark_read(w, fd, path, &was, digest, err);
    if (rc == 0 && was == VARVE_EPOCH_FILE_SEALED)
        rc = varve_err_set(err, EEXIST, "%s is sealed already", path);
    /* Also if it reads as open: that need not be durable. */
    if (rc == 0)
        rc = mark_write(w, fd, path, VARVE_EPOCH_FILE_OPEN, NULL, NULL, err);
    if (rc == 0)
        rc = file_sync(w, fd, path, err);
    return rc;
}

int varve_epoch_file_reopen(struct varve_world *w, const struct varve_paths *p, uint64_t epoch,
                            struct varve_err *err)
{
    char path[PATH_MAX];
    int fd, rc;

    varve_path_epoch(p, epoch, epoch, path);
    fd = w->open(w, path, O_RDWR, 0);
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot open %s", path);
    rc = reopen_fd(w, fd, path, epoch, err);
    w->close(w, fd);
    return rc;
}

int varve_epoch_file_write_merged(struct varve_world *w, const struct varve_paths *p,
                                  const uint8_t uuid[16], const struct varve_geometry *g,
                                  uint64_t first, uint64_t last, uint64_t prev,
                                  const uint8_t id[VARVE_EPOCH_ID_LEN],
                                  const struct varve_bitmap *bits, struct varve_err *err)
{
    char path[PATH_MAX], tmp[PATH_MAX];
    struct varve_epoch_head head;
    int fd, rc;

    if (prev >= first || first > last || bits->nbits != g->nblks)
        return varve_err_set(err, EINVAL, "epochs %" PRIu64 " to %" PRIu64 " cannot be merged",
                             first, last);
    varve_path_epoch(p, first, last, path);
    path_tmp(tmp, p, first, last);
    head_encode(&head, uuid, g, first, last, prev, id);
    fd = w->open(w, tmp, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot create %s", tmp);
    rc = w->truncate(w, fd, varve_epoch_file_bytes(g));
    if (rc == 0)
        rc = w->pwrite(w, fd, &head, sizeof(head), 0);
    if (rc < 0)
        varve_err_sys(err, -rc, "cannot write %s", tmp);
    else
        rc = bits_and_mark_write(w, fd, tmp, &head, g, bits->words, VARVE_EPOCH_FILE_SEALED, NULL,
                                 err);
    w->close(w, fd);
    if (rc == 0)
        rc = file_publish(w, p, tmp, path, err);
    if (rc < 0)
        w->unlink(w, tmp);
    return rc;
}
