/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Chance, death and what it leaves, and what the test may look at.
 */
#include "tests/lib/sim-disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

uint64_t sim_random(struct sim *s, uint64_t below)
{
    uint64_t z = s->random += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (z ^ (z >> 31)) % below;
}

/* --- death ------------------------------------------------------------------------------------ */

void sim_crash_in(struct sim *s, uint64_t n, bool power)
{
    s->crash_in = n;
    s->crash_power = power;
}

void sim_crash_at(struct sim *s, enum sim_call call, const char *where, bool power)
{
    s->crash_at =
        (struct sim_fault){.error = EINTR, .calls = 1u << call, .count = 1, .where = where};
    s->crash_power = power;
}

void sim_kill(struct sim *s, enum sim_proc proc)
{
    struct sim_disk *d = s->disk;

    if (s->procs[proc].dead)
        return;
    s->procs[proc].dead = true;
    for (unsigned i = 0; i < SIM_MAPS; i++) {
        struct sim_inode *n = d->maps[i].inode;

        if (!n || d->maps[i].proc != proc || n->as_at_death)
            continue;
        n->as_at_death = malloc(n->room + 1);
        sim_must(n->as_at_death != NULL, "memory");
        memcpy(n->as_at_death, n->bytes, n->room);
    }
}

void sim_power_fail(struct sim *s)
{
    s->power_off = true;
    s->crash_in = 0;
    sim_kill(s, SIM_PLUGIN);
    sim_kill(s, SIM_DAEMON);
}

void sim_file_close(struct sim *s, unsigned slot)
{
    struct sim_file *f = &s->disk->files[slot];

    if (f->inode->locked_by == (int)slot)
        f->inode->locked_by = -1;
    f->inode = NULL;
}

void sim_bury(struct sim *s, enum sim_proc proc)
{
    struct sim_disk *d = s->disk;

    sim_must(s->procs[proc].dead, "nobody has died");
    for (unsigned i = 0; i < SIM_MAPS; i++) {
        struct sim_inode *n = d->maps[i].inode;

        if (!n || d->maps[i].proc != proc)
            continue;
        if (n->as_at_death)
            memcpy(n->bytes, n->as_at_death, n->room);
        free(n->as_at_death);
        n->as_at_death = NULL;
        d->maps[i].inode = NULL;
    }
    for (unsigned i = 0; i < SIM_FILES; i++) {
        if (d->files[i].inode && d->files[i].proc == proc)
            sim_file_close(s, i);
    }
    sim_sweep(d);
    s->procs[proc].dead = false;
}

void sim_reboot(struct sim *s)
{
    struct sim_disk *d = s->disk;
    unsigned keep_of_4 = s->lose_all ? 0 : (unsigned)sim_random(s, 5);

    for (unsigned i = 0; i < SIM_FILES; i++)
        sim_must(!d->files[i].inode || d->files[i].proc == SIM_TEST, "a process is not buried");
    sim_lose_names(s, keep_of_4);
    for (struct sim_inode *n = d->inodes; n; n = n->next) {
        if (!n->memory)
            sim_lose_data(s, n, keep_of_4);
    }
    if (!sim_find(&d->now, "/run"))
        sim_rename(d, "/run", NULL, sim_inode_new(d, true, true));
    sim_sweep(d);
    s->power_off = false;
    s->boot++;
    s->now_ns += UINT64_C(60) * 1000000000;
    s->booted_ns = s->now_ns;
}

void sim_write_back(struct sim *s)
{
    for (struct sim_inode *n = s->disk->inodes; n; n = n->next) {
        if (!n->memory)
            sim_write_back_data(s, n);
    }
}

bool sim_exists(struct sim *s, const char *path)
{
    return sim_find(&s->disk->now, path) != NULL;
}

bool sim_peek(struct sim *s, const char *path, void *buf, uint64_t off, uint64_t len)
{
    struct sim_inode *n = sim_find(&s->disk->now, path);

    if (!n || off > n->size || len > n->size - off)
        return false;
    sim_load(n, buf, off, len);
    return true;
}

unsigned sim_open_files(struct sim *s, enum sim_proc proc)
{
    unsigned count = 0;

    for (unsigned i = 0; i < SIM_FILES; i++)
        count += s->disk->files[i].inode && s->disk->files[i].proc == proc;
    return count;
}
