/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See peer.h.
 */
#include "tests/bench/peer.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#define MAGIC_OPTION UINT64_C(0x49484156454f5054)

enum { OPT_GO = 7, OPT_STRUCTURED = 8, OPT_SET_CONTEXT = 10, OPT_EXTENDED = 11 };
enum { REP_ACK = 1, REP_INFO = 3, REP_CONTEXT = 4 };

void die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(EXIT_FAILURE);
}

uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t get_be(const uint8_t *p, unsigned len)
{
    uint64_t v = 0;

    while (len--)
        v = v << 8 | *p++;
    return v;
}

uint8_t *put_be(uint8_t *p, uint64_t v, unsigned len)
{
    for (unsigned i = len; i--; v >>= 8)
        p[i] = (uint8_t)v;
    return p + len;
}

void peer_send(int fd, const void *data, size_t len)
{
    if (send(fd, data, len, MSG_NOSIGNAL) != (ssize_t)len)
        die("send: %s", strerror(errno));
}

void peer_recv(int fd, void *data, size_t len)
{
    ssize_t n = len ? recv(fd, data, len, MSG_WAITALL) : 0; /* of nothing it would wait */

    if (n != (ssize_t)len)
        die("the server's bytes ended early: %s", n < 0 ? strerror(errno) : "closed");
}

static int dial(const char *where)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    bool tcp = where[0] != '/';
    int fd = socket(tcp ? AF_INET : AF_UNIX, SOCK_STREAM, 0), one = 1, rc;

    if (fd < 0)
        die("socket: %s", strerror(errno));
    if (tcp) {
        in.sin_port = htons((uint16_t)atoi(where));
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        rc = connect(fd, (struct sockaddr *)&in, sizeof(in));
    } else {
        if (strlen(where) >= sizeof(un.sun_path))
            die("the path is too long");
        strcpy(un.sun_path, where);
        rc = connect(fd, (struct sockaddr *)&un, sizeof(un));
    }
    if (rc)
        die("%s: %s", where, strerror(errno));
    return fd;
}

static void option(struct peer *peer, uint32_t code, const uint8_t *data, size_t len)
{
    uint8_t msg[16 + 1024], reply[20], payload[4096], *p = msg;
    uint32_t type, n;

    p = put_be(p, MAGIC_OPTION, 8);
    p = put_be(p, code, 4);
    p = put_be(p, len, 4);
    if (len)
        memcpy(p, data, len);
    peer_send(peer->fd, msg, 16 + len);
    do {
        peer_recv(peer->fd, reply, sizeof(reply));
        type = (uint32_t)get_be(reply + 12, 4);
        n = (uint32_t)get_be(reply + 16, 4);
        if (n > sizeof(payload))
            die("a long reply to option %u", code);
        peer_recv(peer->fd, payload, n);
        if (type & 0x80000000u)
            die("option %u: %.*s", code, (int)n, (char *)payload);
        if (type == REP_INFO && n >= 12 && get_be(payload, 2) == 0)
            peer->size = get_be(payload + 2, 8);
        if (type == REP_CONTEXT && n >= 4)
            peer->context = (uint32_t)get_be(payload, 4);
    } while (type != REP_ACK);
}

void peer_open(struct peer *peer, const char *where, const char *export, enum peer_headers headers,
               const char *context)
{
    uint8_t data[1024], greeting[18], *p;
    size_t len = strlen(export), clen = context ? strlen(context) : 0;

    if (len > 256 || clen > 512)
        die("a name is too long");
    *peer = (struct peer){.fd = dial(where)};
    peer_recv(peer->fd, greeting, sizeof(greeting));
    put_be(data, 3, 4);
    peer_send(peer->fd, data, 4);
    if (headers != PEER_SIMPLE)
        option(peer, headers == PEER_EXTENDED ? OPT_EXTENDED : OPT_STRUCTURED, NULL, 0);
    if (context) {
        p = put_be(data, len, 4);
        memcpy(p, export, len);
        p = put_be(p + len, 1, 4);
        p = put_be(p, clen, 4);
        memcpy(p, context, clen);
        option(peer, OPT_SET_CONTEXT, data, (size_t)(p + clen - data));
        if (!peer->context)
            die("export '%s' has no context %s", export, context);
    }
    p = put_be(data, len, 4);
    memcpy(p, export, len);
    p = put_be(p + len, 0, 2);
    option(peer, OPT_GO, data, (size_t)(p - data));
}
