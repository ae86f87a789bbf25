/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The link's messages between ends that keep the rules, and from ends that do not.
 */
#include "lib/link-proto.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define HEAD_BYTES offsetof(struct varve_link_msg, text)

static int ends[2];
static struct varve_link_msg out, in;

static unsigned open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned n = 0;

    assert_non_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

static int setup(void **state)
{
    (void)state;
    memset(&in, 0xee, sizeof(in));
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends);
}

static int teardown(void **state)
{
    (void)state;
    close(ends[0]);
    close(ends[1]);
    return 0;
}

/* Sends len bytes and nfds copies of stdin, keeping no rule. */
static void send_raw(const void *data, size_t len, unsigned nfds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(64 * sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec iov = {.iov_base = (void *)data, .iov_len = len};
    struct msghdr hdr = {.msg_iov = &iov, .msg_iovlen = 1};

    assert_true(nfds <= 64);
    if (nfds > 0) {
        struct cmsghdr *cmsg;

        hdr.msg_control = control.bytes;
        hdr.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        cmsg = CMSG_FIRSTHDR(&hdr);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        for (unsigned i = 0; i < nfds; i++)
            memcpy(CMSG_DATA(cmsg) + i * sizeof(int), &(int){STDIN_FILENO}, sizeof(int));
    }
    assert_int_equal(sendmsg(ends[0], &hdr, MSG_DONTWAIT), len);
}

static int receive(int *fds, unsigned max, unsigned *nfds, struct varve_err *err)
{
    return varve_link_recv(ends[1], &in, fds, max, nfds, err);
}

static void message_arrives_as_it_was_sent(void **state)
{
    unsigned nfds;

    (void)state;
    varve_link_msg_init(&out, VARVE_LINK_HELLO, 77);
    for (unsigned i = 0; i < 8; i++)
        out.arg[i] = UINT64_MAX - i;
    memset(out.uuid, 0xab, sizeof(out.uuid));
    out.status = -ENOSPC;
    varve_link_msg_text(&out, "/srv/disk.img");
    assert_int_equal(varve_link_send(ends[0], &out, NULL, 0), 0);
    assert_int_equal(receive(NULL, 0, &nfds, NULL), 1);
    assert_int_equal(nfds, 0);
    assert_int_equal(in.type, VARVE_LINK_HELLO);
    assert_int_equal(in.seq, 77);
    assert_int_equal(in.status, -ENOSPC);
    assert_memory_equal(in.arg, out.arg, sizeof(in.arg));
    assert_memory_equal(in.uuid, out.uuid, sizeof(in.uuid));
    assert_string_equal(in.text, "/srv/disk.img");
    assert_int_equal(in.text_len, strlen("/srv/disk.img"));
}

static void fresh_message_says_nothing(void **state)
{
    unsigned nfds;

    (void)state;
    memset(&out, 0xff, sizeof(out));
    varve_link_msg_init(&out, VARVE_LINK_ABORT, 1);
    assert_int_equal(varve_link_send(ends[0], &out, NULL, 0), 0);
    assert_int_equal(receive(NULL, 0, &nfds, NULL), 1);
    assert_int_equal(in.status, 0);
    assert_int_equal(in.text_len, 0);
    assert_int_equal(in.text[0], '\0');
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(in.arg[i], 0);
}

static void text_is_cut_to_a_path(void **state)
{
    char *text = malloc(2 * PATH_MAX);
    unsigned nfds;

    (void)state;
    memset(text, 'x', 2 * PATH_MAX);
    text[2 * PATH_MAX - 1] = '\0';
    varve_link_msg_init(&out, VARVE_LINK_SEAL, 1);
    varve_link_msg_text(&out, text);
    assert_int_equal(varve_link_send(ends[0], &out, NULL, 0), 0);
    assert_int_equal(receive(NULL, 0, &nfds, NULL), 1);
    assert_int_equal(strlen(in.text), PATH_MAX - 1);
    out.text_len = PATH_MAX;
    assert_int_equal(varve_link_send(ends[0], &out, NULL, 0), -EINVAL);
    free(text);
}

static void fds_arrive_in_order_and_close_on_exec(void **state)
{
    int sent[VARVE_LINK_FDS_MAX], got[VARVE_LINK_FDS_MAX];
    unsigned nfds;

    (void)state;
    for (unsigned max = 0; max <= VARVE_LINK_FDS_MAX; max++) {
        unsigned before = open_fds();

        for (unsigned i = 0; i < max; i++)
            sent[i] = open(i % 2 ? "/dev/null" : "/", O_RDONLY | O_CLOEXEC);
        varve_link_msg_init(&out, VARVE_LINK_EPOCH, 1);
        assert_int_equal(varve_link_send(ends[0], &out, sent, max), 0);
        assert_int_equal(receive(got, VARVE_LINK_FDS_MAX, &nfds, NULL), 1);
        assert_int_equal(nfds, max);
        for (unsigned i = 0; i < max; i++) {
            struct stat a, b;

            assert_int_equal(fstat(sent[i], &a), 0); /* still the sender's */
            assert_int_equal(fstat(got[i], &b), 0);
            assert_int_equal(a.st_ino, b.st_ino);
            assert_true(fcntl(got[i], F_GETFD) & FD_CLOEXEC);
            close(sent[i]);
            close(got[i]);
        }
        assert_int_equal(open_fds(), before);
    }
    assert_int_equal(varve_link_send(ends[0], &out, sent, VARVE_LINK_FDS_MAX + 1), -EINVAL);
}

static void too_many_fds_are_an_error_and_none_stays_open(void **state)
{
    static const unsigned counts[] = {1, 2, 3, 4, 5, 63};
    int got[VARVE_LINK_FDS_MAX];
    unsigned before = open_fds(), nfds;
    struct varve_err err;

    (void)state;
    varve_link_msg_init(&out, VARVE_LINK_EPOCH, 1);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        for (unsigned max = 0; max <= VARVE_LINK_FDS_MAX; max++) {
            if (counts[i] <= max)
                continue;
            send_raw(&out, HEAD_BYTES, counts[i]);
            assert_int_equal(receive(got, max, &nfds, &err), -EPROTO);
            assert_int_equal(nfds, 0);
            assert_int_equal(open_fds(), before);
        }
    }
}

static void bad_message_is_refused_and_its_fds_are_closed(void **state)
{
    static const struct {
        uint32_t magic, type;
        int32_t status;
        uint32_t text_len;
        size_t len;
    } cases[] = {
        {VARVE_LINK_MAGIC ^ 1, VARVE_LINK_SEAL, 0, 0, HEAD_BYTES},
        {VARVE_LINK_MAGIC, 0, 0, 0, HEAD_BYTES},
        {VARVE_LINK_MAGIC, VARVE_LINK_TYPE_END, 0, 0, HEAD_BYTES},
        {VARVE_LINK_MAGIC, UINT32_MAX, 0, 0, HEAD_BYTES},
        {VARVE_LINK_MAGIC, VARVE_LINK_SEAL, 1, 0, HEAD_BYTES},
        {VARVE_LINK_MAGIC, VARVE_LINK_SEAL, INT32_MIN, 0, HEAD_BYTES},
        {VARVE_LINK_MAGIC, VARVE_LINK_SEAL, -4096, 0, HEAD_BYTES},
        {VARVE_LINK_MAGIC, VARVE_LINK_SEAL, 0, 1, HEAD_BYTES},
        {VARVE_LINK_MAGIC, VARVE_LINK_SEAL, 0, 0, HEAD_BYTES + 1},
        {VARVE_LINK_MAGIC, VARVE_LINK_SEAL, 0, UINT32_MAX, HEAD_BYTES},
        {VARVE_LINK_MAGIC, VARVE_LINK_SEAL, 0, PATH_MAX, HEAD_BYTES + PATH_MAX},
        {VARVE_LINK_MAGIC, VARVE_LINK_SEAL, 0, PATH_MAX - 1, HEAD_BYTES + PATH_MAX + 1},
        {VARVE_LINK_MAGIC, VARVE_LINK_SEAL, 0, 0, HEAD_BYTES - 1},
        {VARVE_LINK_MAGIC, VARVE_LINK_SEAL, 0, 0, 1},
    };
    char *raw = calloc(1, sizeof(struct varve_link_msg) + 64);
    unsigned before = open_fds(), nfds;
    int got[VARVE_LINK_FDS_MAX];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct varve_err err = VARVE_ERR_INIT;

        varve_link_msg_init(&out, VARVE_LINK_SEAL, 1);
        memset(out.text, 't', sizeof(out.text));
        out.magic = cases[i].magic;
        out.type = cases[i].type;
        out.status = cases[i].status;
        out.text_len = cases[i].text_len;
        memcpy(raw, &out, sizeof(out));
        send_raw(raw, cases[i].len, 2);
        assert_int_equal(receive(got, VARVE_LINK_FDS_MAX, &nfds, &err), -EPROTO);
        assert_int_equal(err.code, EPROTO);
        assert_int_equal(nfds, 0);
        assert_int_equal(open_fds(), before);
    }
    /* A NUL inside the text would hide what follows it. */
    varve_link_msg_init(&out, VARVE_LINK_SEAL, 1);
    varve_link_msg_text(&out, "abc");
    out.text[1] = '\0';
    send_raw(&out, HEAD_BYTES + 3, 0);
    assert_int_equal(receive(got, VARVE_LINK_FDS_MAX, &nfds, NULL), -EPROTO);
    /* The connection is in step: the next good one is read. */
    varve_link_msg_init(&out, VARVE_LINK_SEAL, 9);
    assert_int_equal(varve_link_send(ends[0], &out, NULL, 0), 0);
    assert_int_equal(receive(got, VARVE_LINK_FDS_MAX, &nfds, NULL), 1);
    assert_int_equal(in.seq, 9);
    free(raw);
}

static void random_datagrams_never_pass_as_messages(void **state)
{
    unsigned char junk[512];
    unsigned nfds;

    (void)state;
    srandom(1);
    for (int i = 0; i < 20000; i++) {
        size_t len = 1 + (size_t)random() % sizeof(junk);

        for (size_t j = 0; j < len; j++)
            junk[j] = (unsigned char)random();
        if (i % 2 && len >= 4)
            memcpy(junk, &(uint32_t){VARVE_LINK_MAGIC}, 4);
        send_raw(junk, len, 0);
        assert_int_equal(receive(NULL, 0, &nfds, NULL), -EPROTO);
    }
}

static void nothing_there_and_nobody_there_are_told_apart(void **state)
{
    unsigned nfds;

    (void)state;
    assert_int_equal(receive(NULL, 0, &nfds, NULL), -EAGAIN);
    varve_link_msg_init(&out, VARVE_LINK_SEAL, 1);
    assert_int_equal(varve_link_send(ends[0], &out, NULL, 0), 0);
    close(ends[0]);
    assert_int_equal(receive(NULL, 0, &nfds, NULL), 1);
    assert_int_equal(receive(NULL, 0, &nfds, NULL), 0);
    /* No signal for who writes to nobody. */
    assert_int_equal(varve_link_send(ends[1], &out, NULL, 0), -EPIPE);
    ends[0] = dup(ends[1]);
}

static void send_to_one_that_does_not_read_does_not_wait(void **state)
{
    int rc, sent = 0;

    (void)state;
    varve_link_msg_init(&out, VARVE_LINK_SEAL, 1);
    while ((rc = varve_link_send(ends[0], &out, NULL, 0)) == 0 && sent < 1000000)
        sent++;
    assert_int_equal(rc, -EAGAIN);
}

static void peer_of_our_own_user_is_let_in_with_its_pid(void **state)
{
    struct varve_err err;
    int pid = 0, file;

    (void)state;
    assert_int_equal(varve_link_check_peer(ends[0], &pid, &err), 0);
    assert_int_equal(pid, getpid());
    assert_int_equal(varve_link_check_peer(ends[0], NULL, &err), 0);
    file = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_int_equal(varve_link_check_peer(file, &pid, &err), -ENOTSOCK);
    close(file);
}

/* A socket pair remembers who made it. */
static void peer_of_another_user_is_refused(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    int theirs[2];

    (void)state;
    if (geteuid() != 0) {
        print_message("only root can play another user\n");
        skip();
    }
    assert_int_equal(seteuid(65534), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, theirs), 0);
    assert_int_equal(varve_link_check_peer(theirs[0], NULL, &err), 0);
    assert_int_equal(varve_link_check_peer(ends[0], NULL, &err), 0); /* root may */
    assert_int_equal(seteuid(0), 0);
    assert_int_equal(varve_link_check_peer(theirs[0], NULL, &err), -EPERM);
    assert_non_null(strstr(err.msg, "user 65534"));
    close(theirs[0]);
    close(theirs[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(message_arrives_as_it_was_sent, setup, teardown),
        cmocka_unit_test_setup_teardown(fresh_message_says_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(text_is_cut_to_a_path, setup, teardown),
        cmocka_unit_test_setup_teardown(fds_arrive_in_order_and_close_on_exec, setup, teardown),
        cmocka_unit_test_setup_teardown(too_many_fds_are_an_error_and_none_stays_open, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(bad_message_is_refused_and_its_fds_are_closed, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(random_datagrams_never_pass_as_messages, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_there_and_nobody_there_are_told_apart, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(send_to_one_that_does_not_read_does_not_wait, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(peer_of_another_user_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(peer_of_our_own_user_is_let_in_with_its_pid, setup,
                                        teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
