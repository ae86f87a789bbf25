/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What fuzz targets share.  A target is one file with LLVMFuzzerTestOneInput: it hands the input to
 * a decoder as a peer or a damaged file would, checks what must hold of every answer, and leaves
 * nothing behind.  One thread calls it, again and again in one process: by libFuzzer (clang,
 * configure --enable-fuzzers) or by replay.c, which every make check runs over tests/fuzz/corpus.
 */
#ifndef VARVE_TESTS_FUZZ_FUZZ_H
#define VARVE_TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Unlike assert it is there in every build. */
#define FUZZ_CHECK(cond)                                                                           \
    do {                                                                                           \
        if (!(cond))                                                                               \
            fuzz_failed(#cond, __FILE__, __LINE__);                                                \
    } while (0)

_Noreturn static inline void fuzz_failed(const char *what, const char *file, int line)
{
    fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
    abort();
}

/* A copy of its own with a NUL behind it, so that a sanitizer sees each byte read beyond. */
static inline char *fuzz_string(const uint8_t *data, size_t size)
{
    char *s = malloc(size + 1);

    if (!s)
        abort();
    for (size_t i = 0; i < size; i++)
        s[i] = (char)data[i];
    s[size] = '\0';
    return s;
}

/* Where a stream is cut: the same seed cuts at the same places.  Seed 0: nowhere. */
struct fuzz_cuts {
    uint32_t state;
};

/* Length of the next piece of what is left (not 0). */
static inline size_t fuzz_cut(struct fuzz_cuts *c, size_t left)
{
    size_t n;

    if (c->state == 0)
        return left;
    c->state ^= c->state << 13;
    c->state ^= c->state >> 17;
    c->state ^= c->state << 5;
    n = (c->state & 3) != 0 ? c->state >> 2 & 31 : c->state >> 2 & 511;
    return n + 1 < left ? n + 1 : left;
}

#endif
