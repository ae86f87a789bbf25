/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Busy NBD clients that are cheap themselves: one thread, many connections, each with one read of
 * 64 KiB at a random place under way.
 *
 *     busy WHERE EXPORT CONNECTIONS (SECONDS|Ntimes) [FILE]
 *
 * WHERE is the path of a unix socket, or a TCP port of 127.0.0.1.  It reads for SECONDS, or N times
 * on each connection.  With FILE every byte is compared with it.  When all connections are open it
 * prints "ready", at the end "READS BYTES NANOSECONDS LONGEST", LONGEST being the nanoseconds that
 * the slowest read took.  Exit status 1: something was wrong, and what.
 */
#include "tests/bench/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE      65536u
#define GRAIN      4096u
#define HEAD_LEN   20u
#define DATA_EXTRA 8u
#define HOLE_LEN   12u

struct conn {
    int fd;
    uint64_t off, began_ns, reads;
    size_t have, want; /* bytes of the chunk that is under way */
    size_t got;        /* bytes of the read that were answered */
    uint8_t buf[HEAD_LEN + DATA_EXTRA + PIECE];
};

static const uint8_t *reference;
static uint64_t size, total_reads, longest_ns, seed = 88172645463325252u;

static void open_conn(struct conn *c, const char *where, const char *export)
{
    struct peer peer;

    peer_open(&peer, where, export, PEER_STRUCTURED, NULL);
    c->fd = peer.fd;
    size = peer.size;
    if (size < PIECE)
        die("the export has %" PRIu64 " bytes: too small", size);
}

/* --- reading ---------------------------------------------------------------------------------- */

static void ask(struct conn *c)
{
    uint8_t msg[28], *p = msg;

    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    c->off = seed % ((size - PIECE) / GRAIN + 1) * GRAIN;
    c->got = 0;
    c->began_ns = now_ns();
    p = put_be(p, PEER_MAGIC_REQUEST, 4);
    p = put_be(p, 0, 4);
    p = put_be(p, c->off ^ (uint64_t)c->fd << 48, 8);
    p = put_be(p, c->off, 8);
    put_be(p, PIECE, 4);
    peer_send(c->fd, msg, sizeof(msg));
}

static void check(const struct conn *c, uint64_t off, const uint8_t *data, size_t len)
{
    static const uint8_t zeroes[PIECE];

    if (len > PIECE || off < c->off || off + len > c->off + PIECE)
        die("bytes outside of the request");
    if (reference && memcmp(reference + off, data ? data : zeroes, len) != 0)
        die("wrong bytes in the %zu at %" PRIu64, len, off);
}

/* A whole chunk; true: it was the request's last. */
static bool take_chunk(struct conn *c)
{
    unsigned flags = (unsigned)get_be(c->buf + 4, 2), type = (unsigned)get_be(c->buf + 6, 2);
    const uint8_t *payload = c->buf + HEAD_LEN;
    size_t len = c->want - HEAD_LEN;

    if (get_be(c->buf + 8, 8) != (c->off ^ (uint64_t)c->fd << 48))
        die("a reply to another request");
    if (type == 1 && len > DATA_EXTRA) {
        check(c, get_be(payload, 8), payload + DATA_EXTRA, len - DATA_EXTRA);
        c->got += len - DATA_EXTRA;
    } else if (type == 2 && len == HOLE_LEN) {
        check(c, get_be(payload, 8), NULL, (size_t)get_be(payload + 8, 4));
        c->got += (size_t)get_be(payload + 8, 4);
    } else if (type != 0) {
        die("chunk %#x at %" PRIu64 ": error %" PRIu64, type, c->off,
            len >= 4 ? get_be(payload, 4) : 0);
    }
    return flags & 1;
}

/* What the socket has; true: the read is answered. */
static bool receive(struct conn *c)
{
    ssize_t n;

    for (;;) {
        n = recv(c->fd, c->buf + c->have, c->want - c->have, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return false;
        if (n <= 0)
            die("a connection ended: %s", n ? strerror(errno) : "closed");
        c->have += (size_t)n;
        if (c->have < c->want)
            continue;
        if (c->want == HEAD_LEN) {
            if (get_be(c->buf, 4) != PEER_MAGIC_CHUNK || get_be(c->buf + 16, 4) > DATA_EXTRA + PIECE)
                die("no chunk of a reply");
            c->want += (size_t)get_be(c->buf + 16, 4);
            if (c->have < c->want)
                continue;
        }
        c->have = 0;
        if (take_chunk(c)) {
            c->want = HEAD_LEN;
            return true;
        }
        c->want = HEAD_LEN;
    }
}

static void answered(struct conn *c)
{
    uint64_t took_ns = now_ns() - c->began_ns;

    if (c->got != PIECE)
        die("%zu bytes of %u at %" PRIu64, c->got, PIECE, c->off);
    if (took_ns > longest_ns)
        longest_ns = took_ns;
    total_reads++;
    c->reads++;
}

static void run(struct conn *conns, unsigned n, uint64_t seconds, uint64_t times)
{
    struct epoll_event events[64], e = {.events = EPOLLIN};
    uint64_t began_ns = now_ns(), took_ns;
    int ep = epoll_create1(0);
    unsigned flying = n;

    for (unsigned i = 0; i < n; i++) {
        e.data.ptr = &conns[i];
        if (epoll_ctl(ep, EPOLL_CTL_ADD, conns[i].fd, &e))
            die("epoll: %s", strerror(errno));
        ask(&conns[i]);
    }
    while (flying) {
        int ready = epoll_wait(ep, events, 64, -1);

        for (int i = 0; i < ready; i++) {
            struct conn *c = events[i].data.ptr;

            if (!receive(c))
                continue;
            answered(c);
            if (times ? c->reads < times : now_ns() - began_ns < seconds * 1000000000u)
                ask(c);
            else
                flying--;
        }
    }
    took_ns = now_ns() - began_ns;
    printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", total_reads, total_reads * PIECE,
           took_ns, longest_ns);
}

static void map_reference(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY);
    void *p;

    if (fd < 0 || fstat(fd, &st) || (uint64_t)st.st_size != size)
        die("%s: not a file of %" PRIu64 " bytes", path, size);
    p = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        die("%s: %s", path, strerror(errno));
    reference = p;
}

int main(int argc, char **argv)
{
    unsigned n = argc > 3 ? (unsigned)atoi(argv[3]) : 0;
    uint64_t seconds = 0, times = 0;
    struct conn *conns;
    char *end;

    if (argc < 5 || !n)
        die("usage: busy WHERE EXPORT CONNECTIONS (SECONDS|Ntimes) [FILE]");
    seconds = strtoull(argv[4], &end, 10);
    if (strcmp(end, "times") == 0)
        times = seconds;
    conns = calloc(n, sizeof(*conns));
    if (!conns)
        die("no memory");
    for (unsigned i = 0; i < n; i++) {
        open_conn(&conns[i], argv[1], argv[2]);
        conns[i].want = HEAD_LEN;
    }
    if (argc > 5)
        map_reference(argv[5]);
    puts("ready");
    fflush(stdout);
    run(conns, n, seconds, times);
    free(conns);
    return EXIT_SUCCESS;
}
