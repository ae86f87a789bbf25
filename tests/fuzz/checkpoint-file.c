/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A file that checkpoint-import is given.  What is read of it fits the disk, and written again and
 * read again it is the same.
 *
 *     0     bit 0: the digests are made right, so that what stands under them is looked at;
 *           bit 1: the rest follows a head that fits the disk, of which the first bytes of the rest
 *           replace those from 40 on
 *     1...  the file
 */
#include "lib/checkpoint-file.h"
#include "lib/digest.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/world.h"

#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#define BLOCKS   10001u
#define HEAD     VARVE_CHECKPOINT_FILE_HEAD
#define TEXT     VARVE_CHECKPOINT_FILE_HEAD_TEXT
#define FILE_MAX 65536u

static const uint8_t uuid[16] = "fuzzed disk's id";

static void digest_put(uint8_t *to, const uint8_t *from, size_t len)
{
    struct varve_digest d;

    FUZZ_CHECK(varve_digest_init(&d, NULL) == 0);
    varve_digest_update(&d, from, len);
    FUZZ_CHECK(varve_digest_final(&d, to, NULL) == 0);
}

/* Magic to size. */
static void head_put(uint8_t *file, const struct varve_geometry *g)
{
    uint32_t version = htole32(VARVE_CHECKPOINT_FILE_VERSION), shift = htole32(g->shift);
    uint64_t size = htole64(g->size);

    memcpy(file, "varveckp", 8);
    memcpy(file + 8, &version, 4);
    memcpy(file + 12, &shift, 4);
    memcpy(file + 16, uuid, 16);
    memcpy(file + 32, &size, 8);
}

static size_t file_make(uint8_t file[FILE_MAX], const struct varve_geometry *g, const uint8_t *data,
                        size_t size)
{
    size_t at = data[0] & 2 ? 40 : 0, len = size - 1;

    if (len > FILE_MAX - at)
        len = FILE_MAX - at;
    if (data[0] & 2)
        head_put(file, g);
    memcpy(file + at, data + 1, len);
    len += at;
    if (data[0] & 1 && len >= HEAD) {
        digest_put(file + TEXT, file, TEXT);
        if (len >= HEAD + VARVE_DIGEST_LEN)
            digest_put(file + len - VARVE_DIGEST_LEN, file, len - VARVE_DIGEST_LEN);
    }
    return len;
}

static void check(const struct varve_checkpoint_file *f, const struct varve_geometry *g)
{
    uint64_t end = 0;

    FUZZ_CHECK(memcmp(f->uuid, uuid, sizeof(uuid)) == 0 && f->blocks->nbits == g->nblks);
    FUZZ_CHECK(f->name[0] && f->disk[0] && f->epoch >= 1 && f->epoch <= f->known);
    for (uint64_t bit = g->nblks; bit < varve_bitmap_nwords(f->blocks) * 64; bit++)
        FUZZ_CHECK(!varve_bitmap_test(f->blocks, bit));
    FUZZ_CHECK(f->nranges <= VARVE_RANGES_MAX);
    for (size_t i = 0; i < f->nranges; i++) {
        FUZZ_CHECK(f->ranges[i].len > 0 && f->ranges[i].off >= end);
        FUZZ_CHECK(varve_range_ok(g, f->ranges[i].off, f->ranges[i].len));
        end = f->ranges[i].off + f->ranges[i].len;
    }
}

static void write_again(const char *path, const struct varve_geometry *g,
                        const struct varve_checkpoint_file *f)
{
    struct varve_checkpoint_file again;

    FUZZ_CHECK(varve_checkpoint_file_stage(fuzz_world(), path, f, NULL) == -EEXIST);
    unlink(path);
    FUZZ_CHECK(varve_checkpoint_file_stage(fuzz_world(), path, f, NULL) == 0);
    FUZZ_CHECK(varve_checkpoint_file_publish(fuzz_world(), path, NULL) == 0);
    FUZZ_CHECK(varve_checkpoint_file_read(fuzz_world(), path, uuid, g, &again, NULL) == 0);
    FUZZ_CHECK(memcmp(f->blocks->words, again.blocks->words, varve_bitmap_nwords(f->blocks) * 8) ==
               0);
    FUZZ_CHECK(f->nranges == again.nranges &&
               memcmp(f->ranges, again.ranges, f->nranges * sizeof(*f->ranges)) == 0);
    FUZZ_CHECK(strcmp(f->name, again.name) == 0 && f->known == again.known);
    varve_checkpoint_file_fini(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t file[FILE_MAX];
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_checkpoint_file f;
    struct varve_geometry g;
    char path[PATH_MAX];
    size_t len;
    int rc;

    if (size < 1)
        return -1;
    FUZZ_CHECK(varve_geometry_init(&g, (uint64_t)BLOCKS * 4096 + 512, 4096, NULL) == 0);
    len = file_make(file, &g, data, size);
    snprintf(path, sizeof(path), "%s/checkpoint", fuzz_dir());
    unlink(path);
    fuzz_write_file(path, file, len, 0);
    rc = varve_checkpoint_file_read(fuzz_world(), path, uuid, &g, &f, &err);
    FUZZ_CHECK(rc == 0 || ((rc == -EINVAL || rc == -ENOTSUP || rc == -EUCLEAN) && err.code == -rc &&
                           err.msg[0]));
    if (rc == 0) {
        check(&f, &g);
        write_again(path, &g, &f);
        varve_checkpoint_file_fini(&f);
    }
    return 0;
}
