/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/link-proto.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* What goes over the wire before the text. */
#define HEAD_BYTES offsetof(struct varve_link_msg, text)

/* Largest errno value of the kernel. */
#define ERRNO_MAX 4095

union fd_control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(VARVE_LINK_FDS_MAX * sizeof(int))];
};

void varve_link_msg_init(struct varve_link_msg *m, enum varve_link_type type, uint32_t seq)
{
    memset(m, 0, HEAD_BYTES);
    m->magic = VARVE_LINK_MAGIC;
    m->type = type;
    m->seq = seq;
    m->text[0] = '\0';
}

void varve_link_msg_text(struct varve_link_msg *m, const char *text)
{
    m->text_len = (uint32_t)strnlen(text, sizeof(m->text) - 1);
    memcpy(m->text, text, m->text_len);
    m->text[m->text_len] = '\0';
}

int varve_link_send(int sock, const struct varve_link_msg *m, const int *fds, unsigned nfds)
{
    union fd_control control = {.bytes = {0}};
    struct iovec iov = {.iov_base = (void *)m};
    struct msghdr hdr = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n;

    if (nfds > VARVE_LINK_FDS_MAX || m->text_len >= sizeof(m->text))
        return -EINVAL;
    iov.iov_len = HEAD_BYTES + m->text_len;
    if (nfds > 0) {
        struct cmsghdr *cmsg;

        hdr.msg_control = control.bytes;
        hdr.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        cmsg = CMSG_FIRSTHDR(&hdr);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, nfds * sizeof(int));
    }
    do
        n = sendmsg(sock, &hdr, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

/* Takes the fds out of a received message.  -EPROTO: there were more than max, which are closed.
 * -EMFILE: the kernel left some out though there was place: this process may have no more. */
static int fds_collect(struct msghdr *hdr, int *fds, unsigned max, unsigned *nfds)
{
    bool cut = hdr->msg_flags & MSG_CTRUNC, fit = true;
    size_t came = 0;

    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(hdr); cmsg; cmsg = CMSG_NXTHDR(hdr, cmsg)) {
        size_t count;

        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
            continue;
        count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        came += count;
        for (size_t i = 0; i < count; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(int));
            if (*nfds < max) {
                fds[(*nfds)++] = fd;
            } else {
                close(fd);
                fit = false;
            }
        }
    }
    if (cut && came < (sizeof(union fd_control) - CMSG_LEN(0)) / sizeof(int))
        return -EMFILE;
    return fit && !cut ? 0 : -EPROTO;
}

/* Why these n bytes are no message of ours, or NULL. */
static const char *msg_fault(const struct varve_link_msg *m, size_t n)
{
    if (n < HEAD_BYTES)
        return "it is too short";
    if (m->magic != VARVE_LINK_MAGIC)
        return "it does not begin like one";
    if (m->type < VARVE_LINK_HELLO || m->type >= VARVE_LINK_TYPE_END)
        return "its type is unknown";
    if (m->status > 0 || m->status < -ERRNO_MAX)
        return "its status is no error number";
    if (m->text_len >= sizeof(m->text) || n != HEAD_BYTES + m->text_len)
        return "its length is wrong";
    if (memchr(m->text, '\0', m->text_len))
        return "its text holds a NUL";
    return NULL;
}

int varve_link_recv(int sock, struct varve_link_msg *m, int *fds, unsigned nfds_max, unsigned *nfds,
                    struct varve_err *err)
{
    union fd_control control;
    /* One byte more than the longest message: what is longer has a wrong length too. */
    struct iovec iov = {.iov_base = m, .iov_len = HEAD_BYTES + sizeof(m->text)};
    struct msghdr hdr = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.bytes,
                         .msg_controllen = sizeof(control.bytes)};
    const char *fault;
    int collected;
    ssize_t n;

    *nfds = 0;
    do
        n = recvmsg(sock, &hdr, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == ECONNRESET)
        return 0;
    if (n < 0 && errno == EAGAIN)
        return -EAGAIN;
    if (n < 0)
        return varve_err_sys(err, errno, "cannot read from the link");

    collected = fds_collect(&hdr, fds, nfds_max, nfds);
    if (n == 0)
        fault = NULL;
    else if (collected == -EPROTO)
        fault = "it brings too many files";
    else
        fault = msg_fault(m, (size_t)n);
    if (n > 0 && !fault) {
        m->text[m->text_len] = '\0';
        if (collected == 0)
            return 1;
    }
    while (*nfds > 0)
        close(fds[--*nfds]);
    if (n == 0)
        return 0;
    if (!fault)
        return varve_err_sys(err, EMFILE, "cannot take the files that came over the link");
    return varve_err_set(err, EPROTO, "what came over the link is no message of varve's: %s",
                         fault);
}

int varve_link_check_peer(int sock, int *pid, struct varve_err *err)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);

    if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
        return varve_err_sys(err, errno, "cannot tell who is on the link");
    if (cred.uid != 0 && cred.uid != geteuid())
        return varve_err_set(err, EPERM,
                             "process %d of user %u is on the link: only user %u and root may be",
                             (int)cred.pid, (unsigned)cred.uid, (unsigned)geteuid());
    if (pid)
        *pid = cred.pid;
    return 0;
}
