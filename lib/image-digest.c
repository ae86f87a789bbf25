/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/image-digest.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define UNIT VARVE_IMAGE_DIGEST_UNIT

static bool is_zero(const uint8_t *buf, size_t len)
{
    return buf[0] == 0 && memcmp(buf, buf + 1, len - 1) == 0;
}

/* The first unit at or behind `off` that may hold data; image_size: none.  What cannot tell has
 * data everywhere. */
static uint64_t data_from(struct varve_world *w, int fd, uint64_t off, uint64_t image_size)
{
    int64_t data = w->seek_data(w, fd, off);

    if (data == -ENXIO)
        return image_size;
    if (data < 0 || (uint64_t)data < off)
        return off;
    return (uint64_t)data / UNIT * UNIT;
}

static int digest_units(struct varve_world *w, int fd, uint64_t image_size, uint8_t *buf,
                        void (*progress)(void *arg, uint64_t done), void *arg,
                        struct varve_digest *d, struct varve_err *err)
{
    for (uint64_t off = 0; off < image_size; off += UNIT) {
        uint64_t from = data_from(w, fd, off, image_size), left, number;
        size_t len;
        ssize_t got;

        if (from > off)
            off = from;
        if (off >= image_size)
            break;
        left = image_size - off;
        len = left < UNIT ? (size_t)left : UNIT;
        got = w->pread(w, fd, buf, len, off);
        if (got < 0 || (size_t)got < len)
            return varve_err_sys(err, got < 0 ? (int)-got : EIO,
                                 "cannot read the image at %" PRIu64, off);
        number = htole64(off / UNIT);
        if (!is_zero(buf, len)) {
            varve_digest_update(d, &number, sizeof(number));
            varve_digest_update(d, buf, len);
        }
        if (progress)
            progress(arg, off + len);
    }
    return 0;
}

int varve_image_digest(struct varve_world *w, int fd, uint64_t image_size,
                       void (*progress)(void *arg, uint64_t done), void *arg,
                       uint8_t out[VARVE_DIGEST_LEN], struct varve_err *err)
{
    uint64_t size = htole64(image_size);
    uint8_t *buf = malloc(UNIT);
    struct varve_digest d;
    int rc, final;

    if (!buf)
        return varve_err_set(err, ENOMEM, "no memory to read the image");
    rc = varve_digest_init(&d, err);
    if (rc < 0) {
        free(buf);
        return rc;
    }
    varve_digest_update(&d, &size, sizeof(size));
    rc = digest_units(w, fd, image_size, buf, progress, arg, &d, err);
    final = varve_digest_final(&d, out, rc == 0 ? err : NULL);
    free(buf);
    return rc < 0 ? rc : final;
}
