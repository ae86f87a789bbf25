/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bits of a live epoch on their way to its open file, ahead of the seal.
 *
 * Why an open file may be believed in what it says, though no checksum vouches for it: it was made
 * full of zeroes, its name came after them, and from then on all that was ever written into its
 * bits were states of one live map, one after the other, in which bits are set and never cleared.
 * A write that is torn anywhere, lost or half done leaves each byte as an older or a newer state
 * had it: a subset of what is true now.  Finishing the file writes such a state too, and one that
 * was clean held one before it was open again.  So what is found set was written in this epoch, and
 * ORing it adds no block that is not dirty; what is not found is in the regions that the intent log
 * tells.
 *
 * Because bits only come, a page has changed if and only if it has more of them than before: the
 * number of them is all that has to be remembered to find the pages to be written.  After a failed
 * sync that number proves nothing any more: pages that were refused look clean to the next one (the
 * caller says so by zeroing the counts, and all are written again).
 */
#include "lib/epoch-file-internal.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#define PAGE_WORDS (VARVE_EPOCH_PAGE / 8u)
/* Bytes of bits that are read at once. */
#define READ_BYTES 65536u

static_assert(VARVE_EPOCH_PAGE * 8 <= UINT16_MAX, "bits of a page are counted in 16 bits");

uint64_t varve_epoch_file_npages(const struct varve_geometry *g)
{
    return (varve_map_bytes(g) + VARVE_EPOCH_PAGE - 1) / VARVE_EPOCH_PAGE;
}

int varve_epoch_file_open_flush(struct varve_world *w, const struct varve_paths *p,
                                const struct varve_geometry *g, uint64_t epoch,
                                struct varve_err *err)
{
    uint8_t digest[VARVE_DIGEST_LEN];
    struct varve_epoch_head head;
    enum varve_epoch_state state;
    char path[PATH_MAX];
    int fd, r;

    varve_path_epoch(p, epoch, epoch, path);
    fd = w->open(w, path, O_RDWR, 0);
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot open %s", path);
    r = varve_epoch_head_read(w, fd, path, NULL, g, epoch, epoch, &head, err);
    if (r == 0)
        r = varve_epoch_head_fits(&head, path, g, err);
    if (r == 0)
        r = varve_epoch_mark_read(w, fd, path, &state, digest, err);
    if (r == 0 && state != VARVE_EPOCH_FILE_OPEN)
        r = varve_err_set(err, EEXIST, "%s is not open", path);
    if (r < 0) {
        w->close(w, fd);
        return r;
    }
    return fd;
}

static unsigned page_count(const _Atomic uint64_t *words, size_t nwords)
{
    unsigned n = 0;

    for (size_t i = 0; i < nwords; i++)
        n += (unsigned)__builtin_popcountll(atomic_load_explicit(&words[i], memory_order_relaxed));
    return n;
}

/* The page as it is now; the number of bits in that copy. */
static unsigned page_copy(uint64_t out[PAGE_WORDS], const _Atomic uint64_t *words, size_t nwords)
{
    unsigned n = 0;

    for (size_t i = 0; i < nwords; i++) {
        uint64_t word = atomic_load_explicit(&words[i], memory_order_relaxed);

        n += (unsigned)__builtin_popcountll(word);
        out[i] = htole64(word);
    }
    return n;
}

int64_t varve_epoch_file_flush(struct varve_world *w, int fd, const struct varve_geometry *g,
                               const _Atomic uint64_t *bits, uint16_t *counts,
                               struct varve_err *err)
{
    uint64_t nwords = varve_map_bytes(g) / 8;
    int64_t written = 0;

    for (uint64_t page = 0; page < varve_epoch_file_npages(g); page++) {
        const _Atomic uint64_t *words = bits + page * PAGE_WORDS;
        size_t n = nwords - page * PAGE_WORDS < PAGE_WORDS ? (size_t)(nwords - page * PAGE_WORDS)
                                                           : PAGE_WORDS;
        uint64_t copy[PAGE_WORDS];
        unsigned count;
        int r;

        if (page_count(words, n) == counts[page])
            continue;
        count = page_copy(copy, words, n);
        r = w->pwrite(w, fd, copy, n * 8, VARVE_EPOCH_BITS_OFF + page * VARVE_EPOCH_PAGE);
        if (r < 0)
            return varve_err_sys(err, -r, "cannot write an epoch's map");
        counts[page] = (uint16_t)count;
        written++;
    }
    return written;
}

static int load_open_fd(struct varve_world *w, int fd, const char *path, const uint8_t uuid[16],
                        const struct varve_geometry *g, uint64_t epoch, struct varve_bitmap *into,
                        struct varve_err *err)
{
    uint8_t digest[VARVE_DIGEST_LEN];
    struct varve_epoch_head head;
    enum varve_epoch_state state;
    uint64_t bytes = varve_map_bytes(g), *words;
    int r = varve_epoch_head_read(w, fd, path, uuid, g, epoch, epoch, &head, err);

    if (r == 0)
        r = varve_epoch_head_fits(&head, path, g, err);
    if (r == 0)
        r = varve_epoch_mark_read(w, fd, path, &state, digest, err);
    if (r < 0)
        return r;
    if (state != VARVE_EPOCH_FILE_OPEN)
        return varve_epoch_file_unusable(path, "it is not open", err);
    words = malloc(READ_BYTES);
    if (!words)
        return varve_err_sys(err, ENOMEM, "cannot read %s", path);
    for (uint64_t at = 0; r == 0 && at < bytes; at += READ_BYTES) {
        size_t len = bytes - at < READ_BYTES ? (size_t)(bytes - at) : READ_BYTES;
        ssize_t got = w->pread(w, fd, words, len, VARVE_EPOCH_BITS_OFF + at);

        if (got < 0)
            r = varve_err_sys(err, (int)-got, "cannot read %s", path);
        else if ((size_t)got < len)
            r = varve_epoch_file_unusable(path, "it is too short", err);
        for (size_t i = 0; r == 0 && i < len / 8; i++)
            into->words[at / 8 + i] |= le64toh(words[i]);
    }
    free(words);
    if (into->nbits % 64 != 0) /* nothing behind the last block */
        into->words[into->nbits / 64] &= ((uint64_t)1 << (into->nbits % 64)) - 1;
    return r;
}

int varve_epoch_file_load_open(struct varve_world *w, const struct varve_paths *p,
                               const uint8_t uuid[16], const struct varve_geometry *g,
                               uint64_t epoch, struct varve_bitmap *into, struct varve_err *err)
{
    char path[PATH_MAX];
    int fd, r;

    varve_path_epoch(p, epoch, epoch, path);
    fd = w->open(w, path, O_RDONLY, 0);
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot open %s", path);
    r = load_open_fd(w, fd, path, uuid, g, epoch, into, err);
    w->close(w, fd);
    return r;
}
