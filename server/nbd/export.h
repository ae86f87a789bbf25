/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An export: what the NBD server can offer under a name.  The NBD side (nbd-*.c) knows exports only
 * through this page; who makes them (backups; tests) fills in the functions.
 * An export is reference-counted; names are looked up in a registry.  Every function here may be
 * called from any thread.  Nothing here waits for a network peer.
 */
#ifndef VARVE_SERVER_EXPORT_H
#define VARVE_SERVER_EXPORT_H

#include "lib/err.h"
#include "server/nbd/throttle.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct varve_export;

/* One run of equal status; lengths are bytes. */
struct varve_extent {
    uint64_t len;
    uint32_t flags;
};

struct varve_export_ops {
    /* Fills buf with [off, off+len), which lies within the export and is at most
     * VARVE_EXPORT_READ_MAX long.  Called in pool threads, may wait for the disk.
     * 0 or -errno with the reason in err; on error buf's content is undefined, and *bad_off is the
     * first byte that cannot be read, or off where nobody knows. */
    int (*read)(struct varve_export *e, void *buf, uint64_t off, uint32_t len, uint64_t *bad_off,
                struct varve_err *err);

    /* The same on a connection's loop: never waits.  -EAGAIN: it would have to, or there is an error to
     * tell; then read() is asked.  May be NULL. */
    int (*read_now)(struct varve_export *e, void *buf, uint64_t off, uint32_t len);

    /* Status of [off, off+len) in meta context number ctx: at most max runs into out, at least one,
     * neighbours differing, not beyond len in all.  Called in pool threads.  The number of runs or
     * -errno. */
    int (*status)(struct varve_export *e, unsigned ctx, uint64_t off, uint64_t len,
                  struct varve_extent *out, size_t max, struct varve_err *err);

    /* The same on a connection's loop: never waits.  -EAGAIN: it would have to, or there is an
     * error to tell; then status() is asked.  May be NULL. */
    int (*status_now)(struct varve_export *e, unsigned ctx, uint64_t off, uint64_t len,
                      struct varve_extent *out, size_t max);

    /* A client's whole read of [off, off+len) is about to be answered with an error, whatever part
     * of it went wrong.  On the loop's thread: must not wait.  May be NULL. */
    void (*read_failed)(struct varve_export *e, uint64_t off, uint64_t len);

    /* Hint that the range, at most VARVE_EXPORT_CACHE_MAX long, will be read.  Pool threads.  May be
     * NULL. */
    void (*cache)(struct varve_export *e, uint64_t off, uint64_t len);

    /* Nobody will read the whole blocks of [off, off+len) again; within the export and at most
     * VARVE_EXPORT_RELEASE_MAX long.  From its return on reads of them are errors.  Called in pool
     * threads, may wait.  0 or -errno with the reason in err: some of it may have happened.  Asked
     * only of exports that are releasable. */
    int (*release)(struct varve_export *e, uint64_t off, uint64_t len, struct varve_err *err);

    /* The last reference is gone. */
    void (*free)(struct varve_export *e);
};

/* The longest read that is asked of an export at once (cold reads hold locks that guests need). */
#define VARVE_EXPORT_READ_MAX (256u * 1024u)

/* The same for hints: what runs in the pool cannot be cancelled and should not last. */
#define VARVE_EXPORT_CACHE_MAX (8u * 1024u * 1024u)

/* The same for what is released; requests are cut at multiples of it. */
#define VARVE_EXPORT_RELEASE_MAX (64u * 1024u * 1024u)

/* Embedded in what the maker has; the first field of it or found by container_of.
 * All fields but the last group are constant once it is published. */
struct varve_export {
    const struct varve_export_ops *ops;
    char *name;             /* 1..4096 bytes UTF-8; owned by the maker */
    char *description;      /* for INFO and LIST; may be NULL */
    uint64_t size;          /* bytes */
    uint32_t block_pref;    /* preferred block size in bytes, a power of two */
    bool listed;            /* stands in LIST */
    bool releasable;        /* takes TRIM, and no other change */
    unsigned ncontexts;     /* meta contexts, numbered from 0 */
    const char *const *contexts; /* their full names, e.g. "base:allocation" */
    const void *disk;       /* the same for exports that wait for the same disk; NULL: the only one */

    /* How fast its data may be read, together with other exports; NULL: as fast as it is.  Constant,
     * the maker's reference. */
    struct varve_throttle *throttle;

    /* the registry's and the server's own */
    _Atomic unsigned refs;
    _Atomic bool withdrawn; /* clients must go: connections look at it and close */
    _Atomic unsigned clients;          /* connections in transmission phase now */
    _Atomic uint64_t bytes_read;       /* sent to clients since it was published */
    _Atomic uint64_t requests;
    _Atomic uint64_t errors;           /* requests that were answered with one */
    _Atomic uint64_t last_client_ns;   /* monotonic: when the last client came or left */
    struct varve_export *next;         /* registry's list */
};

struct varve_exports; /* a registry */

struct varve_exports *varve_exports_new(void);
/* No export may be left in it. */
void varve_exports_free(struct varve_exports *x);

/* Publishes e; takes over the caller's reference (refs = 1).  -EEXIST: the name is taken. */
int varve_exports_add(struct varve_exports *x, struct varve_export *e, struct varve_err *err);

/* Withdraws the export: new clients do not find it, connections to it are closed by the NBD server
 * (see varve_nbd_server_kick), its registry reference is dropped.  Does nothing if it is not in. */
void varve_exports_remove(struct varve_exports *x, struct varve_export *e);

/* A new reference, or NULL.  An empty name finds the only listed export if there is just one. */
struct varve_export *varve_exports_get(struct varve_exports *x, const char *name, size_t len);

/* A new reference to the only one of those listed exports that counts(arg, export) is true for, or
 * NULL.  counts is called with the registry's lock held. */
struct varve_export *varve_exports_get_only(struct varve_exports *x,
                                            bool (*counts)(void *arg,
                                                           const struct varve_export *e),
                                            void *arg);

/* Calls each for every listed export, in order of names, holding the registry's lock. */
void varve_exports_each(struct varve_exports *x, void (*each)(void *arg, struct varve_export *e),
                        void *arg);

void varve_export_ref(struct varve_export *e);
void varve_export_unref(struct varve_export *e);

#endif
