/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The register of NBD connections of all loops: who is there, since when, what each did; and
 * whether one more may come.  Private to nbd-*.c, which answers for it through nbd-server.h.  Any
 * thread. Its lock is held for a walk over one peer's connections at most, or for a snapshot; it is
 * a leaf.
 */
#ifndef VARVE_SERVER_NBD_CLIENTS_H
#define VARVE_SERVER_NBD_CLIENTS_H

#include "server/nbd/client-id.h"
#include "server/nbd/nbd-server.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>

#define VARVE_NBD_CLIENT_BUCKETS 256u

/* Connections over a limit that are told so at once; more than that are closed without a word. */
#define VARVE_NBD_REFUSING_MAX 64u

/* One connection's entry, a part of it. */
struct varve_nbd_client {
    TAILQ_ENTRY(varve_nbd_client) link; /* in its bucket */
    uint64_t peer[2]; /* what counts as one peer: an address, the net of an IPv6 one, a user */
    bool refused;

    /* guarded by the register's lock */
    char peer_text[VARVE_CLIENT_PEER_MAX];
    char identity[VARVE_CLIENT_TEXT_MAX];
    bool tls;
    const char *export; /* name; NULL before the transmission phase and at the end */
    uint64_t since_ns;  /* realtime */

    /* written by the connection's loop alone */
    _Atomic uint64_t requests, bytes, errors;
    _Atomic unsigned queue; /* requests in flight */
};

TAILQ_HEAD(varve_nbd_bucket, varve_nbd_client);

struct varve_nbd_clients {
    pthread_mutex_t lock; /* guards all of it; rank: a leaf */
    unsigned max, max_per_peer;
    unsigned n, nrefused; /* connections that are served, and that are told that they are not */
    uint64_t accepted, refused;
    uint64_t log_second; /* the one in which log_count lines were written */
    unsigned log_count;
    struct varve_nbd_bucket buckets[VARVE_NBD_CLIENT_BUCKETS];
};

enum varve_nbd_verdict {
    VARVE_NBD_SERVE,
    VARVE_NBD_REFUSE, /* tell it, then end */
    VARVE_NBD_DROP,   /* end: it is not in the register */
};

void varve_nbd_clients_init(struct varve_nbd_clients *r, const struct varve_nbd_options *o);
void varve_nbd_clients_fini(struct varve_nbd_clients *r);

/* A connection of this peer comes.  Unless it is dropped it stands in the register from here on,
 * and `why` (if it is refused) says what is too much. */
enum varve_nbd_verdict varve_nbd_clients_enter(struct varve_nbd_clients *r,
                                               struct varve_nbd_client *k,
                                               const struct varve_client_id *id,
                                               struct varve_err *why);
void varve_nbd_clients_leave(struct varve_nbd_clients *r, struct varve_nbd_client *k);

/* TLS has proved who it is. */
void varve_nbd_clients_identify(struct varve_nbd_clients *r, struct varve_nbd_client *k,
                                const struct varve_client_id *id);

/* It reads the export of that name, which is borrowed until it reads NULL. */
void varve_nbd_clients_reads(struct varve_nbd_clients *r, struct varve_nbd_client *k,
                             const char *export);

/* One more line may be written to the log in this second (of any clock that all callers share). */
bool varve_nbd_clients_may_log(struct varve_nbd_clients *r, uint64_t second);

/* Counters have one writer: no other can come between. */
static inline void varve_nbd_client_add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

/* Copies what stands in the register; see varve_nbd_server_census. */
int varve_nbd_clients_census(struct varve_nbd_clients *r, struct varve_nbd_census *out,
                             struct varve_err *err);

#endif
