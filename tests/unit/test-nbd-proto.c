/* SPDX-License-Identifier: BSD-3-Clause
 *
 * lib/nbd-proto: what is taken apart, what is refused, what is put together.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "lib/nbd-proto.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool ok(const char *s)
{
    return varve_nbd_string_ok(s, strlen(s));
}

static void string_takes_utf8(void **state)
{
    (void)state;
    assert_true(ok(""));
    assert_true(ok("vda@base+delta"));
    assert_true(ok("\xc3\xa9"));         /* 2 bytes */
    assert_true(ok("\xe2\x82\xac"));     /* 3 */
    assert_true(ok("\xf0\x9f\x92\xbe")); /* 4 */
    assert_true(ok("\xf4\x8f\xbf\xbf")); /* U+10FFFF */
}

static void string_refuses_what_is_no_utf8(void **state)
{
    (void)state;
    assert_false(ok("\x80"));             /* a tail alone */
    assert_false(ok("\xc3"));             /* cut */
    assert_false(ok("\xe2\x82"));         /* cut */
    assert_false(ok("\xc3("));            /* tail is none */
    assert_false(ok("\xc0\xaf"));         /* overlong */
    assert_false(ok("\xe0\x80\xaf"));     /* overlong */
    assert_false(ok("\xf0\x80\x80\xaf")); /* overlong */
    assert_false(ok("\xed\xa0\x80"));     /* a surrogate */
    assert_false(ok("\xf4\x90\x80\x80")); /* above U+10FFFF */
    assert_false(ok("\xff"));
    assert_false(varve_nbd_string_ok("a\0b", 3));
}

static void string_is_at_most_4096_bytes(void **state)
{
    char s[VARVE_NBD_STRING_MAX + 1];

    (void)state;
    memset(s, 'x', sizeof(s));
    assert_true(varve_nbd_string_ok(s, VARVE_NBD_STRING_MAX));
    assert_false(varve_nbd_string_ok(s, VARVE_NBD_STRING_MAX + 1));
}

static void option_needs_its_magic(void **state)
{
    uint8_t buf[VARVE_NBD_OPTION_LEN];
    struct varve_nbd_option opt;

    (void)state;
    varve_nbd_put64(buf, VARVE_NBD_OPTION_MAGIC);
    varve_nbd_put32(buf + 8, VARVE_NBD_OPT_GO);
    varve_nbd_put32(buf + 12, 0xfffffff0u);
    assert_int_equal(varve_nbd_decode_option(buf, &opt, NULL), 0);
    assert_int_equal(opt.type, VARVE_NBD_OPT_GO);
    assert_int_equal(opt.len, 0xfffffff0u);
    buf[7] ^= 1;
    assert_int_equal(varve_nbd_decode_option(buf, &opt, NULL), -EPROTO);
}

static void request_needs_its_magic(void **state)
{
    uint8_t buf[VARVE_NBD_REQUEST_LEN];
    struct varve_nbd_request req;

    (void)state;
    varve_nbd_put32(buf, VARVE_NBD_REQUEST_MAGIC);
    varve_nbd_put16(buf + 4, VARVE_NBD_CMD_FLAG_DF);
    varve_nbd_put16(buf + 6, VARVE_NBD_CMD_READ);
    varve_nbd_put64(buf + 8, 0x0123456789abcdefull);
    varve_nbd_put64(buf + 16, 0xfedcba9876543210ull);
    varve_nbd_put32(buf + 24, 0xffffffffu);
    assert_int_equal(varve_nbd_decode_request(buf, &req, NULL), 0);
    assert_int_equal(req.flags, VARVE_NBD_CMD_FLAG_DF);
    assert_int_equal(req.type, VARVE_NBD_CMD_READ);
    assert_true(req.cookie == 0x0123456789abcdefull);
    assert_true(req.off == 0xfedcba9876543210ull);
    assert_true(req.len == 0xffffffffu);
    buf[0] ^= 1;
    assert_int_equal(varve_nbd_decode_request(buf, &req, NULL), -EPROTO);
}

/* --- INFO, GO ------------------------------------------------------------------------------- */

/* Decodes a copy that ends where its memory ends, so that a sanitizer sees one byte too many. */
static int decode_info(const void *data, size_t len, struct varve_nbd_info_request *req)
{
    uint8_t *copy = malloc(len ? len : 1);
    int rc;

    assert_non_null(copy);
    memcpy(copy, data, len);
    rc = varve_nbd_decode_info(copy, len, req, NULL);
    if (!rc)
        assert_true((uint8_t *)req->name + req->name_len <= copy + len);
    free(copy);
    return rc;
}

static void info_takes_name_and_requests(void **state)
{
    static const uint8_t data[] = {0, 0, 0, 3, 'v', 'd', 'a', 0, 3, 0, 3, 0, 1, 0x12, 0x34};
    struct varve_nbd_info_request req;

    (void)state;
    assert_int_equal(decode_info(data, sizeof(data), &req), 0);
    assert_int_equal(req.name_len, 3);
    assert_int_equal(req.wanted, 1u << VARVE_NBD_INFO_BLOCK_SIZE | 1u << VARVE_NBD_INFO_NAME);
}

static void info_refuses_every_other_length(void **state)
{
    static const uint8_t data[] = {0, 0, 0, 3, 'v', 'd', 'a', 0, 2, 0, 3, 0, 1, 0, 0};
    struct varve_nbd_info_request req;

    (void)state;
    for (size_t len = 0; len <= sizeof(data); len++)
        assert_int_equal(decode_info(data, len, &req), len == 13 ? 0 : -EINVAL);
}

static void info_refuses_a_name_longer_than_the_option(void **state)
{
    static const uint8_t data[] = {0xff, 0xff, 0xff, 0xff, 'v', 'd', 'a', 0, 0};
    struct varve_nbd_info_request req;

    (void)state;
    assert_int_equal(decode_info(data, sizeof(data), &req), -EINVAL);
}

/* --- meta contexts -------------------------------------------------------------------------- */

static int decode_meta(const void *data, size_t len, unsigned *nbytes)
{
    uint8_t *copy = malloc(len ? len : 1);
    struct varve_nbd_meta_request req;
    int rc;

    assert_non_null(copy);
    memcpy(copy, data, len);
    rc = varve_nbd_decode_meta(copy, len, &req, NULL);
    *nbytes = 0;
    if (!rc) {
        const uint8_t *at = req.queries;

        for (uint32_t i = 0; i < req.nqueries; i++) {
            const char *query;
            size_t query_len;

            at = varve_nbd_next_query(at, &query, &query_len);
            *nbytes += (unsigned)query_len;
        }
        assert_ptr_equal(at, copy + len);
    }
    free(copy);
    return rc;
}

static const uint8_t meta_data[] = {0, 0, 0,   1,   'v', 0, 0, 0, 2,   0,   0,
                                    0, 2, 'a', ':', 0,   0, 0, 3, 'b', ':', 'c'};

static void meta_takes_queries(void **state)
{
    unsigned nbytes;

    (void)state;
    assert_int_equal(decode_meta(meta_data, sizeof(meta_data), &nbytes), 0);
    assert_int_equal(nbytes, 5);
}

static void meta_refuses_every_shorter_length(void **state)
{
    unsigned nbytes;

    (void)state;
    for (size_t len = 0; len < sizeof(meta_data); len++)
        assert_int_equal(decode_meta(meta_data, len, &nbytes), -EINVAL);
}

static void meta_refuses_bytes_behind_the_last_query(void **state)
{
    uint8_t data[sizeof(meta_data) + 1] = {0};
    unsigned nbytes;

    (void)state;
    memcpy(data, meta_data, sizeof(meta_data));
    assert_int_equal(decode_meta(data, sizeof(data), &nbytes), -EINVAL);
}

static void meta_refuses_more_queries_than_there_are(void **state)
{
    static const uint8_t data[] = {0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0};
    unsigned nbytes;

    (void)state;
    assert_int_equal(decode_meta(data, sizeof(data), &nbytes), -EINVAL);
}

/* Any bytes: no crash, and nothing handed out that lies outside (decode_info, decode_meta). */
static void decoders_bear_any_bytes(void **state)
{
    struct varve_nbd_info_request req;
    uint8_t data[64];
    unsigned nbytes;

    (void)state;
    srandom(1);
    for (int round = 0; round < 20000; round++) {
        size_t len = (size_t)random() % sizeof(data);

        /* Small numbers, so that lengths often nearly fit. */
        for (size_t i = 0; i < len; i++)
            data[i] = (uint8_t)(random() % 4 ? 0 : random() % 12);
        decode_info(data, len, &req);
        decode_meta(data, len, &nbytes);
    }
}

/* --- what a server sends -------------------------------------------------------------------- */

static void option_reply_magic_is_the_protocols(void **state)
{
    static const uint8_t want[] = {0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0,
                                   0, 7, 0x80, 0,    0, 1,    0,    0,    0, 5};
    uint8_t buf[VARVE_NBD_OPTION_REPLY_LEN];

    (void)state;
    varve_nbd_encode_option_reply(buf, VARVE_NBD_OPT_GO, VARVE_NBD_REP_ERR_UNSUP, 5);
    assert_memory_equal(buf, want, sizeof(want));
}

static void error_chunk_carries_message_and_offset(void **state)
{
    uint64_t off = 0x1122334455667788ull;
    uint8_t buf[64];
    size_t len;

    (void)state;
    len = varve_nbd_encode_error(NULL, 0, 0, VARVE_NBD_EIO, "lost", &off);
    assert_int_equal(len, VARVE_NBD_CHUNK_LEN + 6 + 4 + 8);
    assert_int_equal(
        varve_nbd_encode_error(buf, VARVE_NBD_CHUNK_DONE, 7, VARVE_NBD_EIO, "lost", &off), len);
    assert_int_equal(varve_nbd_get32(buf), VARVE_NBD_CHUNK_MAGIC);
    assert_int_equal(varve_nbd_get16(buf + 4), VARVE_NBD_CHUNK_DONE);
    assert_int_equal(varve_nbd_get16(buf + 6), VARVE_NBD_CHUNK_ERROR_OFFSET);
    assert_int_equal(varve_nbd_get64(buf + 8), 7);
    assert_int_equal(varve_nbd_get32(buf + 16), 18);
    assert_int_equal(varve_nbd_get32(buf + 20), VARVE_NBD_EIO);
    assert_int_equal(varve_nbd_get16(buf + 24), 4);
    assert_memory_equal(buf + 26, "lost", 4);
    assert_true(varve_nbd_get64(buf + 30) == off);
}

static void error_message_cut_in_a_letter_is_sent_without_its_half(void **state)
{
    uint8_t buf[64];

    (void)state;
    varve_nbd_encode_error(buf, 0, 7, VARVE_NBD_EIO, "disk \xc3\xa4\xe2\x82", NULL);
    assert_int_equal(varve_nbd_get16(buf + 24), 7);
    assert_memory_equal(buf + 26, "disk \xc3\xa4", 7);
    assert_int_equal(varve_nbd_get32(buf + 16), 6 + 7);
    varve_nbd_encode_error(buf, 0, 7, VARVE_NBD_EIO, "\xff", NULL);
    assert_int_equal(varve_nbd_get32(buf + 16), 6);
}

static void chunk_done_is_added_later(void **state)
{
    uint8_t buf[VARVE_NBD_HOLE_LEN];

    (void)state;
    varve_nbd_encode_hole(buf, 0, 9, 4096, 8192);
    assert_int_equal(varve_nbd_get16(buf + 4), 0);
    varve_nbd_chunk_set_done(buf);
    assert_int_equal(varve_nbd_get16(buf + 4), VARVE_NBD_CHUNK_DONE);
    assert_int_equal(varve_nbd_get16(buf + 6), VARVE_NBD_CHUNK_OFFSET_HOLE);
    assert_int_equal(varve_nbd_get32(buf + 16), 12);
    assert_int_equal(varve_nbd_get64(buf + 20), 4096);
    assert_int_equal(varve_nbd_get32(buf + 28), 8192);
}

static void extended_request_needs_its_magic_and_has_64_bits(void **state)
{
    uint8_t buf[VARVE_NBD_EXT_REQUEST_LEN];
    struct varve_nbd_request req;

    (void)state;
    varve_nbd_put32(buf, VARVE_NBD_EXT_REQUEST_MAGIC);
    varve_nbd_put16(buf + 4, VARVE_NBD_CMD_FLAG_PAYLOAD_LEN);
    varve_nbd_put16(buf + 6, VARVE_NBD_CMD_BLOCK_STATUS);
    varve_nbd_put64(buf + 8, 0x1122334455667788ull);
    varve_nbd_put64(buf + 16, 4096);
    varve_nbd_put64(buf + 24, 0xfedcba9876543210ull);
    assert_int_equal(varve_nbd_decode_ext_request(buf, &req, NULL), 0);
    assert_int_equal(req.flags, VARVE_NBD_CMD_FLAG_PAYLOAD_LEN);
    assert_int_equal(req.type, VARVE_NBD_CMD_BLOCK_STATUS);
    assert_true(req.cookie == 0x1122334455667788ull && req.off == 4096);
    assert_true(req.len == 0xfedcba9876543210ull);
    varve_nbd_put32(buf, VARVE_NBD_REQUEST_MAGIC);
    assert_int_equal(varve_nbd_decode_ext_request(buf, &req, NULL), -EPROTO);
}

static void extended_chunk_differs_in_its_header_only(void **state)
{
    uint8_t buf[VARVE_NBD_EXTENSION_LEN + VARVE_NBD_HOLE_LEN];

    (void)state;
    varve_nbd_encode_hole(buf + VARVE_NBD_EXTENSION_LEN, VARVE_NBD_CHUNK_DONE, 9, 4096, 8192);
    varve_nbd_extend_chunk(buf, 1234);
    assert_int_equal(varve_nbd_get32(buf), VARVE_NBD_EXT_CHUNK_MAGIC);
    assert_int_equal(varve_nbd_get16(buf + 4), VARVE_NBD_CHUNK_DONE);
    assert_int_equal(varve_nbd_get16(buf + 6), VARVE_NBD_CHUNK_OFFSET_HOLE);
    assert_int_equal(varve_nbd_get64(buf + 8), 9);
    assert_int_equal(varve_nbd_get64(buf + 16), 1234);
    assert_int_equal(varve_nbd_get64(buf + 24), 12);
    assert_int_equal(varve_nbd_get64(buf + 32), 4096);
    assert_int_equal(varve_nbd_get32(buf + 40), 8192);
}

static void errors_are_only_those_the_protocol_knows(void **state)
{
    static const uint32_t known[] = {VARVE_NBD_EPERM,    VARVE_NBD_EIO,    VARVE_NBD_ENOMEM,
                                     VARVE_NBD_EINVAL,   VARVE_NBD_ENOSPC, VARVE_NBD_EOVERFLOW,
                                     VARVE_NBD_ESHUTDOWN};

    (void)state;
    assert_int_equal(varve_nbd_error(EROFS), VARVE_NBD_EPERM);
    assert_int_equal(varve_nbd_error(ESTALE), VARVE_NBD_EIO);
    assert_int_equal(varve_nbd_error(EDQUOT), VARVE_NBD_ENOSPC);
    for (int code = 1; code < 200; code++) {
        uint32_t error = varve_nbd_error(code);
        bool found = false;

        for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
            found |= known[i] == error;
        assert_true(found);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(string_takes_utf8),
        cmocka_unit_test(string_refuses_what_is_no_utf8),
        cmocka_unit_test(string_is_at_most_4096_bytes),
        cmocka_unit_test(option_needs_its_magic),
        cmocka_unit_test(request_needs_its_magic),
        cmocka_unit_test(info_takes_name_and_requests),
        cmocka_unit_test(info_refuses_every_other_length),
        cmocka_unit_test(info_refuses_a_name_longer_than_the_option),
        cmocka_unit_test(meta_takes_queries),
        cmocka_unit_test(meta_refuses_every_shorter_length),
        cmocka_unit_test(meta_refuses_bytes_behind_the_last_query),
        cmocka_unit_test(meta_refuses_more_queries_than_there_are),
        cmocka_unit_test(decoders_bear_any_bytes),
        cmocka_unit_test(option_reply_magic_is_the_protocols),
        cmocka_unit_test(error_chunk_carries_message_and_offset),
        cmocka_unit_test(error_message_cut_in_a_letter_is_sent_without_its_half),
        cmocka_unit_test(chunk_done_is_added_later),
        cmocka_unit_test(extended_request_needs_its_magic_and_has_64_bits),
        cmocka_unit_test(extended_chunk_differs_in_its_header_only),
        cmocka_unit_test(errors_are_only_those_the_protocol_knows),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
