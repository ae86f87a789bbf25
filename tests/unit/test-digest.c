/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/digest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void digest_is(const char *text, size_t piece, const char *want)
{
    uint8_t out[VARVE_DIGEST_LEN];
    char hex[2 * VARVE_DIGEST_LEN + 1];
    struct varve_digest digest;
    size_t len = strlen(text);

    assert_int_equal(varve_digest_init(&digest, NULL), 0);
    for (size_t at = 0; at < len; at += piece)
        varve_digest_update(&digest, text + at, len - at < piece ? len - at : piece);
    assert_int_equal(varve_digest_final(&digest, out, NULL), 0);
    for (size_t i = 0; i < sizeof(out); i++)
        snprintf(hex + 2 * i, 3, "%02x", out[i]);
    assert_string_equal(hex, want);
}

/* The examples of FIPS 180-2: files must be readable by other programs, and for ever. */
static void digest_is_sha_256_in_pieces_of_any_size(void **state)
{
    static const char two_blocks[] = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";

    (void)state;
    digest_is("", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    digest_is("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    for (size_t piece = 1; piece <= sizeof(two_blocks); piece++)
        digest_is(two_blocks, piece,
                  "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(digest_is_sha_256_in_pieces_of_any_size),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
