/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A TLS session of the NBD server, its peer either the input itself or a real client whose bytes are
 * damaged on the way.  Whatever is damaged, no plain byte comes out that was not sent.
 *
 *     0      flags, below
 *     1      seed of the places where what the peer sends is cut
 *     raw:     2...  what the peer sends
 *     client:  2..3  where its bytes are damaged, 4  what is xored there (0: nothing is),
 *              5...  the plain bytes it sends
 */
#include "server/nbd/tls-session.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/world.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#define FLAG_CLIENT 0x01
#define FLAG_TLS12  0x02
#define FLAG_WRONG  0x04 /* the client has another key */

#define KEY "00112233445566778899aabbccddeeff"

#define TURNS_MAX 20000

struct wire {
    uint8_t *data;
    size_t pos, len;
};

struct link {
    struct varve_tls_session *server;
    gnutls_session_t client;
    struct wire up, down; /* to the server, to the client */
    struct fuzz_cuts cuts;
    size_t damage_at;
    uint8_t damage;
};

static struct varve_tls *tls;

static void tls_end(void)
{
    varve_tls_unref(tls);
}

static void tls_begin(void)
{
    static char path[PATH_MAX];
    struct varve_tls_options o = {.mode = VARVE_TLS_REQUIRE, .psk = path};
    struct varve_err err = VARVE_ERR_INIT;

    if (tls)
        return;
    snprintf(path, sizeof(path), "%s/keys.psk", fuzz_dir());
    fuzz_write_file(path, "alice:" KEY "\n", strlen("alice:" KEY "\n"), 0);
    FUZZ_CHECK(varve_tls_load(&o, &tls, &err) == 0);
    atexit(tls_end);
}

/* --- wires ---------------------------------------------------------------------------------- */

static void wire_put(struct wire *w, const void *data, size_t len)
{
    w->data = realloc(w->data, w->len + len + 1);
    FUZZ_CHECK(w->data);
    memcpy(w->data + w->len, data, len);
    w->len += len;
}

static ssize_t client_pull(gnutls_transport_ptr_t arg, void *buf, size_t len)
{
    struct link *l = arg;
    size_t have = l->down.len - l->down.pos;

    if (!have) {
        gnutls_transport_set_errno(l->client, EAGAIN);
        return -1;
    }
    len = len < have ? len : have;
    memcpy(buf, l->down.data + l->down.pos, len);
    l->down.pos += len;
    return (ssize_t)len;
}

static ssize_t client_push(gnutls_transport_ptr_t arg, const void *buf, size_t len)
{
    struct link *l = arg;
    size_t at = l->up.len;

    wire_put(&l->up, buf, len);
    if (l->damage_at >= at && l->damage_at < l->up.len)
        l->up.data[l->damage_at] ^= l->damage;
    return (ssize_t)len;
}

static void carry_up(struct link *l)
{
    size_t left = l->up.len - l->up.pos, room, n;
    uint8_t *to = varve_tls_session_room(l->server, &room);

    FUZZ_CHECK(room <= VARVE_TLS_INPUT_LEN);
    if (!left || !room)
        return;
    n = fuzz_cut(&l->cuts, left);
    n = n < room ? n : room;
    memcpy(to, l->up.data + l->up.pos, n);
    varve_tls_session_filled(l->server, n);
    l->up.pos += n;
}

static void carry_down(struct link *l)
{
    uint8_t *data;
    size_t len;

    FUZZ_CHECK(varve_tls_session_output_len(l->server) <= VARVE_TLS_OUTPUT_MAX);
    if (!varve_tls_session_take_output(l->server, &data, &len))
        return;
    FUZZ_CHECK(len > 0);
    wire_put(&l->down, data, len);
    free(data);
}

/* --- the peer is the input ------------------------------------------------------------------ */

static void run_raw(struct link *l, const uint8_t *data, size_t size)
{
    struct varve_err err = VARVE_ERR_INIT;
    int rc = -EAGAIN;

    wire_put(&l->up, data, size);
    for (unsigned i = 0; rc == -EAGAIN && i < TURNS_MAX && l->up.pos < l->up.len; i++) {
        carry_up(l);
        rc = varve_tls_session_handshake(l->server, &err);
        /* Nobody who has no key gets in. */
        FUZZ_CHECK(rc == -EAGAIN || (rc < 0 && err.code == -rc && err.msg[0]));
        carry_down(l);
    }
}

/* --- the peer is a client -------------------------------------------------------------------- */

static gnutls_psk_client_credentials_t client_open(struct link *l, uint8_t flags)
{
    const char *priority = flags & FLAG_TLS12 ? "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+ECDHE-PSK"
                                              : "NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+PSK";
    const char *hex = flags & FLAG_WRONG ? "ff" KEY : KEY;
    gnutls_datum_t key = {(unsigned char *)(uintptr_t)hex, (unsigned)strlen(hex)};
    gnutls_psk_client_credentials_t creds;

    FUZZ_CHECK(gnutls_init(&l->client, GNUTLS_CLIENT | GNUTLS_NONBLOCK) == 0);
    FUZZ_CHECK(gnutls_psk_allocate_client_credentials(&creds) == 0);
    FUZZ_CHECK(gnutls_psk_set_client_credentials(creds, "alice", &key, GNUTLS_PSK_KEY_HEX) == 0);
    FUZZ_CHECK(gnutls_credentials_set(l->client, GNUTLS_CRD_PSK, creds) == 0);
    FUZZ_CHECK(gnutls_priority_set_direct(l->client, priority, NULL) == 0);
    gnutls_transport_set_ptr(l->client, l);
    gnutls_transport_set_pull_function(l->client, client_pull);
    gnutls_transport_set_push_function(l->client, client_push);
    return creds;
}

/* 0: both have shaken hands. */
static int shake(struct link *l)
{
    int client = GNUTLS_E_AGAIN, server = -EAGAIN;
    struct varve_err err = VARVE_ERR_INIT;

    for (unsigned i = 0; (client || server) && i < TURNS_MAX; i++) {
        if (client)
            client = gnutls_handshake(l->client);
        if (client && gnutls_error_is_fatal(client))
            return -1;
        carry_up(l);
        if (server)
            server = varve_tls_session_handshake(l->server, &err);
        carry_down(l);
        if (server && server != -EAGAIN) {
            FUZZ_CHECK(err.code == -server && err.msg[0]);
            return server;
        }
    }
    return client || server ? -1 : 0;
}

/* What the client sends comes whole, or a beginning of it and then an error. */
static void send_up(struct link *l, const uint8_t *data, size_t size)
{
    struct varve_err err = VARVE_ERR_INIT;
    static uint8_t buf[VARVE_TLS_RECORD_MAX];
    size_t came = 0;
    ssize_t n = -EAGAIN;

    if (size > 0)
        FUZZ_CHECK(gnutls_record_send(l->client, data, size) == (ssize_t)size);
    FUZZ_CHECK(gnutls_bye(l->client, GNUTLS_SHUT_WR) == 0);
    for (unsigned i = 0; i < TURNS_MAX && n != 0; i++) {
        if (l->up.pos == l->up.len && n == -EAGAIN && i > 0)
            break;
        carry_up(l);
        while ((n = varve_tls_session_recv(l->server, buf, 1 + came % sizeof(buf), &err)) > 0) {
            FUZZ_CHECK((size_t)n <= size - came && memcmp(buf, data + came, (size_t)n) == 0);
            came += (size_t)n;
        }
        carry_down(l);
        if (n < 0 && n != -EAGAIN)
            break;
    }
    if (n == 0 || !l->damage)
        FUZZ_CHECK(came == size && n == 0);
}

static void send_down(struct link *l, const uint8_t *data, size_t size)
{
    struct varve_err err = VARVE_ERR_INIT;
    static uint8_t buf[VARVE_TLS_RECORD_MAX];
    ssize_t n;

    FUZZ_CHECK(varve_tls_session_send(l->server, data, size, &err) == 0);
    varve_tls_session_bye(l->server);
    carry_down(l);
    for (size_t came = 0; came < size; came += (size_t)n) {
        do
            n = gnutls_record_recv(l->client, buf, sizeof(buf));
        while (n == GNUTLS_E_AGAIN && l->down.pos < l->down.len);
        FUZZ_CHECK(n > 0 && (size_t)n <= size - came);
        FUZZ_CHECK(memcmp(buf, data + came, (size_t)n) == 0);
    }
}

static void run_client(struct link *l, uint8_t flags, const uint8_t *data, size_t size)
{
    gnutls_psk_client_credentials_t creds = client_open(l, flags);
    struct varve_client_id id = {0};
    int rc;

    l->damage_at = data[0] | (size_t)data[1] << 8;
    l->damage = data[2];
    data += 3;
    size -= 3;
    rc = shake(l);
    FUZZ_CHECK(rc != 0 || !(flags & FLAG_WRONG));
    FUZZ_CHECK(rc == 0 || l->damage || (flags & FLAG_WRONG));
    if (rc == 0) {
        FUZZ_CHECK(varve_tls_session_identify(l->server, &id, NULL) == 0);
        FUZZ_CHECK(id.proof == VARVE_CLIENT_PSK && strcmp(id.name, "alice") == 0);
        if (size > 0)
            send_down(l, data, size);
        send_up(l, data, size);
    }
    gnutls_deinit(l->client);
    gnutls_psk_free_client_credentials(creds);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct link l = {.damage_at = SIZE_MAX};

    if (size < 5)
        return -1;
    tls_begin();
    l.cuts.state = data[1];
    FUZZ_CHECK(varve_tls_session_new(tls, &l.server, &err) == 0);
    if (data[0] & FLAG_CLIENT)
        run_client(&l, data[0], data + 2, size - 2);
    else
        run_raw(&l, data + 2, size - 2);
    varve_tls_session_free(l.server);
    free(l.up.data);
    free(l.down.data);
    return 0;
}
