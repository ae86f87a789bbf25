/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The client's judgement of block status from a server that says anything.  client/nbd-status.c is
 * linked with a libnbd of our own that hands the input over as replies.
 *
 *     0      which contexts there are (two bits), reply to both (one bit), error (one bit)
 *     1..2   size of the export, offset asked: in 64 KiB
 *     3...   five bytes a reply's extent: what it is for, length (kind and value), flags
 */
#include "client/nbd.h"
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <string.h>

static const char *const contexts[2] = {"qemu:dirty-bitmap:a", "base:allocation"};

static struct {
    const uint8_t *data;
    size_t size;
    uint8_t kinds;
    uint64_t off;
    nbd_completion_callback done;
} fake;

int varve_nbd_failed(struct varve_err *err, const char *what)
{
    return varve_err_set(err, EIO, "%s", what);
}

int nbd_can_meta_context(struct nbd_handle *h, const char *name)
{
    (void)h;
    return strcmp(name, contexts[0]) == 0 ? fake.kinds & 1 : fake.kinds >> 1 & 1;
}

static uint32_t extent_len(uint8_t kind, uint8_t value)
{
    switch (kind & 3) {
    case 0:
        return (uint32_t)value << 16;
    case 1:
        return value;
    case 2:
        return UINT32_MAX - value;
    default:
        return (uint32_t)value << 24;
    }
}

#define ENTRIES_MAX 256

#ifdef LIBNBD_HAVE_NBD_AIO_BLOCK_STATUS_64
typedef nbd_extent64_callback extent_callback;
#else
typedef nbd_extent_callback extent_callback;
#endif

/* The input's extents in the order they stand there, a call whenever the context changes. */
static int64_t answer(extent_callback extents, uint64_t off, nbd_completion_callback done)
{
    int error = 0;
    size_t at = 0;

    while (at + 5 <= fake.size && !error) {
        uint8_t which = fake.data[at] & 7;
        uint64_t said = which & 4 ? off + 1 : off;
        size_t n = 0;
#ifdef LIBNBD_HAVE_NBD_AIO_BLOCK_STATUS_64
        nbd_extent entries[ENTRIES_MAX];

        for (; at + 5 <= fake.size && (fake.data[at] & 7) == which && n < ENTRIES_MAX; at += 5) {
            entries[n].length = extent_len(fake.data[at + 1], fake.data[at + 2]);
            if (fake.data[at + 1] & 4)
                entries[n].length <<= 32;
            entries[n++].flags = fake.data[at + 3] & 3;
        }
#else
        uint32_t entries[2 * ENTRIES_MAX];

        for (; at + 5 <= fake.size && (fake.data[at] & 7) == which && n + 2 <= 2 * ENTRIES_MAX;
             at += 5) {
            entries[n++] = extent_len(fake.data[at + 1], fake.data[at + 2]);
            entries[n++] = fake.data[at + 3] & 3;
        }
#endif
        extents.callback(extents.user_data, which & 2 ? "other" : contexts[which & 1], said,
                         entries, n, &error);
    }
    if (fake.kinds & 8 && !error)
        error = EIO;
    fake.done = done;
    fake.done.callback(fake.done.user_data, &error);
    return 1;
}

#ifdef LIBNBD_HAVE_NBD_AIO_BLOCK_STATUS_64
int64_t nbd_aio_block_status_64(struct nbd_handle *h, uint64_t count, uint64_t off,
                                nbd_extent64_callback extents, nbd_completion_callback done,
                                uint32_t flags)
#else
int64_t nbd_aio_block_status(struct nbd_handle *h, uint64_t count, uint64_t off,
                             nbd_extent_callback extents, nbd_completion_callback done,
                             uint32_t flags)
#endif
{
    (void)h;
    (void)flags;
    FUZZ_CHECK(count > 0);
    return answer(extents, off, done);
}

int nbd_poll(struct nbd_handle *h, int timeout)
{
    (void)h;
    (void)timeout;
    fuzz_failed("the answer has come", __FILE__, __LINE__);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char nothing; /* the handle: nobody looks into it */
    struct nbd_handle *h = (struct nbd_handle *)&nothing;
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_status s;
    struct varve_status_run run;
    uint64_t export_size, off, at;
    int rc;

    if (size < 3)
        return -1;
    fake.kinds = data[0];
    export_size = ((uint64_t)data[1] << 16) + 511;
    if (data[0] & 16)
        export_size <<= 32;
    off = (uint64_t)data[2] << 16;
    if (off >= export_size)
        off = 0;
    fake.data = data + 3;
    fake.size = size - 3;
    varve_status_init(&s, h, contexts, export_size);
    /* The second one is of a status that has been used before. */
    for (unsigned i = 0; i < 2; i++) {
        rc = varve_status_get(&s, h, off, &err);
        if (rc) {
            FUZZ_CHECK(rc < 0 && err.code == -rc && err.msg[0]);
            break;
        }
        FUZZ_CHECK(s.off == off && s.end > off && s.end <= export_size);
        for (at = off; varve_status_next(&s, &run); at += run.len)
            FUZZ_CHECK(run.off == at && run.len > 0 && run.len <= export_size - at);
        FUZZ_CHECK(at == s.end);
        if (s.end < export_size)
            off = s.end;
    }
    varve_status_fini(&s);
    return 0;
}
