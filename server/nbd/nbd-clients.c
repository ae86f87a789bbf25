/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Who may come.  At most `max` connections are served, and at most `max_per_peer` of one peer.  The
 * last of them are kept for peers that have few: whoever takes all the others, from one address,
 * shuts nobody out who wants FEW or less.  One peer is an IPv4 address, a /64 of IPv6 (who has one
 * address of it has them all), a vsock CID, a user of the unix socket.
 */
#include "server/nbd/nbd-clients.h"

#include <errno.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What a peer may have of the reserve: a backup program's connections to one export. */
#define FEW 16u

/* Of so many connections one is kept; but not more than that. */
#define RESERVE_PART 32u
#define RESERVE_MAX  32u

/* Lines in one second; more of them are somebody's noise. */
#define LOG_PER_SECOND 10u

void varve_nbd_clients_init(struct varve_nbd_clients *r, const struct varve_nbd_options *o)
{
    *r = (struct varve_nbd_clients){.max = o->max_connections, .max_per_peer = o->max_per_peer};
    pthread_mutex_init(&r->lock, NULL);
    for (unsigned i = 0; i < VARVE_NBD_CLIENT_BUCKETS; i++)
        TAILQ_INIT(&r->buckets[i]);
}

void varve_nbd_clients_fini(struct varve_nbd_clients *r)
{
    pthread_mutex_destroy(&r->lock);
}

/* --- peers ---------------------------------------------------------------------------------- */

static void peer_of(const struct varve_client_id *id, uint64_t peer[2])
{
    struct sockaddr_in four;
    struct sockaddr_in6 six;
    struct sockaddr_vm vm;

    peer[0] = id->addr.ss_family;
    switch (id->addr.ss_family) {
    case AF_INET:
        memcpy(&four, &id->addr, sizeof(four));
        peer[1] = four.sin_addr.s_addr;
        break;
    case AF_INET6:
        memcpy(&six, &id->addr, sizeof(six));
        memcpy(&peer[1], &six.sin6_addr, 8);
        break;
    case AF_VSOCK:
        memcpy(&vm, &id->addr, sizeof(vm));
        peer[1] = vm.svm_cid;
        break;
    default:
        peer[1] = id->has_uid ? id->uid : UINT64_MAX;
        break;
    }
}

static bool same_peer(const struct varve_nbd_client *a, const struct varve_nbd_client *b)
{
    return a->peer[0] == b->peer[0] && a->peer[1] == b->peer[1];
}

static struct varve_nbd_bucket *bucket_of(struct varve_nbd_clients *r,
                                          const struct varve_nbd_client *k)
{
    uint64_t hash = (k->peer[1] ^ k->peer[0]) * UINT64_C(0x9e3779b97f4a7c15);

    return &r->buckets[hash >> 56];
}

static unsigned count_peer(struct varve_nbd_clients *r, const struct varve_nbd_client *k)
{
    const struct varve_nbd_client *other;
    unsigned n = 0;

    TAILQ_FOREACH(other, bucket_of(r, k), link)
    n += !other->refused && same_peer(other, k);
    return n;
}

/* --- coming and going ----------------------------------------------------------------------- */

static unsigned reserve(const struct varve_nbd_clients *r)
{
    unsigned part = r->max / RESERVE_PART;

    return part < RESERVE_MAX ? part : RESERVE_MAX;
}

/* 0, or what is too much. */
static int judge(struct varve_nbd_clients *r, const struct varve_nbd_client *k,
                 struct varve_err *why)
{
    unsigned mine;

    if (r->n >= r->max)
        return varve_err_set(why, EMFILE, "all %u connections of this server are in use", r->max);
    mine = count_peer(r, k);
    if (r->max_per_peer && mine >= r->max_per_peer)
        return varve_err_set(why, EMFILE,
                             "you have %u connections to this server, which is all "
                             "that one peer may have",
                             mine);
    if (r->n >= r->max - reserve(r) && mine >= FEW)
        return varve_err_set(why, EMFILE,
                             "you have %u connections to this server, and the last "
                             "ones are kept for others",
                             mine);
    return 0;
}

enum varve_nbd_verdict varve_nbd_clients_enter(struct varve_nbd_clients *r,
                                               struct varve_nbd_client *k,
                                               const struct varve_client_id *id,
                                               struct varve_err *why)
{
    enum varve_nbd_verdict verdict = VARVE_NBD_SERVE;
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    k->since_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    peer_of(id, k->peer);
    varve_client_id_peer(id, k->peer_text, sizeof(k->peer_text));
    pthread_mutex_lock(&r->lock);
    if (judge(r, k, why)) {
        verdict = r->nrefused < VARVE_NBD_REFUSING_MAX ? VARVE_NBD_REFUSE : VARVE_NBD_DROP;
        r->refused++;
    }
    k->refused = verdict != VARVE_NBD_SERVE;
    if (verdict == VARVE_NBD_SERVE) {
        r->n++;
        r->accepted++;
    } else if (verdict == VARVE_NBD_REFUSE) {
        r->nrefused++;
    }
    if (verdict != VARVE_NBD_DROP)
        TAILQ_INSERT_TAIL(bucket_of(r, k), k, link);
    pthread_mutex_unlock(&r->lock);
    return verdict;
}

void varve_nbd_clients_leave(struct varve_nbd_clients *r, struct varve_nbd_client *k)
{
    pthread_mutex_lock(&r->lock);
    TAILQ_REMOVE(bucket_of(r, k), k, link);
    if (k->refused)
        r->nrefused--;
    else
        r->n--;
    pthread_mutex_unlock(&r->lock);
}

void varve_nbd_clients_identify(struct varve_nbd_clients *r, struct varve_nbd_client *k,
                                const struct varve_client_id *id)
{
    pthread_mutex_lock(&r->lock);
    varve_client_id_identity(id, k->identity, sizeof(k->identity));
    k->tls = true;
    pthread_mutex_unlock(&r->lock);
}

void varve_nbd_clients_reads(struct varve_nbd_clients *r, struct varve_nbd_client *k,
                             const char *export)
{
    pthread_mutex_lock(&r->lock);
    k->export = export;
    pthread_mutex_unlock(&r->lock);
}

bool varve_nbd_clients_may_log(struct varve_nbd_clients *r, uint64_t second)
{
    bool may;

    pthread_mutex_lock(&r->lock);
    if (second > r->log_second) {
        r->log_second = second;
        r->log_count = 0;
    }
    may = r->log_count++ < LOG_PER_SECOND;
    pthread_mutex_unlock(&r->lock);
    return may;
}

/* --- the census ----------------------------------------------------------------------------- */

static int census_add(struct varve_nbd_census *c, const struct varve_nbd_client *k)
{
    struct varve_nbd_census_client *out = &c->clients[c->nclients];

    *out = (struct varve_nbd_census_client){
        .peer = strdup(k->peer_text),
        .identity = strdup(k->identity),
        .export = k->export ? strdup(k->export) : NULL,
        .tls = k->tls,
        .since_ns = k->since_ns,
        .requests = k->requests,
        .bytes = k->bytes,
        .errors = k->errors,
        .queue = k->queue,
    };
    c->nclients++;
    return out->peer && out->identity && (out->export || !k->export) ? 0 : -ENOMEM;
}

int varve_nbd_clients_census(struct varve_nbd_clients *r, struct varve_nbd_census *out,
                             struct varve_err *err)
{
    const struct varve_nbd_client *k;
    int rc = 0;

    memset(out, 0, sizeof(*out));
    pthread_mutex_lock(&r->lock);
    out->max = r->max;
    out->max_per_peer = r->max_per_peer;
    out->accepted = r->accepted;
    out->refused = r->refused;
    out->clients = calloc(r->n ? r->n : 1, sizeof(*out->clients));
    if (!out->clients)
        rc = -ENOMEM;
    for (unsigned i = 0; i < VARVE_NBD_CLIENT_BUCKETS && rc == 0; i++) {
        TAILQ_FOREACH(k, &r->buckets[i], link)
        {
            if (rc == 0 && !k->refused)
                rc = census_add(out, k);
        }
    }
    pthread_mutex_unlock(&r->lock);
    if (rc == 0)
        return 0;
    varve_nbd_census_fini(out);
    return varve_err_set(err, ENOMEM, "no memory for a list of clients");
}

void varve_nbd_census_fini(struct varve_nbd_census *c)
{
    for (size_t i = 0; i < c->nclients; i++) {
        free(c->clients[i].peer);
        free(c->clients[i].identity);
        free(c->clients[i].export);
    }
    free(c->clients);
    c->clients = NULL;
    c->nclients = 0;
}
