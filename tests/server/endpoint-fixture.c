/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A program that does to one endpoint what its standard input says, a line each, and prints what
 * comes of it, so that test scripts can be the peers.  Breaking rule 9 (a callback too early,
 * twice, never) ends it with an assert.
 *
 *     open r|w CONNECT_MS STALL_MS WHERE      opened RC SIZE MIN EXTENTS TEXT
 *     read|write TAG OFF LEN PATH             done TAG RC TEXT           data into, or from, PATH
 *     zero TAG OFF LEN, flush TAG             done TAG RC TEXT
 *     extents TAG OFF LEN MAX                 done TAG RC LEN:FLAGS …
 *     close                                   closed
 *
 * The end of the input closes what is open; then the loop has to be empty.
 */
#include "server/endpoint.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEXT_MAX 4096
#define BUF_MAX  (8u * 1024u * 1024u)

struct ask {
    struct varve_endpoint_req req;
    char tag[64], path[1024];
    struct ask *next;
    bool done;
};

static struct varve_endpoint *endpoint;
static struct ask *all;
static bool calling; /* inside open, submit or close */
static bool opened, closing;
static uv_pipe_t input;
static char line[TEXT_MAX];
static size_t line_len;

static void on_opened(void *arg, int rc, const struct varve_err *err)
{
    const struct varve_endpoint_info *info = varve_endpoint_info(endpoint);

    assert(!calling && !opened && arg == &opened);
    assert((rc == 0) == (err == NULL) && (rc == 0 || rc == -err->code));
    opened = true;
    printf("opened %d %" PRIu64 " %" PRIu32 " %d %s\n", rc, rc ? 0 : info->size,
           rc ? 0 : info->block_min, rc ? 0 : info->has_extents, err ? err->msg : "");
}

static void on_done(struct varve_endpoint_req *req)
{
    struct ask *ask = (struct ask *)req;

    assert(!calling && !ask->done);
    ask->done = true;
    if (req->op == VARVE_ENDPOINT_READ && req->rc == 0) {
        int fd = open(ask->path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

        assert(write(fd, req->buf, req->len) == (ssize_t)req->len);
        close(fd);
    }
    printf("done %s %d ", ask->tag, req->rc);
    for (size_t i = 0; i < req->nextents && req->rc == 0; i++)
        printf("%" PRIu64 ":%u ", req->extents[i].len, req->extents[i].flags);
    printf("%s\n", req->rc ? req->err.msg : "");
}

static void on_closed(void *arg)
{
    assert(!calling && opened && arg == &opened);
    for (struct ask *a = all, *next; a; a = next) {
        assert(a->done);
        next = a->next;
        free(a->req.buf);
        free(a->req.extents);
        free(a);
    }
    all = NULL;
    endpoint = NULL;
    opened = closing = false;
    printf("closed\n");
}

static void submit(struct ask *ask)
{
    struct varve_err err = VARVE_ERR_INIT;
    int rc;

    ask->req.done = on_done;
    ask->next = all;
    all = ask;
    calling = true;
    rc = varve_endpoint_submit(endpoint, &ask->req, &err);
    calling = false;
    if (rc == 0)
        return;
    ask->done = true;
    printf("refused %s %d %s\n", ask->tag, rc, err.msg);
}

static void do_open(char mode, uint64_t connect_ms, uint64_t stall_ms, const char *where)
{
    struct varve_endpoint_options options = {
        .write = mode == 'w', .connect_ms = connect_ms, .stall_ms = stall_ms};
    struct varve_err err = VARVE_ERR_INIT;
    int rc;

    calling = true;
    rc = varve_endpoint_open(input.loop, where, &options, on_opened, &opened, &endpoint, &err);
    calling = false;
    assert((rc == 0) == (endpoint != NULL));
    if (rc < 0)
        printf("refused open %d %s\n", rc, err.msg);
}

static void do_close(void)
{
    if (!endpoint || closing)
        return;
    closing = calling = true;
    varve_endpoint_close(endpoint, on_closed, &opened);
    calling = false;
}

static void do_io(enum varve_endpoint_op op, const char *words)
{
    struct ask *ask = calloc(1, sizeof(*ask));
    int n = sscanf(words, "%63s %" SCNu64 " %" SCNu64 " %1023s", ask->tag, &ask->req.off,
                   &ask->req.len, ask->path);

    assert(n >= 1 && ask);
    ask->req.op = op;
    if (op == VARVE_ENDPOINT_READ || op == VARVE_ENDPOINT_WRITE) {
        size_t room = ask->req.len < BUF_MAX ? (size_t)ask->req.len : BUF_MAX; /* longer is refused */

        ask->req.buf = malloc(room + 1);
        memset(ask->req.buf, 0x55, room); /* what nobody has written shows */
    }
    if (op == VARVE_ENDPOINT_WRITE) {
        int fd = open(ask->path, O_RDONLY);

        assert(read(fd, ask->req.buf, ask->req.len) == (ssize_t)ask->req.len);
        close(fd);
    }
    if (op == VARVE_ENDPOINT_EXTENTS) {
        ask->req.max_extents = strtoul(ask->path, NULL, 10);
        ask->req.extents = calloc(ask->req.max_extents, sizeof(*ask->req.extents));
    }
    submit(ask);
}

static void do_line(const char *text)
{
    static const char *const ops[] = {"read ", "write ", "zero ", "flush ", "extents "};
    uint64_t connect_ms, stall_ms;
    int at = 0;
    char mode;

    if (sscanf(text, "open %c %" SCNu64 " %" SCNu64 " %n", &mode, &connect_ms, &stall_ms, &at) == 3)
        do_open(mode, connect_ms, stall_ms, text + at);
    else if (strcmp(text, "close") == 0)
        do_close();
    for (int op = 0; op < 5; op++) {
        if (strncmp(text, ops[op], strlen(ops[op])) == 0)
            do_io((enum varve_endpoint_op)op, text + strlen(ops[op]));
    }
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    (void)handle;
    (void)suggested;
    *buf = uv_buf_init(line + line_len, (unsigned)(sizeof(line) - line_len));
}

static void on_input(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    char *end;

    (void)buf;
    if (n < 0) {
        uv_close((uv_handle_t *)stream, NULL);
        do_close();
        return;
    }
    line_len += (size_t)n;
    while ((end = memchr(line, '\n', line_len))) {
        size_t used = (size_t)(end - line) + 1;

        *end = '\0';
        do_line(line);
        line_len -= used;
        memmove(line, line + used, line_len);
    }
    assert(line_len < sizeof(line));
}

int main(void)
{
    uv_loop_t loop;

    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    uv_loop_init(&loop);
    uv_pipe_init(&loop, &input, 0);
    uv_pipe_open(&input, 0);
    uv_read_start((uv_stream_t *)&input, on_alloc, on_input);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert(!endpoint);
    assert(uv_loop_close(&loop) == 0);
    uv_library_shutdown();
    return 0;
}
