/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The log's entries in the journal, at a socket that stands in for it.
 */
#include "server/journal.h"
#include "server/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/tmpdir.h"

struct fake {
    char *dir;
    char path[100];
    int fd;
    char got[4096];
};

static int setup(void **state)
{
    struct fake *f = calloc(1, sizeof(*f));
    struct sockaddr_un at = {.sun_family = AF_UNIX};

    f->dir = tmpdir_new();
    snprintf(f->path, sizeof(f->path), "%s/socket", f->dir);
    strcpy(at.sun_path, f->path);
    f->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(f->fd, (struct sockaddr *)&at, sizeof(at)), 0);
    *state = f;
    alarm(60); /* nothing here waits */
    return 0;
}

static int teardown(void **state)
{
    struct fake *f = *state;

    alarm(0);
    close(f->fd);
    tmpdir_remove(f->dir);
    free(f);
    return 0;
}

/* What came; "" if nothing did. */
static const char *entry(struct fake *f)
{
    ssize_t n = recv(f->fd, f->got, sizeof(f->got) - 1, MSG_DONTWAIT);

    f->got[n > 0 ? n : 0] = '\0';
    return f->got;
}

/* Standard error goes into a file, whose descriptor this is, until told() puts it back. */
static int saved_stderr;

static FILE *catch_stderr(void)
{
    FILE *f = tmpfile();

    assert_non_null(f);
    fflush(stderr);
    saved_stderr = dup(STDERR_FILENO);
    dup2(fileno(f), STDERR_FILENO);
    return f;
}

static void told(FILE *f, char *out, size_t room)
{
    size_t n;

    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    rewind(f);
    n = fread(out, 1, room - 1, f);
    out[n] = '\0';
    fclose(f);
}

static void an_entry_tells_apart_what_it_is_about(void **state)
{
    struct fake *f = *state;

    varve_log_to_journal(f->path);
    varve_log("listens at %s", "unix:x");
    assert_string_equal(entry(f), "MESSAGE=listens at unix:x\nPRIORITY=6\nSYSLOG_IDENTIFIER=varved\n");
    varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING, .disk = "vda", .job = "j1"),
                    "Disk '%s': two\nlines", "vda");
    assert_string_equal(entry(f), "MESSAGE=Disk 'vda': two?lines\nPRIORITY=4\n"
                                  "SYSLOG_IDENTIFIER=varved\nVARVE_DISK=vda\nVARVE_JOB=j1\n");
    varve_log_about(
        VARVE_ABOUT(.level = VARVE_LOG_ERROR, .backup = "b", .checkpoint = "monday"), "%s", "");
    assert_string_equal(entry(f), "MESSAGE=\nPRIORITY=3\nSYSLOG_IDENTIFIER=varved\n"
                                  "VARVE_BACKUP=b\nVARVE_CHECKPOINT=monday\n");
    assert_string_equal(entry(f), "");
}

static void a_value_of_several_lines_forges_no_field(void **state)
{
    static const char wanted[] = "A\n\x07\0\0\0\0\0\0\0x\nB=1\ny\nC=\n";
    struct varve_journal_field fields[] = {{"A", "x\nB=1\ny"}, {"D", NULL}, {"C", ""}};
    struct fake *f = *state;
    int fd = varve_journal_open();

    assert_true(varve_journal_send(fd, f->path, fields, 3));
    entry(f);
    assert_memory_equal(f->got, wanted, sizeof(wanted));
    close(fd);
}

static void a_journal_without_room_is_not_waited_for(void **state)
{
    struct varve_journal_field field = {"MESSAGE", "x"};
    struct fake *f = *state;
    char said[200];
    int fd = varve_journal_open();
    FILE *err;

    while (varve_journal_send(fd, f->path, &field, 1)) /* nobody reads */
        ;
    close(fd);
    varve_log_to_journal(f->path);
    err = catch_stderr();
    varve_log_about(VARVE_ABOUT(.disk = "vda"), "Disk 'vda' is live");
    told(err, said, sizeof(said));
    assert_string_equal(said, "varved: Disk 'vda' is live\n");
}

static void a_journal_that_is_not_there_costs_no_line(void **state)
{
    struct fake *f = *state;
    char said[200], path[200];
    FILE *err;

    snprintf(path, sizeof(path), "%s/none", f->dir);
    varve_log_to_journal(path);
    err = catch_stderr();
    varve_log("one\033[31m");
    told(err, said, sizeof(said));
    assert_string_equal(said, "varved: one?[31m\n");
    memset(path, 'x', sizeof(path)); /* longer than an address */
    path[sizeof(path) - 1] = '\0';
    err = catch_stderr();
    varve_log("two");
    told(err, said, sizeof(said));
    assert_string_equal(said, "varved: two\n");
}

static void the_journal_is_told_by_the_stream_of_standard_error(void **state)
{
    char stream[100];
    struct stat st;
    FILE *f = tmpfile();

    (void)state;
    assert_int_equal(fstat(fileno(f), &st), 0);
    snprintf(stream, sizeof(stream), "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    assert_true(varve_journal_is(fileno(f), stream));
    assert_false(varve_journal_is(STDIN_FILENO, stream));
    strcat(stream, "0");
    assert_false(varve_journal_is(fileno(f), stream));
    stream[strlen(stream) - 1] = 'x';
    assert_false(varve_journal_is(fileno(f), stream));
    assert_false(varve_journal_is(fileno(f), NULL));
    assert_false(varve_journal_is(fileno(f), ""));
    assert_false(varve_journal_is(fileno(f), "1"));
    assert_false(varve_journal_is(-1, "0:0"));
    fclose(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_entry_tells_apart_what_it_is_about, setup, teardown),
        cmocka_unit_test_setup_teardown(a_value_of_several_lines_forges_no_field, setup, teardown),
        cmocka_unit_test_setup_teardown(a_journal_without_room_is_not_waited_for, setup, teardown),
        cmocka_unit_test_setup_teardown(a_journal_that_is_not_there_costs_no_line, setup, teardown),
        cmocka_unit_test(the_journal_is_told_by_the_stream_of_standard_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
