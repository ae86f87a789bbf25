/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is parsed while memory runs out, at any request for some, is whole or refused for that reason.
 */
#include "lib/catalogue.h"
#include "lib/json.h"
#include "lib/qmp.h"
#include "tests/fuzz/alloc.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* More than any of them needs. */
#define REQUESTS 500u

/* Strings and numbers that do not fit what a parser has at hand. */
static const char text[] =
    "{\"backups\":[{\"disks\":[],\"ended\":1795793407291627700,\"id\":\"a-backup-with-a-long-name-of-"
    "its-own\",\"reason\":\"there was none of it, and nobody knew what to do about that\",\"state\":"
    "\"failed\",\"time\":1795793407291627701,\"ttl\":86400}],\"disks\":[{\"checkpoints\":[{\"epoch\":"
    "1234567890123456789,\"name\":\"a-checkpoint-with-a-long-name-of-its-own\",\"time\":"
    "1795793407291627702}],\"name\":\"a-disk-with-a-long-name-of-its-own\",\"uuid\":"
    "\"aa010000000000000000000000000000\"}],\"jobs\":[],\"next-backup\":2,\"next-job\":1}";

static void a_catalogue_is_whole_or_refused(void **state)
{
    unsigned refused = 0, whole = 0;

    (void)state;
    for (unsigned n = 1; n <= REQUESTS; n++) {
        struct varve_err err = VARVE_ERR_INIT;
        struct varve_catalogue *c = NULL;
        char *dump;
        int rc;

        fuzz_alloc_fail(n, false);
        rc = varve_catalogue_parse(text, &c, &err);
        fuzz_alloc_works();
        if (rc < 0) {
            assert_int_equal(rc, -ENOMEM);
            assert_non_null(strstr(err.msg, "memory"));
            refused++;
            continue;
        }
        dump = varve_catalogue_dump(c);
        assert_string_equal(dump, text);
        free(dump);
        varve_catalogue_free(c);
        whole++;
    }
    assert_true(refused > 20 && whole > 20);
}

static void a_message_is_whole_or_refused(void **state)
{
    unsigned refused = 0, whole = 0;

    (void)state;
    for (unsigned n = 1; n <= REQUESTS; n++) {
        struct varve_qmp_reader *r = varve_qmp_reader_new(VARVE_QMP_MESSAGE_MAX);
        struct varve_err err = VARVE_ERR_INIT;
        json_t *message = NULL;
        char *dump;
        int rc;

        assert_int_equal(varve_qmp_reader_feed(r, text, strlen(text), &err), 0);
        fuzz_alloc_fail(n, false);
        rc = varve_qmp_reader_next(r, &message, &err);
        fuzz_alloc_works();
        varve_qmp_reader_free(r);
        if (rc < 0) {
            assert_int_equal(rc, -ENOMEM);
            assert_null(message);
            refused++;
            continue;
        }
        dump = json_dumps(message, JSON_COMPACT | JSON_SORT_KEYS);
        assert_string_equal(dump, text);
        free(dump);
        json_decref(message);
        whole++;
    }
    assert_true(refused > 20 && whole > 20);
}

/* Text grows in steps; so each length of a key meets one of them somewhere. */
static void text_is_whole_or_there_is_none(void **state)
{
    unsigned refused = 0, whole = 0;

    (void)state;
    for (int len = 1; len <= 64; len++) {
        json_t *o = json_object();
        char *want, *got;

        for (int i = 0; i < 6; i++) {
            char key[80];

            snprintf(key, sizeof(key), "%d%0*d", i, len, 0);
            assert_int_equal(json_object_set_new(o, key, json_integer(i)), 0);
        }
        want = json_dumps(o, JSON_COMPACT);
        for (unsigned n = 1; n <= 20; n++) {
            fuzz_alloc_fail(n, false);
            got = varve_json_dump(o, JSON_COMPACT);
            fuzz_alloc_works();
            if (got)
                assert_string_equal(got, want);
            refused += !got;
            whole += !!got;
            free(got);
        }
        free(want);
        json_decref(o);
    }
    assert_true(refused > 64 && whole > 64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_catalogue_is_whole_or_refused),
        cmocka_unit_test(a_message_is_whole_or_refused),
        cmocka_unit_test(text_is_whole_or_there_is_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
