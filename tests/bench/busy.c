/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Busy NBD clients that are cheap themselves: one thread, many connections, each with one read of
 * 64 KiB at a random place under way.  Written from the protocol document alone.
 *
 *     busy WHERE EXPORT CONNECTIONS (SECONDS|Ntimes) [FILE]
 *
 * WHERE is the path of a unix socket, or a TCP port of 127.0.0.1.  It reads for SECONDS, or N times
 * on each connection.  With FILE every byte is compared with it.  When all connections are open it
 * prints "ready", at the end "READS BYTES NANOSECONDS LONGEST", LONGEST being the nanoseconds that
 * the slowest read took.  Exit status 1: something was wrong, and what.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PIECE      65536u
#define GRAIN      4096u
#define HEAD_LEN   20u
#define DATA_EXTRA 8u
#define HOLE_LEN   12u

#define MAGIC_REQUEST UINT32_C(0x25609513)
#define MAGIC_CHUNK   UINT32_C(0x668e33ef)
#define MAGIC_OPTION  UINT64_C(0x49484156454f5054)

struct conn {
    int fd;
    uint64_t off, began_ns, reads;
    size_t have, want; /* bytes of the chunk that is under way */
    size_t got;        /* bytes of the read that were answered */
    uint8_t buf[HEAD_LEN + DATA_EXTRA + PIECE];
};

static const uint8_t *reference;
static uint64_t size, total_reads, longest_ns, seed = 88172645463325252u;

static void die(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));
static void die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(EXIT_FAILURE);
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t get_be(const uint8_t *p, unsigned len)
{
    uint64_t v = 0;

    while (len--)
        v = v << 8 | *p++;
    return v;
}

static uint8_t *put_be(uint8_t *p, uint64_t v, unsigned len)
{
    for (unsigned i = len; i--; v >>= 8)
        p[i] = (uint8_t)v;
    return p + len;
}

/* --- the handshake, one connection after the other ------------------------------------------- */

static void send_all(int fd, const void *data, size_t len)
{
    if (send(fd, data, len, MSG_NOSIGNAL) != (ssize_t)len)
        die("send: %s", strerror(errno));
}

static void recv_all(int fd, void *data, size_t len)
{
    ssize_t n = len ? recv(fd, data, len, MSG_WAITALL) : 0; /* of nothing it would wait */

    if (n != (ssize_t)len)
        die("the handshake ended early: %s", n < 0 ? strerror(errno) : "closed");
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

static void option(int fd, uint32_t code, const uint8_t *data, size_t len)
{
    uint8_t msg[16 + 512], reply[20], payload[4096], *p = msg;
    uint32_t type, n;

    p = put_be(p, MAGIC_OPTION, 8);
    p = put_be(p, code, 4);
    p = put_be(p, len, 4);
    if (len)
        memcpy(p, data, len);
    send_all(fd, msg, 16 + len);
    do {
        recv_all(fd, reply, sizeof(reply));
        type = (uint32_t)get_be(reply + 12, 4);
        n = (uint32_t)get_be(reply + 16, 4);
        if (n > sizeof(payload))
            die("a long reply to option %u", code);
        recv_all(fd, payload, n);
        if (type & 0x80000000u)
            die("option %u: %.*s", code, (int)n, (char *)payload);
        if (type == 3 && n >= 12 && get_be(payload, 2) == 0)
            size = get_be(payload + 2, 8);
    } while (type != 1);
}

static void open_conn(struct conn *c, const char *where, const char *export)
{
    uint8_t data[512], greeting[18], *p = data;
    size_t len = strlen(export);

    if (len > 256)
        die("the export's name is too long");
    c->fd = dial(where);
    recv_all(c->fd, greeting, sizeof(greeting));
    put_be(data, 3, 4);
    send_all(c->fd, data, 4);
    option(c->fd, 8, NULL, 0);
    p = put_be(p, len, 4);
    memcpy(p, export, len);
    p = put_be(p + len, 0, 2);
    option(c->fd, 7, data, (size_t)(p - data));
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
    p = put_be(p, MAGIC_REQUEST, 4);
    p = put_be(p, 0, 4);
    p = put_be(p, c->off ^ (uint64_t)c->fd << 48, 8);
    p = put_be(p, c->off, 8);
    put_be(p, PIECE, 4);
    send_all(c->fd, msg, sizeof(msg));
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
            if (get_be(c->buf, 4) != MAGIC_CHUNK || get_be(c->buf + 16, 4) > DATA_EXTRA + PIECE)
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
