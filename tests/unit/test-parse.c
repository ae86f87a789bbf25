/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/parse.h"
#include "server/options.h"

#include <getopt.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void size_is(const char *text, uint64_t want)
{
    uint64_t bytes = 0;

    assert_int_equal(varve_parse_size(text, &bytes, NULL), 0);
    assert_int_equal(bytes, want);
}

static void size_is_refused(const char *text)
{
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t bytes = 42;

    assert_true(varve_parse_size(text, &bytes, &err) < 0);
    assert_int_equal(bytes, 42);
    assert_non_null(strstr(err.msg, text));
}

static void sizes_take_the_suffixes_of_nbdkit(void **state)
{
    (void)state;
    size_is("0", 0);
    size_is("10", 10);
    size_is("10b", 10);
    size_is("10s", 5120);
    size_is("64K", 65536);
    size_is("64k", 65536);
    size_is("3m", 3 << 20);
    size_is("1G", UINT64_C(1) << 30);
    size_is("2T", UINT64_C(1) << 41);
    size_is("1P", UINT64_C(1) << 50);
    size_is("15E", UINT64_C(15) << 60);
    size_is("18446744073709551615", UINT64_MAX);
    size_is_refused("16E");
    size_is_refused("18446744073709551616");
    size_is_refused("");
    size_is_refused("-1");
    size_is_refused("+1");
    size_is_refused(" 1");
    size_is_refused("K");
    size_is_refused("1KB");
    size_is_refused("1 K");
    size_is_refused("1x");
    size_is_refused("1ss");
    size_is_refused("0x10");
}

static void time_is(const char *text, unsigned want)
{
    unsigned ms = 0;

    assert_int_equal(varve_parse_time_ms(text, &ms, NULL), 0);
    assert_int_equal(ms, want);
}

static void time_is_refused(const char *text)
{
    struct varve_err err = VARVE_ERR_INIT;
    unsigned ms = 42;

    assert_true(varve_parse_time_ms(text, &ms, &err) < 0);
    assert_int_equal(ms, 42);
    assert_non_null(strstr(err.msg, text));
}

static void times_are_seconds_or_say_their_unit(void **state)
{
    (void)state;
    time_is("0", 0);
    time_is("10", 10000);
    time_is("10s", 10000);
    time_is("500ms", 500);
    time_is("2147483647ms", 2147483647);
    time_is("2147483s", 2147483000);
    time_is_refused("2147483648ms");
    time_is_refused("2147484s");
    time_is_refused("99999999999999999999");
    time_is_refused("");
    time_is_refused("-1s");
    time_is_refused("soon");
    time_is_refused("1 s");
    time_is_refused("1m");
    time_is_refused("1mss");
}

/* The daemon's options, as main() takes them. */
static enum varve_options_result options(struct varve_options *o, struct varve_err *err,
                                         const char *name, const char *value)
{
    char program[] = "varved";
    char *argv[] = {program, (char *)name, (char *)value, NULL};

    optind = 0; /* glibc: start afresh */
    return varve_options_parse(o, 3, argv, err);
}

static void option_is_refused(const char *name, const char *value)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_options o;

    assert_int_equal(options(&o, &err, name, value), VARVE_OPTIONS_USAGE);
    assert_non_null(strstr(err.msg, name));
    assert_non_null(strstr(err.msg, value));
    varve_options_fini(&o);
}

/* The same text means the same to the plugin and to the daemon. */
static void options_of_the_daemon_are_such_sizes_and_times(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_options o;

    (void)state;
    assert_int_equal(options(&o, &err, "--max-request", "4096s"), VARVE_OPTIONS_RUN);
    assert_int_equal(o.nbd.max_request, 2 << 20);
    varve_options_fini(&o);
    assert_int_equal(options(&o, &err, "--max-request", "64m"), VARVE_OPTIONS_RUN);
    assert_int_equal(o.nbd.max_request, 64 << 20);
    varve_options_fini(&o);
    assert_int_equal(options(&o, &err, "--idle-timeout", "2147483647ms"), VARVE_OPTIONS_RUN);
    assert_int_equal(o.nbd.idle_timeout_ms, 2147483647);
    varve_options_fini(&o);
    assert_int_equal(options(&o, &err, "--handshake-timeout", "3"), VARVE_OPTIONS_RUN);
    assert_int_equal(o.nbd.handshake_timeout_ms, 3000);
    varve_options_fini(&o);
    option_is_refused("--max-request", "1048575");
    option_is_refused("--max-request", "64M1");
    option_is_refused("--max-request", "65M");
    option_is_refused("--max-request", "16E");
    option_is_refused("--idle-timeout", "2147483648ms");
    option_is_refused("--handshake-timeout", "1h");
    option_is_refused("--threads", "+1");
    option_is_refused("--threads", "18446744073709551617");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_take_the_suffixes_of_nbdkit),
        cmocka_unit_test(times_are_seconds_or_say_their_unit),
        cmocka_unit_test(options_of_the_daemon_are_such_sizes_and_times),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
