/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/disk-fixture.h"

#include "tests/lib/tmpdir.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void must(bool ok, const char *what)
{
    if (ok)
        return;
    perror(what);
    abort();
}

static void worlds_init(struct disk_fixture *d)
{
    static const char *const folders[] = {"state", "state/vda", "run", "run/vda", "grave"};
    char path[PATH_MAX];

    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", d->top, folders[i]);
        must(mkdir(path, 0755) == 0, path);
    }
    power_world_init(&d->power, path);
    fault_world_init(&d->fault, &d->power.world);
    d->w = &d->fault.world;
}

static void worlds_fini(struct disk_fixture *d)
{
    fault_world_fini(&d->fault);
    power_world_fini(&d->power);
}

void disk_fixture_init(struct disk_fixture *d, uint64_t size, uint64_t block_size)
{
    char state[PATH_MAX], run[PATH_MAX];
    struct varve_err err;

    d->top = tmpdir_new();
    worlds_init(d);
    snprintf(state, sizeof(state), "%s/state", d->top);
    snprintf(run, sizeof(run), "%s/run", d->top);
    must(varve_paths_init(&d->paths, state, run, NULL, "vda", &err) == 0, "paths");
    must(varve_geometry_init(&d->geometry, size, block_size, &err) == 0, "geometry");
    for (size_t i = 0; i < sizeof(d->uuid); i++)
        d->uuid[i] = (uint8_t)(i * 17 + 1);
}

void disk_fixture_fini(struct disk_fixture *d)
{
    worlds_fini(d);
    tmpdir_remove(d->top);
}

void disk_fixture_reset(struct disk_fixture *d)
{
    worlds_fini(d);
    tmpdir_empty(d->top);
    worlds_init(d);
}

void disk_fixture_reboot(struct disk_fixture *d, uint64_t seed)
{
    fault_disarm(&d->fault);
    power_fail(&d->power, seed);
}

void disk_fixture_flip(struct disk_fixture *d, const char *path, uint64_t off, unsigned bit)
{
    int fd = d->w->open(d->w, path, O_RDWR, 0);
    uint8_t byte;

    must(fd >= 0, path);
    must(d->w->pread(d->w, fd, &byte, 1, off) == 1, path);
    byte ^= (uint8_t)(1u << bit);
    must(d->w->pwrite(d->w, fd, &byte, 1, off) == 0, path);
    must(d->w->sync(d->w, fd) == 0, path);
    d->w->close(d->w, fd);
}
