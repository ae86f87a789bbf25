/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A TLS session against a real client in the same process: bytes are carried by hand, so that they
 * can be cut, kept back and broken anywhere.
 */
#include "server/nbd/tls-session.h"

#include "server/nbd/tls-psk.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define KEY_HEX "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

struct wire {
    uint8_t data[4u << 20];
    size_t pos, len;
};

struct pair {
    struct varve_tls *tls;
    struct varve_tls_session *server;
    gnutls_session_t client;
    gnutls_psk_client_credentials_t creds;
    struct wire *up, *down; /* to the server, to the client */
    size_t piece;           /* bytes that are carried at once */
};

static char psk_path[256];

static ssize_t client_pull(gnutls_transport_ptr_t arg, void *buf, size_t len)
{
    struct pair *p = arg;
    size_t have = p->down->len - p->down->pos;

    if (!have) {
        gnutls_transport_set_errno(p->client, EAGAIN);
        return -1;
    }
    len = len < have ? len : have;
    memcpy(buf, p->down->data + p->down->pos, len);
    p->down->pos += len;
    return (ssize_t)len;
}

static ssize_t client_push(gnutls_transport_ptr_t arg, const void *buf, size_t len)
{
    struct pair *p = arg;

    assert_true(p->up->len + len <= sizeof(p->up->data));
    memcpy(p->up->data + p->up->len, buf, len);
    p->up->len += len;
    return (ssize_t)len;
}

/* Carries up to p->piece bytes to the server.  False: there is nothing or no room. */
static bool carry_up(struct pair *p)
{
    size_t room, n = p->up->len - p->up->pos;
    uint8_t *to = varve_tls_session_room(p->server, &room);

    n = n < p->piece ? n : p->piece;
    n = n < room ? n : room;
    memcpy(to, p->up->data + p->up->pos, n);
    varve_tls_session_filled(p->server, n);
    p->up->pos += n;
    return n > 0;
}

static void carry_down(struct pair *p)
{
    uint8_t *data;
    size_t len;

    if (!varve_tls_session_take_output(p->server, &data, &len))
        return;
    assert_true(p->down->len + len <= sizeof(p->down->data));
    memcpy(p->down->data + p->down->len, data, len);
    p->down->len += len;
    free(data);
}

static void pair_open(struct pair *p, const char *priority, const char *user, const char *key)
{
    struct varve_tls_options o = {.mode = VARVE_TLS_REQUIRE, .psk = psk_path};
    gnutls_datum_t k = {(unsigned char *)(uintptr_t)key, (unsigned)strlen(key)};
    struct varve_err err = VARVE_ERR_INIT;

    memset(p, 0, sizeof(*p));
    p->up = calloc(1, sizeof(*p->up));
    p->down = calloc(1, sizeof(*p->down));
    p->piece = 65536;
    if (varve_tls_load(&o, &p->tls, &err) || varve_tls_session_new(p->tls, &p->server, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(gnutls_init(&p->client, GNUTLS_CLIENT | GNUTLS_NONBLOCK), 0);
    assert_int_equal(gnutls_psk_allocate_client_credentials(&p->creds), 0);
    assert_int_equal(gnutls_psk_set_client_credentials(p->creds, user, &k, GNUTLS_PSK_KEY_HEX), 0);
    assert_int_equal(gnutls_credentials_set(p->client, GNUTLS_CRD_PSK, p->creds), 0);
    assert_int_equal(gnutls_priority_set_direct(p->client, priority, NULL), 0);
    gnutls_transport_set_ptr(p->client, p);
    gnutls_transport_set_pull_function(p->client, client_pull);
    gnutls_transport_set_push_function(p->client, client_push);
}

static void pair_close(struct pair *p)
{
    varve_tls_session_free(p->server);
    varve_tls_unref(p->tls);
    gnutls_deinit(p->client);
    gnutls_psk_free_client_credentials(p->creds);
    free(p->up);
    free(p->down);
}

/* Both hands shaken: 0.  Else the server's error, or -ETIMEDOUT if nothing moves any more. */
static int shake(struct pair *p, struct varve_err *err)
{
    int client = GNUTLS_E_AGAIN, server = -EAGAIN;

    for (int i = 0; i < 100000; i++) {
        if (client)
            client = gnutls_handshake(p->client);
        carry_up(p);
        if (server)
            server = varve_tls_session_handshake(p->server, err);
        carry_down(p);
        if (!client && !server)
            return 0;
        if (server && server != -EAGAIN)
            return server;
        if (client && gnutls_error_is_fatal(client))
            return -ECONNABORTED;
    }
    return -ETIMEDOUT;
}

static const char *const priorities[] = {
    "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+ECDHE-PSK",
    "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+DHE-PSK",
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+ECDHE-PSK:+PSK",
};
#define TLS12 0
#define TLS13 2

static void shaken(struct pair *p, const char *priority)
{
    struct varve_err err = VARVE_ERR_INIT;
    int rc;

    pair_open(p, priority, "alice", KEY_HEX);
    rc = shake(p, &err);
    if (rc)
        fail_msg("%s: %d %s", priority, rc, err.msg);
}

static void handshake_is_the_same_in_pieces_of_any_size(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(priorities) / sizeof(priorities[0]); i++) {
        for (size_t piece = 1; piece < 5000; piece = piece * 3 + 1) {
            struct varve_client_id id = {0};
            struct pair p;

            pair_open(&p, priorities[i], "alice", KEY_HEX);
            p.piece = piece;
            assert_int_equal(shake(&p, NULL), 0);
            assert_int_equal(varve_tls_session_identify(p.server, &id, NULL), 0);
            assert_int_equal(id.proof, VARVE_CLIENT_PSK);
            assert_string_equal(id.name, "alice");
            pair_close(&p);
        }
    }
}

static void wrong_key_and_unknown_user_fail_alike(void **state)
{
    static const char wrong[] = "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    (void)state;
    for (size_t i = 0; i < sizeof(priorities) / sizeof(priorities[0]); i++) {
        struct varve_err key = VARVE_ERR_INIT, user = VARVE_ERR_INIT;
        struct pair p;

        pair_open(&p, priorities[i], "alice", wrong);
        assert_int_equal(shake(&p, &key), -EPROTO);
        pair_close(&p);
        pair_open(&p, priorities[i], "mallory", KEY_HEX);
        assert_int_equal(shake(&p, &user), -EPROTO);
        pair_close(&p);
        assert_string_equal(key.msg, user.msg);
    }
}

static void versions_below_1_2_are_refused(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct pair p;

    (void)state;
    pair_open(&p, "NORMAL:-VERS-ALL:+VERS-TLS1.1:-KX-ALL:+ECDHE-PSK:+DHE-PSK", "alice", KEY_HEX);
    assert_int_equal(shake(&p, &err), -EPROTO);
    assert_true(p.down->len > 0); /* an alert says so */
    pair_close(&p);
}

static void garbage_is_an_error_or_half_a_record(void **state)
{
    (void)state;
    srand(11);
    for (int i = 0; i < 500; i++) {
        struct pair p;
        int rc;

        pair_open(&p, priorities[TLS13], "alice", KEY_HEX);
        for (size_t k = 0; k < 4096; k++)
            p.up->data[k] = (uint8_t)rand();
        if (i % 2) { /* the look of a record, at least */
            p.up->data[0] = 22;
            p.up->data[1] = 3;
            p.up->data[2] = 3;
            p.up->data[3] = 0;
        }
        p.up->len = 4096;
        carry_up(&p);
        rc = varve_tls_session_handshake(p.server, NULL);
        assert_true(rc == -EPROTO || rc == -EAGAIN);
        pair_close(&p);
    }
}

static void flipped_bits_break_the_handshake_or_the_record(void **state)
{
    (void)state;
    for (unsigned at = 0; at < 300; at += 7) {
        struct varve_err err = VARVE_ERR_INIT;
        uint8_t buf[64];
        struct pair p;

        shaken(&p, priorities[at % 2 ? TLS12 : TLS13]);
        assert_int_equal(gnutls_record_send(p.client, "0123456789abcdef", 16), 16);
        p.up->data[p.up->pos + 5 + at % (p.up->len - p.up->pos - 5)] ^= 0x10;
        carry_up(&p);
        assert_int_equal(varve_tls_session_recv(p.server, buf, sizeof(buf), &err), -EPROTO);
        assert_true(err.msg[0] != 0);
        pair_close(&p);
    }
}

static void bytes_arrive_whole_in_pieces_of_any_size(void **state)
{
    static uint8_t sent[100000], got[100000 + 10];

    (void)state;
    for (size_t i = 0; i < sizeof(sent); i++)
        sent[i] = (uint8_t)(i * 7 + i / 256);
    for (size_t piece = 1; piece < 40000; piece = piece * 7 + 3) {
        size_t have = 0, off = 0;
        struct pair p;

        shaken(&p, priorities[piece % 3]);
        p.piece = piece;
        while (off < sizeof(sent)) {
            ssize_t n = gnutls_record_send(p.client, sent + off, sizeof(sent) - off);

            assert_true(n > 0);
            off += (size_t)n;
        }
        while (have < sizeof(sent)) {
            ssize_t n = varve_tls_session_recv(p.server, got + have, piece % 100 + 1, NULL);

            if (n == -EAGAIN) {
                assert_true(carry_up(&p));
                continue;
            }
            assert_true(n > 0);
            have += (size_t)n;
        }
        assert_memory_equal(sent, got, sizeof(sent));
        assert_int_equal(varve_tls_session_recv(p.server, got, 1, NULL), -EAGAIN);
        pair_close(&p);
    }
}

static void what_is_sent_arrives_in_large_records(void **state)
{
    static uint8_t sent[300000], got[300000];
    size_t have = 0;
    struct pair p;

    (void)state;
    for (size_t i = 0; i < sizeof(sent); i++)
        sent[i] = (uint8_t)(i ^ i >> 9);
    shaken(&p, priorities[TLS13]);
    assert_int_equal(varve_tls_session_send(p.server, sent, sizeof(sent), NULL), 0);
    assert_true(varve_tls_session_output_len(p.server) < sizeof(sent) + 19 * 64);
    carry_down(&p);
    while (have < sizeof(got)) {
        ssize_t n = gnutls_record_recv(p.client, got + have, sizeof(got) - have);

        assert_true(n > 0);
        have += (size_t)n;
    }
    assert_memory_equal(sent, got, sizeof(sent));
    pair_close(&p);
}

static void output_that_nobody_takes_is_bounded(void **state)
{
    static const uint8_t zeroes[VARVE_TLS_RECORD_MAX];
    struct varve_err err = VARVE_ERR_INIT;
    struct pair p;
    int rc = 0;

    (void)state;
    shaken(&p, priorities[TLS13]);
    for (int i = 0; i < 1000 && !rc; i++)
        rc = varve_tls_session_send(p.server, zeroes, sizeof(zeroes), &err);
    assert_int_equal(rc, -ENOMEM);
    assert_true(varve_tls_session_output_len(p.server) <= VARVE_TLS_OUTPUT_MAX);
    pair_close(&p);
}

static void input_that_nobody_looks_at_is_bounded(void **state)
{
    struct pair p;
    size_t room, all = 0;

    (void)state;
    shaken(&p, priorities[TLS13]);
    p.up->len = p.up->pos + 100000;
    p.piece = 1000;
    for (; carry_up(&p); all += 1000)
        assert_true(all <= VARVE_TLS_INPUT_LEN);
    varve_tls_session_room(p.server, &room);
    assert_int_equal(room, 0);
    varve_tls_session_ignore(p.server);
    varve_tls_session_room(p.server, &room);
    assert_int_equal(room, VARVE_TLS_INPUT_LEN);
    pair_close(&p);
}

static void half_a_record_is_waited_for(void **state)
{
    uint8_t buf[64];
    struct pair p;

    (void)state;
    shaken(&p, priorities[TLS13]);
    assert_int_equal(gnutls_record_send(p.client, "0123456789", 10), 10);
    p.piece = (p.up->len - p.up->pos) / 2;
    carry_up(&p);
    assert_int_equal(varve_tls_session_recv(p.server, buf, sizeof(buf), NULL), -EAGAIN);
    p.piece = 1000;
    carry_up(&p);
    assert_int_equal(varve_tls_session_recv(p.server, buf, sizeof(buf), NULL), 10);
    pair_close(&p);
}

static void new_key_is_no_end_of_the_data_behind_it(void **state)
{
    uint8_t buf[64];
    struct pair p;

    (void)state;
    shaken(&p, priorities[TLS13]);
    assert_int_equal(gnutls_session_key_update(p.client, GNUTLS_KU_PEER), 0);
    assert_int_equal(gnutls_record_send(p.client, "0123456789", 10), 10);
    carry_up(&p);
    assert_int_equal(varve_tls_session_recv(p.server, buf, sizeof(buf), NULL), 10);
    assert_int_equal(varve_tls_session_send(p.server, "answer", 6, NULL), 0);
    carry_down(&p);
    /* GnuTLS tells of our new key first. */
    assert_int_equal(gnutls_record_recv(p.client, buf, sizeof(buf)), GNUTLS_E_AGAIN);
    assert_int_equal(gnutls_record_recv(p.client, buf, sizeof(buf)), 6);
    pair_close(&p);
}

static void flood_of_new_keys_ends_the_session(void **state)
{
    uint8_t buf[64];
    struct pair p;
    ssize_t rc = -EAGAIN;

    (void)state;
    shaken(&p, priorities[TLS13]);
    for (int i = 0; i < 1000 && rc == -EAGAIN; i++) {
        if (gnutls_session_key_update(p.client, GNUTLS_KU_PEER))
            break; /* the client's own limit */
        carry_up(&p);
        rc = varve_tls_session_recv(p.server, buf, sizeof(buf), NULL);
    }
    assert_true(varve_tls_session_output_len(p.server) < 4096);
    pair_close(&p);
}

static void renegotiation_is_refused(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    uint8_t buf[64];
    struct pair p;

    (void)state;
    shaken(&p, priorities[TLS12]);
    assert_int_equal(gnutls_handshake(p.client), GNUTLS_E_AGAIN);
    assert_true(p.up->len > p.up->pos);
    carry_up(&p);
    assert_int_equal(varve_tls_session_recv(p.server, buf, sizeof(buf), &err), -EPROTO);
    pair_close(&p);
}

static void byes_are_heard_on_both_sides(void **state)
{
    uint8_t buf[64];
    struct pair p;

    (void)state;
    shaken(&p, priorities[TLS13]);
    varve_tls_session_bye(p.server);
    carry_down(&p);
    assert_int_equal(gnutls_record_recv(p.client, buf, sizeof(buf)), 0);
    assert_int_equal(gnutls_bye(p.client, GNUTLS_SHUT_WR), 0);
    carry_up(&p);
    assert_int_equal(varve_tls_session_recv(p.server, buf, sizeof(buf), NULL), 0);
    pair_close(&p);
}

static void sessions_keep_the_keys_they_began_with(void **state)
{
    struct pair p;

    (void)state;
    pair_open(&p, priorities[TLS13], "alice", KEY_HEX);
    varve_tls_unref(p.tls); /* the daemon has new ones */
    p.tls = NULL;
    assert_int_equal(shake(&p, NULL), 0);
    pair_close(&p);
}

/* --- keys.psk --------------------------------------------------------------------------------- */

static void psk_refused(const char *text, const char *expected)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_psk *psk = NULL;

    assert_int_equal(varve_psk_parse("keys", text, strlen(text), &psk, &err), -EINVAL);
    assert_null(psk);
    if (!strstr(err.msg, expected))
        fail_msg("'%s' does not say '%s'", err.msg, expected);
    assert_null(strstr(err.msg, "0011")); /* no key, or half of one, in any log */
}

static void broken_key_files_are_refused_with_their_line(void **state)
{
    (void)state;
    psk_refused("", "keys holds no key");
    psk_refused("\n\n", "no key");
    psk_refused("a:00\nalice\n", "keys:2: USER:HEXKEY");
    psk_refused(":0011", "a user of 1");
    psk_refused("a:", "hexadecimal");
    psk_refused("a:001", "hexadecimal");
    psk_refused("a:0011zz", "not hexadecimal");
    psk_refused("a:" KEY_HEX KEY_HEX "00", "hexadecimal");
    psk_refused("a:00\na:11\n", "keys:2: the user has a key already");
    psk_refused("#zz:0011", "not hexadecimal");
    psk_refused("#:0011", "hexadecimal");
}

static void users_are_found_by_all_their_bytes(void **state)
{
    static const char text[] = "al:ice:00ff\r\n#00ff:0102\n\nbob:" KEY_HEX;
    struct varve_psk *psk = NULL;
    const uint8_t *key;
    size_t len;

    (void)state;
    assert_int_equal(varve_psk_parse("keys", text, strlen(text), &psk, NULL), 0);
    key = varve_psk_find(psk, "al:ice", 6, &len);
    assert_true(key && len == 2 && key[0] == 0 && key[1] == 0xff);
    key = varve_psk_find(psk, "\x00\xff", 2, &len);
    assert_true(key && len == 2 && key[0] == 1 && key[1] == 2);
    assert_true(varve_psk_find(psk, "bob", 3, &len) && len == 32);
    assert_null(varve_psk_find(psk, "bo", 2, &len));
    assert_null(varve_psk_find(psk, "bobb", 4, &len));
    assert_null(varve_psk_find(psk, "", 0, &len));
    varve_psk_free(psk);
}

static int write_keys(void **state)
{
    static const char text[] = "alice:" KEY_HEX "\n";
    const char *dir = getenv("TMPDIR");
    int fd;

    (void)state;
    snprintf(psk_path, sizeof(psk_path), "%s/varve-psk-XXXXXX", dir ? dir : "/tmp");
    fd = mkstemp(psk_path);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        return -1;
    return close(fd);
}

static int remove_keys(void **state)
{
    (void)state;
    return unlink(psk_path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(handshake_is_the_same_in_pieces_of_any_size),
        cmocka_unit_test(wrong_key_and_unknown_user_fail_alike),
        cmocka_unit_test(versions_below_1_2_are_refused),
        cmocka_unit_test(garbage_is_an_error_or_half_a_record),
        cmocka_unit_test(flipped_bits_break_the_handshake_or_the_record),
        cmocka_unit_test(bytes_arrive_whole_in_pieces_of_any_size),
        cmocka_unit_test(what_is_sent_arrives_in_large_records),
        cmocka_unit_test(output_that_nobody_takes_is_bounded),
        cmocka_unit_test(input_that_nobody_looks_at_is_bounded),
        cmocka_unit_test(half_a_record_is_waited_for),
        cmocka_unit_test(new_key_is_no_end_of_the_data_behind_it),
        cmocka_unit_test(flood_of_new_keys_ends_the_session),
        cmocka_unit_test(renegotiation_is_refused),
        cmocka_unit_test(byes_are_heard_on_both_sides),
        cmocka_unit_test(sessions_keep_the_keys_they_began_with),
        cmocka_unit_test(broken_key_files_are_refused_with_their_line),
        cmocka_unit_test(users_are_found_by_all_their_bytes),
    };

    return cmocka_run_group_tests(tests, write_keys, remove_keys);
}
