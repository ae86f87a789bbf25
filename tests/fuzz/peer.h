/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A client of a server that runs on a loop in this very thread: sends a stream in pieces, takes what
 * comes, half closes, and waits for the end.  One at a time; it never judges what it gets.
 */
#ifndef VARVE_TESTS_FUZZ_PEER_H
#define VARVE_TESTS_FUZZ_PEER_H

#include "tests/fuzz/fuzz.h"

#include <stdbool.h>
#include <uv.h>

/* A connection that nobody keeps must end within this, on a busy machine. */
#define FUZZ_HANG_MS 15000u

struct fuzz_tls; /* see peer-tls.h */

struct fuzz_peer {
    /* set by the caller, the rest zero */
    uv_loop_t *loop;
    const uint8_t *stream;
    size_t len;
    struct fuzz_cuts cuts;
    bool lazy;         /* reads nothing while it can write */
    unsigned event_at; /* event(arg) comes after so many writes and one; may be NULL */
    void (*event)(void *arg);
    void (*got)(void *arg, const uint8_t *buf, size_t len);
    void *arg;
    struct fuzz_tls *tls; /* NULL: none; else the first plain_len bytes go in plain, and the rest */
    size_t plain_len;     /* under TLS once plain_replies bytes have come */
    size_t plain_replies;

    int fd; /* -1: it has hung up */
    size_t sent;
    unsigned writes;
    bool blocked;  /* the last write had no room */
    bool said_all; /* and half closed */
    bool gone;     /* the server has closed, */
    bool in_full;  /* in order, after all was sent, and there was no event */
    bool disturbed;
};

/* Connects to the unix socket and returns when the connection has ended at our end.  Aborts if that
 * takes too long. */
void fuzz_peer_run(struct fuzz_peer *p, const char *path);

/* For event(): closes the socket, with what is unread in it. */
void fuzz_peer_hang_up(struct fuzz_peer *p);

uint64_t fuzz_now_ms(void);

#endif
