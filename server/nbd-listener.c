/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sockets are made here and handed to libuv ready to listen: so it decides neither which old unix
 * socket may be replaced nor which file is unlinked at the end.
 */
#include "server/nbd-listener.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define BACKLOG 128

/* Two servers that start hold the lock for a moment only; who holds it longer is none of ours. */
#define LOCK_TRIES    50
#define LOCK_PAUSE_US 10000

/* --- unix ----------------------------------------------------------------------------------- */

/* Somebody listens at the address: 1, nobody does: 0, or -errno. */
static int unix_in_use(const struct sockaddr_un *addr)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int rc;

    if (fd < 0)
        return -errno;
    rc = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) ? errno : 0;
    close(fd);
    if (rc == 0 || rc == EAGAIN)
        return 1;
    return rc == ECONNREFUSED || rc == ENOENT ? 0 : -rc;
}

/* Removes what an ended server left. */
static int unix_clear(const struct sockaddr_un *addr, struct varve_err *err)
{
    struct stat st;
    int rc;

    if (lstat(addr->sun_path, &st))
        return errno == ENOENT ? 0 : varve_err_sys(err, errno, "%s", addr->sun_path);
    if (!S_ISSOCK(st.st_mode))
        return varve_err_set(err, EEXIST, "%s exists and is not a socket", addr->sun_path);
    rc = unix_in_use(addr);
    if (rc > 0)
        return varve_err_set(err, EADDRINUSE, "another process listens at %s", addr->sun_path);
    if (rc < 0)
        return varve_err_sys(err, -rc, "%s", addr->sun_path);
    if (unlink(addr->sun_path) && errno != ENOENT)
        return varve_err_sys(err, errno, "cannot remove %s", addr->sun_path);
    return 0;
}

static int unix_bind(struct varve_nbd_listener *l, int fd, const struct sockaddr_un *addr,
                     struct varve_err *err)
{
    struct stat st;

    if (bind(fd, (const struct sockaddr *)addr, sizeof(*addr)))
        return varve_err_sys(err, errno, "cannot listen at %s", addr->sun_path);
    l->path = strdup(addr->sun_path);
    if (!l->path || lstat(l->path, &st)) {
        unlink(addr->sun_path);
        return varve_err_sys(err, errno, "%s", addr->sun_path);
    }
    l->dev = st.st_dev;
    l->ino = st.st_ino;
    return 0;
}

/* Between the look whether somebody listens and our own listen() another server may start on the
 * same path: the later of the two would remove the socket of the first.  So all of that is done
 * under a lock on the path's folder.  The fd of the lock or -errno. */
static int unix_lock_folder(const char *path, struct varve_err *err)
{
    char *copy = strdup(path);
    int fd, rc = 0;

    if (!copy)
        return varve_err_set(err, ENOMEM, "unix:%s: no memory", path);
    fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(copy);
    if (fd < 0)
        return varve_err_sys(err, errno, "unix:%s", path);
    for (int i = 0; flock(fd, LOCK_EX | LOCK_NB); i++) {
        if (errno == EWOULDBLOCK && i < LOCK_TRIES) {
            usleep(LOCK_PAUSE_US);
        } else if (errno != EINTR) {
            rc = varve_err_sys(err, errno, "unix:%s: the lock on its folder", path);
            close(fd);
            return rc;
        }
    }
    return fd;
}

/* Under the lock: bound and listening at once, so that nobody takes it for a stale one. */
static int unix_listen(struct varve_nbd_listener *l, int fd, const struct sockaddr_un *addr,
                       struct varve_err *err)
{
    int rc = unix_clear(addr, err);

    if (!rc)
        rc = unix_bind(l, fd, addr, err);
    if (!rc && listen(fd, BACKLOG))
        rc = varve_err_sys(err, errno, "cannot listen at %s", addr->sun_path);
    return rc;
}

static int unix_open(struct varve_nbd_listener *l, const char *path, struct varve_err *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int rc, fd, lock;

    if (!*path || strlen(path) >= sizeof(addr.sun_path))
        return varve_err_set(err, EINVAL, "unix:%s: a path of 1 to %zu bytes is needed", path,
                             sizeof(addr.sun_path) - 1);
    memcpy(addr.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return varve_err_sys(err, errno, "unix:%s", path);
    lock = unix_lock_folder(path, err);
    if (lock < 0) {
        close(fd);
        return lock;
    }
    rc = unix_listen(l, fd, &addr, err);
    close(lock);
    if (!rc) {
        rc = uv_pipe_open(&l->io.pipe, fd);
        if (!rc)
            return 0;
        rc = varve_err_sys(err, -rc, "unix:%s", path);
    }
    close(fd);
    return rc;
}

static void unix_unlink(const struct varve_nbd_listener *l)
{
    struct stat st;

    if (l->path && lstat(l->path, &st) == 0 && st.st_dev == l->dev && st.st_ino == l->ino)
        unlink(l->path);
}

/* --- tcp ------------------------------------------------------------------------------------ */

/* HOST:PORT into its parts; HOST may stand in brackets. */
static int tcp_split(const char *spec, char host[NI_MAXHOST], char port[NI_MAXSERV],
                     struct varve_err *err)
{
    const char *colon = strrchr(spec, ':');
    size_t len;

    if (!colon || !colon[1])
        return varve_err_set(err, EINVAL, "tcp:%s: HOST:PORT is needed", spec);
    len = (size_t)(colon - spec);
    if (len >= 2 && spec[0] == '[' && spec[len - 1] == ']') {
        spec++;
        len -= 2;
    } else if (memchr(spec, ':', len)) {
        return varve_err_set(err, EINVAL, "tcp:%s: an IPv6 address stands in brackets", spec);
    }
    if (len >= NI_MAXHOST || strlen(colon + 1) >= NI_MAXSERV)
        return varve_err_set(err, EINVAL, "tcp:%s: the address is too long", spec);
    memcpy(host, spec, len);
    host[len] = 0;
    memcpy(port, colon + 1, strlen(colon + 1) + 1);
    return 0;
}

static int tcp_bind(int fd, const struct addrinfo *ai)
{
    int on = 1, off = 0;

    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)))
        return -errno;
    /* [::] means all addresses, whatever the machine's default. */
    if (ai->ai_family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)))
        return -errno;
    return bind(fd, ai->ai_addr, ai->ai_addrlen) ? -errno : 0;
}

/* The first of the addresses that can be bound. */
static int tcp_bind_any(const struct addrinfo *list)
{
    int rc = -EADDRNOTAVAIL;

    for (const struct addrinfo *ai = list; ai; ai = ai->ai_next) {
        int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

        if (fd < 0) {
            rc = -errno;
            continue;
        }
        rc = tcp_bind(fd, ai);
        if (!rc)
            return fd;
        close(fd);
    }
    return rc;
}

static int tcp_open(struct varve_nbd_listener *l, const char *spec, struct varve_err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *list;
    char host[NI_MAXHOST], port[NI_MAXSERV];
    int rc, fd;

    rc = tcp_split(spec, host, port, err);
    if (rc)
        return rc;
    rc = getaddrinfo(*host ? host : NULL, port, &hints, &list);
    if (rc)
        return varve_err_set(err, EINVAL, "tcp:%s: %s", spec, gai_strerror(rc));
    fd = tcp_bind_any(list);
    freeaddrinfo(list);
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot listen at tcp:%s", spec);
    rc = uv_tcp_open(&l->io.tcp, fd);
    if (rc) {
        close(fd);
        return varve_err_sys(err, -rc, "tcp:%s", spec);
    }
    return 0;
}

/* The address with the real port. */
static int tcp_real(struct varve_nbd_listener *l, char *real, size_t real_len,
                    struct varve_err *err)
{
    struct sockaddr_storage addr;
    int len = sizeof(addr);
    char host[NI_MAXHOST], port[NI_MAXSERV];
    int rc;

    rc = uv_tcp_getsockname(&l->io.tcp, (struct sockaddr *)&addr, &len);
    if (rc)
        return varve_err_sys(err, -rc, "%s", l->where);
    rc = getnameinfo((struct sockaddr *)&addr, (socklen_t)len, host, sizeof(host), port,
                     sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV);
    if (rc)
        return varve_err_set(err, EINVAL, "%s: %s", l->where, gai_strerror(rc));
    snprintf(real, real_len, strchr(host, ':') ? "tcp:[%s]:%s" : "tcp:%s:%s", host, port);
    return 0;
}

/* --- both ----------------------------------------------------------------------------------- */

static void listener_on_connection(uv_stream_t *stream, int status)
{
    struct varve_nbd_listener *l = stream->data;

    /* An error concerns one peer that has gone, or a shortage of files that will end. */
    if (!status)
        l->starved = varve_nbd_conn_accept(l->host, stream) == -ENOMEM;
}

void varve_nbd_listener_retry(struct varve_nbd_listener *l)
{
    if (l->starved)
        l->starved = varve_nbd_conn_accept(l->host, &l->io.stream) == -ENOMEM;
}

static int listener_start(struct varve_nbd_listener *l, char *real, size_t real_len,
                          struct varve_err *err)
{
    int rc;

    rc = uv_listen(&l->io.stream, BACKLOG, listener_on_connection);
    if (rc)
        return varve_err_sys(err, -rc, "cannot listen at %s", l->where);
    if (!real)
        return 0;
    if (!l->path)
        return tcp_real(l, real, real_len, err);
    snprintf(real, real_len, "%s", l->where);
    return 0;
}

int varve_nbd_listener_open(struct varve_nbd_host *host, const char *where, char *real,
                            size_t real_len, struct varve_nbd_listener **out, struct varve_err *err)
{
    bool is_unix = strncmp(where, "unix:", 5) == 0;
    struct varve_nbd_listener *l;
    int rc;

    *out = NULL;
    if (!is_unix && strncmp(where, "tcp:", 4))
        return varve_err_set(err, EINVAL, "%s: neither unix:PATH nor tcp:HOST:PORT", where);
    l = calloc(1, sizeof(*l));
    if (!l)
        return varve_err_set(err, ENOMEM, "%s: no memory", where);
    l->where = strdup(where);
    if (!l->where) {
        free(l);
        return varve_err_set(err, ENOMEM, "%s: no memory", where);
    }
    l->host = host;
    if (is_unix)
        uv_pipe_init(host->loop, &l->io.pipe, 0);
    else
        uv_tcp_init(host->loop, &l->io.tcp);
    l->io.handle.data = l;
    *out = l;
    rc = is_unix ? unix_open(l, where + 5, err) : tcp_open(l, where + 4, err);
    return rc ? rc : listener_start(l, real, real_len, err);
}

static void listener_on_closed(uv_handle_t *handle)
{
    struct varve_nbd_listener *l = handle->data;

    l->gone(l);
}

void varve_nbd_listener_close(struct varve_nbd_listener *l,
                              void (*gone)(struct varve_nbd_listener *l))
{
    l->gone = gone;
    unix_unlink(l);
    uv_close(&l->io.handle, listener_on_closed);
}

void varve_nbd_listener_free(struct varve_nbd_listener *l)
{
    free(l->path);
    free(l->where);
    free(l);
}
