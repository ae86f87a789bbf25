/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Asks for the whole block status of an export, as an appliance does before it pulls.
 *
 *     walk WHERE EXPORT CONTEXT 32|64
 *
 * WHERE is the path of a unix socket, or a TCP port of 127.0.0.1.  32: structured replies, each
 * request for as much as fits into 32 bits; 64: extended headers, each for all that is left.  Prints
 * "EXTENTS BYTES REQUESTS NANOSECONDS", BYTES being those whose status is not 0.
 */
#include "tests/bench/peer.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CMD_STATUS   7u
#define TYPE_STATUS  5u
#define TYPE_STATUS2 6u
#define ALIGNED_MAX  UINT64_C(0xffff0000)
#define PAYLOAD_MAX  (64u << 20)

static uint8_t payload[PAYLOAD_MAX];
static uint64_t extents, nonzero, requests;

static void ask(const struct peer *peer, bool extended, uint64_t off)
{
    uint64_t left = peer->size - off;
    uint8_t msg[32], *p = msg;

    p = put_be(p, extended ? PEER_MAGIC_EXTENDED : PEER_MAGIC_REQUEST, 4);
    p = put_be(p, 0, 2);
    p = put_be(p, CMD_STATUS, 2);
    p = put_be(p, ++requests, 8);
    p = put_be(p, off, 8);
    p = put_be(p, extended || left < ALIGNED_MAX ? left : ALIGNED_MAX, extended ? 8 : 4);
    peer_send(peer->fd, msg, (size_t)(p - msg));
}

/* How far the chunk's extents go. */
static uint64_t add_up(const struct peer *peer, bool extended, uint64_t len)
{
    unsigned word = extended ? 8 : 4, head = extended ? 8 : 4;
    uint64_t covered = 0;

    if (len < head || get_be(payload, 4) != peer->context)
        die("a status of another context");
    for (const uint8_t *p = payload + head; p + 2 * word <= payload + len; p += 2 * word) {
        uint64_t n = get_be(p, word);

        covered += n;
        extents++;
        if (get_be(p + word, word))
            nonzero += n;
    }
    return covered;
}

static uint64_t answer(const struct peer *peer, bool extended)
{
    uint64_t covered = 0, len;
    unsigned flags, type;
    uint8_t head[32];

    do {
        peer_recv(peer->fd, head, extended ? 32 : 20);
        if (get_be(head, 4) != (extended ? PEER_MAGIC_REPLY : PEER_MAGIC_CHUNK))
            die("no chunk of a reply");
        flags = (unsigned)get_be(head + 4, 2);
        type = (unsigned)get_be(head + 6, 2);
        len = get_be(head + (extended ? 24 : 16), extended ? 8 : 4);
        if (len > PAYLOAD_MAX)
            die("a chunk of %" PRIu64 " bytes", len);
        peer_recv(peer->fd, payload, len);
        if (type == (extended ? TYPE_STATUS2 : TYPE_STATUS))
            covered += add_up(peer, extended, len);
        else if (type != 0)
            die("chunk %#x", type);
    } while (!(flags & 1));
    return covered;
}

int main(int argc, char **argv)
{
    bool extended = argc == 5 && strcmp(argv[4], "64") == 0;
    uint64_t began_ns, covered;
    struct peer peer;

    if (argc != 5 || (!extended && strcmp(argv[4], "32") != 0))
        die("usage: walk WHERE EXPORT CONTEXT 32|64");
    peer_open(&peer, argv[1], argv[2], extended ? PEER_EXTENDED : PEER_STRUCTURED, argv[3]);
    began_ns = now_ns();
    for (uint64_t off = 0; off < peer.size; off += covered) {
        ask(&peer, extended, off);
        covered = answer(&peer, extended);
        if (!covered)
            die("no status at %" PRIu64, off);
    }
    printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", extents, nonzero, requests,
           now_ns() - began_ns);
    return EXIT_SUCCESS;
}
