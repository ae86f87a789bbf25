/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The layout of an epoch file, shared by those who read it (epoch-file.c), those who make it
 * (epoch-file-write.c), the list that both may take instead of the bits (epoch-file-list.c) and nobody else.  Threads as of lib/epoch-file.h.
 * It never decides what a state means.
 */
#ifndef VARVE_LIB_EPOCH_FILE_INTERNAL_H
#define VARVE_LIB_EPOCH_FILE_INTERNAL_H

#include "lib/digest.h"
#include "lib/epoch-file.h"

#include <assert.h>
#include <endian.h>
#include <stdbool.h>
#include <stddef.h>

#define VARVE_EPOCH_MAGIC       "varvemap"
#define VARVE_EPOCH_VERSION     3u
#define VARVE_EPOCH_NO_ID       2u /* the version whose head has none */
#define VARVE_EPOCH_NO_TABLE    1u /* the version that has no table, and no id */
#define VARVE_EPOCH_MARK_OFF    4096u
#define VARVE_EPOCH_MARK_SECTOR 512u
#define VARVE_EPOCH_RECORD_OFF  128u /* in the mark's sector */
#define VARVE_EPOCH_TABLE_OFF   4608u
#define VARVE_EPOCH_TABLE_LEN   3584u
#define VARVE_EPOCH_BITS_OFF    8192u
#define VARVE_EPOCH_PAGE        4096u

/* All integers little-endian. */
struct varve_epoch_head {
    char magic[8];
    uint32_t version;
    uint32_t shift;
    uint8_t uuid[16];
    uint64_t size;
    uint64_t first, last, prev;
    uint8_t id[VARVE_EPOCH_ID_LEN]; /* not in the file, and zero here, before version 3 */
};

#define VARVE_EPOCH_HEAD_NO_ID 64u

static_assert(offsetof(struct varve_epoch_head, id) == VARVE_EPOCH_HEAD_NO_ID &&
                  sizeof(struct varve_epoch_head) == 80,
              "the format's head");

/* Bytes of the head as it stands in its file. */
static inline size_t varve_epoch_head_bytes(const struct varve_epoch_head *head)
{
    return le32toh(head->version) <= VARVE_EPOCH_NO_ID ? VARVE_EPOCH_HEAD_NO_ID : sizeof(*head);
}

struct varve_epoch_mark {
    uint32_t state;
    uint32_t zero;
    uint8_t digest[VARVE_DIGEST_LEN]; /* of head and bits */
    uint8_t check[VARVE_DIGEST_LEN];  /* of what stands before it in the mark */
};

static_assert(sizeof(struct varve_epoch_mark) <= VARVE_EPOCH_MARK_SECTOR,
              "the mark is written by one sector");

/* Of the list, behind the mark and written with it; zero: there is none. */
struct varve_epoch_record {
    uint64_t n;                       /* words that it has */
    uint8_t digest[VARVE_DIGEST_LEN]; /* of head and list */
    uint8_t check[VARVE_DIGEST_LEN];  /* of the mark, and what stands before it here */
};

/* A word of the bits that is not zero; the list is some of them, sorted, behind the bits. */
struct varve_epoch_word {
    uint64_t index, bits;
};

static inline uint64_t varve_epoch_file_bytes(const struct varve_geometry *g)
{
    uint64_t pages = (varve_map_bytes(g) + VARVE_EPOCH_PAGE - 1) / VARVE_EPOCH_PAGE;

    return VARVE_EPOCH_BITS_OFF + pages * VARVE_EPOCH_PAGE;
}

/* Bytes of a chunk of the bits, and how many there are; the last may be shorter. */
static inline uint64_t varve_epoch_chunk_bytes(const struct varve_geometry *g)
{
    uint64_t bytes = VARVE_EPOCH_PAGE;

    while ((varve_map_bytes(g) + bytes - 1) / bytes > VARVE_EPOCH_TABLE_LEN * 8)
        bytes *= 2;
    return bytes;
}

static inline uint64_t varve_epoch_nchunks(const struct varve_geometry *g)
{
    uint64_t bytes = varve_epoch_chunk_bytes(g);

    return (varve_map_bytes(g) + bytes - 1) / bytes;
}

static inline bool varve_epoch_chunk_is_set(const uint8_t table[VARVE_EPOCH_TABLE_LEN],
                                            uint64_t chunk)
{
    return table[chunk / 8] >> (chunk % 8) & 1;
}

/* Says that the file at path cannot be used, and why; -EUCLEAN. */
int varve_epoch_file_unusable(const char *path, const char *why, struct varve_err *err);

/* Reads the head as it stands in the file and checks it.  uuid, g: NULL if they do not matter.  The
 * size may be another than the disk has now; it is one that a disk can have. */
int varve_epoch_head_read(struct varve_world *w, int fd, const char *path, const uint8_t *uuid,
                          const struct varve_geometry *g, uint64_t first, uint64_t last,
                          struct varve_epoch_head *head, struct varve_err *err);

/* -EUCLEAN: the epoch was of a disk of another size. */
int varve_epoch_head_fits(const struct varve_epoch_head *head, const char *path,
                          const struct varve_geometry *g, struct varve_err *err);

/* Reads the mark.  digest is set unless the state is open. */
int varve_epoch_mark_read(struct varve_world *w, int fd, const char *path,
                          enum varve_epoch_state *state, uint8_t digest[VARVE_DIGEST_LEN],
                          struct varve_err *err);

/* --- the list (epoch-file-list.c) --- */

/* Bytes of chunks below which there is none. */
#define VARVE_EPOCH_LIST_MIN 131072u

/* As it is made; all zero to begin with. */
struct varve_epoch_list {
    struct varve_epoch_word *words;
    size_t n, room;
    uint64_t chunk_bytes; /* of the chunks that have them */
    bool gone;            /* there are too many words, or no memory: no list is made */
};

/* A chunk that is not zero, as it stands in the file, bytes `at` and on of the bits. */
void varve_epoch_list_note(struct varve_epoch_list *list, const uint8_t *chunk, size_t len,
                           uint64_t at);

/* Writes the list, not durable yet, and fills the record but for its check.  False: it is not worth it, or that went
 * wrong, and the file does without. */
bool varve_epoch_list_write(struct varve_world *w, int fd, const struct varve_epoch_head *head,
                            const struct varve_geometry *g, const struct varve_epoch_list *list,
                            struct varve_epoch_record *record);
/* The rest of it.  False: the file does without. */
bool varve_epoch_record_finish(const struct varve_epoch_mark *mark,
                               struct varve_epoch_record *record);
void varve_epoch_list_fini(struct varve_epoch_list *list);

/* ORs the list of a sealed file into `into`, after verifying it; *added as of varve_epoch_file_load_counting.  False: there
 * is none that can be used, and nothing was changed. */
bool varve_epoch_list_load(struct varve_world *w, int fd, const struct varve_epoch_head *head,
                           const struct varve_geometry *g, struct varve_bitmap *into,
                           uint64_t *added);

/* --- head and mark --- */

/* Computes the mark's own check. */
int varve_epoch_mark_check(const struct varve_epoch_mark *mark, uint8_t check[VARVE_DIGEST_LEN],
                           struct varve_err *err);

#endif
