/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A guest that notices: writes 4 KiB at random places, one at a time, and knows how long the slowest
 * took.
 *
 *     pause SOCKET EXPORT LIMIT
 *
 * Writes stay below LIMIT bytes.  Prints "ready"; then each line that it reads begins a new window,
 * and it prints the nanoseconds that the slowest write of the window before took, and how many there
 * were.  A write that was under way when the line came belongs to the window that ends.
 */
#include "tests/bench/peer.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 4096u

static uint64_t seed = 88172645463325252u;

static uint64_t write_one(const struct peer *peer, uint64_t nblocks)
{
    static uint8_t msg[28 + BLOCK];
    uint8_t reply[16], *p = msg;
    uint64_t began_ns;

    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    p = put_be(p, PEER_MAGIC_REQUEST, 4);
    p = put_be(p, 1, 4);
    p = put_be(p, seed, 8);
    p = put_be(p, seed % nblocks * BLOCK, 8);
    p = put_be(p, BLOCK, 4);
    memset(p, (int)(seed & 0xff), BLOCK);
    began_ns = now_ns();
    peer_send(peer->fd, msg, sizeof(msg));
    peer_recv(peer->fd, reply, sizeof(reply));
    if (get_be(reply, 4) != PEER_MAGIC_SIMPLE || get_be(reply + 8, 8) != seed)
        die("a reply to another request");
    if (get_be(reply + 4, 4))
        die("a write failed: error %" PRIu64, get_be(reply + 4, 4));
    return now_ns() - began_ns;
}

/* Whether the window ends.  At the end of input the program does. */
static bool window_ends(void)
{
    struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};
    char line[64];
    ssize_t n;

    if (poll(&in, 1, 0) <= 0)
        return false;
    n = read(STDIN_FILENO, line, sizeof(line));
    if (n < 0)
        die("standard input: %s", strerror(errno));
    if (n == 0)
        exit(EXIT_SUCCESS);
    return true;
}

int main(int argc, char **argv)
{
    uint64_t longest_ns = 0, count = 0, limit = argc == 4 ? strtoull(argv[3], NULL, 10) : 0;
    struct peer peer;

    if (limit < BLOCK)
        die("usage: pause SOCKET EXPORT LIMIT");
    peer_open(&peer, argv[1], argv[2], PEER_SIMPLE, NULL);
    puts("ready");
    fflush(stdout);
    for (;;) {
        uint64_t took_ns = write_one(&peer, limit / BLOCK);

        if (took_ns > longest_ns)
            longest_ns = took_ns;
        count++;
        if (!window_ends())
            continue;
        printf("%" PRIu64 " %" PRIu64 "\n", longest_ns, count);
        fflush(stdout);
        longest_ns = count = 0;
    }
}
