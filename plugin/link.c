/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The link thread.  It polls the listening socket, its peers and a stop signal, answers one request at
 * a time, and looks after what the tracker has to do from time to time.  Only one peer can have a boundary under way; if that peer goes, the boundary is
 * aborted at once.  A peer that speaks another protocol, or does not take its answer, is cut off.
 */
#include "plugin/link.h"

#include "include/varve.h"
#include "lib/link-proto.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define PEERS_MAX 8u
#define SOON_MS   100
#define BEAT_MS   1000 /* VARVE_BEAT_PERIOD_NS */

struct peer {
    int sock;   /* -1: free */
    bool hello; /* has said it, in a version we speak */
};

struct varve_link {
    struct varve_tracker *tracker;
    const struct varve_image *image;
    const struct varve_params *config;
    struct sockaddr_un address;
    int listener;
    int stop_fd;
    bool running;
    pthread_t thread;

    /* the thread's own */
    struct peer peers[PEERS_MAX];
    struct peer *owner; /* of the boundary under way */
};

/* --- requests -------------------------------------------------------------------------------------- */

struct answer {
    struct varve_link_msg msg;
    int fds[VARVE_LINK_FDS_MAX];
    unsigned nfds;
};

static int link_hello(struct varve_link *l, struct peer *p, const struct varve_link_msg *rq,
                      struct answer *a, struct varve_err *err)
{
    const struct varve_identity *id = varve_tracker_identity(l->tracker);

    if (rq->arg[0] > VARVE_LINK_VERSION || rq->arg[1] < VARVE_LINK_VERSION_MIN)
        return varve_err_set(err, EPROTONOSUPPORT,
                             "this plugin speaks versions %u to %u of the link, the daemon %" PRIu64
                             " to %" PRIu64,
                             VARVE_LINK_VERSION_MIN, VARVE_LINK_VERSION, rq->arg[0], rq->arg[1]);
    if (varve_tracker_private(l->tracker))
        return varve_err_set(err, VARVE_LINK_PRIVATE, "%s", varve_tracker_private(l->tracker));
    a->fds[0] = varve_tracker_open_control(l->tracker, err);
    if (a->fds[0] < 0)
        return a->fds[0];
    a->nfds = 1;
    a->fds[1] = varve_image_reopen(l->image, err);
    if (a->fds[1] < 0)
        return a->fds[1];
    a->nfds = 2;
    a->msg.arg[0] = rq->arg[1] < VARVE_LINK_VERSION ? rq->arg[1] : VARVE_LINK_VERSION;
    a->msg.arg[1] = (uint64_t)getpid();
    a->msg.arg[2] = id->geometry.size;
    a->msg.arg[3] = id->geometry.shift;
    a->msg.arg[4] = varve_tracker_epoch(l->tracker);
    a->msg.arg[5] = l->config->freeze_timeout_ms;
    a->msg.arg[6] = !l->config->durable_process;
    a->msg.arg[7] = l->config->scratch_max;
    memcpy(a->msg.uuid, id->uuid, sizeof(id->uuid));
    varve_link_msg_text(&a->msg, id->image);
    p->hello = true;
    return 0;
}

static int link_epoch(struct varve_link *l, uint64_t number, struct answer *a,
                      struct varve_err *err)
{
    int r = varve_tracker_open_epoch(l->tracker, number, a->fds, err);

    if (r < 0)
        return r;
    a->nfds = a->fds[1] >= 0 ? 3 : 1;
    a->msg.arg[0] = number;
    a->msg.arg[1] = a->nfds == 3;
    return 0;
}

static int link_prepare(struct varve_link *l, struct peer *p, bool arm, struct answer *a,
                        struct varve_err *err)
{
    uint64_t number;
    int r;

    r = varve_tracker_prepare(l->tracker, arm, &number, err);
    if (r < 0)
        return r;
    l->owner = p;
    r = link_epoch(l, number, a, err);
    if (r < 0)
        varve_tracker_abort(l->tracker);
    return r;
}

static int link_done(struct varve_link *l, uint64_t view, struct answer *a, struct varve_err *err)
{
    a->fds[0] = varve_tracker_open_done(l->tracker, view, err);
    if (a->fds[0] < 0)
        return a->fds[0];
    a->nfds = 1;
    a->msg.arg[0] = view;
    return 0;
}

/* map_fd: what came with the request, or -1. */
static int link_narrow(struct varve_link *l, uint64_t view, int map_fd, struct answer *a,
                       struct varve_err *err)
{
    struct stat st;
    int r;

    /* Nothing else can be read without waiting for whoever is behind it. */
    if (map_fd >= 0 && (fstat(map_fd, &st) < 0 || !S_ISREG(st.st_mode)))
        return varve_err_set(err, EINVAL, "the map of what a view does not need is no plain file");
    r = varve_tracker_narrow(l->tracker, view, map_fd, err);
    return r < 0 ? r : link_done(l, view, a, err);
}

static int link_release(struct varve_link *l, const struct varve_link_msg *rq,
                        struct varve_err *err)
{
    if (rq->arg[2] > VARVE_LINK_RELEASE_MAX)
        return varve_err_set(err, EINVAL, "%" PRIu64 " bytes are too much for one request",
                             rq->arg[2]);
    return varve_tracker_release(l->tracker, rq->arg[0], rq->arg[1], rq->arg[2], err);
}

static int link_do(struct varve_link *l, struct peer *p, const struct varve_link_msg *rq,
                   int map_fd, struct answer *a, struct varve_err *err)
{
    int r;

    if (!p->hello && rq->type != VARVE_LINK_HELLO)
        return varve_err_set(err, EPROTO, "say hello first");
    if (map_fd >= 0 && rq->type != VARVE_LINK_NARROW)
        return varve_err_set(err, EPROTO, "request %u takes no file", rq->type);
    if (l->owner && l->owner != p && rq->type >= VARVE_LINK_PREPARE &&
        rq->type <= VARVE_LINK_ABORT)
        return varve_err_set(err, EBUSY, "another daemon makes a checkpoint of this disk");
    switch ((enum varve_link_type)rq->type) {
    case VARVE_LINK_HELLO:
        return link_hello(l, p, rq, a, err);
    case VARVE_LINK_EPOCH:
        return link_epoch(l, rq->arg[0], a, err);
    case VARVE_LINK_PREPARE:
        return link_prepare(l, p, rq->arg[0] != 0, a, err);
    case VARVE_LINK_QUIESCE:
        return varve_tracker_quiesce(l->tracker, err);
    case VARVE_LINK_SWAP:
        r = varve_tracker_swap(l->tracker, rq->arg[0], rq->arg[1], err);
        if (r == 0)
            l->owner = NULL;
        return r;
    case VARVE_LINK_ABORT:
        varve_tracker_abort(l->tracker);
        l->owner = NULL;
        return 0;
    case VARVE_LINK_SEAL:
        return varve_tracker_seal(l->tracker, err);
    case VARVE_LINK_END_VIEW:
        return varve_tracker_end_view(l->tracker, rq->arg[0], err);
    case VARVE_LINK_NARROW:
        return link_narrow(l, rq->arg[0], map_fd, a, err);
    case VARVE_LINK_DONE:
        return link_done(l, rq->arg[0], a, err);
    case VARVE_LINK_RELEASE:
        return link_release(l, rq, err);
    case VARVE_LINK_TYPE_END:
        break;
    }
    return varve_err_set(err, EPROTO, "no such request: %u", rq->type);
}

/* --- peers ----------------------------------------------------------------------------------------- */

static void peer_close(struct varve_link *l, struct peer *p)
{
    close(p->sock);
    p->sock = -1;
    p->hello = false;
    if (l->owner == p) {
        varve_tracker_abort(l->tracker);
        l->owner = NULL;
    }
}

/* One request.  False: the peer has gone or must go. */
static bool peer_serve(struct varve_link *l, struct peer *p)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_link_msg rq;
    struct answer a;
    unsigned nfds;
    int map_fd = -1;
    int r = varve_link_recv(p->sock, &rq, &map_fd, 1, &nfds, &err);

    if (r == -EAGAIN)
        return true;
    if (r <= 0 && r != -EMFILE)
        return false;
    varve_link_msg_init(&a.msg, rq.type, rq.seq);
    a.nfds = 0;
    if (r == 1)
        r = link_do(l, p, &rq, map_fd, &a, &err);
    if (map_fd >= 0)
        close(map_fd);
    if (r < 0) {
        a.msg.status = r;
        varve_link_msg_text(&a.msg, err.msg);
    }
    r = varve_link_send(p->sock, &a.msg, a.fds, a.msg.status < 0 ? 0 : a.nfds);
    for (unsigned i = 0; i < a.nfds; i++)
        close(a.fds[i]);
    return r == 0 && p->hello;
}

static void link_accept(struct varve_link *l)
{
    int sock = accept4(l->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct peer *place = NULL;

    if (sock < 0)
        return;
    /* A peer that connects and says nothing gives way to the next one. */
    for (unsigned i = 0; i < PEERS_MAX && (!place || place->sock >= 0); i++) {
        if (l->peers[i].sock < 0 || !l->peers[i].hello)
            place = &l->peers[i];
    }
    if (!place || varve_link_check_peer(sock, NULL, NULL) < 0) {
        close(sock);
        return;
    }
    if (place->sock >= 0)
        peer_close(l, place);
    place->sock = sock;
    place->hello = false;
}

static void *link_main(void *arg)
{
    struct varve_link *l = arg;
    int wait_ms = SOON_MS, ready;

    for (;;) {
        struct pollfd fds[PEERS_MAX + 2];

        fds[0] = (struct pollfd){.fd = l->stop_fd, .events = POLLIN};
        fds[1] = (struct pollfd){.fd = l->listener, .events = POLLIN};
        for (unsigned i = 0; i < PEERS_MAX; i++)
            fds[i + 2] = (struct pollfd){.fd = l->peers[i].sock, .events = POLLIN};
        ready = poll(fds, PEERS_MAX + 2, wait_ms >= 0 && wait_ms < BEAT_MS ? wait_ms : BEAT_MS);
        varve_tracker_beat(l->tracker);
        if (ready == 0 && wait_ms >= 0) /* nobody waits for an answer, nor a guest for a boundary */
            wait_ms = l->owner ? SOON_MS : varve_tracker_housekeep(l->tracker);
        if (ready <= 0)
            continue;
        wait_ms = SOON_MS; /* a request may have left something to do */
        if (fds[0].revents)
            break;
        for (unsigned i = 0; i < PEERS_MAX; i++) {
            if (fds[i + 2].revents && !peer_serve(l, &l->peers[i]))
                peer_close(l, &l->peers[i]);
        }
        if (fds[1].revents)
            link_accept(l);
    }
    for (unsigned i = 0; i < PEERS_MAX; i++) {
        if (l->peers[i].sock >= 0)
            peer_close(l, &l->peers[i]);
    }
    return NULL;
}

/* --- life ------------------------------------------------------------------------------------------ */

static int link_bind(struct varve_link *l, const char *path, struct varve_err *err)
{
    l->address.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof(l->address.sun_path))
        return varve_err_set(err, ENAMETOOLONG,
                             "the socket's path %s is longer than %zu bytes: choose a shorter "
                             "runtime-dir", path, sizeof(l->address.sun_path) - 1);
    memcpy(l->address.sun_path, path, strlen(path) + 1);
    l->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->listener < 0)
        return varve_err_sys(err, errno, "cannot make a socket");
    unlink(path); /* we hold the disk's lock: whoever made it is gone */
    if (bind(l->listener, (struct sockaddr *)&l->address, sizeof(l->address)) == 0 &&
        chmod(path, 0600) == 0 && listen(l->listener, (int)PEERS_MAX) == 0)
        return 0;
    varve_err_sys(err, errno, "cannot listen on %s", path);
    close(l->listener);
    l->listener = -1;
    return -err->code;
}

/* In the runtime folder.  If nothing can be made there, a daemon that looks for us finds us in the state
 * folder; and if not there either, none does, and the guest has its disk. */
static int link_bind_somewhere(struct varve_link *l, struct varve_err *err)
{
    const struct varve_paths *p = varve_tracker_paths(l->tracker);
    char path[PATH_MAX], spare[PATH_MAX];
    struct varve_err other = VARVE_ERR_INIT;
    int r = link_bind(l, varve_path_link(p, path), err);

    varve_path_spare_link(p, spare);
    if (r == 0)
        unlink(spare); /* of one that was killed */
    if (r == 0 || r == -ENAMETOOLONG)
        return r;
    if (link_bind(l, spare, &other) < 0)
        fprintf(stderr, "varve: disk %s: no daemon can reach it, so no checkpoints and backups: %s, "
                "and %s\n", l->config->name, err->msg, other.msg);
    else
        fprintf(stderr, "varve: disk %s: %s, so it listens on %s\n", l->config->name, err->msg, spare);
    return 0;
}

int varve_link_listen(struct varve_tracker *t, const struct varve_image *image,
                      const struct varve_params *config, struct varve_link **out,
                      struct varve_err *err)
{
    struct varve_link *l = calloc(1, sizeof(*l));
    int r;

    if (!l)
        return varve_err_set(err, ENOMEM, "no memory for the link");
    l->tracker = t;
    l->image = image;
    l->config = config;
    l->listener = -1;
    for (unsigned i = 0; i < PEERS_MAX; i++)
        l->peers[i].sock = -1;
    l->stop_fd = eventfd(0, EFD_CLOEXEC);
    r = l->stop_fd < 0 ? varve_err_sys(err, errno, "cannot make an eventfd")
                       : link_bind_somewhere(l, err);
    if (r < 0) {
        varve_link_stop(l);
        return r;
    }
    *out = l;
    return 0;
}

int varve_link_start(struct varve_link *l, struct varve_err *err)
{
    sigset_t all, before;
    int r;

    /* Signals are nbdkit's. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r = pthread_create(&l->thread, NULL, link_main, l);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r != 0)
        return varve_err_sys(err, r, "cannot start the link's thread");
    l->running = true;
    return 0;
}

void varve_link_stop(struct varve_link *l)
{
    if (l->running) {
        eventfd_write(l->stop_fd, 1);
        pthread_join(l->thread, NULL);
    }
    if (l->listener >= 0) {
        unlink(l->address.sun_path);
        close(l->listener);
    }
    if (l->stop_fd >= 0)
        close(l->stop_fd);
    free(l);
}
