/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A delta that varve apply is given.  What is replayed of it lies within the disk that it names, in
 * ascending order, and is not more than it says.
 *
 *     0     bit 0: the digests of head and index are made right, and those of all data that are
 *           where they can be, so that what stands under them is looked at;
 *           bit 1: the rest follows a whole head, of which the first bytes of the rest replace
 * those from 48 on, up to 96 1...  the file
 */
#include "lib/delta-file.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/world.h"

#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#define FILE_MAX 65536u
#define HEAD     VARVE_DELTA_HEAD
#define NUMBERS  48u /* bytes from 48 on */

static uint64_t get_u64(const uint8_t *from)
{
    uint64_t value;

    memcpy(&value, from, 8);
    return le64toh(value);
}

static void digests_put(uint8_t *file, size_t len)
{
    uint64_t index = get_u64(file + 64);

    if (index >= HEAD && index <= len) {
        for (uint64_t at = index; at + VARVE_DELTA_EXTENT <= len; at += VARVE_DELTA_EXTENT) {
            uint64_t n = get_u64(file + at + 8), data = get_u64(file + at + 16);

            if (data >= HEAD && data <= index && n <= index - data)
                FUZZ_CHECK(varve_delta_digest(file + data, n, file + at + 24, NULL) == 0);
        }
        FUZZ_CHECK(varve_delta_digest(file + index, len - index, file + 4032, NULL) == 0);
    }
    FUZZ_CHECK(
        varve_delta_digest(file, VARVE_DELTA_HEAD_TEXT, file + VARVE_DELTA_HEAD_TEXT, NULL) == 0);
}

static size_t file_make(uint8_t file[FILE_MAX], const uint8_t *data, size_t size)
{
    size_t len = size - 1, numbers = len < NUMBERS ? len : NUMBERS;

    memset(file, 0, FILE_MAX);
    if (data[0] & 2) {
        memcpy(file, "varvedlt\1\0\0\0\0\0\0\0fuzzed delta", 28);
        memcpy(file + 48, data + 1, numbers);
        len -= numbers;
        if (len > FILE_MAX - HEAD)
            len = FILE_MAX - HEAD;
        memcpy(file + HEAD, data + 1 + numbers, len);
        len += HEAD;
    } else {
        if (len > FILE_MAX)
            len = FILE_MAX;
        memcpy(file, data + 1, len);
    }
    if (data[0] & 1 && len >= HEAD)
        digests_put(file, len);
    return len;
}

static bool is_told(int rc, const struct varve_err *err)
{
    return (rc == -EINVAL || rc == -ENOTSUP || rc == -EUCLEAN) && err->code == -rc && err->msg[0];
}

static void replay(struct varve_delta_reader *r)
{
    static uint8_t buf[VARVE_DELTA_PIECE_MAX];
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t end = 0, data_bytes = 0, zero_bytes = 0;
    struct varve_delta_extent e;
    int rc = varve_delta_check(r, &err);

    if (rc != 0) {
        FUZZ_CHECK(is_told(rc, &err));
        return;
    }
    while ((rc = varve_delta_next(r, &e, &err)) > 0) {
        FUZZ_CHECK(e.len > 0 && e.off >= end && e.off <= r->head.size);
        FUZZ_CHECK(e.len <= r->head.size - e.off);
        end = e.off + e.len;
        *(e.at ? &data_bytes : &zero_bytes) += e.len;
        if (!e.at)
            continue;
        FUZZ_CHECK(e.len <= VARVE_DELTA_PIECE_MAX);
        rc = varve_delta_read(r, &e, buf, &err);
        FUZZ_CHECK(rc == 0 || is_told(rc, &err));
    }
    FUZZ_CHECK(rc == 0);
    FUZZ_CHECK(data_bytes == r->head.data_bytes && zero_bytes == r->head.zero_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t file[FILE_MAX];
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_delta_reader r;
    char path[PATH_MAX];
    size_t len;
    int rc;

    if (size < 1)
        return -1;
    len = file_make(file, data, size);
    snprintf(path, sizeof(path), "%s/delta", fuzz_dir());
    unlink(path);
    fuzz_write_file(path, file, len, 0);
    rc = varve_delta_open(fuzz_world(), path, &r, &err);
    FUZZ_CHECK(rc == 0 || is_told(rc, &err));
    if (rc == 0) {
        replay(&r);
        varve_delta_reader_close(&r);
    }
    return 0;
}
