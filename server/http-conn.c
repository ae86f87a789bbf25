/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One connection: one request, one answer.
 *
 *     READING ──head is whole──▶ WAITING ──the clerk made it──▶ WRITING ──▶ LINGERING ──▶ CLOSING
 *        │                                                        ▲            the peer has closed,
 *        └── nothing to be made, or an error ─────────────────────┘            or its time is up
 *
 * What is kept for a peer is bounded: a head of VARVE_HTTP_HEAD_MAX bytes, and one answer.  Each
 * state that waits for the peer has a deadline.  LINGERING is there because a socket that is closed
 * with unread bytes in it takes back what the peer has not read yet.
 */
#include "server/http-internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LINGER_MS    2000
#define LINGER_BYTES ((size_t)1 << 20)

enum conn_state { READING, WAITING, WRITING, LINGERING, CLOSING };

struct varve_http_conn {
    TAILQ_ENTRY(varve_http_conn) link;
    struct varve_http *http;
    struct varve_http_listener *listener; /* only while it is READING: it may go before us */
    union {
        uv_stream_t stream;
        uv_pipe_t pipe;
        uv_tcp_t tcp;
    } u;
    uv_timer_t timer;
    unsigned nhandles; /* of these two not yet closed */
    enum conn_state state;
    uv_write_t write;
    uv_shutdown_t shutdown;
    size_t got; /* bytes of the head; then, bytes that were thrown away */
    bool head_only;
    bool marked; /* the clerk makes what it wants */
    const struct varve_http_page *page;
    const char *query;
    struct varve_http_text *made;
    char out[1536];
    char in[VARVE_HTTP_HEAD_MAX + 1];
    char waste[4096];
};

/* --- going away --------------------------------------------------------------------------- */

static void text_unref(struct varve_http_text *t)
{
    if (!t || --t->nrefs > 0)
        return;
    free(t->text);
    free(t);
}

static void conn_on_closed(uv_handle_t *handle)
{
    struct varve_http_conn *conn = handle->data;
    struct varve_http *h = conn->http;

    if (--conn->nhandles > 0)
        return;
    TAILQ_REMOVE(&h->conns, conn, link);
    h->nconns--;
    text_unref(conn->made);
    free(conn);
    varve_http_maybe_closed(h);
}

void varve_http_conn_close(struct varve_http_conn *conn)
{
    if (conn->state == CLOSING)
        return;
    conn->state = CLOSING;
    uv_close((uv_handle_t *)&conn->u.stream, conn_on_closed);
    uv_close((uv_handle_t *)&conn->timer, conn_on_closed);
}

struct varve_http_conn *varve_http_conn_next(struct varve_http_conn *conn)
{
    return TAILQ_NEXT(conn, link);
}

struct varve_http_conn *varve_http_conn_idle(struct varve_http *h)
{
    struct varve_http_conn *conn;

    TAILQ_FOREACH(conn, &h->conns, link)
    {
        if (conn->state == READING || conn->state == LINGERING)
            return conn;
    }
    return NULL;
}

/* --- the answer --------------------------------------------------------------------------- */

static void conn_alloc_waste(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct varve_http_conn *conn = handle->data;

    (void)suggested;
    *buf = uv_buf_init(conn->waste, sizeof(conn->waste));
}

static void conn_on_waste(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct varve_http_conn *conn = stream->data;

    (void)buf;
    if (n > 0)
        conn->got += (size_t)n;
    if (n < 0 || conn->got > LINGER_BYTES)
        varve_http_conn_close(conn);
}

static void conn_on_late(uv_timer_t *timer)
{
    varve_http_conn_close(timer->data);
}

static void conn_on_shutdown(uv_shutdown_t *req, int status)
{
    struct varve_http_conn *conn = req->data;

    if (status < 0 || conn->http->closing)
        varve_http_conn_close(conn);
}

static void conn_on_written(uv_write_t *req, int status)
{
    struct varve_http_conn *conn = req->data;

    if (conn->state == CLOSING)
        return;
    conn->state = LINGERING;
    conn->got = 0;
    conn->shutdown.data = conn;
    uv_timer_start(&conn->timer, conn_on_late, LINGER_MS, 0);
    if (status < 0 || uv_shutdown(&conn->shutdown, &conn->u.stream, conn_on_shutdown) < 0 ||
        uv_read_start(&conn->u.stream, conn_alloc_waste, conn_on_waste) < 0)
        varve_http_conn_close(conn);
}

static const char *status_text(unsigned status)
{
    switch (status) {
    case 200:
        return "OK";
    case 400:
        return "Bad Request";
    case 404:
        return "Not Found";
    case 405:
        return "Method Not Allowed";
    case 408:
        return "Request Timeout";
    case 421:
        return "Misdirected Request";
    case 431:
        return "Request Header Fields Too Large";
    case 503:
        return "Service Unavailable";
    case 505:
        return "HTTP Version Not Supported";
    default:
        return "Internal Server Error";
    }
}

/* `text` has to stay until the connection is freed. */
static void conn_answer(struct varve_http_conn *conn, unsigned status, const char *type,
                        const char *text, size_t text_len)
{
    static const char *const days[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    unsigned timeout_ms = conn->http->daemon->options->nbd.write_timeout_ms;
    time_t now = time(NULL);
    uv_buf_t bufs[2];
    struct tm tm;
    int len;

    gmtime_r(&now, &tm);
    len = snprintf(conn->out, sizeof(conn->out),
                   "HTTP/1.1 %u %s\r\n"
                   "Date: %s, %02d %s %d %02d:%02d:%02d GMT\r\n"
                   "Content-Type: %s\r\n"
                   "Content-Length: %zu\r\n"
                   "Cache-Control: no-store\r\n"
                   "X-Content-Type-Options: nosniff\r\n"
                   "%s%s%s"
                   "Connection: close\r\n\r\n",
                   status, status_text(status), days[tm.tm_wday], tm.tm_mday, months[tm.tm_mon],
                   tm.tm_year + 1900, tm.tm_hour, tm.tm_min, tm.tm_sec, type, text_len,
                   conn->http->site->fields, status == 405 ? "Allow: GET, HEAD\r\n" : "",
                   status == 503 ? "Retry-After: 1\r\n" : "");
    uv_read_stop(&conn->u.stream);
    conn->state = WRITING;
    conn->write.data = conn;
    bufs[0] = uv_buf_init(conn->out, (unsigned)len);
    bufs[1] = (uv_buf_t){.base = (char *)text, .len = text_len};
    if (timeout_ms > 0)
        uv_timer_start(&conn->timer, conn_on_late, timeout_ms, 0);
    else
        uv_timer_stop(&conn->timer);
    if (uv_write(&conn->write, &conn->u.stream, bufs, conn->head_only ? 1 : 2, conn_on_written) < 0)
        varve_http_conn_close(conn);
}

static void conn_refuse(struct varve_http_conn *conn, unsigned status)
{
    const char *text;

    switch (status) {
    case 404:
        text = "There is no such page here.\n";
        break;
    case 405:
        text = "Only GET and HEAD are answered.\n";
        break;
    case 408:
        text = "The request did not come in time.\n";
        break;
    case 421:
        text =
            "varved does not know this name for itself: use an address or the host's name, or give "
            "the name where it listens (tcp:NAME:PORT).\n";
        break;
    case 431:
        text = "The request's head is too long.\n";
        break;
    case 503:
        text = "varved is ending.\n";
        break;
    case 505:
        text = "HTTP/1.0 and 1.1 are spoken.\n";
        break;
    case 500:
        text = "varved has not memory or file descriptors enough for the answer.\n";
        break;
    default:
        text = "This is no HTTP request, or one with a body.\n";
    }
    conn_answer(conn, status, "text/plain; charset=utf-8", text, strlen(text));
}

void varve_http_conn_stop(struct varve_http_conn *conn)
{
    if (conn->state == WAITING && !conn->marked)
        conn_refuse(conn, 503);
    else if (conn->state == READING || conn->state == LINGERING)
        varve_http_conn_close(conn);
}

/* --- the clerk ---------------------------------------------------------------------------- */

bool varve_http_conn_wants(struct varve_http *h)
{
    struct varve_http_conn *conn, *first = NULL;

    TAILQ_FOREACH(conn, &h->conns, link)
    {
        if (conn->state != WAITING)
            continue;
        if (!first) {
            first = conn;
            h->page = conn->page;
            snprintf(h->query, sizeof(h->query), "%s", conn->query);
        }
        conn->marked = conn->page == first->page && strcmp(conn->query, first->query) == 0;
    }
    return first != NULL;
}

void varve_http_conn_give(struct varve_http *h)
{
    struct varve_http_text *made = calloc(1, sizeof(*made));
    struct varve_http_conn *conn;

    if (made)
        *made = (struct varve_http_text){1, h->answer.text, h->answer.len};
    else
        free(h->answer.text);
    TAILQ_FOREACH(conn, &h->conns, link)
    {
        if (conn->state != WAITING || !conn->marked)
            continue;
        if (made && made->text) {
            made->nrefs++;
            conn->made = made;
            conn_answer(conn, h->answer.status, h->page->type, made->text, made->len);
        } else {
            conn_refuse(conn, h->answer.status == 200 ? 500 : h->answer.status);
        }
    }
    text_unref(made);
}

/* --- the request -------------------------------------------------------------------------- */

static bool conn_guarded(const struct varve_http_conn *conn, const char *host)
{
    char own[256] = "";
    const char *names[] = {own, conn->listener->host, NULL};

    if (!conn->http->site->guards_host || conn->listener->is_unix || !host)
        return false;
    if (gethostname(own, sizeof(own) - 1) < 0)
        own[0] = '\0';
    return !varve_http_host_is_ours(host, names);
}

static void conn_on_head(struct varve_http_conn *conn, size_t len)
{
    const struct varve_http_page *page = conn->http->site->pages;
    struct varve_http_request r;
    unsigned status = varve_http_request_parse(conn->in, len, &r);

    conn->head_only = r.head_only;
    while (page->path && strcmp(page->path, r.path) != 0)
        page++;
    if (status == 0 && conn_guarded(conn, r.host))
        status = 421;
    if (status == 0 && !page->path)
        status = 404;
    if (status != 0) {
        conn_refuse(conn, status);
    } else if (page->text) {
        conn_answer(conn, 200, page->type, (const char *)page->text, *page->len);
    } else {
        uv_read_stop(&conn->u.stream);
        uv_timer_stop(&conn->timer);
        conn->state = WAITING;
        conn->page = page;
        conn->query = r.query;
        varve_http_work(conn->http);
    }
}

static void conn_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct varve_http_conn *conn = handle->data;

    (void)suggested;
    *buf = uv_buf_init(conn->in + conn->got, (unsigned)(VARVE_HTTP_HEAD_MAX - conn->got));
}

static void conn_on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct varve_http_conn *conn = stream->data;
    size_t len;

    (void)buf;
    if (n == 0)
        return;
    if (n < 0) {
        if (n == UV_EOF && conn->got > 0)
            conn_refuse(conn, 400);
        else
            varve_http_conn_close(conn);
        return;
    }
    conn->got += (size_t)n;
    len = varve_http_head_len(conn->in, conn->got);
    if (len > 0)
        conn_on_head(conn, len);
    else if (conn->got == VARVE_HTTP_HEAD_MAX)
        conn_refuse(conn, 431);
}

static void conn_on_no_request(uv_timer_t *timer)
{
    conn_refuse(timer->data, 408);
}

/* --- coming ------------------------------------------------------------------------------- */

static int conn_open(struct varve_http_conn *conn, int fd)
{
    uv_loop_t *loop = conn->http->loop;

    if (conn->listener->is_unix) {
        uv_pipe_init(loop, &conn->u.pipe, 0);
        return uv_pipe_open(&conn->u.pipe, fd);
    }
    uv_tcp_init(loop, &conn->u.tcp);
    return uv_tcp_open(&conn->u.tcp, fd);
}

int varve_http_conn_accept(struct varve_http_listener *l)
{
    struct varve_http *h = l->http;
    unsigned timeout_ms = h->daemon->options->nbd.handshake_timeout_ms;
    struct varve_http_conn *conn = calloc(1, sizeof(*conn));
    int fd, rc;

    if (!conn)
        return -ENOMEM;
    fd = accept4(l->socket.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        rc = -errno;
        free(conn);
        return rc;
    }
    conn->http = h;
    conn->listener = l;
    rc = conn_open(conn, fd);
    if (rc < 0)
        close(fd);
    uv_timer_init(h->loop, &conn->timer);
    conn->nhandles = 2;
    conn->u.stream.data = conn;
    conn->timer.data = conn;
    TAILQ_INSERT_TAIL(&h->conns, conn, link);
    h->nconns++;
    if (timeout_ms > 0)
        uv_timer_start(&conn->timer, conn_on_no_request, timeout_ms, 0);
    if (rc < 0 || uv_read_start(&conn->u.stream, conn_alloc, conn_on_read) < 0)
        varve_http_conn_close(conn);
    return 0;
}
