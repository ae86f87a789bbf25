/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A disk's folders in a directory of their own, in a world that a test can fail, crash and take the
 * power from.  For a test's own thread.  It makes no files of the disk.
 */
#ifndef VARVE_TESTS_LIB_DISK_FIXTURE_H
#define VARVE_TESTS_LIB_DISK_FIXTURE_H

#include "lib/block.h"
#include "lib/paths.h"
#include "tests/lib/fault-world.h"
#include "tests/lib/power-world.h"

struct disk_fixture {
    char *top; /* holds state/, run/ and grave/ */
    struct power_world power;
    struct fault_world fault; /* around power */
    struct varve_world *w;    /* = &fault.world */
    struct varve_paths paths; /* of disk "vda", whose folders exist */
    struct varve_geometry geometry;
    uint8_t uuid[16];
};

void disk_fixture_init(struct disk_fixture *d, uint64_t size, uint64_t block_size);
void disk_fixture_fini(struct disk_fixture *d);

/* Empty folders again, all durable, nothing armed. */
void disk_fixture_reset(struct disk_fixture *d);

/* The crash that was armed has happened, now the power goes too (seed as of power_fail), and the
 * machine starts again. */
void disk_fixture_reboot(struct disk_fixture *d, uint64_t seed);

/* Flips a bit of the file, durably. */
void disk_fixture_flip(struct disk_fixture *d, const char *path, uint64_t off, unsigned bit);

#endif
