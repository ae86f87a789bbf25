/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Listeners that another thread adds and removes, against the loop that does it and its end:
 * whoever asks is answered, and no socket is left.
 */
#include "server/nbd/nbd-server.h"

#include "tests/lib/tmpdir.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static uv_loop_t loop;
static struct varve_exports *exports;
static struct varve_nbd_server *server;
static char *dir, path[200], where[210];
static bool closed;

static int setup(void **state)
{
    struct varve_nbd_options o;
    int threads = *state ? 2 : 0;

    dir = tmpdir_new();
    snprintf(path, sizeof(path), "%s/s", dir);
    snprintf(where, sizeof(where), "unix:%s", path);
    assert_int_equal(uv_loop_init(&loop), 0);
    exports = varve_exports_new();
    assert_non_null(exports);
    varve_nbd_options_default(&o);
    o.network_threads = (unsigned)threads;
    assert_int_equal(varve_nbd_server_new(&loop, exports, &o, &server, NULL), 0);
    closed = false;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    assert_int_equal(uv_loop_close(&loop), 0);
    varve_exports_free(exports);
    tmpdir_remove(dir);
    return 0;
}

static void on_closed(void *arg)
{
    (void)arg;
    closed = true;
}

/* --- the other thread ----------------------------------------------------------------------- */

struct asker {
    pthread_t thread;
    int rc;
    char real[210];
    struct varve_err err;
    uv_async_t done; /* on the loop; unused where the loop ends first */
};

static void *asker_add(void *arg)
{
    struct asker *a = arg;

    a->rc = varve_nbd_server_add(server, where, a->real, sizeof(a->real), &a->err);
    return NULL;
}

static void *asker_add_and_remove(void *arg)
{
    struct asker *a = arg;

    asker_add(a);
    if (a->rc == 0 && access(path, F_OK) < 0)
        a->rc = -errno;
    if (a->rc == 0)
        a->rc = varve_nbd_server_remove(server, a->real, &a->err);
    if (a->rc == 0 && varve_nbd_server_remove(server, a->real, &a->err) != -ENOENT)
        a->rc = -EEXIST;
    uv_async_send(&a->done);
    return NULL;
}

static void on_done(uv_async_t *async)
{
    uv_close((uv_handle_t *)async, NULL);
    varve_nbd_server_close(server, 0, on_closed, NULL);
}

static void another_thread_adds_and_removes(void **state)
{
    struct asker a = {.rc = 1};

    (void)state;
    assert_int_equal(uv_async_init(&loop, &a.done, on_done), 0);
    assert_int_equal(pthread_create(&a.thread, NULL, asker_add_and_remove, &a), 0);
    uv_run(&loop, UV_RUN_DEFAULT);
    pthread_join(a.thread, NULL);
    assert_int_equal(a.rc, 0);
    assert_string_equal(a.real, where);
    assert_true(closed);
    assert_int_equal(access(path, F_OK), -1);
    varve_nbd_server_free(server);
}

/*     loop (does not run)          other thread
 *                                  makes the socket, asks, waits
 *     close: refuses what waits
 *                                  -ESHUTDOWN, and the socket is gone
 *     closed
 *                                  asks again: -ESHUTDOWN at once
 * The path is there before the question is asked: either side of close is answered alike. */
static void who_asks_a_server_that_closes_is_refused(void **state)
{
    struct asker a = {.rc = 1};

    (void)state;
    assert_int_equal(pthread_create(&a.thread, NULL, asker_add, &a), 0);
    while (access(path, F_OK) < 0)
        usleep(100);
    varve_nbd_server_close(server, 0, on_closed, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_true(closed);
    pthread_join(a.thread, NULL);
    assert_int_equal(a.rc, -ESHUTDOWN);
    assert_int_equal(access(path, F_OK), -1);

    asker_add(&a);
    assert_int_equal(a.rc, -ESHUTDOWN);
    assert_int_equal(varve_nbd_server_remove(server, where, NULL), -ESHUTDOWN);
    assert_int_equal(access(path, F_OK), -1);
    varve_nbd_server_free(server);
}

int main(void)
{
    static int threads;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(another_thread_adds_and_removes, setup, teardown),
        cmocka_unit_test_prestate_setup_teardown(another_thread_adds_and_removes, setup, teardown,
                                                 &threads),
        cmocka_unit_test_setup_teardown(who_asks_a_server_that_closes_is_refused, setup, teardown),
        cmocka_unit_test_prestate_setup_teardown(who_asks_a_server_that_closes_is_refused, setup,
                                                 teardown, &threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
