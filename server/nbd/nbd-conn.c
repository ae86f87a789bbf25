/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The life of a connection.
 *
 *     accept
 *       │
 *       ▼          GO, EXPORT_NAME               DISC, end of input, kick, server closes
 *     HANDSHAKE ────────────────────▶ TRANSMIT ────────────────────────────────▶ LEAVING
 *       │ ABORT                                     requests in flight end; new ones │
 *       │                                           get ESHUTDOWN unless c->deaf     │
 *       ▼                                                                            ▼
 *     LINGER ◀────────────────────────────────────────────── nothing in flight, all written
 *       │  FIN is sent, input thrown away, so that no RST overtakes the last answer
 *       ▼
 *     CLOSING ◀── from every state: errors, broken rules, deadlines
 *       │  handles close, jobs in the pool end
 *       ▼
 *     freed
 *
 * Every callback stores what happened and calls the tick, which alone eats input, writes output and
 * moves on.  Input is one small buffer; while it is full the socket is not read, and that is all
 * the back-pressure there is: the parts leave bytes in it when they want no more.
 *
 * Bytes to and from the peer pass through conn_on_read() and conn_flush() only; under TLS, which
 * begins in HANDSHAKE, nbd-tls.c stands between those two and the buffers.
 */
#include "server/nbd/nbd-conn.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How long a peer may take to notice that the connection ended. */
#define LINGER_MS 500u

/* The same for one in the handshake when the server closes: it gets ERR_SHUTDOWN that long. */
#define HANDSHAKE_GRACE_MS 500u

#define TCP_KEEPALIVE_S 60u

/* How long one that is refused may take to hear it. */
#define REFUSAL_MS 3000u

/* One write: few enough bytes that memory is given back while a long reply is under way, and as
 * many buffers as libuv keeps without allocating (when that fails, 1.44 counts the write for
 * ever). */
#define BATCH_BUFS  4u
#define BATCH_BYTES (1024u * 1024u)

static bool conn_may_move(enum varve_nbd_state from, enum varve_nbd_state to)
{
    switch (to) {
    case VARVE_NBD_TRANSMIT:
        return from == VARVE_NBD_HANDSHAKE;
    case VARVE_NBD_LEAVING:
        return from == VARVE_NBD_TRANSMIT;
    case VARVE_NBD_LINGER:
        return from == VARVE_NBD_HANDSHAKE || from == VARVE_NBD_LEAVING;
    case VARVE_NBD_CLOSING:
        return from != VARVE_NBD_CLOSING;
    default:
        return false;
    }
}

static void conn_move(struct varve_nbd_conn *c, enum varve_nbd_state to)
{
    assert(conn_may_move(c->state, to));
    c->state = to;
    c->deadline_ms = 0;
}

static uint64_t conn_now_ms(const struct varve_nbd_conn *c)
{
    return uv_now(c->host->loop);
}

/* --- the end -------------------------------------------------------------------------------- */

static void conn_free_outs(struct varve_nbd_outs *outs)
{
    struct varve_nbd_out *out;

    while ((out = TAILQ_FIRST(outs))) {
        TAILQ_REMOVE(outs, out, link);
        free(out);
    }
}

/* Nothing is in flight any more, so the export need not wait for the socket's end. */
static void conn_release_export(struct varve_nbd_conn *c)
{
    varve_nbd_metactx_clear(&c->hs.meta);
    varve_nbd_transmit_end(c);
}

static void conn_maybe_free(struct varve_nbd_conn *c)
{
    struct varve_nbd_host *host = c->host;

    assert(c->state == VARVE_NBD_CLOSING);
    if (c->handles || c->tx.njobs)
        return;
    assert(!c->writing);
    varve_nbd_handshake_end(c);
    varve_nbd_tls_end(c);
    conn_release_export(c);
    TAILQ_REMOVE(&host->conns, c, link);
    varve_nbd_clients_leave(c->clients, &c->client);
    free(c);
    varve_nbd_pool_turns(&host->pool); /* it may have held what another waits for */
    varve_nbd_host_conn_gone(host);
}

static void conn_on_handle_closed(uv_handle_t *handle)
{
    struct varve_nbd_conn *c = handle->data;

    c->handles--;
    conn_maybe_free(c);
}

void varve_nbd_conn_close(struct varve_nbd_conn *c)
{
    if (c->state == VARVE_NBD_CLOSING)
        return;
    conn_move(c, VARVE_NBD_CLOSING);
    atomic_store(&c->dead, true);
    varve_nbd_transmit_drop(c);
    conn_free_outs(&c->queue);
    uv_close(&c->io.handle, conn_on_handle_closed);
    uv_close((uv_handle_t *)&c->timer, conn_on_handle_closed);
}

void varve_nbd_conn_hang_up(struct varve_nbd_conn *c)
{
    bool open = c->state == VARVE_NBD_HANDSHAKE || c->state == VARVE_NBD_TRANSMIT;

    if (open && !c->deaf && c->tls.state == VARVE_NBD_TLS_OPEN) {
        c->deaf = true;
        c->deadline_ms = conn_now_ms(c) + LINGER_MS; /* the old one may be why we end */
    } else {
        varve_nbd_conn_close(c);
    }
}

static void conn_on_shutdown(uv_shutdown_t *req, int status)
{
    struct varve_nbd_conn *c = req->data;

    if (status)
        varve_nbd_conn_close(c);
}

static void conn_flush(struct varve_nbd_conn *c);

/* All is written. */
static void conn_linger(struct varve_nbd_conn *c)
{
    /* A goodbye is output: we come again when it is written. */
    varve_nbd_tls_bye(c);
    if (varve_nbd_conn_has_output(c)) {
        conn_flush(c);
        return;
    }
    if (c->eof) {
        varve_nbd_conn_close(c);
        return;
    }
    conn_move(c, VARVE_NBD_LINGER);
    conn_release_export(c);
    c->deaf = true;
    c->deadline_ms = conn_now_ms(c) + LINGER_MS;
    c->shutdown.data = c;
    if (uv_shutdown(&c->shutdown, &c->io.stream, conn_on_shutdown))
        varve_nbd_conn_close(c);
}

void varve_nbd_conn_leave(struct varve_nbd_conn *c, unsigned deadline_ms)
{
    uint64_t at = deadline_ms ? conn_now_ms(c) + deadline_ms : 0;

    switch (c->state) {
    case VARVE_NBD_HANDSHAKE:
        if (c->deaf || !deadline_ms)
            break;
        if (deadline_ms > HANDSHAKE_GRACE_MS)
            at = conn_now_ms(c) + HANDSHAKE_GRACE_MS;
        break;
    case VARVE_NBD_TRANSMIT:
        conn_move(c, VARVE_NBD_LEAVING);
        break;
    case VARVE_NBD_LEAVING:
        break;
    case VARVE_NBD_LINGER:
    case VARVE_NBD_CLOSING:
        return;
    }
    if (at && (!c->deadline_ms || at < c->deadline_ms))
        c->deadline_ms = at;
}

/* --- output --------------------------------------------------------------------------------- */

struct varve_nbd_out *varve_nbd_out_new(size_t len)
{
    struct varve_nbd_out *out = malloc(sizeof(*out) + len);

    if (out) {
        memset(out, 0, sizeof(*out));
        out->len = len;
    }
    return out;
}

void varve_nbd_conn_send(struct varve_nbd_conn *c, struct varve_nbd_out *out)
{
    if (c->state == VARVE_NBD_CLOSING)
        free(out);
    else
        TAILQ_INSERT_TAIL(&c->queue, out, link);
}

static void conn_on_written(uv_write_t *req, int status)
{
    struct varve_nbd_conn *c = req->data;
    struct varve_nbd_out *out;

    c->writing = false;
    varve_nbd_tls_written(c);
    while ((out = TAILQ_FIRST(&c->batch))) {
        TAILQ_REMOVE(&c->batch, out, link);
        if (!status)
            varve_nbd_transmit_sent(c, out);
        free(out);
    }
    if (status)
        varve_nbd_conn_close(c);
    else
        c->took_ms = conn_now_ms(c);
    varve_nbd_conn_tick(c);
}

/* Moves messages to the batch; returns of how many buffers it is. */
static unsigned conn_take_batch(struct varve_nbd_conn *c, uv_buf_t *bufs)
{
    unsigned nbufs = 0;
    size_t bytes = 0;
    struct varve_nbd_out *out;

    if (c->tls.session && c->tls.state != VARVE_NBD_TLS_ACK)
        return varve_nbd_tls_seal(c, bufs) ? 1 : 0;
    while (nbufs < BATCH_BUFS && bytes < BATCH_BYTES && (out = TAILQ_FIRST(&c->queue))) {
        TAILQ_REMOVE(&c->queue, out, link);
        TAILQ_INSERT_TAIL(&c->batch, out, link);
        bufs[nbufs++] = uv_buf_init((char *)out->data, (unsigned)out->len);
        bytes += out->len;
    }
    return nbufs;
}

static void conn_flush(struct varve_nbd_conn *c)
{
    uv_buf_t bufs[BATCH_BUFS];
    unsigned nbufs;

    if (c->writing)
        return;
    nbufs = conn_take_batch(c, bufs);
    if (!nbufs) {
        conn_free_outs(&c->batch); /* of a session that broke */
        return;
    }
    c->write.data = c;
    c->took_ms = conn_now_ms(c);
    if (uv_write(&c->write, &c->io.stream, bufs, nbufs, conn_on_written)) {
        varve_nbd_tls_written(c);
        conn_free_outs(&c->batch);
        varve_nbd_conn_close(c);
        return;
    }
    c->writing = true;
    varve_nbd_tls_acked(c);
    c->untaken = uv_stream_get_write_queue_size(&c->io.stream);
}

/* --- input ---------------------------------------------------------------------------------- */

/* Where the socket's bytes go. */
static uint8_t *conn_room(struct varve_nbd_conn *c, size_t *len)
{
    if (c->tls.session)
        return varve_tls_session_room(c->tls.session, len);
    *len = VARVE_NBD_INPUT_LEN - c->in_len;
    return c->in + c->in_len;
}

static void conn_on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    size_t len;
    uint8_t *room = conn_room(handle->data, &len);

    (void)suggested;
    *buf = uv_buf_init((char *)room, (unsigned)len);
}

static void conn_on_read(uv_stream_t *stream, ssize_t nread, const uv_buf_t *buf)
{
    struct varve_nbd_conn *c = stream->data;

    (void)buf;
    if (nread > 0) {
        if (c->tls.session)
            varve_tls_session_filled(c->tls.session, (size_t)nread);
        else
            c->in_len += (size_t)nread;
        c->heard_ms = conn_now_ms(c);
    } else if (nread == UV_EOF) {
        c->eof = true;
    } else if (nread < 0) {
        varve_nbd_conn_close(c);
    }
    varve_nbd_conn_tick(c);
}

static size_t conn_feed_part(struct varve_nbd_conn *c, const uint8_t *buf, size_t len)
{
    if (c->state == VARVE_NBD_HANDSHAKE)
        return varve_nbd_handshake_feed(c, buf, len);
    return varve_nbd_transmit_feed(c, buf, len);
}

static void conn_feed(struct varve_nbd_conn *c)
{
    size_t pos = 0;

    while (c->state != VARVE_NBD_CLOSING && !c->deaf) {
        size_t avail = c->in_len - pos;
        size_t eaten = c->skip < avail ? (size_t)c->skip : avail;

        if (c->skip) {
            c->skip -= eaten;
            pos += eaten;
            if (c->skip)
                break;
            continue;
        }
        eaten = conn_feed_part(c, c->in + pos, avail);
        if (!eaten)
            break;
        pos += eaten;
        if (c->hs.starttls) {
            c->hs.starttls = false;
            varve_nbd_tls_start(c, avail - eaten);
        }
    }
    if (c->deaf)
        pos = c->in_len;
    c->in_len -= pos;
    memmove(c->in, c->in + pos, c->in_len);
}

/* A record may hold more than fits in. */
static void conn_take_input(struct varve_nbd_conn *c)
{
    bool more;

    do {
        more = varve_nbd_tls_pull(c);
        conn_feed(c);
    } while (more && c->state != VARVE_NBD_CLOSING);
}

static void conn_update_reading(struct varve_nbd_conn *c)
{
    size_t room;
    bool want;

    conn_room(c, &room);
    want = !c->eof && room;
    if (want == c->reading)
        return;
    c->reading = want;
    if (!want)
        uv_read_stop(&c->io.stream);
    else if (uv_read_start(&c->io.stream, conn_on_alloc, conn_on_read))
        varve_nbd_conn_close(c);
}

/* --- clocks --------------------------------------------------------------------------------- */

static uint64_t conn_next_deadline(const struct varve_nbd_conn *c)
{
    const struct varve_nbd_options *o = &c->host->options;
    uint64_t quiet_since = c->took_ms > c->heard_ms ? c->took_ms : c->heard_ms;
    uint64_t at = c->deadline_ms ? c->deadline_ms : UINT64_MAX;

    if (varve_nbd_conn_has_output(c) && o->write_timeout_ms &&
        c->took_ms + o->write_timeout_ms < at)
        at = c->took_ms + o->write_timeout_ms;
    if (c->state == VARVE_NBD_TRANSMIT && !c->tx.nreqs && o->idle_timeout_ms &&
        quiet_since + o->idle_timeout_ms < at)
        at = quiet_since + o->idle_timeout_ms;
    return at;
}

static void conn_on_timer(uv_timer_t *timer)
{
    struct varve_nbd_conn *c = timer->data;
    size_t untaken = uv_stream_get_write_queue_size(&c->io.stream);

    /* libuv tells of a write when all of it is taken; a slow peer takes it in parts. */
    if (c->writing && untaken < c->untaken)
        c->took_ms = conn_now_ms(c);
    c->untaken = untaken;
    if (conn_now_ms(c) >= conn_next_deadline(c)) {
        if (varve_nbd_conn_has_output(c))
            varve_nbd_conn_close(c); /* it takes nothing, not even a goodbye */
        else
            varve_nbd_conn_hang_up(c);
    }
    varve_nbd_conn_tick(c);
}

/* The timer may fire too early, and then looks again; so it is moved only to be earlier. */
void varve_nbd_conn_update_timer(struct varve_nbd_conn *c)
{
    uint64_t now = conn_now_ms(c);
    uint64_t at = conn_next_deadline(c);
    uint64_t wait;

    /* Past that it waits for its turn at the pool. */
    if (c->tx.throttled_ms > now && c->tx.throttled_ms < at)
        at = c->tx.throttled_ms;
    if (at == UINT64_MAX)
        return;
    wait = at > now ? at - now : 0;
    if (uv_is_active((uv_handle_t *)&c->timer) && uv_timer_get_due_in(&c->timer) <= wait)
        return;
    uv_timer_start(&c->timer, conn_on_timer, wait, 0);
}

/* --- the tick ------------------------------------------------------------------------------- */

static void conn_advance(struct varve_nbd_conn *c)
{
    bool all_written = !varve_nbd_conn_has_output(c);

    switch (c->state) {
    case VARVE_NBD_HANDSHAKE:
        if (c->deaf && all_written)
            conn_linger(c);
        else if (c->eof && all_written)
            conn_linger(c);
        break;
    case VARVE_NBD_TRANSMIT:
        /* Below the limit all requests that came were taken. */
        if (c->deaf || (c->eof && c->tx.nreqs < VARVE_NBD_REQUESTS_MAX))
            varve_nbd_conn_leave(c, 0);
        break;
    default:
        break;
    }
    if (c->state == VARVE_NBD_LEAVING && !c->tx.nreqs && all_written)
        conn_linger(c);
    /* Who waits for the throttle has no reply under way that would tell that the peer has gone. */
    if (c->eof && !c->deaf && c->tx.throttled_ms)
        varve_nbd_conn_close(c);
    if (c->state == VARVE_NBD_LINGER && c->eof)
        varve_nbd_conn_close(c);
}

void varve_nbd_conn_tick(struct varve_nbd_conn *c)
{
    if (c->state != VARVE_NBD_CLOSING)
        conn_take_input(c);
    if (c->state == VARVE_NBD_TRANSMIT || c->state == VARVE_NBD_LEAVING)
        varve_nbd_transmit_pump(c);
    if (c->state != VARVE_NBD_CLOSING)
        conn_flush(c);
    if (c->state != VARVE_NBD_CLOSING)
        conn_advance(c);
    if (c->state != VARVE_NBD_CLOSING)
        conn_update_reading(c);
    if (c->state != VARVE_NBD_CLOSING)
        varve_nbd_conn_update_timer(c);
    else
        conn_maybe_free(c);
}

/* --- the beginning -------------------------------------------------------------------------- */

void varve_nbd_conn_transmit(struct varve_nbd_conn *c)
{
    varve_nbd_handshake_end(c);
    conn_move(c, VARVE_NBD_TRANSMIT);
}

struct varve_nbd_conn *varve_nbd_conn_new(void)
{
    struct varve_nbd_conn *c = calloc(1, sizeof(*c));

    if (!c)
        return NULL;
    TAILQ_INIT(&c->queue);
    TAILQ_INIT(&c->batch);
    TAILQ_INIT(&c->tx.ready);
    return c;
}

bool varve_nbd_conn_take(struct varve_nbd_conn *c, int fd, struct varve_nbd_clients *clients)
{
    enum varve_nbd_verdict verdict = VARVE_NBD_DROP;

    memset(&c->id, 0, sizeof(c->id));
    c->refusal = (struct varve_err)VARVE_ERR_INIT;
    /* Who has gone already has no address. */
    if (varve_client_id_of_socket(&c->id, fd, NULL) == 0)
        verdict = varve_nbd_clients_enter(clients, &c->client, &c->id, &c->refusal);
    if (verdict == VARVE_NBD_DROP) {
        close(fd);
        return false;
    }
    c->fd = fd;
    c->clients = clients;
    return true;
}

void varve_nbd_conn_discard(struct varve_nbd_conn *c)
{
    varve_nbd_clients_leave(c->clients, &c->client);
    close(c->fd);
    free(c);
}

static bool conn_is_tcp(const struct varve_nbd_conn *c)
{
    return c->id.addr.ss_family == AF_INET || c->id.addr.ss_family == AF_INET6;
}

/* libuv's pipes are any stream sockets: unix and vsock. */
static int conn_open_io(struct varve_nbd_conn *c)
{
    uv_loop_t *loop = c->host->loop;
    int rc;

    if (!conn_is_tcp(c)) {
        uv_pipe_init(loop, &c->io.pipe, 0);
        return uv_pipe_open(&c->io.pipe, c->fd);
    }
    uv_tcp_init(loop, &c->io.tcp);
    rc = uv_tcp_open(&c->io.tcp, c->fd);
    if (rc)
        return rc;
    uv_tcp_nodelay(&c->io.tcp, 1);
    uv_tcp_keepalive(&c->io.tcp, 1, TCP_KEEPALIVE_S);
    return 0;
}

static void conn_begin(struct varve_nbd_conn *c)
{
    unsigned timeout_ms = c->host->options.handshake_timeout_ms;

    if (c->refusal.code) {
        varve_nbd_host_log(c->host, &c->id, c->refusal.msg);
        if (!timeout_ms || timeout_ms > REFUSAL_MS)
            timeout_ms = REFUSAL_MS;
    }
    c->took_ms = c->heard_ms = conn_now_ms(c);
    if (timeout_ms)
        c->deadline_ms = conn_now_ms(c) + timeout_ms;
    varve_nbd_handshake_begin(c);
    varve_nbd_conn_tick(c);
}

void varve_nbd_conn_start(struct varve_nbd_conn *c)
{
    struct varve_nbd_host *host = c->host;
    int rc = conn_open_io(c);

    c->io.handle.data = c;
    uv_timer_init(host->loop, &c->timer);
    c->timer.data = c;
    c->handles = 2;
    TAILQ_INSERT_TAIL(&host->conns, c, link);
    if (rc)
        close(c->fd);
    if (rc || host->leaving)
        varve_nbd_conn_close(c);
    else
        conn_begin(c);
}
