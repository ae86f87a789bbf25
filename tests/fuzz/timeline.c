/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A directory of epoch files of any kind: whole ones, damaged ones, ones that contradict each
 * other, and files of any bytes.  Then the questions and the housekeeping.
 *
 *     0     the questions' first and end, four bits each
 *     1     boundaries needed by the housekeeping, a bit each
 *     2...  eight bytes a file: first (low four bits), span (two) and whether it is of the format
 *           without an id, epochs back to the one before,
 *           kind, a word's number in the map, its value (low byte), and a damage: where (two
 *           bytes), what is xored there
 */
#include "lib/epoch-file-internal.h"
#include "lib/timeline.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/world.h"
#include "tests/lib/tmpdir.h"

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#define FILES_MAX 12
#define BLOCKS    200u
#define RECORD    8u

#define NO_ID 0x40 /* in the first byte */

/* Kinds; the state is what the mark says. */
#define KIND_STATE   0x03
#define KIND_EMPTY   0x04 /* no bytes at all */
#define KIND_SHORT   0x08 /* ends within the bits */
#define KIND_FOREIGN 0x10 /* of another disk */
#define KIND_DAMAGED 0x20 /* as the record says */
#define KIND_RAW     0x40 /* the file's bytes are the rest of the input */
#define KIND_FORMER  0x80 /* of the format without a table */

static const uint8_t uuid[16] = "fuzzed timeline";
static struct varve_geometry g;
static struct varve_paths p;

/* A whole file; returns its length. */
static size_t encode(uint8_t *file, size_t room, uint64_t first, uint64_t last, uint64_t prev,
                     const uint8_t *rec)
{
    bool former = rec[2] & KIND_FORMER;
    struct varve_epoch_head head = {.version = htole32(former           ? VARVE_EPOCH_NO_TABLE
                                                       : rec[0] & NO_ID ? VARVE_EPOCH_NO_ID
                                                                        : VARVE_EPOCH_VERSION)};
    uint8_t table[VARVE_EPOCH_TABLE_LEN] = {1};
    struct varve_epoch_mark mark = {.state = htole32(rec[2] & KIND_STATE)};
    uint64_t bits[(BLOCKS + 63) / 64] = {0};
    struct varve_digest d;

    FUZZ_CHECK(varve_epoch_file_bytes(&g) <= room);
    memset(file, 0, room);
    memcpy(head.magic, VARVE_EPOCH_MAGIC, sizeof(head.magic));
    head.shift = htole32(g.shift);
    memcpy(head.uuid, uuid, sizeof(head.uuid));
    head.uuid[0] ^= rec[2] & KIND_FOREIGN;
    head.size = htole64(g.size);
    head.first = htole64(first);
    head.last = htole64(last);
    head.prev = htole64(prev);
    memset(head.id, rec[4], sizeof(head.id));
    bits[rec[3] % 4] = htole64(rec[4] | 1);
    FUZZ_CHECK(varve_digest_init(&d, NULL) == 0);
    varve_digest_update(&d, &head, varve_epoch_head_bytes(&head));
    varve_digest_update(&d, bits, sizeof(bits));
    if (!former)
        varve_digest_update(&d, table, sizeof(table));
    FUZZ_CHECK(varve_digest_final(&d, mark.digest, NULL) == 0);
    FUZZ_CHECK(varve_epoch_mark_check(&mark, mark.check, NULL) == 0);
    memcpy(file, &head, sizeof(head));
    memcpy(file + VARVE_EPOCH_MARK_OFF, &mark, sizeof(mark));
    memcpy(file + VARVE_EPOCH_BITS_OFF, bits, sizeof(bits));
    if (!former)
        memcpy(file + VARVE_EPOCH_TABLE_OFF, table, sizeof(table));
    if (rec[2] & KIND_DAMAGED)
        file[(rec[5] | rec[6] << 8) % room] ^= rec[7];
    if (rec[2] & KIND_EMPTY)
        return 0;
    return rec[2] & KIND_SHORT ? VARVE_EPOCH_BITS_OFF + 8 : (size_t)varve_epoch_file_bytes(&g);
}

static void make_file(const uint8_t *rec, const uint8_t *rest, size_t rest_len)
{
    static uint8_t file[4 * VARVE_EPOCH_PAGE];
    uint64_t first = (rec[0] & 15) + 1, last = first + (rec[0] >> 4 & 3);
    uint64_t prev = rec[1] < first ? first - rec[1] : 0;
    char path[PATH_MAX];
    size_t len = encode(file, sizeof(file), first, last, prev, rec);

    varve_path_epoch(&p, first, last, path);
    if (rec[2] & KIND_RAW)
        fuzz_write_file(path, rest, rest_len, 0);
    else
        fuzz_write_file(path, file, len, 0);
}

static struct varve_bitmap *ask(uint64_t first, uint64_t end, int *rc)
{
    struct varve_bitmap *into = varve_bitmap_new(g.nblks);
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_timeline tl;

    FUZZ_CHECK(into);
    *rc = varve_timeline_scan(fuzz_world(), &p, uuid, &g, &tl, &err);
    FUZZ_CHECK(*rc == 0 || (*rc == -ENOTSUP && err.msg[0]));
    if (*rc)
        return into;
    for (size_t i = 0; i < tl.nfiles; i++) {
        FUZZ_CHECK(tl.files[i].first <= tl.files[i].last && tl.files[i].last <= tl.highest);
        FUZZ_CHECK(tl.files[i].prev < tl.files[i].first);
        if (i > 0)
            FUZZ_CHECK(tl.files[i - 1].first <= tl.files[i].first);
    }
    *rc = varve_timeline_union(fuzz_world(), &p, uuid, &g, &tl, first, end, into, &err);
    FUZZ_CHECK(*rc == 0 || (*rc == -EUCLEAN && err.code == EUCLEAN && err.msg[0]));
    for (uint64_t bit = g.nblks; bit < varve_bitmap_nwords(into) * 64; bit++)
        FUZZ_CHECK(!varve_bitmap_test(into, bit));
    varve_timeline_fini(&tl);
    return into;
}

static void tidy(uint8_t bits)
{
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t needed[8];
    size_t n = 0;
    int rc;

    for (unsigned i = 0; i < 8; i++) {
        if (bits >> i & 1)
            needed[n++] = i + 1;
    }
    rc = varve_timeline_tidy(fuzz_world(), &p, uuid, &g, needed, n, &err);
    FUZZ_CHECK(rc == 0 || ((rc == -EUCLEAN || rc == -EIO || rc == -ENOTSUP) && err.msg[0]));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t first, end;
    size_t at = 2;
    int rc;

    if (size < 2)
        return -1;
    FUZZ_CHECK(varve_geometry_init(&g, BLOCKS * 4096, 4096, NULL) == 0);
    FUZZ_CHECK(varve_paths_init(&p, fuzz_dir(), "/r", NULL, "disk", NULL) == 0);
    tmpdir_empty(fuzz_dir());
    FUZZ_CHECK(mkdir(p.state, 0700) == 0);
    for (unsigned i = 0; i < FILES_MAX && size - at >= RECORD; i++, at += RECORD)
        make_file(data + at, data + at + RECORD, size - at - RECORD);
    first = (data[0] & 15) + 1;
    end = (data[0] >> 4) + 1;
    if (first > end) {
        uint64_t swap = first;

        first = end;
        end = swap;
    }
    free(ask(first, end, &rc));
    tidy(data[1]);
    free(ask(first, end, &rc));
    return 0;
}
