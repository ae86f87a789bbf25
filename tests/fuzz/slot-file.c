/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A pair of slot files of any content.
 *
 *     0   kinds: two bits a file, below
 *     1   sequence numbers of sealed ones: four bits a file
 *     2   formats of sealed ones: four bits a file
 *     3   length of the first file's bytes, in 16ths of what follows
 *     4   bytes of both
 */
#include "lib/digest.h"
#include "lib/slot-file.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/world.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#define FORMAT 3u

enum kind {
    NONE,
    RAW,    /* the bytes are the file */
    PADDED, /* the bytes are the head's line, zeroes follow, and then a short text */
    SEALED, /* a text with the right checksum */
};

static void slot_path(char path[PATH_MAX], unsigned i)
{
    snprintf(path, PATH_MAX, "%s/slot-%u", fuzz_dir(), i);
}

static void write_sealed(const char *path, unsigned format, unsigned sequence, const uint8_t *data,
                         size_t len)
{
    char head[4096] = {0}, hex[2 * VARVE_DIGEST_LEN + 1];
    uint8_t sum[VARVE_DIGEST_LEN];
    struct varve_digest d;

    snprintf(head, sizeof(head), "%u %u %zu\n", format, sequence, len);
    FUZZ_CHECK(varve_digest_init(&d, NULL) == 0);
    varve_digest_update(&d, head, strlen(head));
    varve_digest_update(&d, data, len);
    FUZZ_CHECK(varve_digest_final(&d, sum, NULL) == 0);
    for (unsigned i = 0; i < VARVE_DIGEST_LEN; i++)
        snprintf(hex + 2 * i, 3, "%02x", sum[i]);
    snprintf(head, sizeof(head), "varve-slot %u %u %zu %s\n", format, sequence, len, hex);
    fuzz_write_file(path, head, sizeof(head), 0);
    fuzz_write_file(path, data, len, sizeof(head));
}

static void write_slot(unsigned i, enum kind kind, unsigned format, unsigned sequence,
                       const uint8_t *data, size_t len)
{
    char path[PATH_MAX];

    slot_path(path, i);
    unlink(path);
    if (kind == RAW || kind == PADDED)
        fuzz_write_file(path, data, len, 0);
    if (kind == PADDED)
        fuzz_write_file(path, "{}", 2, 4096);
    if (kind == SEALED)
        write_sealed(path, format, sequence, data, len);
}

static int open_pair(struct varve_slot_file **s, char **text, struct varve_err *err)
{
    return varve_slot_file_open(fuzz_world(), fuzz_dir(), "slot", FORMAT, "first", s, text, err);
}

static void commit_holds(struct varve_slot_file *s, const char *text)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_slot_file *again;
    char *got;

    FUZZ_CHECK(open_pair(&again, &got, &err) == -EBUSY);
    FUZZ_CHECK(varve_slot_file_commit(s, text, &err) == 0);
    varve_slot_file_close(s);
    FUZZ_CHECK(open_pair(&again, &got, &err) == 0);
    FUZZ_CHECK(strcmp(got, text) == 0);
    free(got);
    varve_slot_file_close(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_slot_file *s;
    size_t first;
    char *text;
    int rc;

    if (size < 4)
        return -1;
    first = (size - 4) * (data[3] & 15) / 15;
    write_slot(0, data[0] & 3, data[2] & 15, data[1] & 15, data + 4, first);
    write_slot(1, data[0] >> 2 & 3, data[2] >> 4, data[1] >> 4, data + 4 + first,
               size - 4 - first);
    rc = open_pair(&s, &text, &err);
    if (rc) {
        FUZZ_CHECK((rc == -EUCLEAN || rc == -ENOTSUP) && err.code == -rc && err.msg[0]);
        return 0;
    }
    FUZZ_CHECK(strlen(text) <= size + 8);
    free(text);
    commit_holds(s, "second");
    return 0;
}
