/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An endpoint: where the bytes of a job come from or go to.  A raw file or block device, an NBD
 * export of anybody's (libnbd, TLS too), or a view of one of our disks: one face for all of them.
 * For one loop's thread, which it never makes wait: files are read and written by the pool, NBD
 * goes through the loop.  It believes no peer: lengths are checked, and whatever a peer does or
 * leaves undone, every request ends, the latest when the peer has said nothing for stall_ms.  It
 * keeps no data: buffers are the caller's, and no more of them are in use than requests were
 * submitted.
 *
 *     open ──▶ opened(): 0 or why not ──▶ submit … done() … ──▶ close ──▶ closed()
 *
 * All callbacks run on the loop's thread, each exactly once, and never before the call that asks
 * for them has returned (HACKING, rule 9).  They may submit and close.
 */
#ifndef VARVE_SERVER_ENDPOINT_H
#define VARVE_SERVER_ENDPOINT_H

#include "lib/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <uv.h>

struct varve_endpoint;
struct varve_served_view;

/* The most that one read or write may ask for; what a peer takes at once is none of the caller's
 * business. */
#define VARVE_ENDPOINT_IO_MAX (4u * 1024u * 1024u)

enum varve_endpoint_op {
    VARVE_ENDPOINT_READ,
    VARVE_ENDPOINT_WRITE,
    VARVE_ENDPOINT_ZERO,   /* reads as zeroes afterwards; takes no space where that can be had */
    VARVE_ENDPOINT_FLUSH,  /* what was written and has ended is durable; off and len are nothing */
    VARVE_ENDPOINT_EXTENTS /* what is where */
};

/* Flags of an extent.  Neither: data, or nobody knows. */
#define VARVE_ENDPOINT_IS_ZERO 1u /* reads as zeroes */
#define VARVE_ENDPOINT_IS_HOLE                                                                     \
    2u /* takes no space, which alone says nothing of what it reads as                             \
        */

struct varve_endpoint_extent {
    uint64_t len;
    unsigned flags;
};

/* One request; the caller's memory, kept as it is from submit until done(). */
struct varve_endpoint_req {
    /* set by the caller */
    enum varve_endpoint_op op;
    uint64_t off, len; /* len > 0, within the endpoint; multiples of block_min or up to its end */
    void *buf;         /* READ, WRITE: len bytes, at most VARVE_ENDPOINT_IO_MAX */
    struct varve_endpoint_extent *extents; /* EXTENTS: room for max_extents */
    size_t max_extents;
    void (*done)(struct varve_endpoint_req *req);

    /* to be looked at in done() */
    int rc;               /* 0 or -errno; -ECANCELED: it was closed */
    struct varve_err err; /* names the endpoint and the place; set if rc is not 0 */
    size_t nextents;      /* EXTENTS: at least one; neighbours differ; maybe not all of len */
    uint64_t bad_off;     /* READ of a view that failed: its first byte that cannot be read */

    /* the endpoint's */
    struct varve_endpoint *e;
    TAILQ_ENTRY(varve_endpoint_req) link, turn;
    uv_work_t work;
    int64_t cookie;
    uint64_t at, asked; /* bytes dealt with, and under way behind these */
    bool by_zero;
    bool submitted;
};

/* What is open; constant from opened() on. */
struct varve_endpoint_info {
    uint64_t size;
    uint32_t block_min; /* requests' alignment; a power of two, 1..64K (of a view: 1) */
    bool writable;
    bool has_extents; /* else EXTENTS says data of all */
    bool is_nbd;
};

struct varve_endpoint_options {
    bool write;          /* else it is opened for reading only */
    uint64_t connect_ms; /* 0: 30 s.  A peer that has not shaken hands by then */
    uint64_t stall_ms;   /* 0: 60 s.  One that is asked something and says nothing for so long */
};

/* True: an NBD URI (nbd, nbds, with or without +unix, +vsock), by its scheme; else it is the path
 * of a file.  A path that looks like one is written "./nbd:…". */
bool varve_endpoint_is_uri(const char *where);

/* Opens a file or NBD export that is there.  opened(arg, 0, NULL): it can be used; opened(arg,
 * -errno, err): it cannot, and has to be closed all the same.  opts may be NULL.
 * -EINVAL, -ENOMEM: nothing was begun, *out is NULL. */
int varve_endpoint_open(uv_loop_t *loop, const char *where,
                        const struct varve_endpoint_options *opts,
                        void (*opened)(void *arg, int rc, const struct varve_err *err), void *arg,
                        struct varve_endpoint **out, struct varve_err *err);

/* The same of a regular file or block device that the caller has open (fd is taken over, also on
 * failure); `name` is for errors. */
int varve_endpoint_open_fd(uv_loop_t *loop, const char *name, int fd,
                           const struct varve_endpoint_options *opts,
                           void (*opened)(void *arg, int rc, const struct varve_err *err),
                           void *arg, struct varve_endpoint **out, struct varve_err *err);

/* The same of a view (a reference is added), for reading.  EXTENTS calls holes of the boundary
 * IS_ZERO | IS_HOLE.  Reads that fail are not noted as failed reads of a client. */
int varve_endpoint_open_view(uv_loop_t *loop, struct varve_served_view *view,
                             void (*opened)(void *arg, int rc, const struct varve_err *err),
                             void *arg, struct varve_endpoint **out, struct varve_err *err);

const struct varve_endpoint_info *varve_endpoint_info(const struct varve_endpoint *e);
/* As it was opened: path or URI. */
const char *varve_endpoint_name(const struct varve_endpoint *e);

/* 0: req->done() comes later.  -EINVAL: the request is none (a bug of the caller's, or a size that
 * does not fit); -ENOTCONN: not open, or failed for good; then done() does not come.
 * Requests may run in any order, side by side; those that overlap are the caller's to order.  Once
 * a peer is gone all requests fail, with the reason. */
int varve_endpoint_submit(struct varve_endpoint *e, struct varve_endpoint_req *req,
                          struct varve_err *err);

/* Requests under way end first, with -ECANCELED unless they are done already; an opening, too.
 * closed() comes last, may be NULL, and e is gone when it does.  To be called once. */
void varve_endpoint_close(struct varve_endpoint *e, void (*closed)(void *arg), void *arg);

#endif
