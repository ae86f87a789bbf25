/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The transmission phase of one NBD connection: requests, the pool's work on them, replies.
 * A part of struct varve_nbd_conn, called on the connection's loop; what is said to run in the pool
 * touches only its job.  It never touches the socket and never waits.
 */
#ifndef VARVE_SERVER_NBD_TRANSMIT_H
#define VARVE_SERVER_NBD_TRANSMIT_H

#include "lib/err.h"
#include "lib/nbd-proto.h"
#include "server/nbd/export.h"
#include "server/nbd/nbd-metactx.h"
#include "server/nbd/nbd-pool.h"

#include <sys/queue.h>
#include <uv.h>

struct varve_nbd_conn;
struct varve_nbd_out;

/* Requests of one connection between their header's arrival and their reply's last byte.  More than
 * any known client keeps in flight (nbdcopy: 64). */
#define VARVE_NBD_REQUESTS_MAX 128u

/* Bytes of replies that one connection may hold, being filled or waiting for the peer: at most, and
 * however little memory is left to all (one piece).  A request that needs more by itself is let in
 * when nothing else is held; see nbd-pool.c. */
#define VARVE_NBD_HELD_MAX (4u * 1024u * 1024u)
#define VARVE_NBD_HELD_MIN (VARVE_EXPORT_READ_MAX + 4096u)

/* Jobs of one connection in the pool: enough to keep a disk busy, too few to starve the others. */
#define VARVE_NBD_JOBS_MAX 4u

/* Payload of a refused write that is skipped to keep the connection; the protocol says that up to
 * half of this nobody may call it an attack. */
#define VARVE_NBD_WRITE_SKIP_MAX (64u * 1024u * 1024u)

/* The same of a refused request with extended headers, unless larger reads are allowed: the
 * protocol wants the session to end above what was advertised, but not below this. */
#define VARVE_NBD_PAYLOAD_MAX (32u * 1024u * 1024u)

/* Extents in one chunk of block status: ovirt-imageio drops the connection above this. */
#define VARVE_NBD_EXTENTS_MAX 1048575u

/* Zeroes are sent as holes where whole, aligned blocks of this many bytes are zero. */
#define VARVE_NBD_HOLE_GRAIN 4096u

struct varve_nbd_req {
    TAILQ_ENTRY(varve_nbd_req) link; /* in `ready` while work of it waits to be launched */
    struct varve_nbd_request hdr;
    uint64_t next, left;                 /* what is not yet launched; bytes */
    unsigned nctx;                       /* block status: contexts asked for, */
    unsigned ctx[VARVE_NBD_METACTX_MAX]; /* by the export's numbers */
    unsigned running;                    /* jobs in the pool */
    bool cold;                           /* what its next piece asks for is not in memory */
    struct varve_nbd_out *whole;         /* replies in one piece: filled by all jobs */
    uint64_t hole_off, hole_len;         /* zeroes that were read and not yet sent */
    struct varve_err err;                /* code != 0: it failed, at err_off if that is known */
    uint64_t err_off;
    bool err_has_off;
};

/* One piece of work in the pool. */
struct varve_nbd_job {
    uv_work_t work;
    struct varve_nbd_conn *conn;
    struct varve_nbd_req *req;
    struct varve_export *export;
    void (*run)(struct varve_nbd_job *job); /* in the pool */
    bool (*now)(struct varve_nbd_job *job); /* on the loop; false: it needs the pool */
    uint64_t off, len;                      /* of a read that failed len is what could be read */
    size_t held; /* bytes of the budget that it took and no `out` has yet */
    /* reads: where the data goes (`out` or the request's whole reply) */
    uint8_t *data;
    struct varve_nbd_out *out; /* structured reads: chunks, ready to be sent */
    uint8_t *last_chunk;       /* in out */
    /* block status */
    size_t extents_max;
    bool at_once; /* or not at all */
    struct varve_nbd_out *chunks[VARVE_NBD_METACTX_MAX];
    struct varve_err err; /* code != 0: it failed */
};

struct varve_nbd_transmit {
    struct varve_export *export; /* a reference; NULL before the transmission phase */
    unsigned nreqs;
    size_t held; /* bytes, see varve_nbd_pool_hold */
    struct varve_nbd_share *share;
    struct varve_nbd_line *line; /* of the share, in which the connection waits; NULL: in none */
    TAILQ_ENTRY(varve_nbd_conn) in_line;
    TAILQ_HEAD(, varve_nbd_req) ready;
    struct varve_nbd_job *jobs[VARVE_NBD_JOBS_MAX];
    unsigned njobs;
    struct varve_ticket ticket;             /* in the line of the export's throttle, */
    const struct varve_nbd_req *ticket_req; /* for this one's next piece */
    uint64_t throttled_ms;             /* the loop's time until which reads wait; 0: they do not */
    bool skipped;                      /* a refused request's payload was skipped, */
    struct varve_nbd_request skip_hdr; /* and this is it */
};

/* Enters the phase; takes over the reference to e. */
void varve_nbd_transmit_begin(struct varve_nbd_conn *c, struct varve_export *e);

/* Queues the reply to a request that fails, at offset *off if that is known (off may be NULL). */
void varve_nbd_reply_error(struct varve_nbd_conn *c, const struct varve_nbd_request *hdr, int code,
                           const char *msg, const uint64_t *off);

/* Queues the reply to one that succeeds without content. */
void varve_nbd_reply_ok(struct varve_nbd_conn *c, const struct varve_nbd_request *hdr);

/* Eats from buf; returns how much.  0: more bytes are needed, or as many requests as may be are in
 * flight. */
size_t varve_nbd_transmit_feed(struct varve_nbd_conn *c, const uint8_t *buf, size_t len);

/* What came of a connection's turn. */
enum varve_nbd_turn {
    VARVE_NBD_TURN_NONE,   /* there was nothing to launch, or something else must end first */
    VARVE_NBD_TURN_TAKEN,  /* a job was launched */
    VARVE_NBD_TURN_FAILED, /* a request failed: the connection is to be ticked */
};

/* Gives the pool one piece of work.  Called by the pool's turns alone. */
enum varve_nbd_turn varve_nbd_transmit_turn(struct varve_nbd_conn *c);

/* Does what can be done at once, has the connection wait for its turn if it has other work, and
 * gives turns. */
void varve_nbd_transmit_pump(struct varve_nbd_conn *c);

/* nbd-throttle.c: whether the throttle lets the request's next piece begin, which has len bytes.
 * False: the connection will be ticked when it is worth asking again. */
bool varve_nbd_throttle_lets(struct varve_nbd_conn *c, const struct varve_nbd_req *req,
                             uint64_t len);
/* That piece begins. */
void varve_nbd_throttle_use(struct varve_nbd_conn *c, const struct varve_nbd_req *req);
/* The connection waits for no piece any more. */
void varve_nbd_throttle_leave(struct varve_nbd_conn *c);

/* Requests that still have work to launch fail with ESHUTDOWN. */
void varve_nbd_transmit_abandon(struct varve_nbd_conn *c);

/* The peer took `out`. */
void varve_nbd_transmit_sent(struct varve_nbd_conn *c, const struct varve_nbd_out *out);

/* Drops all that is not in the pool, and cancels what the pool has not begun. */
void varve_nbd_transmit_drop(struct varve_nbd_conn *c);

/* Lets go of the export.  No job is left. */
void varve_nbd_transmit_end(struct varve_nbd_conn *c);

/* In the pool, nbd-read.c: reads job's range to job->data; encodes chunks of what could be read if
 * there is job->out. */
void varve_nbd_read_run(struct varve_nbd_job *job);

/* On the loop: the same if that can be done at once.  False: nothing was read. */
bool varve_nbd_read_now(struct varve_nbd_job *job);

/* In the pool, nbd-status.c: makes job->chunks. */
void varve_nbd_status_run(struct varve_nbd_job *job);

/* On the loop: the same if that can be done at once.  False: nothing was made. */
bool varve_nbd_status_now(struct varve_nbd_job *job);

/* Extents that a query may be answered with, in each context. */
size_t varve_nbd_status_extents_max(const struct varve_nbd_conn *c,
                                    const struct varve_nbd_request *hdr);

/* The most bytes that a status job takes. */
size_t varve_nbd_status_cost(const struct varve_nbd_conn *c, unsigned ncontexts,
                             size_t extents_max);

/* --- between nbd-transmit.c and nbd-job.c --------------------------------------------------- */

/* The reply comes in one piece: it is known to be good before its first byte is sent. */
bool varve_nbd_req_is_whole(const struct varve_nbd_conn *c, const struct varve_nbd_req *req);

/* Bytes before the data of a read. */
size_t varve_nbd_data_header_len(const struct varve_nbd_conn *c);

/* It has failed at off: nothing more of it is launched. */
void varve_nbd_req_fail(struct varve_nbd_conn *c, struct varve_nbd_req *req,
                        const struct varve_err *err, uint64_t off);

/* Adds a piece that is a hole to the one before or behind it; a large hole is sent as one chunk. */
void varve_nbd_req_add_hole(struct varve_nbd_conn *c, struct varve_nbd_req *req, uint64_t off,
                            uint64_t len);

/* Ends a request that has nothing to launch and nothing in the pool.  `replied`: its last message
 * has been sent already. */
void varve_nbd_req_finish(struct varve_nbd_conn *c, struct varve_nbd_req *req, bool replied);

void varve_nbd_req_free(struct varve_nbd_req *req);

/* What the headers of all chunks to c are longer by. */
size_t varve_nbd_extension(const struct varve_nbd_conn *c);

#endif
