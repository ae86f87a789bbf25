/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/bitmap.h"

#include <stdlib.h>

/* Bits [from, to) of one word, 0 <= from < to <= 64. */
static uint64_t word_mask(unsigned from, unsigned to)
{
    uint64_t below_to = to == 64 ? ~(uint64_t)0 : ((uint64_t)1 << to) - 1;

    return below_to & (~(uint64_t)0 << from);
}

/* First bit in [from, limit) at or after which `word` (of index from / 64) has a 1, or the start of
 * the next word. */
static uint64_t word_next(uint64_t word, uint64_t from)
{
    word &= ~(uint64_t)0 << (from % 64);
    if (word == 0)
        return (from / 64 + 1) * 64;
    return from / 64 * 64 + (unsigned)__builtin_ctzll(word);
}

uint64_t varve_abits_find(_Atomic uint64_t *map, uint64_t from, uint64_t to, bool want)
{
    while (from < to) {
        uint64_t word = atomic_load_explicit(&map[from / 64], memory_order_acquire);
        uint64_t found = word_next(want ? word : ~word, from);

        if (found < (from / 64 + 1) * 64)
            return found < to ? found : to;
        from = found;
    }
    return to;
}

void varve_abits_set(_Atomic uint64_t *map, uint64_t from, uint64_t to)
{
    while (from < to) {
        uint64_t word_end = (from / 64 + 1) * 64;
        uint64_t end = to < word_end ? to : word_end;
        uint64_t mask = word_mask((unsigned)(from % 64), (unsigned)(end - from / 64 * 64));

        atomic_fetch_or_explicit(&map[from / 64], mask, memory_order_seq_cst);
        from = end;
    }
    /* On arm64 the RMW alone does not keep later plain stores behind it. */
    atomic_thread_fence(memory_order_seq_cst);
}

struct varve_bitmap *varve_bitmap_new(uint64_t nbits)
{
    struct varve_bitmap *m;
    uint64_t nwords = nbits / 64 + (nbits % 64 != 0);

    if (nwords > (SIZE_MAX - sizeof(*m)) / 8)
        return NULL;
    m = calloc(1, sizeof(*m) + (size_t)nwords * 8);
    if (m)
        m->nbits = nbits;
    return m;
}

void varve_bitmap_set(struct varve_bitmap *m, uint64_t from, uint64_t to)
{
    if (to > m->nbits)
        to = m->nbits;
    while (from < to) {
        uint64_t word_end = (from / 64 + 1) * 64;
        uint64_t end = to < word_end ? to : word_end;

        m->words[from / 64] |= word_mask((unsigned)(from % 64), (unsigned)(end - from / 64 * 64));
        from = end;
    }
}

uint64_t varve_bitmap_find_until(const struct varve_bitmap *m, uint64_t from, uint64_t to,
                                 bool want)
{
    if (to > m->nbits)
        to = m->nbits;
    while (from < to) {
        uint64_t word = m->words[from / 64];
        uint64_t found = word_next(want ? word : ~word, from);

        if (found < (from / 64 + 1) * 64)
            return found < to ? found : to;
        from = found;
    }
    return to;
}

uint64_t varve_bitmap_find(const struct varve_bitmap *m, uint64_t from, bool want)
{
    return varve_bitmap_find_until(m, from, m->nbits, want);
}

uint64_t varve_bitmap_count(const struct varve_bitmap *m)
{
    uint64_t n = 0;

    for (size_t i = 0; i < varve_bitmap_nwords(m); i++)
        if (m->words[i]) /* maps are mostly empty, and counting is not free */
            n += (unsigned)__builtin_popcountll(m->words[i]);
    return n;
}

uint64_t varve_bitmap_or_words(struct varve_bitmap *into, size_t word, const uint64_t *from,
                               size_t n)
{
    uint64_t set = 0;

    for (size_t i = 0; i < n; i++) {
        if (!from[i]) /* memory that nothing was put into stays unused */
            continue;
        set += (unsigned)__builtin_popcountll(from[i] & ~into->words[word + i]);
        into->words[word + i] |= from[i];
    }
    return set;
}

uint64_t varve_bitmap_or_words_cut(struct varve_bitmap *into, size_t word, const uint64_t *from,
                                   size_t n)
{
    size_t nwords = varve_bitmap_nwords(into);
    uint64_t last, set;

    if (word >= nwords)
        return 0;
    if (n < nwords - word || into->nbits % 64 == 0)
        return varve_bitmap_or_words(into, word, from, n < nwords - word ? n : nwords - word);
    last = from[nwords - 1 - word] & word_mask(0, (unsigned)(into->nbits % 64));
    set = varve_bitmap_or_words(into, word, from, nwords - 1 - word);
    return set + varve_bitmap_or_words(into, nwords - 1, &last, 1);
}

void varve_bitmap_or(struct varve_bitmap *into, const struct varve_bitmap *from)
{
    for (size_t i = 0; i < varve_bitmap_nwords(into); i++)
        if (from->words[i])
            into->words[i] |= from->words[i];
}

void varve_bitmap_round(struct varve_bitmap *m, uint64_t unit)
{
    uint64_t at = unit > 1 ? varve_bitmap_find(m, 0, true) : m->nbits;

    while (at < m->nbits) {
        uint64_t from = at / unit * unit;
        uint64_t to = m->nbits - from > unit ? from + unit : m->nbits;

        varve_bitmap_set(m, from, to);
        at = varve_bitmap_find(m, to, true);
    }
}
