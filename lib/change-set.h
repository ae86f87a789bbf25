/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A set of blocks that is told by numbers: a file of explicit blocks, spans of epochs, and ranges
 * of bytes; it is their union.  What a bitmap is, and what a backup from one is based on.
 * Arithmetic only, for one thread at a time; it reads no file and never looks at a block.
 */
#ifndef VARVE_LIB_CHANGE_SET_H
#define VARVE_LIB_CHANGE_SET_H

#include "lib/digest.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A span's end that has not come: what is written from now on belongs to the set, too. */
#define VARVE_SPAN_OPEN UINT64_MAX

/* Ranges that a set keeps; what is more is joined, which only adds. */
#define VARVE_RANGES_MAX 1024u

/* Epochs [first, end): those between two boundaries. */
struct varve_span {
    uint64_t first, end;
};

/* Bytes [off, off+len). */
struct varve_cat_range {
    uint64_t off, len;
};

/* All zero: empty. */
struct varve_change_set {
    bool has_blocks;
    uint8_t blocks[VARVE_DIGEST_LEN]; /* of lib/blocks-file.h */
    struct varve_span *spans;         /* ascending, neither overlapping nor touching */
    size_t nspans;
    struct varve_cat_range *ranges; /* ascending, neither overlapping nor touching */
    size_t nranges;
};

/* Empty again, and nothing to free. */
void varve_change_set_clear(struct varve_change_set *s);

/* `to` must be empty.  -ENOMEM: it still is. */
int varve_change_set_copy(struct varve_change_set *to, const struct varve_change_set *from);

bool varve_change_set_equal(const struct varve_change_set *a, const struct varve_change_set *b);
bool varve_change_set_is_empty(const struct varve_change_set *s);

/* Its last span is open. */
bool varve_change_set_records(const struct varve_change_set *s);

/* Adds epochs [first, end); first == end: nothing.  -ENOMEM: unchanged. */
int varve_change_set_add_span(struct varve_change_set *s, uint64_t first, uint64_t end);

/* The set as it was at the boundary before epoch `at`: what spans have behind it goes. */
void varve_change_set_end_at(struct varve_change_set *s, uint64_t at);

/* Adds ranges, of which none is empty.  -ENOMEM: unchanged. */
int varve_change_set_add_ranges(struct varve_change_set *s, const struct varve_cat_range *ranges,
                                size_t n);

/* Adds spans and ranges of another set as it was at the boundary before epoch `at`.  Of explicit
 * blocks the caller has to take care.  -ENOMEM: some may be missing. */
int varve_change_set_add_numbers(struct varve_change_set *s, const struct varve_change_set *from,
                                 uint64_t at);

#endif
