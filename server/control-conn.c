/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One connection of the control socket.
 *
 *     bytes -> reader -> request -> (clerk) -> reply -> written in the order of the requests
 *
 * What is kept for a peer is bounded: at most PENDING_MAX requests and OUT_MAX bytes of replies,
 * and then nothing more is read from it, so that whoever does not read is not answered.  Events are
 * dropped for it meanwhile.
 */
#include "server/control-internal.h"

#include "lib/json.h"
#include "server/args.h"
#include "server/commands.h"
#include "server/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS_MAX 64u
#define PENDING_MAX     32u
#define OUT_MAX         ((size_t)1024 * 1024)

/* So many messages without one good one between them are not a client. */
#define GARBAGE_MAX 16u

struct request {
    struct varve_job job;       /* on the clerk's queue */
    struct varve_letter letter; /* on the way back */
    struct request *next;       /* in order of arrival */
    struct varve_control_conn *conn;
    const struct varve_command *command;
    json_t *id; /* NULL: none */
    json_t *args;
    char *text; /* the reply, once there is one */
    size_t len;
    bool done;
    bool unsaid; /* it is not answered: the connection ends instead */
    bool quit; /* the daemon ends once this is answered */
};

struct varve_control_conn {
    struct varve_control_conn *next, **at; /* the control's list */
    struct varve_control *control;
    uv_pipe_t pipe;
    struct varve_qmp_reader *reader;
    struct request *first, **last;
    unsigned pending;  /* requests that are not answered */
    unsigned at_clerk; /* of them, those that the clerk has */
    unsigned garbage;  /* refused messages in a row */
    size_t queued;     /* bytes of output that the kernel has not taken */
    bool negotiated;
    bool reading;
    bool deaf;      /* reads no more, for good */
    bool finishing; /* closes once all is out */
    bool closed;    /* the pipe is gone */
    char buf[65536];
};

static void conn_work(struct varve_control_conn *conn);

/* --- going away
 * ------------------------------------------------------------------------------------ */

static void request_free(struct request *r)
{
    json_decref(r->id);
    json_decref(r->args);
    free(r->text);
    free(r);
}

static void conn_give_back(struct varve_control *c, struct varve_control_conn *conn)
{
    if (c->spare)
        free(conn);
    else
        c->spare = conn;
}

/* All that must be gone: the pipe, and every request that the clerk has. */
static void conn_maybe_free(struct varve_control_conn *conn)
{
    struct varve_control *c = conn->control;
    struct request *r, *next;

    if (!conn->closed || conn->at_clerk > 0)
        return;
    for (r = conn->first; r; r = next) {
        next = r->next;
        request_free(r);
    }
    *conn->at = conn->next;
    if (conn->next)
        conn->next->at = conn->at;
    c->nconns--;
    varve_qmp_reader_free(conn->reader);
    conn_give_back(c, conn);
    varve_control_maybe_closed(c);
}

static void conn_on_closed(uv_handle_t *handle)
{
    struct varve_control_conn *conn = handle->data;

    conn->closed = true;
    conn_maybe_free(conn);
}

void varve_control_conn_stop(struct varve_control_conn *conn)
{
    conn->deaf = true;
    if (conn->reading)
        uv_read_stop((uv_stream_t *)&conn->pipe);
    conn->reading = false;
}

void varve_control_conn_close(struct varve_control_conn *conn, bool at_once)
{
    varve_control_conn_stop(conn);
    conn->finishing = true;
    if ((at_once || (conn->queued == 0 && conn->pending == 0)) &&
        !uv_is_closing((uv_handle_t *)&conn->pipe))
        uv_close((uv_handle_t *)&conn->pipe, conn_on_closed);
}

/* --- output
 * ---------------------------------------------------------------------------------------- */

struct out {
    uv_write_t req;
    struct varve_control_conn *conn;
    char *text;
    size_t len;
};

static void conn_on_written(uv_write_t *req, int status)
{
    struct out *out = req->data;
    struct varve_control_conn *conn = out->conn;

    conn->queued -= out->len;
    free(out->text);
    free(out);
    if (status < 0)
        varve_control_conn_close(conn, true);
    else if (conn->finishing)
        varve_control_conn_close(conn, false);
    else
        conn_work(conn);
}

/* Takes text over. */
static void conn_write(struct varve_control_conn *conn, char *text, size_t len)
{
    struct out *out = calloc(1, sizeof(*out));
    uv_buf_t buf;

    if (!out || !text || uv_is_closing((uv_handle_t *)&conn->pipe)) {
        free(text);
        free(out);
        varve_control_conn_close(conn, true);
        return;
    }
    out->conn = conn;
    out->text = text;
    out->len = len;
    out->req.data = out;
    buf = uv_buf_init(text, (unsigned)len);
    conn->queued += len;
    if (uv_write(&out->req, (uv_stream_t *)&conn->pipe, &buf, 1, conn_on_written) < 0) {
        conn->queued -= len;
        free(text);
        free(out);
        varve_control_conn_close(conn, true);
    }
}

void varve_control_conn_event(struct varve_control_conn *conn, const char *text, size_t len)
{
    char *copy;

    if (!conn->negotiated || conn->finishing || conn->queued + len > OUT_MAX)
        return;
    copy = malloc(len);
    if (!copy)
        return;
    memcpy(copy, text, len);
    conn_write(conn, copy, len);
}

struct varve_control_conn *varve_control_conn_next(struct varve_control_conn *conn)
{
    return conn->next;
}

/* Writes the replies that are next in order. */
static void conn_flush(struct varve_control_conn *conn)
{
    struct request *r;

    while ((r = conn->first) != NULL && r->done) {
        conn->first = r->next;
        if (!conn->first)
            conn->last = &conn->first;
        conn->pending--;
        conn_write(conn, r->text, r->len);
        r->text = NULL;
        if (r->quit)
            conn->control->quit(conn->control->quit_arg);
        request_free(r);
    }
}

/* --- requests
 * -------------------------------------------------------------------------------------- */

static struct request *request_new(struct varve_control_conn *conn, json_t *id)
{
    struct request *r = calloc(1, sizeof(*r));

    if (!r) {
        varve_control_conn_close(conn, true);
        return NULL;
    }
    r->conn = conn;
    r->id = json_incref(id);
    *conn->last = r;
    conn->last = &r->next;
    conn->pending++;
    return r;
}

/* Any thread that has the request. */
static void request_reply(struct request *r, json_t *message /* taken over */)
{
    if (message)
        r->text = varve_qmp_dump(message, &r->len);
    json_decref(message);
    r->done = true;
}

static void request_error(struct request *r, const char *cls, const char *desc)
{
    request_reply(r, varve_qmp_error(cls, desc, r->id));
}

static void request_deliver(struct varve_letter *letter)
{
    struct request *r = (struct request *)((char *)letter - offsetof(struct request, letter));
    struct varve_control_conn *conn = r->conn;

    r->done = true;
    conn->at_clerk--;
    if (conn->closed) {
        conn_maybe_free(conn);
        return;
    }
    conn_work(conn);
}

/* What lacks something for want of memory is no answer: a query is refused; of another command
 * nobody says whether it happened, the connection ends without an answer. */
static json_t *request_value(struct request *r, struct varve_err *err)
{
    unsigned refused = varve_json_refused();
    json_t *value;

    value = r->command->run(r->conn->control->daemon, r->args, err);
    if (!value || varve_json_refused() == refused)
        return value;
    json_decref(value);
    r->unsaid = strncmp(r->command->name, "query-", 6) != 0;
    varve_err_set(err, ENOMEM, "no memory for an answer");
    return NULL;
}

/* On the clerk's thread. */
static void request_run(struct varve_job *job, bool stopping)
{
    struct request *r = (struct request *)job;
    struct varve_control *c = r->conn->control;
    struct varve_err err = VARVE_ERR_INIT;
    json_t *value = NULL, *message;

    if (stopping)
        varve_err_set(&err, ESHUTDOWN, "varved is ending");
    else
        value = request_value(r, &err);
    message = value ? varve_qmp_return(value, r->id)
                    : varve_qmp_error(err.code == ENODEV ? "DeviceNotFound" : "GenericError",
                                      err.msg[0] ? err.msg : "no memory", r->id);
    if (message && !r->unsaid)
        r->text = varve_qmp_dump(message, &r->len);
    json_decref(message);
    varve_mailbox_post(c->mailbox, &r->letter);
}

/* The few that need no clerk. */
static void request_run_here(struct request *r)
{
    static const char *const none[] = {NULL}, *const enable[] = {"enable", NULL};
    struct varve_control_conn *conn = r->conn;
    bool capabilities = strcmp(r->command->name, "qmp_capabilities") == 0;
    unsigned refused = varve_json_refused();
    struct varve_err err = VARVE_ERR_INIT;
    json_t *greeting;

    if (varve_args_check(r->args, capabilities ? enable : none, NULL, &err) < 0) {
        request_error(r, "GenericError", err.msg);
    } else if (capabilities && json_object_get(r->args, "enable") &&
               !json_is_array(json_object_get(r->args, "enable"))) {
        request_error(r, "GenericError", "Invalid parameter type for 'enable', expected: array");
    } else if (capabilities && json_array_size(json_object_get(r->args, "enable")) > 0) {
        request_error(r, "GenericError", "There is no capability that could be enabled");
    } else if (capabilities) {
        conn->negotiated = true;
        request_reply(r, varve_qmp_return(NULL, r->id));
    } else if (strcmp(r->command->name, "query-version") == 0) {
        greeting = varve_qmp_greeting();
        request_reply(r, varve_qmp_return(json_incref(json_object_get(
                                              json_object_get(greeting, "QMP"), "version")),
                                          r->id));
        json_decref(greeting);
    } else if (strcmp(r->command->name, "query-commands") == 0) {
        request_reply(r, varve_qmp_return(varve_command_list(), r->id));
    } else {
        r->quit = true;
        request_reply(r, varve_qmp_return(NULL, r->id));
    }
    if (varve_json_refused() != refused) { /* it may lack something */
        free(r->text);
        r->text = NULL;
    }
}

/* Sets r->command and r->args, or answers what is wrong. */
static int request_parse(struct request *r, json_t *message)
{
    json_t *execute = json_object_get(message, "execute"), *value;
    json_t *args = json_object_get(message, "arguments");
    struct varve_err err = VARVE_ERR_INIT;
    const char *key;

    json_object_foreach(message, key, value)
    {
        if (strcmp(key, "execute") != 0 && strcmp(key, "arguments") != 0 &&
            strcmp(key, "id") != 0) {
            varve_err_set(&err, EINVAL, "QMP input member '%s' is unexpected", key);
            break;
        }
    }
    if (err.code == 0 && !execute)
        varve_err_set(&err, EINVAL, "QMP input lacks member 'execute'");
    if (err.code == 0 && !json_is_string(execute))
        varve_err_set(&err, EINVAL, "QMP input member 'execute' must be a string");
    if (err.code == 0 && args && !json_is_object(args))
        varve_err_set(&err, EINVAL, "QMP input member 'arguments' must be an object");
    if (err.code != 0) {
        request_error(r, "GenericError", err.msg);
        return -EINVAL;
    }
    r->command = varve_command_find(json_string_value(execute));
    if (!r->conn->negotiated && strcmp(json_string_value(execute), "qmp_capabilities") != 0) {
        request_error(r, "CommandNotFound",
                      "Expecting capabilities negotiation with 'qmp_capabilities'");
        return -EINVAL;
    }
    if (r->conn->negotiated && strcmp(json_string_value(execute), "qmp_capabilities") == 0) {
        request_error(r, "CommandNotFound",
                      "Capabilities negotiation is already complete, command ignored");
        return -EINVAL;
    }
    if (!r->command) {
        varve_err_set(&err, ENOENT, "The command %s has not been found",
                      json_string_value(execute));
        request_error(r, "CommandNotFound", err.msg);
        return -ENOENT;
    }
    r->args = args ? json_incref(args) : json_object();
    return 0;
}

static void conn_on_message(struct varve_control_conn *conn, json_t *message)
{
    struct request *r = request_new(conn, json_object_get(message, "id"));

    if (!r)
        return;
    conn->garbage = 0;
    if (request_parse(r, message) < 0)
        return;
    if (!r->command->run) {
        request_run_here(r);
        return;
    }
    r->job.run = request_run;
    r->letter.deliver = request_deliver;
    conn->at_clerk++;
    varve_clerk_post(conn->control->daemon->clerk, &r->job);
}

/* --- input
 * ----------------------------------------------------------------------------------------- */

static bool conn_may_take(const struct varve_control_conn *conn)
{
    return !conn->deaf && conn->pending < PENDING_MAX && conn->queued < OUT_MAX;
}

/* Answers an error that belongs to no request. */
static void conn_refuse(struct varve_control_conn *conn, const char *desc)
{
    struct request *r = request_new(conn, NULL);

    if (r)
        request_error(r, "GenericError", desc);
}

/* Takes what the reader has.  Returns true when it has no more. */
static bool conn_drain(struct varve_control_conn *conn)
{
    while (conn_may_take(conn)) {
        struct varve_err err = VARVE_ERR_INIT;
        json_t *message;
        int rc = varve_qmp_reader_next(conn->reader, &message, &err);

        if (rc == 0)
            return true;
        if (rc == 1) {
            conn_on_message(conn, message);
            json_decref(message);
        } else {
            conn_refuse(conn, err.msg);
            if (rc != -EINVAL || ++conn->garbage >= GARBAGE_MAX) {
                varve_control_conn_stop(conn);
                conn->finishing = true;
            }
        }
        conn_flush(conn);
    }
    return false;
}

static void conn_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct varve_control_conn *conn = handle->data;

    (void)suggested;
    *buf = uv_buf_init(conn->buf, sizeof(conn->buf));
}

static void conn_on_read(uv_stream_t *stream, ssize_t got, const uv_buf_t *buf)
{
    struct varve_control_conn *conn = stream->data;
    struct varve_err err = VARVE_ERR_INIT;

    if (got == 0)
        return;
    if (got < 0) {
        /* What was asked is done and answered: the peer may have closed one direction only. */
        varve_control_conn_close(conn, got != UV_EOF);
        return;
    }
    if (varve_qmp_reader_feed(conn->reader, buf->base, (size_t)got, &err) < 0) {
        conn_refuse(conn, err.msg);
        varve_control_conn_stop(conn);
        conn->finishing = true;
    }
    conn_work(conn);
}

/* Does what can be done: replies out, messages in, reading on or off, the end. */
static void conn_work(struct varve_control_conn *conn)
{
    bool read;

    if (uv_is_closing((uv_handle_t *)&conn->pipe))
        return;
    conn_flush(conn);
    read = conn_drain(conn) && conn_may_take(conn);
    if (uv_is_closing((uv_handle_t *)&conn->pipe))
        return;
    if (conn->finishing) {
        varve_control_conn_close(conn, false);
    } else if (read != conn->reading) {
        conn->reading = read;
        if (!read)
            uv_read_stop((uv_stream_t *)&conn->pipe);
        else if (uv_read_start((uv_stream_t *)&conn->pipe, conn_alloc, conn_on_read) < 0)
            varve_control_conn_close(conn, true);
    }
}

/* --- coming
 * ---------------------------------------------------------------------------------------- */

static bool conn_peer_is_ours(struct varve_control_conn *conn)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);
    uv_os_fd_t fd;

    if (uv_fileno((uv_handle_t *)&conn->pipe, &fd) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
        return false;
    return cred.uid == 0 || cred.uid == geteuid();
}

static void conn_say(struct varve_control_conn *conn, json_t *message /* taken over */)
{
    size_t len = 0;
    char *text = message ? varve_qmp_dump(message, &len) : NULL;

    json_decref(message);
    conn_write(conn, text, len);
}

struct varve_control_conn *varve_control_conn_spare(void)
{
    return calloc(1, sizeof(struct varve_control_conn));
}

/* There is always memory for one; where it is in use the next waits. */
static struct varve_control_conn *conn_new(struct varve_control *c)
{
    struct varve_control_conn *conn = varve_control_conn_spare();

    if (!conn && c->spare) {
        conn = c->spare;
        c->spare = NULL;
        memset(conn, 0, sizeof(*conn));
    }
    return conn;
}

int varve_control_conn_accept(struct varve_control *c, int socket)
{
    struct varve_control_conn *conn = conn_new(c);
    int fd, rc;

    if (!conn)
        return -ENOMEM;
    fd = accept4(socket, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        rc = -errno;
        conn_give_back(c, conn);
        return rc;
    }
    conn->control = c;
    conn->last = &conn->first;
    conn->reader = varve_qmp_reader_new(VARVE_QMP_MESSAGE_MAX);
    uv_pipe_init(c->loop, &conn->pipe, 0);
    conn->pipe.data = conn;
    conn->next = c->conns;
    conn->at = &c->conns;
    if (conn->next)
        conn->next->at = &conn->next;
    c->conns = conn;
    c->nconns++;
    rc = uv_pipe_open(&conn->pipe, fd);
    if (rc < 0)
        close(fd);
    if (rc < 0 || !conn->reader) {
        varve_control_conn_close(conn, true);
        return 0;
    }
    if (!conn_peer_is_ours(conn)) {
        conn_say(conn, varve_qmp_error("GenericError",
                                       "Only the user that varved runs as, and root, may use "
                                       "this socket",
                                       NULL));
        varve_control_conn_close(conn, false);
    } else if (c->nconns > CONNECTIONS_MAX) {
        conn_say(conn,
                 varve_qmp_error("GenericError", "Too many control connections: close some", NULL));
        varve_control_conn_close(conn, false);
    } else {
        conn_say(conn, varve_qmp_greeting());
        conn_work(conn);
    }
    return 0;
}
