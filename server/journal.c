/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/journal.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>

#define FIELDS_MAX 8
#define PARTS      5 /* of a field: name, mark, length, value, end */

bool varve_journal_is(int fd, const char *stream)
{
    uintmax_t device, inode;
    struct stat st;
    int end = 0;

    return stream && sscanf(stream, "%ju:%ju%n", &device, &inode, &end) == 2 &&
           stream[end] == '\0' && fstat(fd, &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

int varve_journal_open(void)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    return fd < 0 ? -errno : fd;
}

static size_t add_part(struct iovec *iov, size_t n, const void *data, size_t len)
{
    iov[n] = (struct iovec){.iov_base = (void *)data, .iov_len = len};
    return n + 1;
}

bool varve_journal_send(int fd, const char *path, const struct varve_journal_field *fields,
                        size_t n)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    struct iovec iov[FIELDS_MAX * PARTS];
    struct msghdr message = {.msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = iov};
    uint64_t lengths[FIELDS_MAX];
    size_t at = 0;

    if (n > FIELDS_MAX || strlen(path) >= sizeof(to.sun_path))
        return false;
    strcpy(to.sun_path, path);
    for (size_t i = 0; i < n; i++) {
        const char *value = fields[i].value;
        size_t len = value ? strlen(value) : 0;

        if (!value)
            continue;
        at = add_part(iov, at, fields[i].name, strlen(fields[i].name));
        if (strchr(value, '\n')) { /* a value of several lines has its length before it */
            lengths[i] = htole64(len);
            at = add_part(iov, at, "\n", 1);
            at = add_part(iov, at, &lengths[i], sizeof(lengths[i]));
        } else {
            at = add_part(iov, at, "=", 1);
        }
        at = add_part(iov, at, value, len);
        at = add_part(iov, at, "\n", 1);
    }
    message.msg_iovlen = at;
    return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}
