/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A world around another one that fails, crashes or stops at a chosen call.
 * Any thread may call the world; arm it while no other thread does.
 * It changes nothing by itself: what it lets through, the inner world does.
 *
 *     for (uint64_t n = 1;; n++) {
 *         fault_fail_at(&f, FAULT_ANY, n, EIO);
 *         rc = what_is_tested(&f.world);
 *         if (!fault_fired(&f))
 *             break;                        no call was left to fail
 *         ...
 *     }
 */
#ifndef VARVE_TESTS_LIB_FAULT_WORLD_H
#define VARVE_TESTS_LIB_FAULT_WORLD_H

#include "lib/world.h"

#include <pthread.h>

enum fault_call {
    FAULT_OPEN,
    FAULT_CLOSE,
    FAULT_PREAD,
    FAULT_PWRITE,
    FAULT_ALLOCATE,
    FAULT_TRUNCATE,
    FAULT_PUNCH,
    FAULT_COPY,
    FAULT_SEEK_DATA,
    FAULT_SEEK_HOLE,
    FAULT_SYNC,
    FAULT_WRITTEN_BACK,
    FAULT_ROOM,
    FAULT_STAT,
    FAULT_MAP,
    FAULT_UNMAP,
    FAULT_LOCK,
    FAULT_MKDIR,
    FAULT_RENAME,
    FAULT_UNLINK,
    FAULT_SYNC_DIR,
    FAULT_LIST,
    FAULT_RANDOM,
    FAULT_BOOT_ID,
    FAULT_CALLS, /* how many there are */
    FAULT_ANY = FAULT_CALLS
};

enum fault_action { FAULT_NOTHING, FAULT_FAIL, FAULT_FAIL_ALWAYS, FAULT_CRASH, FAULT_GATE };

struct fault_world {
    struct varve_world world;
    struct varve_world *inner;

    pthread_mutex_t lock;            /* guards all below; no other lock is taken under it */
    uint64_t calls[FAULT_CALLS + 1]; /* since it was armed; FAULT_ANY: all */
    uint64_t bytes_read;             /* since then */
    enum fault_action action;
    enum fault_call kind;
    uint64_t at;
    int errnum;
    void (*gate)(void *arg);
    void *gate_arg;
    bool fired, crashed;
};

/* The inner world is borrowed.  Nothing is armed. */
void fault_world_init(struct fault_world *f, struct varve_world *inner);
void fault_world_fini(struct fault_world *f);

/* Each of these forgets what was armed, counts from 0 again, and means the n-th call (from 1 on) of
 * this kind.  A crash ends with the next of them. */
void fault_fail_at(struct fault_world *f, enum fault_call kind, uint64_t n, int errnum);
/* The n-th and all later ones. */
void fault_fail_from(struct fault_world *f, enum fault_call kind, uint64_t n, int errnum);
/* From this call on nothing is done any more: every call gets EIO, except that descriptors and maps
 * are let go. */
void fault_crash_at(struct fault_world *f, enum fault_call kind, uint64_t n);
/* gate(arg) runs in the calling thread before the call, which then goes on. */
void fault_gate_at(struct fault_world *f, enum fault_call kind, uint64_t n, void (*gate)(void *arg),
                   void *arg);
void fault_disarm(struct fault_world *f);

/* What was armed has happened. */
bool fault_fired(struct fault_world *f);
/* Calls of this kind since it was armed or disarmed. */
uint64_t fault_calls(struct fault_world *f, enum fault_call kind);
/* Bytes that they read from files. */
uint64_t fault_bytes_read(struct fault_world *f);

#endif
