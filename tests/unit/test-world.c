/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The machine's world keeps what lib/world.h says, and the worlds of the tests what their headers
 * say.
 */
#include "lib/world.h"

#include "tests/lib/fault-world.h"
#include "tests/lib/power-world.h"
#include "tests/lib/tmpdir.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static struct varve_world *w;
static char *top;

static int setup(void **state)
{
    (void)state;
    w = varve_world_posix();
    top = tmpdir_new();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tmpdir_remove(top);
    return 0;
}

static const char *in_top(const char *name)
{
    static char paths[2][PATH_MAX];
    static unsigned turn;

    turn = !turn;
    snprintf(paths[turn], sizeof(paths[turn]), "%s/%s", top, name);
    return paths[turn];
}

static int file_new(const char *name)
{
    int fd = w->open(w, in_top(name), O_RDWR | O_CREAT | O_EXCL, 0600);

    assert_true(fd >= 0);
    return fd;
}

static uint64_t size_of(int fd)
{
    struct varve_stat st;

    assert_int_equal(w->stat(w, fd, &st), 0);
    return st.size;
}

/* --- the machine's ---------------------------------------------------------------------------- */

static void what_was_written_is_read_until_the_end(void **state)
{
    char buf[16];
    int fd = file_new("a");

    (void)state;
    assert_int_equal(w->pwrite(w, fd, "0123456789", 10, 100), 0);
    assert_int_equal(w->pread(w, fd, buf, 16, 104), 6);
    assert_memory_equal(buf, "456789", 6);
    assert_int_equal(w->pread(w, fd, buf, 4, 98), 4);
    assert_memory_equal(buf,
                        "\0\0"
                        "01",
                        4);
    assert_int_equal(w->pread(w, fd, buf, 16, 110), 0);
    assert_int_equal(w->pread(w, fd, buf, 16, 1 << 30), 0);
    assert_int_equal(w->pwrite(w, fd, "", 0, 1000), 0);
    assert_int_equal(size_of(fd), 110);
    assert_int_equal(w->truncate(w, fd, 3), 0);
    assert_int_equal(size_of(fd), 3);
    assert_int_equal(w->sync(w, fd), 0);
    assert_int_equal(w->close(w, fd), 0);
    assert_int_equal(w->close(w, fd), -EBADF);
}

static void offsets_that_the_kernel_cannot_say_are_errors(void **state)
{
    static const uint64_t bad[] = {INT64_MAX, (uint64_t)INT64_MAX + 1, UINT64_MAX - 1, UINT64_MAX};
    char buf[2] = "";
    int fd = file_new("a");

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(w->pread(w, fd, buf, 2, bad[i]), -EINVAL);
        assert_int_equal(w->pwrite(w, fd, buf, 2, bad[i]), -EFBIG);
        assert_int_equal(w->allocate(w, fd, bad[i], 2), -EFBIG);
        assert_int_equal(w->punch(w, fd, bad[i], 2), -EFBIG);
        assert_int_equal(w->copy(w, fd, bad[i], fd, 0, 2), -EFBIG);
        assert_int_equal(w->seek_data(w, fd, bad[i]), -ENXIO);
        if (i > 0)
            assert_int_equal(w->truncate(w, fd, bad[i]), -EFBIG);
    }
    assert_int_equal(size_of(fd), 0);
    w->close(w, fd);
}

static void descriptors_close_on_exec(void **state)
{
    int fd = file_new("a");

    (void)state;
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    w->close(w, fd);
    assert_int_equal(w->open(w, in_top("none"), O_RDONLY, 0), -ENOENT);
}

static void allocated_space_is_real_and_keeps_what_is_there(void **state)
{
    char buf[8];
    struct stat st;
    int fd = file_new("a");

    (void)state;
    assert_int_equal(w->pwrite(w, fd, "content", 8, 0), 0);
    assert_int_equal(w->allocate(w, fd, 0, 1 << 20), 0);
    assert_int_equal(w->allocate(w, fd, 0, 0), 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, 1 << 20);
    assert_true(st.st_blocks * 512 >= 1 << 20);
    assert_int_equal(w->pread(w, fd, buf, 8, 0), 8);
    assert_string_equal(buf, "content");
    /* A range within does not shrink it. */
    assert_int_equal(w->allocate(w, fd, 4096, 4096), 0);
    assert_int_equal(size_of(fd), 1 << 20);
    w->close(w, fd);
}

/* For this process, and for ever: fallocate is refused as some file systems do. */
static int refuse_fallocate(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fallocate, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EOPNOTSUPP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {.len = sizeof(code) / sizeof(code[0]), .filter = code};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}

/* Exit status 0: all is well. */
static int allocate_without_fallocate(int fd)
{
    static char was[100000], is[200000];
    struct stat st;

    for (size_t i = 0; i < sizeof(was); i++)
        was[i] = (char)(i % 251 + 1);
    if (w->pwrite(w, fd, was, sizeof(was), 0) < 0 || refuse_fallocate() < 0)
        return 2;
    if (w->punch(w, fd, 0, 4096) != -EOPNOTSUPP)
        return 3;
    if (w->allocate(w, fd, 1000, sizeof(is) - 1000) < 0)
        return 4;
    if (fstat(fd, &st) < 0 || st.st_size != sizeof(is) || st.st_blocks * 512 < st.st_size)
        return 5;
    if (w->pread(w, fd, is, sizeof(is), 0) != sizeof(is) || memcmp(is, was, sizeof(was)) != 0)
        return 6;
    for (size_t i = sizeof(was); i < sizeof(is); i++) {
        if (is[i] != 0)
            return 7;
    }
    return 0;
}

static void space_is_allocated_by_writing_where_there_is_no_other_way(void **state)
{
    int fd = file_new("a"), status;
    pid_t child = fork();

    (void)state;
    assert_true(child >= 0);
    if (child == 0)
        _exit(allocate_without_fallocate(fd));
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    w->close(w, fd);
}

static void punched_range_reads_zero_and_the_size_stays(void **state)
{
    char buf[3 * 4096];
    int fd = file_new("a");

    (void)state;
    memset(buf, 'x', sizeof(buf));
    assert_int_equal(w->pwrite(w, fd, buf, sizeof(buf), 0), 0);
    assert_int_equal(w->punch(w, fd, 4096, 4096), 0);
    assert_int_equal(w->punch(w, fd, 0, 0), 0);
    assert_int_equal(size_of(fd), sizeof(buf));
    assert_int_equal(w->pread(w, fd, buf, sizeof(buf), 0), sizeof(buf));
    for (size_t i = 0; i < sizeof(buf); i++)
        assert_int_equal(buf[i], i >= 4096 && i < 8192 ? 0 : 'x');
    assert_int_equal(w->seek_hole(w, fd, 0), 4096);
    assert_int_equal(w->seek_data(w, fd, 4096), 8192);
    assert_int_equal(w->seek_hole(w, fd, 8192), 3 * 4096);
    assert_int_equal(w->seek_data(w, fd, 3 * 4096), -ENXIO);
    w->close(w, fd);
}

static void copy_moves_bytes_inside_the_kernel(void **state)
{
    char buf[16] = "";
    int a = file_new("a"), b = file_new("b");

    (void)state;
    assert_int_equal(w->pwrite(w, a, "0123456789", 10, 0), 0);
    assert_int_equal(w->copy(w, a, 2, b, 5, 4), 4);
    assert_int_equal(w->copy(w, a, 8, b, 9, 100), 2); /* to the end */
    assert_int_equal(w->copy(w, a, 10, b, 0, 10), 0);
    assert_int_equal(w->pread(w, b, buf, 16, 0), 11);
    assert_memory_equal(buf,
                        "\0\0\0\0\0"
                        "234589",
                        11);
    w->close(w, a);
    w->close(w, b);
}

static void lock_belongs_to_the_open_file_not_to_the_process(void **state)
{
    int a = file_new("a"), b = w->open(w, in_top("a"), O_RDWR, 0), c = dup(a);

    (void)state;
    assert_int_equal(w->lock(w, a, true), 0);
    assert_int_equal(w->lock(w, a, true), 0);
    assert_int_equal(w->lock(w, b, true), -EAGAIN);
    assert_int_equal(w->lock(w, b, false), -EAGAIN);
    /* Closing another descriptor of the file, which frees a POSIX lock, does not free it. */
    w->close(w, w->open(w, in_top("a"), O_RDONLY, 0));
    w->close(w, a);
    assert_int_equal(w->lock(w, b, true), -EAGAIN); /* c has it still */
    close(c);
    assert_int_equal(w->lock(w, b, false), 0);
    c = w->open(w, in_top("a"), O_RDWR, 0);
    assert_int_equal(w->lock(w, c, false), 0);
    assert_int_equal(w->lock(w, c, true), -EAGAIN);
    w->close(w, b);
    w->close(w, c);
}

static void map_is_the_file(void **state)
{
    char buf[4] = "";
    void *addr;
    int fd = file_new("a");

    (void)state;
    assert_int_equal(w->allocate(w, fd, 0, 8192), 0);
    assert_int_equal(w->map(w, fd, 8192, &addr), 0);
    memcpy((char *)addr + 5000, "abc", 3);
    assert_int_equal(w->pread(w, fd, buf, 3, 5000), 3);
    assert_string_equal(buf, "abc");
    assert_int_equal(w->unmap(w, addr, 8192), 0);
    assert_int_equal(w->map(w, fd, 0, &addr), -EINVAL);
    w->close(w, fd);
}

static void stat_tells_one_file_from_another(void **state)
{
    struct varve_stat a, b;
    int fa = file_new("a"), fb = file_new("b");
    int64_t now = (int64_t)w->realtime_ns(w);

    (void)state;
    assert_int_equal(w->stat(w, fa, &a), 0);
    assert_int_equal(w->stat(w, fb, &b), 0);
    assert_int_equal(a.dev, b.dev);
    assert_int_not_equal(a.ino, b.ino);
    assert_int_equal(a.nlink, 1);
    assert_true(S_ISREG(a.mode));
    assert_true(a.mtime_ns > now - INT64_C(60000000000) && a.mtime_ns < now + INT64_C(60000000000));
    assert_int_equal(w->unlink(w, in_top("a")), 0);
    assert_int_equal(w->stat(w, fa, &a), 0);
    assert_int_equal(a.nlink, 0);
    assert_int_equal(w->stat(w, -1, &a), -EBADF);
    w->close(w, fa);
    w->close(w, fb);
}

static int name_seen(void *arg, const char *name)
{
    char *names = arg;

    strcat(names, name);
    return strcmp(name, "stop") == 0 ? 77 : 0;
}

static void names_come_and_go(void **state)
{
    char names[64] = "";

    (void)state;
    assert_int_equal(w->list(w, top, name_seen, names), 0);
    assert_string_equal(names, "");
    assert_int_equal(w->mkdir(w, in_top("d"), 0700), 0);
    assert_int_equal(w->mkdir(w, in_top("d"), 0700), -EEXIST);
    w->close(w, file_new("d/x"));
    assert_int_equal(w->rename(w, in_top("d/x"), in_top("d/y")), 0);
    assert_int_equal(w->rename(w, in_top("d/x"), in_top("d/y")), -ENOENT);
    assert_int_equal(w->rename_new(w, in_top("d/y"), in_top("d/z")), 0);
    assert_int_equal(w->rename_new(w, in_top("d/y"), in_top("d/z")), -ENOENT);
    w->close(w, file_new("d/y"));
    assert_int_equal(w->rename_new(w, in_top("d/z"), in_top("d/y")), -EEXIST);
    assert_int_equal(w->unlink(w, in_top("d/z")), 0);
    assert_int_equal(w->sync_dir(w, in_top("d")), 0);
    assert_int_equal(w->list(w, in_top("d"), name_seen, names), 0);
    assert_string_equal(names, "y");
    assert_int_equal(w->sync_dir(w, in_top("d/y")), -ENOTDIR);
    assert_int_equal(w->sync_dir(w, in_top("e")), -ENOENT);
    assert_int_equal(w->list(w, in_top("e"), name_seen, names), -ENOENT);
    assert_int_equal(w->unlink(w, in_top("d/y")), 0);
    assert_int_equal(w->unlink(w, in_top("d/y")), -ENOENT);
    w->close(w, file_new("stop"));
    names[0] = '\0';
    assert_int_equal(w->list(w, top, name_seen, names), 77);
}

static void time_goes_on_and_chance_differs(void **state)
{
    uint8_t a[300] = {0}, b[300] = {0}, none[300] = {0}, boot1[16] = {0}, boot2[16];
    uint64_t before = w->monotonic_ns(w);

    (void)state;
    assert_int_equal(w->random(w, a, sizeof(a)), 0);
    assert_int_equal(w->random(w, b, sizeof(b)), 0);
    assert_true(memcmp(a, b, sizeof(a)) != 0);
    assert_true(memcmp(a + 256, none, 44) != 0);
    assert_int_equal(w->boot_id(w, boot1), 0);
    assert_int_equal(w->boot_id(w, boot2), 0);
    assert_memory_equal(boot1, boot2, 16);
    assert_true(memcmp(boot1, none, 16) != 0);
    assert_int_equal(boot1[6] >> 4, 4); /* a random uuid, and its digits in their places */
    assert_true(w->monotonic_ns(w) >= before);
    assert_true(w->realtime_ns(w) > UINT64_C(1700000000000000000));
}

static _Atomic int alarms;

static void on_alarm(int sig)
{
    (void)sig;
    alarms++;
}

/* The other end of a fifo comes only after the one that waits for it was interrupted. */
static void *open_late(void *arg)
{
    while (alarms < 3)
        usleep(1000);
    close(open(arg, O_WRONLY | O_CLOEXEC));
    return NULL;
}

static void interrupted_open_is_tried_again(void **state)
{
    struct sigaction act = {.sa_handler = on_alarm}, old;
    struct itimerval often = {{0, 2000}, {0, 2000}}, never = {{0, 0}, {0, 0}};
    sigset_t alarm_only;
    pthread_t thread;
    char path[PATH_MAX];
    int fd;

    (void)state;
    snprintf(path, sizeof(path), "%s/fifo", top);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(sigaction(SIGALRM, &act, &old), 0);
    sigemptyset(&alarm_only);
    sigaddset(&alarm_only, SIGALRM);
    /* The thread inherits the mask: the alarms are for us. */
    pthread_sigmask(SIG_BLOCK, &alarm_only, NULL);
    assert_int_equal(pthread_create(&thread, NULL, open_late, path), 0);
    pthread_sigmask(SIG_UNBLOCK, &alarm_only, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    fd = w->open(w, path, O_RDONLY, 0);
    setitimer(ITIMER_REAL, &never, NULL);
    assert_true(fd >= 0);
    pthread_join(thread, NULL);
    sigaction(SIGALRM, &old, NULL);
    w->close(w, fd);
}

/* --- the tests' own --------------------------------------------------------------------------- */

static void count(void *arg)
{
    ++*(int *)arg;
}

static void fault_world_hits_only_the_call_it_was_told(void **state)
{
    struct fault_world f;
    struct varve_world *fw = &f.world;
    int fd = file_new("a"), gates = 0;

    (void)state;
    fault_world_init(&f, w);
    fault_fail_at(&f, FAULT_PWRITE, 2, ENOSPC);
    assert_int_equal(fw->pwrite(fw, fd, "a", 1, 0), 0);
    assert_int_equal(fw->sync(fw, fd), 0);
    assert_false(fault_fired(&f));
    assert_int_equal(fw->pwrite(fw, fd, "b", 1, 0), -ENOSPC);
    assert_true(fault_fired(&f));
    assert_int_equal(fw->pwrite(fw, fd, "c", 1, 1), 0);
    assert_int_equal(fault_calls(&f, FAULT_PWRITE), 3);
    assert_int_equal(fault_calls(&f, FAULT_ANY), 4);
    fault_fail_from(&f, FAULT_SYNC, 2, EIO);
    assert_int_equal(fw->sync(fw, fd), 0);
    assert_int_equal(fw->sync(fw, fd), -EIO);
    assert_int_equal(fw->pwrite(fw, fd, "d", 1, 2), 0);
    assert_int_equal(fw->sync(fw, fd), -EIO);
    fault_gate_at(&f, FAULT_ANY, 2, count, &gates);
    assert_int_equal(fw->sync(fw, fd), 0);
    assert_int_equal(gates, 0);
    assert_int_equal(fw->sync(fw, fd), 0);
    assert_int_equal(fw->sync(fw, fd), 0);
    assert_int_equal(gates, 1);
    fault_crash_at(&f, FAULT_ANY, 2);
    assert_int_equal(fw->pwrite(fw, fd, "e", 1, 3), 0);
    assert_int_equal(fw->pwrite(fw, fd, "X", 1, 0), -EIO);
    assert_int_equal(fw->unlink(fw, in_top("a")), -EIO);
    assert_int_equal(fw->truncate(fw, fd, 0), -EIO);
    fault_disarm(&f);
    assert_int_equal(size_of(fd), 4);
    assert_int_equal(fw->close(fw, fd), 0);
    fault_world_fini(&f);
}

static void power_world_loses_what_was_not_synced_and_only_that(void **state)
{
    struct power_world p;
    struct varve_world *pw = &p.world;
    char buf[8] = "";
    int fd;

    (void)state;
    assert_int_equal(mkdir(in_top("d"), 0700), 0);
    assert_int_equal(mkdir(in_top("grave"), 0700), 0);
    power_world_init(&p, in_top("grave"));
    fd = pw->open(pw, in_top("d/kept"), O_RDWR | O_CREAT, 0600);
    assert_int_equal(pw->pwrite(pw, fd, "durable", 7, 0), 0);
    assert_int_equal(pw->sync(pw, fd), 0);
    assert_int_equal(pw->sync_dir(pw, in_top("d")), 0);
    assert_int_equal(pw->pwrite(pw, fd, "changed and longer", 18, 0), 0);
    pw->close(pw, pw->open(pw, in_top("d/new"), O_RDWR | O_CREAT, 0600));
    assert_int_equal(pw->rename(pw, in_top("d/new"), in_top("d/kept")), 0);
    assert_int_equal(pw->unlink(pw, in_top("d/kept")), 0);
    power_fail(&p, 0);
    assert_int_equal(access(in_top("d/new"), F_OK), -1);
    pw->close(pw, fd);
    fd = pw->open(pw, in_top("d/kept"), O_RDWR, 0);
    assert_int_equal(size_of(fd), 7);
    assert_int_equal(pw->pread(pw, fd, buf, 8, 0), 7);
    assert_string_equal(buf, "durable");

    /* What a disk refused is lost though a later sync says that all is well, unless it was written
     * again. */
    assert_int_equal(pw->pwrite(pw, fd, "LOSTkep", 7, 0), 0);
    power_fail_sync(&p, 1);
    assert_int_equal(pw->sync(pw, fd), -EIO);
    assert_int_equal(pw->pwrite(pw, fd, "KEP", 3, 4), 0);
    assert_int_equal(pw->sync(pw, fd), 0);
    power_fail(&p, 0);
    assert_int_equal(pw->pread(pw, fd, buf, 8, 0), 7);
    assert_string_equal(buf, "duraKEP");
    pw->close(pw, fd);
    power_world_fini(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_was_written_is_read_until_the_end, setup, teardown),
        cmocka_unit_test_setup_teardown(offsets_that_the_kernel_cannot_say_are_errors, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(descriptors_close_on_exec, setup, teardown),
        cmocka_unit_test_setup_teardown(allocated_space_is_real_and_keeps_what_is_there, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(space_is_allocated_by_writing_where_there_is_no_other_way,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(punched_range_reads_zero_and_the_size_stays, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(copy_moves_bytes_inside_the_kernel, setup, teardown),
        cmocka_unit_test_setup_teardown(lock_belongs_to_the_open_file_not_to_the_process, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(map_is_the_file, setup, teardown),
        cmocka_unit_test_setup_teardown(stat_tells_one_file_from_another, setup, teardown),
        cmocka_unit_test_setup_teardown(names_come_and_go, setup, teardown),
        cmocka_unit_test_setup_teardown(time_goes_on_and_chance_differs, setup, teardown),
        cmocka_unit_test_setup_teardown(interrupted_open_is_tried_again, setup, teardown),
        cmocka_unit_test_setup_teardown(fault_world_hits_only_the_call_it_was_told, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(power_world_loses_what_was_not_synced_and_only_that, setup,
                                        teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
