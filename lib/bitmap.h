/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bitmaps, one bit a block, least significant bit first in 64-bit little-endian words.
 * First part: the shared, atomic map that writers mark (any thread, no lock).
 * Second part: plain maps that one thread at a time may change and any may read once it is done.
 * Neither knows of blocks' sizes or of files.
 */
#ifndef VARVE_LIB_BITMAP_H
#define VARVE_LIB_BITMAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- shared, atomic ------------------------------------------------------------------------- */

/* Acquire: a writer that sees the bit set also sees what was done before it was set. */
static inline bool varve_abits_test(_Atomic uint64_t *map, uint64_t bit)
{
    return atomic_load_explicit(&map[bit / 64], memory_order_acquire) >> (bit % 64) & 1;
}

/* First bit in [from, to) whose value is `want`, or `to`.  Acquire loads. */
uint64_t varve_abits_find(_Atomic uint64_t *map, uint64_t from, uint64_t to, bool want);

/* Sets [from, to); ends with a full fence (I1: visible before any later store). */
void varve_abits_set(_Atomic uint64_t *map, uint64_t from, uint64_t to);

/* --- plain ---------------------------------------------------------------------------------- */

struct varve_bitmap {
    uint64_t nbits;
    uint64_t words[]; /* bits from nbits on are 0 */
};

/* All clear.  NULL: no memory.  free() it. */
struct varve_bitmap *varve_bitmap_new(uint64_t nbits);

static inline size_t varve_bitmap_nwords(const struct varve_bitmap *m)
{
    return (size_t)((m->nbits + 63) / 64);
}

static inline bool varve_bitmap_test(const struct varve_bitmap *m, uint64_t bit)
{
    return m->words[bit / 64] >> (bit % 64) & 1;
}

void varve_bitmap_set(struct varve_bitmap *m, uint64_t from, uint64_t to);

/* First bit in [from, nbits) whose value is `want`, or nbits. */
uint64_t varve_bitmap_find(const struct varve_bitmap *m, uint64_t from, bool want);

/* First bit in [from, to) whose value is `want`, or to (nbits if that is less). */
uint64_t varve_bitmap_find_until(const struct varve_bitmap *m, uint64_t from, uint64_t to,
                                 bool want);

/* Number of set bits. */
uint64_t varve_bitmap_count(const struct varve_bitmap *m);

/* ORs n words into those from `word` on; returns how many bits that set. */
uint64_t varve_bitmap_or_words(struct varve_bitmap *into, size_t word, const uint64_t *from,
                               size_t n);

/* The same of a map that may be longer than `into`: what lies behind its end is left out. */
uint64_t varve_bitmap_or_words_cut(struct varve_bitmap *into, size_t word, const uint64_t *from,
                                   size_t n);

/* into |= from; both have the same nbits. */
void varve_bitmap_or(struct varve_bitmap *into, const struct varve_bitmap *from);

/* Cuts the bits into units of `unit` (the last may be partial), and sets all bits of each unit that
 * has one set. */
void varve_bitmap_round(struct varve_bitmap *m, uint64_t unit);

#endif
