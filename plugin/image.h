/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The disk's image: a raw file or block device, opened once, read and changed by any number of
 * threads at once.  It knows nothing of tracking.  Functions return 0 or a negative errno value.
 */
#ifndef VARVE_PLUGIN_IMAGE_H
#define VARVE_PLUGIN_IMAGE_H

#include "lib/err.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct varve_image {
    int fd;
    uint64_t size; /* bytes */
    bool writable;
    _Atomic bool can_punch;      /* until the file system says no */
    _Atomic bool can_zero_range;
};

/* Opens path read-write, or read-only where only that is allowed, and locks it against others.
 * -EBUSY: another process has it locked; if it serves it as a disk of state_dir, err names it. */
int varve_image_open(struct varve_image *im, const char *path, const char *state_dir,
                     struct varve_err *err);
void varve_image_close(struct varve_image *im);

/* A read-only open of the same file, of its own; the caller closes it. */
int varve_image_reopen(const struct varve_image *im, struct varve_err *err);

int varve_image_read(struct varve_image *im, void *buf, uint32_t len, uint64_t off);
int varve_image_write(struct varve_image *im, const void *buf, uint32_t len, uint64_t off);
int varve_image_flush(struct varve_image *im);

/* Frees the range, which then reads as zeroes.  -EOPNOTSUPP: the file system cannot. */
int varve_image_punch(struct varve_image *im, uint64_t off, uint64_t len);

/* The range reads as zeroes and keeps its space.  -EOPNOTSUPP: only by writing zeroes. */
int varve_image_zero(struct varve_image *im, uint64_t off, uint64_t len);

#endif
