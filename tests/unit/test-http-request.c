/* SPDX-License-Identifier: BSD-3-Clause
 *
 * HTTP request heads of clients that are right, old, clumsy or hostile.
 */
#include "server/http-request.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define HOST "Host: x\r\n\r\n"

static char head[VARVE_HTTP_HEAD_MAX + 1];
static struct varve_http_request r;

static unsigned parse_len(const char *text, size_t len)
{
    memcpy(head, text, len);
    assert_int_equal(varve_http_head_len(head, len), len);
    return varve_http_request_parse(head, len, &r);
}

static unsigned parse(const char *text)
{
    return parse_len(text, strlen(text));
}

static void head_ends_at_its_empty_line(void **state)
{
    static const char text[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET ";
    size_t whole = sizeof(text) - 1 - 4;

    (void)state;
    for (size_t len = 0; len < sizeof(text); len++)
        assert_int_equal(varve_http_head_len(text, len), len < whole ? 0 : whole);
    assert_int_equal(varve_http_head_len("a\n\nb", 4), 3);
    assert_int_equal(varve_http_head_len("a\n\r\nb", 5), 4);
    assert_int_equal(varve_http_head_len("a\r\r\n\r", 5), 0);
}

static void requests_are_taken_apart(void **state)
{
    (void)state;
    assert_int_equal(parse("GET /a/b?c=d&e HTTP/1.1\r\nhOsT: \tx:80 \r\nA:\r\n\r\n"), 0);
    assert_false(r.head_only);
    assert_string_equal(r.path, "/a/b");
    assert_string_equal(r.query, "c=d&e");
    assert_string_equal(r.host, "x:80");
    assert_int_equal(parse("HEAD / HTTP/1.0\n\n"), 0);
    assert_true(r.head_only);
    assert_string_equal(r.path, "/");
    assert_string_equal(r.query, "");
    assert_null(r.host);
    /* As a proxy is asked: whom it names there is meant. */
    assert_int_equal(parse("GET HTTP://y:1/p?q HTTP/1.1\r\n" HOST), 0);
    assert_string_equal(r.host, "y:1");
    assert_string_equal(r.path, "/p");
    assert_string_equal(r.query, "q");
    assert_int_equal(parse("GET / HTTP/1.1\r\nContent-Length: 0\r\n" HOST), 0);
}

static void what_is_no_request_is_refused(void **state)
{
    static const char *const bad[] = {
        "\r\n\r\n",
        "GET\r\n\r\n",
        "GET /\r\n\r\n",
        "GET / \r\n\r\n",
        " GET / HTTP/1.1\r\n" HOST,
        "GET  / HTTP/1.1\r\n" HOST,
        "GET / HTTP/1.1 \r\n" HOST,
        "GET / x HTTP/1.1\r\n" HOST,
        "GET\t/ HTTP/1.1\r\n" HOST,
        "G(T / HTTP/1.1\r\n" HOST,
        "GET x HTTP/1.1\r\n" HOST,
        "GET * HTTP/1.1\r\n" HOST,
        "GET /#a HTTP/1.1\r\n" HOST,
        "GET /\xc3\xa4 HTTP/1.1\r\n" HOST,
        "GET /\x7f HTTP/1.1\r\n" HOST,
        "GET http:/// HTTP/1.1\r\n" HOST,
        "GET http://x HTTP/1.1\r\n" HOST,
        "GET https://x/ HTTP/1.1\r\n" HOST,
        "GET / HTTP/11\r\n" HOST,
        "GET / HTTP/1.10\r\n" HOST,
        "GET / HTTP/a.1\r\n" HOST,
        "GET / http/1.1\r\n" HOST,
        "GET / HTTP/1.1\r\n\r\n",              /* no host */
        "GET / HTTP/1.1\r\nHost: y\r\n" HOST,  /* two */
        "GET / HTTP/1.1\r\n Host: y\r\n" HOST, /* a folded line */
        "GET / HTTP/1.1\r\nA: b\r\n c\r\n" HOST,
        "GET / HTTP/1.1\r\nHost : y\r\n" HOST,
        "GET / HTTP/1.1\r\n: y\r\n" HOST,
        "GET / HTTP/1.1\r\nab\r\n" HOST,
        "GET / HTTP/1.1\r\na: b\rc\r\n" HOST,
        "GET / HTTP/1.1\r\na: \x01\r\n" HOST,
        "GET / HTTP/1.1\r\nContent-Length: 1\r\n" HOST, /* a body */
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" HOST,
    };
    static const char nul[] = "GET / HTTP/1.1\r\nA: \0\r\n" HOST;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (parse(bad[i]) != 400)
            fail_msg("taken for a request: %s", bad[i]);
    }
    assert_int_equal(parse_len(nul, sizeof(nul) - 1), 400);
    assert_int_equal(parse("POST / HTTP/1.1\r\nContent-Length: 1\r\n" HOST), 405);
    assert_int_equal(parse("get / HTTP/1.1\r\n" HOST), 405);
    assert_int_equal(parse("PRI * HTTP/2.0\r\n\r\n"), 505);
}

static void queries_are_decoded(void **state)
{
    static const char *const known[] = {"a", "b", NULL};
    char value[8];

    (void)state;
    assert_int_equal(varve_http_query_get("a=x%2fy+%C3%A4&b=2", "a", value, 8), 1);
    assert_string_equal(value, "x/y \xc3\xa4");
    assert_int_equal(varve_http_query_get("a=1&b=2", "b", value, 8), 1);
    assert_string_equal(value, "2");
    assert_int_equal(varve_http_query_get("a", "a", value, 8), 1);
    assert_string_equal(value, "");
    assert_int_equal(varve_http_query_get("a=", "a", value, 8), 1);
    assert_int_equal(varve_http_query_get("ab=1", "a", value, 8), 0);
    assert_int_equal(varve_http_query_get("", "a", value, 8), 0);
    assert_int_equal(varve_http_query_get("a=1234567", "a", value, 8), 1);
    assert_int_equal(varve_http_query_get("a=12345678", "a", value, 8), -EINVAL);
    assert_int_equal(varve_http_query_get("a=%", "a", value, 8), -EINVAL);
    assert_int_equal(varve_http_query_get("a=%4", "a", value, 8), -EINVAL);
    assert_int_equal(varve_http_query_get("a=%4&b=1", "a", value, 8), -EINVAL);
    assert_int_equal(varve_http_query_get("a=%4g", "a", value, 8), -EINVAL);
    assert_int_equal(varve_http_query_get("a=%00", "a", value, 8), -EINVAL);
    assert_true(varve_http_query_known("", known));
    assert_true(varve_http_query_known("b=1&a", known));
    assert_false(varve_http_query_known("a=1&a=2", known));
    assert_false(varve_http_query_known("c", known));
    assert_false(varve_http_query_known("&a", known));
}

static void names_of_others_are_not_ours(void **state)
{
    static const char *const names[] = {"host.example", "", NULL};
    static const char *const ours[] = {"127.0.0.1",    "127.0.0.1:80",   "192.0.2.1",
                                       "[::1]",        "[fe80::1]:8",    "localhost",
                                       "LocalHost:80", "Host.example:1", "localhost:"};
    static const char *const others[] = {"evil.example",
                                         "host.example.evil",
                                         "localhost.evil",
                                         "[::1",
                                         "[::1]x",
                                         "[host.example]",
                                         "::1",
                                         "127.0.0.1.evil:80",
                                         "1.2.3",
                                         "[127.0.0.1]",
                                         "",
                                         ":80",
                                         "localhost:80:80",
                                         "[::1]:http",
                                         "localhost:80@evil.example",
                                         "127.0.0.1:80.evil.example"};

    (void)state;
    for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++) {
        if (!varve_http_host_is_ours(ours[i], names))
            fail_msg("not ours: %s", ours[i]);
    }
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        if (varve_http_host_is_ours(others[i], names))
            fail_msg("ours: %s", others[i]);
    }
    assert_false(varve_http_host_is_ours("host.example", names + 2));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(head_ends_at_its_empty_line),   cmocka_unit_test(requests_are_taken_apart),
        cmocka_unit_test(what_is_no_request_is_refused), cmocka_unit_test(queries_are_decoded),
        cmocka_unit_test(names_of_others_are_not_ours),
    };

    return cmocka_run_group_tests_name("http-request", tests, NULL, NULL);
}
