/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The QMP reader against peers that are clumsy, unlucky or hostile.
 */
#include "lib/qmp.h"

#include <errno.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

/* What a stream gave, one letter a message: 'o' object, 'e' refused, 'B' too long. */
struct outcome {
    char letters[256];
    size_t count;
    json_t *last;
    struct varve_err err;
};

static void outcome_add(struct outcome *o, char letter)
{
    if (o->count + 1 < sizeof(o->letters))
        o->letters[o->count] = letter;
    o->count++;
}

static void drain(struct varve_qmp_reader *r, struct outcome *o)
{
    for (;;) {
        json_t *message;
        int rc = varve_qmp_reader_next(r, &message, &o->err);

        if (rc == 0)
            return;
        if (rc == 1) {
            assert_true(json_is_object(message));
            json_decref(o->last);
            o->last = message;
            outcome_add(o, 'o');
        } else if (rc == -EINVAL) {
            assert_null(message);
            assert_true(o->err.msg[0] != '\0');
            assert_null(strchr(o->err.msg, '\n'));
            outcome_add(o, 'e');
        } else {
            assert_int_equal(rc, -E2BIG);
            outcome_add(o, 'B');
            return;
        }
    }
}

/* Feeds text in pieces of `piece` bytes and expects these letters. */
static void expect_pieces(const char *text, size_t len, size_t piece, const char *letters)
{
    struct varve_qmp_reader *r = varve_qmp_reader_new(VARVE_QMP_MESSAGE_MAX);
    struct outcome o = {0};

    assert_non_null(r);
    for (size_t off = 0; off < len; off += piece) {
        size_t chunk = len - off < piece ? len - off : piece;

        assert_int_equal(varve_qmp_reader_feed(r, text + off, chunk, &o.err), 0);
        drain(r, &o);
    }
    if (strcmp(o.letters, letters) != 0)
        print_error("in pieces of %zu: %s\n", piece, text);
    assert_string_equal(o.letters, letters);
    json_decref(o.last);
    varve_qmp_reader_free(r);
}

static void expect_bytes(const char *text, size_t len, const char *letters)
{
    for (size_t piece = 1; piece <= len && piece < 70; piece++)
        expect_pieces(text, len, piece, letters);
    expect_pieces(text, len, len, letters);
}

static void expect(const char *text, const char *letters)
{
    expect_bytes(text, strlen(text), letters);
}

static void objects_split_over_reads_are_whole(void **state)
{
    (void)state;
    expect("{\"execute\": \"query-disks\", \"arguments\": {\"disk\": \"vda\"}}", "o");
    expect("{}", "o");
    expect("{", "");
}

static void objects_need_no_white_space_between(void **state)
{
    (void)state;
    expect("{}{}{\"a\":{\"b\":[{},{}]}}{}", "oooo");
    expect(" \r\n\t{} \n\n {}\r\n", "oo");
}

static void brackets_in_strings_do_not_count(void **state)
{
    (void)state;
    expect("{\"a\": \"}}]{\", \"b\": \"\\\"}\"}{\"c\": \"\\\\\"}", "oo");
    expect("{\"}\": [\"]\", \"\\u007b\"]}", "o");
}

static void reader_is_idle_only_between_messages(void **state)
{
    struct varve_qmp_reader *r = varve_qmp_reader_new(100);
    struct outcome o = {0};

    (void)state;
    assert_non_null(r);
    assert_true(varve_qmp_reader_idle(r));
    assert_int_equal(varve_qmp_reader_feed(r, "{\"a\": ", 6, &o.err), 0);
    drain(r, &o);
    assert_false(varve_qmp_reader_idle(r));
    assert_int_equal(varve_qmp_reader_feed(r, "1}\n", 3, &o.err), 0);
    assert_false(varve_qmp_reader_idle(r));
    drain(r, &o);
    assert_true(varve_qmp_reader_idle(r));
    assert_string_equal(o.letters, "o");
    json_decref(o.last);
    varve_qmp_reader_free(r);
}

static void values_that_are_no_objects_are_refused_once(void **state)
{
    (void)state;
    expect("[{\"a\": 1}, [\"]\"]]{}", "eo");
    expect("12 \"x\" true\n{}", "eo");
    expect("GET / HTTP/1.1\r\nHost: x\r\n{}", "eeo");
    expect("}}}\n{}", "eo");
}

static void bad_json_between_brackets_is_refused_and_skipped(void **state)
{
    (void)state;
    expect("{nonsense}{}", "eo");
    expect("{\"a\": }{\"a\": 1, \"a\": 2}{}", "eeo");
    expect("{\"a\": [}\n{}", "eo");
    expect("{\"a\": 99999999999999999999}{\"a\": 1e999}{}", "eeo");
}

static void forgotten_quote_costs_one_line(void **state)
{
    (void)state;
    expect("{\"execute\": \"quit}\n{}", "eo");
    expect("{\"execute\": \"quit}\r\n{}", "eo");
}

static void nul_and_broken_utf8_are_refused(void **state)
{
    static const char nul_outside[] = "\0\n{}";
    static const char nul_inside[] = "{\"a\0\": 1}\n{}";
    static const char nul_between[] = "{\0}{}";

    (void)state;
    expect_bytes(nul_outside, sizeof(nul_outside) - 1, "eo");
    expect_bytes(nul_inside, sizeof(nul_inside) - 1, "eo");
    expect_bytes(nul_between, sizeof(nul_between) - 1, "eo");
    expect("{\"a\": \"\\u0000\"}{}", "eo");
    expect("{\"a\": \"\xff\xfe\"}{}", "eo");
    expect("{\"a\": \"\xc3\"}{}", "eo");
    expect("\xff\n{}", "eo");
}

static void deep_nesting_is_refused_up_to_its_end(void **state)
{
    const size_t depth = 200000;
    char *text = malloc(2 * depth + 16);
    size_t len = 5;

    (void)state;
    assert_non_null(text);
    memcpy(text, "{\"a\":", len);
    memset(text + len, '[', depth);
    memset(text + len + depth, ']', depth);
    memcpy(text + len + 2 * depth, "}{}", 4);
    expect_pieces(text, strlen(text), 4096, "eo");

    memset(text, '{', 2 * depth);
    expect_pieces(text, 2 * depth, 4096, "e");
    free(text);

    for (unsigned levels = 1020; levels < 1030; levels++) {
        char small[4096];

        memcpy(small, "{\"a\":", len);
        memset(small + len, '[', levels - 1);
        memset(small + len + levels - 1, ']', levels - 1);
        memcpy(small + len + 2 * (levels - 1), "}{}", 4);
        expect_pieces(small, strlen(small), 100, levels <= 1024 ? "oo" : "eo");
    }
}

static double now_s(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

enum { CHUNK = 65536, GARBAGE = 100 * 1024 * 1024 };

/* Feeds GARBAGE bytes that repeat chunk; true: the reader gave up on the way. */
static bool feed_garbage(const char *chunk, struct outcome *o)
{
    struct varve_qmp_reader *r = varve_qmp_reader_new(VARVE_QMP_MESSAGE_MAX);
    size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
    double begun = now_s();
    bool dead = false;

    assert_non_null(r);
    for (size_t fed = 0; fed < GARBAGE && !dead; fed += CHUNK) {
        int rc = varve_qmp_reader_feed(r, chunk, CHUNK, &o->err);
        size_t held = mallinfo2().uordblks + mallinfo2().hblkhd - before;

        assert_true(rc == 0 || rc == -E2BIG);
        assert_true(held < 2 * VARVE_QMP_MESSAGE_MAX + 4 * CHUNK);
        dead = rc != 0;
        if (!dead)
            drain(r, o);
    }
    /* Quadratic work would take hours; the bound leaves room for sanitizers. */
    assert_true(now_s() - begun < 60);
    if (dead) {
        json_t *none;

        assert_int_equal(varve_qmp_reader_next(r, &none, &o->err), -E2BIG);
        assert_null(none);
    }
    varve_qmp_reader_free(r);
    return dead;
}

static void hundred_megabytes_of_garbage_stay_bounded(void **state)
{
    static char chunk[CHUNK];
    static const char *const fills[] = {" ", "x", "{", "[", "\"", "{\"", "{\"a\":\"", "]"};
    uint64_t seed = 1;

    (void)state;
    for (size_t f = 0; f < sizeof(fills) / sizeof(fills[0]); f++) {
        struct outcome o = {0};
        size_t len = strlen(fills[f]);

        for (size_t i = 0; i < CHUNK; i++)
            chunk[i] = fills[f][i % len];
        assert_int_equal(feed_garbage(chunk, &o), fills[f][0] != ' ');
        assert_true(o.count <= 2);
    }
    for (size_t i = 0; i < CHUNK; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        chunk[i] = (char)(seed >> 56);
    }
    struct outcome random = {0};

    feed_garbage(chunk, &random);
    assert_true(random.count > 0);
}

static void long_message_is_refused_whatever_the_reads(void **state)
{
    (void)state;
    for (size_t over = 0; over < 2; over++) {
        const size_t max = 1000;
        size_t len = max + over;
        char text[1100];
        char *quote;

        memset(text, 'x', sizeof(text));
        memcpy(text, "{\"a\":\"", 6);
        quote = text + len - 2;
        memcpy(quote, "\"}", 2);
        for (size_t piece = 1; piece <= len; piece += 37) {
            struct varve_qmp_reader *r = varve_qmp_reader_new(max);
            struct outcome o = {0};

            assert_non_null(r);
            for (size_t off = 0; off < len && !strchr(o.letters, 'B'); off += piece) {
                size_t chunk = len - off < piece ? len - off : piece;

                assert_int_equal(varve_qmp_reader_feed(r, text + off, chunk, &o.err), 0);
                drain(r, &o);
            }
            assert_string_equal(o.letters, over ? "B" : "o");
            if (over)
                assert_int_equal(varve_qmp_reader_feed(r, "{}", 2, &o.err), -E2BIG);
            json_decref(o.last);
            varve_qmp_reader_free(r);
        }
    }
}

static void one_large_read_with_many_messages_gives_all(void **state)
{
    const size_t count = 400000;
    char *text = malloc(2 * count);
    struct varve_qmp_reader *r = varve_qmp_reader_new(100);
    struct outcome o = {0};

    (void)state;
    assert_non_null(text);
    assert_non_null(r);
    for (size_t i = 0; i < count; i++)
        memcpy(text + 2 * i, "{}", 2);
    assert_int_equal(varve_qmp_reader_feed(r, text, 2 * count, &o.err), 0);
    drain(r, &o);
    assert_int_equal(o.count, count);
    json_decref(o.last);
    varve_qmp_reader_free(r);
    free(text);
}

static void check_dump(json_t *message, const char *want)
{
    size_t len = 0;
    char *line = varve_qmp_dump(message, &len);

    assert_non_null(line);
    assert_string_equal(line, want);
    assert_int_equal(len, strlen(want));
    free(line);
    json_decref(message);
}

static void messages_have_the_shape_of_qemus(void **state)
{
    json_t *id = json_pack("{s:i}", "n", 7);
    json_t *greeting = varve_qmp_greeting();
    json_t *varve =
        json_object_get(json_object_get(json_object_get(greeting, "QMP"), "version"), "varve");

    (void)state;
    assert_true(json_is_integer(json_object_get(varve, "major")));
    assert_true(json_is_integer(json_object_get(varve, "minor")));
    assert_true(json_is_integer(json_object_get(varve, "micro")));
    assert_int_equal(
        json_array_size(json_object_get(json_object_get(greeting, "QMP"), "capabilities")), 0);
    json_decref(greeting);

    check_dump(varve_qmp_return(NULL, NULL), "{\"return\": {}}\r\n");
    check_dump(varve_qmp_return(json_pack("[i]", 1), id),
               "{\"return\": [1], \"id\": {\"n\": 7}}\r\n");
    check_dump(varve_qmp_error("GenericError", "no", id),
               "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": {\"n\": "
               "7}}\r\n");
    check_dump(varve_qmp_error("GenericError", "a\xff\n", NULL),
               "{\"error\": {\"class\": \"GenericError\", \"desc\": \"a?\\n\"}}\r\n");
    check_dump(varve_qmp_error("GenericError", "\xc3\xa4\xc3' \xe2\x82\xac\xe2\x82", NULL),
               "{\"error\": {\"class\": \"GenericError\", \"desc\": \"\xc3\xa4?' "
               "\xe2\x82\xac??\"}}\r\n");
    check_dump(varve_qmp_event("BACKUP_STARTED", json_pack("{s:s}", "id", "b"), 1500000001),
               "{\"event\": \"BACKUP_STARTED\", \"data\": {\"id\": \"b\"}, \"timestamp\": "
               "{\"seconds\": 1, \"microseconds\": 500000}}\r\n");
    check_dump(varve_qmp_event("X", NULL, 0), "{\"event\": \"X\", \"timestamp\": {\"seconds\": 0, "
                                              "\"microseconds\": 0}}\r\n");
    json_decref(id);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(objects_split_over_reads_are_whole),
        cmocka_unit_test(objects_need_no_white_space_between),
        cmocka_unit_test(brackets_in_strings_do_not_count),
        cmocka_unit_test(reader_is_idle_only_between_messages),
        cmocka_unit_test(values_that_are_no_objects_are_refused_once),
        cmocka_unit_test(bad_json_between_brackets_is_refused_and_skipped),
        cmocka_unit_test(forgotten_quote_costs_one_line),
        cmocka_unit_test(nul_and_broken_utf8_are_refused),
        cmocka_unit_test(deep_nesting_is_refused_up_to_its_end),
        cmocka_unit_test(hundred_megabytes_of_garbage_stay_bounded),
        cmocka_unit_test(long_message_is_refused_whatever_the_reads),
        cmocka_unit_test(one_large_read_with_many_messages_gives_all),
        cmocka_unit_test(messages_have_the_shape_of_qemus),
    };

    return cmocka_run_group_tests_name("qmp", tests, NULL, NULL);
}
