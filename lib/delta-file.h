/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A delta: what changed on a disk from one instant to another, as a file that is kept beside a full
 * backup and replayed onto it (varve pull --delta, varve apply).
 * Adding and comparing: any threads, on ranges that do not overlap; the rest one thread at a time.
 * It never changes a delta that has its name, and never decides onto what one may be replayed.
 *
 * Format, little-endian, version 1:
 *     0     4096-byte head:
 *             0    magic "varvedlt"
 *             8    u32   version
 *             12   u32   zero
 *             16         id of this delta, 16 random bytes, not zero
 *             32         id of the delta before it, 16 bytes; zero: there was none
 *             48   u64   size of the disk in bytes
 *             56   u64   time when it was begun, nanoseconds since 1970
 *             64   u64   offset of the index, which ends where the file ends
 *             72   u64   number of extents in the index
 *             80   u64   bytes of the disk that are data
 *             88   u64   bytes of the disk that are zeroes
 *             96         the instant that it leads to, as text (256 bytes, zeroes behind it);
 * empty: the server did not say 352        the instant that it begins at, the same 608        the
 * meta context that said what is dirty, the same 864        zeroes 4032       SHA-256 of the index
 *             4064       SHA-256 of the head up to here
 *     4096  data, each extent's where the index says
 *     ...   index: extents of 56 bytes, ascending by their place on the disk, not overlapping:
 *             0    u64   offset on the disk
 *             8    u64   length, not zero; of data at most 1 MiB
 *             16   u64   offset in this file of its data; zero: it reads as zeroes
 *             24         SHA-256 of its data; zeroes: zeroes
 * The digests find damage, not malice.
 */
#ifndef VARVE_LIB_DELTA_FILE_H
#define VARVE_LIB_DELTA_FILE_H

#include "lib/digest.h"
#include "lib/err.h"
#include "lib/world.h"

#define VARVE_DELTA_VERSION   1u
#define VARVE_DELTA_HEAD      4096u               /* bytes */
#define VARVE_DELTA_HEAD_TEXT 4064u               /* bytes of them that their digest is of */
#define VARVE_DELTA_EXTENT    56u                 /* bytes of an extent in the index */
#define VARVE_DELTA_PIECE_MAX (1024u * 1024u)     /* bytes of data in an extent */
#define VARVE_DELTA_TEXT      256u                /* with the zero behind it */
#define VARVE_DELTA_SIZE_MAX  ((uint64_t)1 << 62) /* bytes of a disk */

struct varve_delta_head {
    uint8_t id[16], parent[16];
    uint64_t size, time_ns;
    uint64_t index, nextents; /* where, how many */
    uint64_t data_bytes, zero_bytes;
    char point[VARVE_DELTA_TEXT], base[VARVE_DELTA_TEXT], context[VARVE_DELTA_TEXT];
    uint8_t index_digest[VARVE_DIGEST_LEN];
};

struct varve_delta_extent {
    uint64_t off, len;
    uint64_t at; /* 0: zeroes */
    uint8_t digest[VARVE_DIGEST_LEN];
};

/* --- writing --- */

struct varve_delta_writer;

/* Makes PATH.tmp; one that somebody left, who is dead by the caller's lock, is replaced.  head: id,
 * parent, size, time and texts; copied. */
int varve_delta_create(struct varve_world *w, const char *path, const struct varve_delta_head *head,
                       struct varve_delta_writer **out, struct varve_err *err);

/* len: at most VARVE_DELTA_PIECE_MAX. */
int varve_delta_add(struct varve_delta_writer *d, const void *buf, uint64_t off, size_t len,
                    struct varve_err *err);
int varve_delta_add_zeroes(struct varve_delta_writer *d, uint64_t off, uint64_t len,
                           struct varve_err *err);

/* Writes index and head; all is durable, under the name PATH.tmp still.  -EINVAL: two ranges
 * overlap. */
int varve_delta_seal(struct varve_delta_writer *d, struct varve_err *err);

/* After sealing: reads back the range, all of which must be in it, and compares. */
int varve_delta_compare(struct varve_delta_writer *d, const void *buf, uint64_t off, size_t len,
                        struct varve_err *err);

/* Of a sealed one: it is PATH, durably, or an error and nothing is left.  -EEXIST: there is one. */
int varve_delta_publish(struct varve_delta_writer *d, struct varve_err *err);

const struct varve_delta_head *varve_delta_head_of(const struct varve_delta_writer *d);

/* Removes PATH.tmp unless it was published.  NULL: nothing. */
void varve_delta_close(struct varve_delta_writer *d);

/* --- reading --- */

struct varve_delta_reader {
    struct varve_world *w;
    const char *path; /* borrowed */
    int fd;
    struct varve_delta_head head;
    uint64_t next; /* extent */
    uint64_t end;  /* of the extent before it, on the disk */
    uint8_t *buf;  /* a part of the index */
    size_t at, len;
};

/* Reads and checks the head.  -EINVAL: it is no delta; -ENOTSUP: of a newer version; -EUCLEAN: it
 * is damaged; err names the file.  After success *r is to be closed. */
int varve_delta_open(struct varve_world *w, const char *path, struct varve_delta_reader *r,
                     struct varve_err *err);
void varve_delta_reader_close(struct varve_delta_reader *r);

/* Reads all of the index once and checks it; memory for a small part of it is needed only. */
int varve_delta_check(struct varve_delta_reader *r, struct varve_err *err);

/* The next extent, checked against the disk's size and the one before.  1; 0: there is none. */
int varve_delta_next(struct varve_delta_reader *r, struct varve_delta_extent *e,
                     struct varve_err *err);
void varve_delta_rewind(struct varve_delta_reader *r);

/* Data of an extent, checked against its digest.  buf: e->len bytes. */
int varve_delta_read(struct varve_delta_reader *r, const struct varve_delta_extent *e, void *buf,
                     struct varve_err *err);

/* SHA-256 of a buffer. */
int varve_delta_digest(const void *buf, size_t len, uint8_t out[VARVE_DIGEST_LEN],
                       struct varve_err *err);

#endif
