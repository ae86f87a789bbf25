/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A machine in memory, for simulations: files with a page cache and what of it is durable, names
 * the same, a memory file system that dies with the boot (everything below /run), processes that
 * can be killed and a power that can fail at any call.  One seed decides all: the same calls with
 * the same seed give the same machine.  One thread only.  It judges nothing but misuse: a map of a
 * file that is on a disk aborts.
 *
 *     data     by the sector of 512 bytes: what was not synced is at a power failure there or not,
 * each sector by itself, as any of the versions written since it was durable last names    after
 * sync_dir of their directory; before that each creation, removal and renaming is there or not by
 * itself, in their order only where they concern the same name errors   a sync that fails leaves
 * what it was to write clean in the cache and not durable: the next sync says that all is well.
 * Each open file description is told once.
 */
#ifndef VARVE_TESTS_LIB_SIM_WORLD_H
#define VARVE_TESTS_LIB_SIM_WORLD_H

#include "lib/world.h"

#include <stdbool.h>
#include <stdint.h>

/* Who calls.  The test itself never dies, meets no fault and is not counted. */
enum sim_proc { SIM_PLUGIN, SIM_DAEMON, SIM_TEST, SIM_PROCS };

enum sim_call {
    SIM_OPEN,
    SIM_CLOSE,
    SIM_PREAD,
    SIM_PWRITE,
    SIM_ALLOCATE,
    SIM_TRUNCATE,
    SIM_PUNCH,
    SIM_COPY,
    SIM_SEEK,
    SIM_SYNC,
    SIM_WRITTEN_BACK,
    SIM_ROOM,
    SIM_STAT,
    SIM_MAP,
    SIM_UNMAP,
    SIM_LOCK,
    SIM_MKDIR,
    SIM_RENAME,
    SIM_UNLINK,
    SIM_SYNC_DIR,
    SIM_LIST,
    SIM_CLOCK,
    SIM_CALLS,
};

struct sim;

struct sim_world {
    struct varve_world world;
    struct sim *sim;
    enum sim_proc proc;
    bool dead; /* every call fails and changes nothing */
};

struct sim_fault {
    int error;         /* 0: none; positive */
    uint32_t calls;    /* 1 << enum sim_call */
    unsigned skip;     /* such calls that succeed first */
    unsigned count;    /* that fail then */
    const char *where; /* only paths that contain it; NULL: all */
};

struct sim {
    struct sim_world procs[SIM_PROCS];
    uint64_t random;
    uint64_t calls; /* by those who can die */
    uint64_t now_ns;
    uint8_t boot;
    uint64_t booted_ns; /* when it began */

    /* Called before calls of those who can die, while it is not running already. */
    void (*hook)(struct sim *s, enum sim_proc proc, enum sim_call call);
    bool in_hook;

    struct sim_fault fault;
    uint64_t faults; /* that happened */
    uint32_t failed_calls; /* 1 << enum sim_call: of which calls */

    uint64_t crash_in;         /* calls from now; 0: not planned */
    struct sim_fault crash_at; /* or such a call, before it does anything; error 0: not planned */
    bool crash_power;          /* the power fails, else the process that calls is killed */
    bool dying;                /* at the end of this call */
    bool power_off;
    bool lose_all; /* of what is not durable; else by chance */
    bool verbose;  /* tells of faults and deaths */

    struct sim_disk *disk;
};

void sim_init(struct sim *s, uint64_t seed);
void sim_fini(struct sim *s);

static inline struct varve_world *sim_of(struct sim *s, enum sim_proc proc)
{
    return &s->procs[proc].world;
}

/* 0 <= result < below. */
uint64_t sim_random(struct sim *s, uint64_t below);

/* The n-th call from now on is the last one of whoever makes it (power: of all).  It has happened,
 * in part or wholly or not at all. */
void sim_crash_in(struct sim *s, uint64_t n, bool power);

/* The next such call on a path that contains `where` is the last one, and does nothing. */
void sim_crash_at(struct sim *s, enum sim_call call, const char *where, bool power);

/* A process dies now; its memory may be given back by further calls, which do nothing. */
void sim_kill(struct sim *s, enum sim_proc proc);
/* All die. */
void sim_power_fail(struct sim *s);

/* Its memory has been given back: what it stored into maps after its death is undone, its files are
 * closed, and another process may begin. */
void sim_bury(struct sim *s, enum sim_proc proc);

/* After a power failure, with all processes buried: decides what was durable. */
void sim_reboot(struct sim *s);

/* Some of what is dirty becomes durable by itself. */
void sim_write_back(struct sim *s);

/* What the file holds now, and whether it is there at all; for the test. */
bool sim_exists(struct sim *s, const char *path);
bool sim_peek(struct sim *s, const char *path, void *buf, uint64_t off, uint64_t len);
/* Files that a process has open. */
unsigned sim_open_files(struct sim *s, enum sim_proc proc);

#endif
