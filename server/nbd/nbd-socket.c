/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sockets are made here, ready to listen, and not by libuv: so it decides neither which old unix
 * socket may be replaced nor which file is unlinked at the end.
 */
#include "server/nbd/nbd-socket.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/vm_sockets.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Clients that have not been accepted yet; the kernel cuts it to its own limit. */
#define BACKLOG 1024

/* Two servers that start hold the lock for a moment only; who holds it longer is none of ours. */
#define LOCK_TRIES    50
#define LOCK_PAUSE_US 10000

/* --- unix ----------------------------------------------------------------------------------- */

static struct sockaddr_un unix_addr(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    memcpy(addr.sun_path, path, strlen(path) + 1);
    return addr;
}

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

static int unix_bind(struct varve_nbd_socket *s, int fd, const struct sockaddr_un *addr,
                     struct varve_err *err)
{
    struct stat st;

    if (bind(fd, (const struct sockaddr *)addr, sizeof(*addr)))
        return varve_err_sys(err, errno, "cannot listen at %s", addr->sun_path);
    s->path = strdup(addr->sun_path);
    if (!s->path || lstat(s->path, &st)) {
        unlink(addr->sun_path);
        return varve_err_sys(err, errno, "%s", addr->sun_path);
    }
    s->dev = st.st_dev;
    s->ino = st.st_ino;
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
static int unix_listen(struct varve_nbd_socket *s, int fd, const struct sockaddr_un *addr,
                       struct varve_err *err)
{
    int rc = unix_clear(addr, err);

    if (!rc)
        rc = unix_bind(s, fd, addr, err);
    if (!rc && listen(fd, BACKLOG))
        rc = varve_err_sys(err, errno, "cannot listen at %s", addr->sun_path);
    return rc;
}

static int unix_open(struct varve_nbd_socket *s, const char *path, struct varve_err *err)
{
    struct sockaddr_un addr;
    int rc, lock;

    if (!*path || strlen(path) >= sizeof(addr.sun_path))
        return varve_err_set(err, EINVAL, "unix:%s: a path of 1 to %zu bytes is needed", path,
                             sizeof(addr.sun_path) - 1);
    addr = unix_addr(path);
    s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->fd < 0)
        return varve_err_sys(err, errno, "unix:%s", path);
    lock = unix_lock_folder(path, err);
    if (lock < 0)
        return lock;
    rc = unix_listen(s, s->fd, &addr, err);
    close(lock);
    return rc;
}

static void unix_unlink(const struct varve_nbd_socket *s)
{
    struct stat st;

    if (s->path && lstat(s->path, &st) == 0 && st.st_dev == s->dev && st.st_ino == s->ino)
        unlink(s->path);
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
        int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

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

static int tcp_open(struct varve_nbd_socket *s, const char *spec, struct varve_err *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *list;
    char host[NI_MAXHOST], port[NI_MAXSERV];
    int rc;

    rc = tcp_split(spec, host, port, err);
    if (rc)
        return rc;
    /* Some would take it modulo 2^16. */
    if (strspn(port, "0123456789") == strlen(port) && strtoull(port, NULL, 10) > UINT16_MAX)
        return varve_err_set(err, EINVAL, "tcp:%s: a port from 0 to %u is needed", spec,
                             UINT16_MAX);
    rc = getaddrinfo(*host ? host : NULL, port, &hints, &list);
    if (rc)
        return varve_err_set(err, EINVAL, "tcp:%s: %s", spec, gai_strerror(rc));
    s->fd = tcp_bind_any(list);
    freeaddrinfo(list);
    if (s->fd < 0 || listen(s->fd, BACKLOG))
        return varve_err_sys(err, s->fd < 0 ? -s->fd : errno, "cannot listen at tcp:%s", spec);
    return 0;
}

/* --- vsock ---------------------------------------------------------------------------------- */

/* The number, 0 to 2^32 - 2 (the last one means "any"). */
static int vsock_port(const char *spec, unsigned *port, struct varve_err *err)
{
    unsigned long long n;
    char *end;

    errno = 0;
    n = strtoull(spec, &end, 10);
    if (spec[0] < '0' || spec[0] > '9' || *end || errno || n >= VMADDR_PORT_ANY)
        return varve_err_set(err, EINVAL, "vsock:%s: a port from 0 to %u is needed", spec,
                             VMADDR_PORT_ANY - 1);
    *port = n ? (unsigned)n : VMADDR_PORT_ANY;
    return 0;
}

static int vsock_open(struct varve_nbd_socket *s, const char *spec, struct varve_err *err)
{
    struct sockaddr_vm addr = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY};
    int rc = vsock_port(spec, &addr.svm_port, err);

    if (rc)
        return rc;
    s->fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->fd < 0 || bind(s->fd, (const struct sockaddr *)&addr, sizeof(addr)) ||
        listen(s->fd, BACKLOG))
        return varve_err_sys(err, errno, "cannot listen at vsock:%s", spec);
    return 0;
}

/* --- all ------------------------------------------------------------------------------------ */

static int real_tcp(const struct sockaddr_storage *addr, socklen_t len, char *real, size_t real_len,
                    struct varve_err *err)
{
    char host[NI_MAXHOST], port[NI_MAXSERV];
    int rc = getnameinfo((const struct sockaddr *)addr, len, host, sizeof(host), port, sizeof(port),
                         NI_NUMERICHOST | NI_NUMERICSERV);

    if (rc)
        return varve_err_set(err, EINVAL, "the address of a listener: %s", gai_strerror(rc));
    snprintf(real, real_len, strchr(host, ':') ? "tcp:[%s]:%s" : "tcp:%s:%s", host, port);
    return 0;
}

/* An address without a path, or one in the abstract namespace, is none that people could use. */
static int real_unix(const struct sockaddr_storage *addr, socklen_t len, char *real,
                     size_t real_len, struct varve_err *err)
{
    struct sockaddr_un un;
    size_t most = len - offsetof(struct sockaddr_un, sun_path);

    memcpy(&un, addr, sizeof(un));
    if (len <= offsetof(struct sockaddr_un, sun_path) || !un.sun_path[0])
        return varve_err_set(err, EINVAL, "a unix socket without a path");
    if (most > sizeof(un.sun_path))
        most = sizeof(un.sun_path);
    snprintf(real, real_len, "unix:%.*s", (int)strnlen(un.sun_path, most), un.sun_path);
    return 0;
}

static int socket_real(const struct varve_nbd_socket *s, char *real, size_t real_len,
                       struct varve_err *err)
{
    struct sockaddr_storage addr;
    socklen_t len = sizeof(addr);
    struct sockaddr_vm vm;

    if (getsockname(s->fd, (struct sockaddr *)&addr, &len))
        return varve_err_sys(err, errno, "the address of a listener");
    switch (addr.ss_family) {
    case AF_INET:
    case AF_INET6:
        return real_tcp(&addr, len, real, real_len, err);
    case AF_UNIX:
        return real_unix(&addr, len, real, real_len, err);
    case AF_VSOCK:
        memcpy(&vm, &addr, sizeof(vm));
        snprintf(real, real_len, "vsock:%u", vm.svm_port);
        return 0;
    default:
        return varve_err_set(err, EINVAL, "a listener that is neither unix, tcp nor vsock");
    }
}

static int socket_open(struct varve_nbd_socket *s, const char *where, struct varve_err *err)
{
    if (strncmp(where, "unix:", 5) == 0)
        return unix_open(s, where + 5, err);
    if (strncmp(where, "tcp:", 4) == 0)
        return tcp_open(s, where + 4, err);
    if (strncmp(where, "vsock:", 6) == 0)
        return vsock_open(s, where + 6, err);
    return varve_err_set(err, EINVAL, "%s: neither unix:PATH, tcp:HOST:PORT nor vsock:PORT", where);
}

int varve_nbd_socket_open(struct varve_nbd_socket *s, const char *where, char *real,
                          size_t real_len, struct varve_err *err)
{
    int rc;

    *s = (struct varve_nbd_socket){.fd = -1};
    rc = socket_open(s, where, err);
    if (!rc)
        rc = socket_real(s, real, real_len, err);
    if (rc)
        varve_nbd_socket_close(s);
    return rc;
}

static int socket_check_adopted(int fd, struct varve_err *err)
{
    int type = 0, listens = 0;
    socklen_t len = sizeof(int);

    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) || type != SOCK_STREAM ||
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) || !listens)
        return varve_err_set(err, EINVAL, "file descriptor %d is no listening stream socket", fd);
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK))
        return varve_err_sys(err, errno, "file descriptor %d", fd);
    return 0;
}

int varve_nbd_socket_adopt(struct varve_nbd_socket *s, int fd, char *real, size_t real_len,
                           struct varve_err *err)
{
    int rc = socket_check_adopted(fd, err);

    *s = (struct varve_nbd_socket){.fd = fd};
    if (!rc)
        rc = socket_real(s, real, real_len, err);
    if (rc)
        varve_nbd_socket_close(s);
    return rc;
}

void varve_nbd_socket_close(struct varve_nbd_socket *s)
{
    unix_unlink(s);
    free(s->path);
    s->path = NULL;
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}
