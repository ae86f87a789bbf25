/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One datagram of any bytes with any number of files over the link.  Whatever comes, no file stays
 * open that nobody owns, and the next message of ours arrives.
 *
 *     0   files sent with it (low four bits), files the receiver wants (the rest, at most 3)
 *     1   0: what follows is the datagram; else it overwrites a good message of this type
 *     2   the bytes
 */
#include "lib/link-proto.h"
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEAD_BYTES offsetof(struct varve_link_msg, text)
#define FDS_SENT   16

static struct varve_link_msg out, in;

/* The number that the next file gets: it grows when one is forgotten. */
static int next_fd(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    FUZZ_CHECK(fd >= 0);
    close(fd);
    return fd;
}

static void send_raw(int sock, const void *data, size_t len, unsigned nfds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDS_SENT * sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec iov = {.iov_base = (void *)data, .iov_len = len};
    struct msghdr hdr = {.msg_iov = &iov, .msg_iovlen = 1};
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    if (nfds > 0) {
        struct cmsghdr *cmsg;

        hdr.msg_control = control.bytes;
        hdr.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        cmsg = CMSG_FIRSTHDR(&hdr);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        for (unsigned i = 0; i < nfds; i++)
            memcpy(CMSG_DATA(cmsg) + i * sizeof(int), &fd, sizeof(int));
    }
    FUZZ_CHECK(sendmsg(sock, &hdr, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)len);
    close(fd);
}

static void judge(int rc, size_t sent_len, const int *fds, unsigned nfds, unsigned wanted,
                  unsigned sent, const struct varve_err *err)
{
    if (rc == -EPROTO) {
        FUZZ_CHECK(nfds == 0 && err->code == EPROTO && err->msg[0]);
        return;
    }
    if (sent_len == 0) {
        FUZZ_CHECK(rc == 0 && nfds == 0);
        return;
    }
    FUZZ_CHECK(rc == 1 && nfds == sent && nfds <= wanted);
    for (unsigned i = 0; i < nfds; i++)
        FUZZ_CHECK(fcntl(fds[i], F_GETFD) == FD_CLOEXEC);
    FUZZ_CHECK(in.magic == VARVE_LINK_MAGIC && in.status <= 0);
    FUZZ_CHECK(in.type >= VARVE_LINK_HELLO && in.type < VARVE_LINK_TYPE_END);
    FUZZ_CHECK(in.text_len < sizeof(in.text) && strlen(in.text) == in.text_len);
}

/* A good message after whatever came, if the stream still has a peer. */
static void next_arrives(int *ends)
{
    struct varve_err err = VARVE_ERR_INIT;
    unsigned nfds;

    varve_link_msg_init(&out, VARVE_LINK_QUIESCE, 7);
    FUZZ_CHECK(varve_link_send(ends[0], &out, NULL, 0) == 0);
    FUZZ_CHECK(varve_link_recv(ends[1], &in, NULL, 0, &nfds, &err) == 1);
    FUZZ_CHECK(in.type == VARVE_LINK_QUIESCE && in.seq == 7 && nfds == 0 && in.text_len == 0);
    FUZZ_CHECK(varve_link_recv(ends[1], &in, NULL, 0, &nfds, &err) == -EAGAIN);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fds[VARVE_LINK_FDS_MAX], ends[2], before = next_fd();
    struct varve_err err = VARVE_ERR_INIT;
    unsigned sent, wanted, nfds = 99;
    uint8_t *datagram;
    size_t len;
    int rc;

    if (size < 2)
        return -1;
    sent = data[0] & 15;
    wanted = (data[0] >> 4) % (VARVE_LINK_FDS_MAX + 1);
    len = size - 2;
    datagram = malloc(HEAD_BYTES + len);
    FUZZ_CHECK(datagram);
    if (data[1]) {
        varve_link_msg_init(&out, data[1], 1);
        out.text_len = len > HEAD_BYTES ? (uint32_t)(len - HEAD_BYTES) : 0;
        memcpy(datagram, &out, HEAD_BYTES);
        /* Behind magic and type. */
        memcpy(datagram + 8, data + 2, len);
        len = len + 8 > HEAD_BYTES ? len + 8 : HEAD_BYTES;
    } else {
        memcpy(datagram, data + 2, len);
    }
    FUZZ_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    memset(&in, 0xee, sizeof(in));
    send_raw(ends[0], datagram, len, sent);
    rc = varve_link_recv(ends[1], &in, fds, wanted, &nfds, &err);
    judge(rc, len, fds, nfds, wanted, sent, &err);
    while (nfds > 0)
        close(fds[--nfds]);
    next_arrives(ends);
    close(ends[0]);
    close(ends[1]);
    free(datagram);
    FUZZ_CHECK(next_fd() == before);
    return 0;
}
