/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/peer.h"

#include "include/varve.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* What a wait may still take once the daemon ends. */
#define STOP_GRACE_MS 300

struct varve_peer {
    int sock;
    int stop_fd;
    uint32_t seq;
    unsigned version;           /* of the link, that both speak */
    enum varve_link_type asked; /* 0: nothing under way */
    bool lost;
    char disk[VARVE_NAME_MAX + 1];
};

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static int peer_lose(struct varve_peer *peer, struct varve_err *err)
{
    peer->lost = true;
    peer->asked = 0;
    return varve_err_prefix(err, "Disk '%s': its plugin", peer->disk);
}

static void close_all(int *fds, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
        fds[i] = -1;
    }
}

/* Read-only, and a plain file (or a block device where that may be): nothing else can be read
 * without waiting for whoever is behind it. */
static bool fd_ok(int fd, bool device_too)
{
    struct stat st;
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || (flags & O_ACCMODE) != O_RDONLY || fstat(fd, &st) < 0)
        return false;
    return S_ISREG(st.st_mode) || (device_too && S_ISBLK(st.st_mode));
}

static int peer_receive(struct varve_peer *peer, unsigned timeout_ms, struct varve_link_msg *m,
                        int fds[VARVE_LINK_FDS_MAX], unsigned *nfds, struct varve_err *err)
{
    int64_t deadline = now_ms() + timeout_ms;
    bool stopping = false;

    for (;;) {
        struct pollfd p[2] = {{.fd = peer->sock, .events = POLLIN},
                              {.fd = stopping ? -1 : peer->stop_fd, .events = POLLIN}};
        int64_t left = deadline - now_ms();
        int rc = varve_link_recv(peer->sock, m, fds, VARVE_LINK_FDS_MAX, nfds, err);

        if (rc == 1)
            return 0;
        if (rc == 0)
            return varve_err_set(err, ECONNRESET, "has closed the link");
        if (rc != -EAGAIN) {
            if (err->code != -rc)
                varve_err_sys(err, -rc, "cannot be heard");
            return -err->code;
        }
        if (left <= 0)
            return varve_err_set(err, stopping ? ECANCELED : ETIMEDOUT,
                                 stopping ? "was not waited for, varved ends"
                                          : "did not answer in time; is it stopped?");
        poll(p, 2, (int)(left < 60000 ? left : 60000));
        if (p[1].revents) {
            int64_t latest = now_ms() + STOP_GRACE_MS;

            stopping = true;
            deadline = deadline < latest ? deadline : latest;
        }
    }
}

bool varve_peer_can_narrow(const struct varve_peer *peer)
{
    return peer->version >= VARVE_LINK_VERSION_NARROW;
}

int varve_peer_ask(struct varve_peer *peer, enum varve_link_type type, uint64_t arg0, uint64_t arg1,
                   struct varve_err *err)
{
    return varve_peer_ask_with(peer, type, (const uint64_t[]){arg0, arg1, 0}, -1, err);
}

int varve_peer_ask_with(struct varve_peer *peer, enum varve_link_type type, const uint64_t arg[3],
                        int fd, struct varve_err *err)
{
    struct varve_link_msg m;
    int rc;

    if (peer->lost) {
        varve_err_set(err, ECONNRESET, "has closed the link");
        return peer_lose(peer, err);
    }
    varve_link_msg_init(&m, type, ++peer->seq);
    memcpy(m.arg, arg, 3 * sizeof(arg[0]));
    rc = varve_link_send(peer->sock, &m, &fd, fd >= 0 ? 1 : 0);
    if (rc < 0) {
        varve_err_sys(err, -rc, "cannot be asked");
        return peer_lose(peer, err);
    }
    peer->asked = type;
    return 0;
}

/* Receives the answer to what was asked; the peer's own error is in *refused, with err. */
static int peer_reply(struct varve_peer *peer, unsigned timeout_ms, struct varve_link_msg *m,
                      int fds[VARVE_LINK_FDS_MAX], unsigned *nfds, bool *refused,
                      struct varve_err *err)
{
    enum varve_link_type asked = peer->asked;
    int rc;

    *refused = false;
    *nfds = 0;
    for (unsigned i = 0; i < VARVE_LINK_FDS_MAX; i++)
        fds[i] = -1;
    rc = peer_receive(peer, timeout_ms, m, fds, nfds, err);
    if (rc == -EMFILE) { /* a shortage of ours: the link is in step */
        peer->asked = 0;
        return varve_err_prefix(err, "Disk '%s'", peer->disk);
    }
    if (rc < 0)
        return peer_lose(peer, err);
    for (unsigned i = *nfds; i < VARVE_LINK_FDS_MAX; i++)
        fds[i] = -1;
    peer->asked = 0;
    if (m->type != (uint32_t)asked || m->seq != peer->seq || (m->status != 0 && *nfds > 0) ||
        m->status > 0 || m->status < -4095) {
        close_all(fds, *nfds);
        varve_err_set(err, EPROTO, "gave an answer that was not asked for");
        return peer_lose(peer, err);
    }
    if (m->status < 0) {
        *refused = true;
        return varve_err_set(err, -m->status, "Disk '%s': %s", peer->disk,
                             m->text_len ? m->text : strerror(-m->status));
    }
    return 0;
}

int varve_peer_answer(struct varve_peer *peer, unsigned timeout_ms, uint64_t *epoch, int fds[3],
                      struct varve_err *err)
{
    bool done = peer->asked == VARVE_LINK_NARROW || peer->asked == VARVE_LINK_DONE;
    bool with_fds = done || peer->asked == VARVE_LINK_EPOCH || peer->asked == VARVE_LINK_PREPARE;
    int got[VARVE_LINK_FDS_MAX];
    struct varve_link_msg m;
    unsigned nfds;
    bool refused, ok;
    int rc;

    if (peer->lost) {
        varve_err_set(err, ECONNRESET, "has closed the link");
        return peer_lose(peer, err);
    }
    rc = peer_reply(peer, timeout_ms, &m, got, &nfds, &refused, err);
    if (rc < 0)
        return rc;
    ok = with_fds ? nfds == 1 || (nfds == 3 && !done) : nfds == 0;
    for (unsigned i = 0; i < nfds; i++)
        ok = ok && fd_ok(got[i], false);
    if (!ok || (with_fds && m.arg[0] == 0)) {
        close_all(got, nfds);
        varve_err_set(err, EPROTO, "sent files that cannot be %s's", done ? "a view" : "an epoch");
        return peer_lose(peer, err);
    }
    if (with_fds) {
        *epoch = m.arg[0];
        memcpy(fds, got, sizeof(got));
    }
    return 0;
}

bool varve_peer_lost(struct varve_peer *peer)
{
    struct pollfd p = {.fd = peer->sock, .events = POLLIN};

    /* It never speaks first: anything to read between requests is its end, or a breach. */
    if (!peer->lost && peer->asked == 0 && poll(&p, 1, 0) != 0)
        peer->lost = true;
    return peer->lost;
}

/* A path too long for a socket address is reached through its folder. */
static int peer_connect_to(struct varve_peer *peer, const char *folder, const char *path,
                           struct varve_err *err)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    char through[64];
    int dir = -1, rc = 0;

    if (strlen(path) >= sizeof(to.sun_path)) {
        dir = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (dir < 0)
            return varve_err_sys(err, errno, "%s", folder);
        snprintf(through, sizeof(through), "/proc/self/fd/%d/%s", dir, VARVE_LINK_SOCKET);
        path = through;
    }
    memcpy(to.sun_path, path, strlen(path) + 1);
    peer->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (peer->sock < 0 || connect(peer->sock, (struct sockaddr *)&to, sizeof(to)) < 0)
        rc = varve_err_sys(err, errno, "%s", path);
    if (dir >= 0)
        close(dir);
    if (rc < 0 && peer->sock >= 0) {
        close(peer->sock);
        peer->sock = -1;
    }
    return rc;
}

static int peer_connect(struct varve_peer *peer, const struct varve_paths *p, struct varve_err *err)
{
    struct varve_err other = VARVE_ERR_INIT;
    char path[PATH_MAX];
    int rc = peer_connect_to(peer, p->runtime, varve_path_link(p, path), err);

    if (rc < 0 && peer_connect_to(peer, p->state, varve_path_spare_link(p, path), &other) == 0)
        rc = 0;
    return rc;
}

static int peer_hello(struct varve_peer *peer, const struct varve_identity *id, unsigned timeout_ms,
                      struct varve_peer_hello *hello, struct varve_err *err)
{
    int fds[VARVE_LINK_FDS_MAX];
    struct varve_link_msg m;
    unsigned nfds;
    bool refused;
    int rc;

    rc = varve_peer_ask(peer, VARVE_LINK_HELLO, VARVE_LINK_VERSION_MIN, VARVE_LINK_VERSION, err);
    if (rc == 0)
        rc = peer_reply(peer, timeout_ms, &m, fds, &nfds, &refused, err);
    if (rc < 0)
        return rc;
    if (m.arg[0] < VARVE_LINK_VERSION_MIN || m.arg[0] > VARVE_LINK_VERSION)
        rc = varve_err_set(err, EPROTO,
                           "speaks version %" PRIu64 " of the link, this varved %u to %u: "
                           "upgrade the older of the two",
                           m.arg[0], VARVE_LINK_VERSION_MIN, VARVE_LINK_VERSION);
    else if (memcmp(m.uuid, id->uuid, sizeof(m.uuid)) != 0)
        rc = varve_err_set(err, EPROTO, "serves another disk than the state directory tells of");
    else if (m.arg[2] != id->geometry.size || m.arg[3] != id->geometry.shift)
        rc = varve_err_set(err, EPROTO, "serves a disk of another size than its state tells of");
    else if (nfds != 2 || !fd_ok(fds[0], false) || !fd_ok(fds[1], true))
        rc = varve_err_set(err, EPROTO, "sent files that cannot be a disk's");
    if (rc < 0) {
        close_all(fds, nfds);
        return peer_lose(peer, err);
    }
    peer->version = (unsigned)m.arg[0];
    hello->pid = (int)m.arg[1];
    hello->live_epoch = m.arg[4];
    hello->freeze_timeout_ms = m.arg[5] < 60000 ? (unsigned)m.arg[5] : 60000;
    hello->durable = m.arg[6] == 1;
    hello->scratch_max = m.arg[7];
    hello->ctl_fd = fds[0];
    hello->image_fd = fds[1];
    return 0;
}

int varve_peer_open(const char *disk, const struct varve_paths *p, const struct varve_identity *id,
                    int stop_fd, unsigned timeout_ms, struct varve_peer **out,
                    struct varve_peer_hello *hello, struct varve_err *err)
{
    struct varve_peer *peer = calloc(1, sizeof(*peer));
    int rc;

    if (!peer)
        return varve_err_set(err, ENOMEM, "Disk '%s': no memory", disk);
    peer->sock = -1;
    peer->stop_fd = stop_fd;
    snprintf(peer->disk, sizeof(peer->disk), "%s", disk);
    rc = peer_connect(peer, p, err);
    if (rc < 0) {
        varve_err_prefix(err, "Disk '%s': cannot reach its plugin", disk);
        goto err_free;
    }
    if (varve_link_check_peer(peer->sock, NULL, NULL) < 0) {
        rc = varve_err_set(err, EPERM,
                           "Disk '%s': who listens on its link socket runs as another user", disk);
        goto err_free;
    }
    rc = peer_hello(peer, id, timeout_ms, hello, err);
    if (rc < 0)
        goto err_free;
    *out = peer;
    return 0;

err_free:
    varve_peer_free(peer);
    return rc;
}

void varve_peer_free(struct varve_peer *peer)
{
    if (!peer)
        return;
    if (peer->sock >= 0)
        close(peer->sock);
    free(peer);
}
