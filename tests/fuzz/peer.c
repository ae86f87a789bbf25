/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/fuzz/peer.h"

#include "tests/fuzz/peer-tls.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

uint64_t fuzz_now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static int peer_connect(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    FUZZ_CHECK(fd >= 0 && strlen(path) < sizeof(addr.sun_path));
    strcpy(addr.sun_path, path);
    FUZZ_CHECK(connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0);
    FUZZ_CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    return fd;
}

void fuzz_peer_hang_up(struct fuzz_peer *p)
{
    close(p->fd);
    p->fd = -1;
}

/* Sends len bytes if they may go now, -1 with EAGAIN: they may not. */
static ssize_t peer_send(struct fuzz_peer *p, size_t len)
{
    const uint8_t *data = p->stream + p->sent;

    if (!p->tls)
        return send(p->fd, data, len, MSG_NOSIGNAL);
    if (p->sent < p->plain_len) {
        len = len < p->plain_len - p->sent ? len : p->plain_len - p->sent;
        return send(p->fd, data, len, MSG_NOSIGNAL);
    }
    return fuzz_tls_send(p->tls, p->fd, data, len);
}

static ssize_t peer_recv(struct fuzz_peer *p, uint8_t *buf, size_t len)
{
    ssize_t n;

    if (!p->tls)
        return recv(p->fd, buf, len, 0);
    if (p->plain_replies == 0)
        return fuzz_tls_recv(p->tls, p->fd, buf, len);
    n = recv(p->fd, buf, len < p->plain_replies ? len : p->plain_replies, 0);
    if (n > 0)
        p->plain_replies -= (size_t)n;
    return n;
}

/* Writes a piece.  True: something happened. */
static bool peer_write(struct fuzz_peer *p)
{
    struct fuzz_cuts before = p->cuts;
    ssize_t n;

    if (p->said_all)
        return false;
    if (p->tls && p->sent >= p->plain_len && p->plain_replies > 0)
        return false;
    if (p->sent == p->len) {
        if (p->tls)
            fuzz_tls_bye(p->tls, p->fd);
        shutdown(p->fd, SHUT_WR);
        p->said_all = true;
        return true;
    }
    n = peer_send(p, fuzz_cut(&p->cuts, p->len - p->sent));
    p->blocked = n < 0 && errno == EAGAIN;
    if (p->blocked) {
        p->cuts = before;
        return false;
    }
    if (n < 0) {
        p->said_all = true;
        return true;
    }
    p->sent += (size_t)n;
    if (p->writes++ == p->event_at && p->event) {
        p->disturbed = true;
        p->event(p->arg);
    }
    return true;
}

static bool peer_read(struct fuzz_peer *p)
{
    static uint8_t buf[256 * 1024];
    bool some = false;
    ssize_t n;

    if (p->lazy && !p->tls && !p->said_all && !p->blocked)
        return false;
    while ((n = peer_recv(p, buf, sizeof(buf))) > 0) {
        p->got(p->arg, buf, (size_t)n);
        some = true;
    }
    p->gone = n == 0 || errno != EAGAIN;
    p->in_full = n == 0 && p->sent == p->len && !p->disturbed;
    return some;
}

static void peer_wait(struct fuzz_peer *p)
{
    struct pollfd fds[2] = {
        {.fd = p->fd, .events = (short)(POLLIN | (p->blocked ? POLLOUT : 0))},
        {.fd = uv_backend_fd(p->loop), .events = POLLIN},
    };
    int wait = uv_backend_timeout(p->loop);

    poll(fds, 2, wait < 0 || wait > 1000 ? 1000 : wait);
}

void fuzz_peer_run(struct fuzz_peer *p, const char *path)
{
    uint64_t begin = fuzz_now_ms();

    p->fd = peer_connect(path);
    while (!p->gone && p->fd >= 0) {
        bool moved = peer_write(p);

        uv_run(p->loop, UV_RUN_NOWAIT);
        if (p->fd >= 0)
            moved |= peer_read(p);
        if (!moved && !p->gone && p->fd >= 0)
            peer_wait(p);
        FUZZ_CHECK(fuzz_now_ms() - begin < FUZZ_HANG_MS);
    }
    if (p->fd >= 0)
        close(p->fd);
}
