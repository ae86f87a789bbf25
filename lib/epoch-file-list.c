/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/epoch-file-internal.h"

#include <stdlib.h>
#include <string.h>

/* Words that a list has at most: a MiB of them. */
#define LIST_MAX 65536u
/* Chunks that are no more than this many times as long as their list are as quickly read themselves. */
#define CHUNKS_TIMES 4u

static_assert(VARVE_EPOCH_RECORD_OFF + sizeof(struct varve_epoch_record) <= VARVE_EPOCH_MARK_SECTOR,
              "the record is written with the mark");

static bool list_has_room(struct varve_epoch_list *list)
{
    size_t room = list->room ? 2 * list->room : 1024;
    struct varve_epoch_word *words;

    if (list->n < list->room)
        return true;
    if (list->gone || list->n == LIST_MAX)
        return false;
    words = reallocarray(list->words, room, sizeof(*words));
    if (!words)
        return false;
    list->words = words;
    list->room = room;
    return true;
}

void varve_epoch_list_note(struct varve_epoch_list *list, const uint8_t *chunk, size_t len,
                           uint64_t at)
{
    list->chunk_bytes += len;
    for (size_t i = 0; i < len && !list->gone; i += 8) {
        uint64_t word;

        memcpy(&word, chunk + i, 8);
        if (word == 0)
            continue;
        list->gone = !list_has_room(list);
        if (!list->gone)
            list->words[list->n++] = (struct varve_epoch_word){htole64((at + i) / 8), word};
    }
}

static int list_digest(const struct varve_epoch_head *head, const struct varve_epoch_word *words,
                       uint64_t n, uint8_t digest[VARVE_DIGEST_LEN])
{
    struct varve_digest d;
    int rc = varve_digest_init(&d, NULL);

    if (rc < 0)
        return rc;
    varve_digest_update(&d, head, varve_epoch_head_bytes(head));
    varve_digest_update(&d, words, n * sizeof(*words));
    return varve_digest_final(&d, digest, NULL);
}

static int record_check(const struct varve_epoch_mark *mark,
                        const struct varve_epoch_record *record, uint8_t check[VARVE_DIGEST_LEN])
{
    struct varve_digest d;
    int rc = varve_digest_init(&d, NULL);

    if (rc < 0)
        return rc;
    varve_digest_update(&d, mark, sizeof(*mark));
    varve_digest_update(&d, record, offsetof(struct varve_epoch_record, check));
    return varve_digest_final(&d, check, NULL);
}

bool varve_epoch_list_write(struct varve_world *w, int fd, const struct varve_epoch_head *head,
                            const struct varve_geometry *g, const struct varve_epoch_list *list,
                            struct varve_epoch_record *record)
{
    uint64_t bytes = list->n * sizeof(list->words[0]);

    if (list->gone || list->chunk_bytes < VARVE_EPOCH_LIST_MIN || list->chunk_bytes < CHUNKS_TIMES * bytes)
        return false;
    record->n = htole64(list->n);
    return list_digest(head, list->words, list->n, record->digest) == 0 &&
           w->pwrite(w, fd, list->words, bytes, varve_epoch_file_bytes(g)) == 0;
}

bool varve_epoch_record_finish(const struct varve_epoch_mark *mark,
                               struct varve_epoch_record *record)
{
    return record_check(mark, record, record->check) == 0;
}

void varve_epoch_list_fini(struct varve_epoch_list *list)
{
    free(list->words);
}

/* The record of the list, or none. */
static bool record_read(struct varve_world *w, int fd, struct varve_epoch_record *record)
{
    uint8_t sector[VARVE_EPOCH_MARK_SECTOR], check[VARVE_DIGEST_LEN];
    struct varve_epoch_mark mark;
    ssize_t got = w->pread(w, fd, sector, sizeof(sector), VARVE_EPOCH_MARK_OFF);

    if (got < (ssize_t)sizeof(sector))
        return false;
    memcpy(&mark, sector, sizeof(mark));
    memcpy(record, sector + VARVE_EPOCH_RECORD_OFF, sizeof(*record));
    return record->n != 0 && le64toh(record->n) <= LIST_MAX &&
           record_check(&mark, record, check) == 0 &&
           memcmp(check, record->check, sizeof(check)) == 0;
}

static bool words_fit(const struct varve_epoch_word *words, uint64_t n,
                      const struct varve_geometry *g)
{
    for (uint64_t i = 0; i < n; i++) {
        if (le64toh(words[i].index) >= varve_map_bytes(g) / 8)
            return false;
    }
    return true;
}

bool varve_epoch_list_load(struct varve_world *w, int fd, const struct varve_epoch_head *head,
                           const struct varve_geometry *g, struct varve_bitmap *into,
                           uint64_t *added)
{
    struct varve_epoch_record record;
    struct varve_epoch_word *words;
    uint8_t digest[VARVE_DIGEST_LEN];
    uint64_t n, bytes;
    bool whole;

    if (!record_read(w, fd, &record))
        return false;
    n = le64toh(record.n);
    bytes = n * sizeof(*words);
    words = malloc(bytes);
    if (!words)
        return false;
    whole = w->pread(w, fd, words, bytes, varve_epoch_file_bytes(g)) == (ssize_t)bytes &&
            list_digest(head, words, n, digest) == 0 &&
            memcmp(digest, record.digest, sizeof(digest)) == 0 && words_fit(words, n, g);
    for (uint64_t i = 0; whole && i < n; i++) {
        uint64_t word = le64toh(words[i].bits);
        uint64_t set = varve_bitmap_or_words_cut(into, (size_t)le64toh(words[i].index), &word, 1);

        if (added)
            *added += set;
    }
    free(words);
    return whole;
}
