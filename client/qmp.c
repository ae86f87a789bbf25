/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve qmp: JSON objects from the standard input to the daemon, what it answers to the standard
 * output, one line each; greeting and capabilities are done before.
 */
#include "client/cli.h"
#include "client/control.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct qmp_session {
    struct varve_control *control;
    struct varve_qmp_reader *input;
    unsigned long sent, answered, refused;
    bool input_ended;
};

static int session_send_all(struct qmp_session *s, struct varve_err *err)
{
    json_t *message;
    int rc;

    while ((rc = varve_qmp_reader_next(s->input, &message, err)) > 0) {
        rc = varve_control_send(s->control, message, err);
        json_decref(message);
        if (rc != 0)
            return rc;
        s->sent++;
    }
    return rc < 0 ? varve_err_prefix(err, "standard input") : 0;
}

static int session_read_input(struct qmp_session *s, struct varve_err *err)
{
    char buf[65536];
    ssize_t n = read(STDIN_FILENO, buf, sizeof(buf));
    int rc;

    if (n < 0)
        return errno == EINTR ? 0 : varve_err_sys(err, errno, "reading the standard input");
    if (n == 0) {
        s->input_ended = true;
        if (!varve_qmp_reader_idle(s->input))
            return varve_err_set(err, EINVAL, "standard input ends inside a JSON object");
        return 0;
    }
    rc = varve_qmp_reader_feed(s->input, buf, (size_t)n, err);
    if (rc != 0)
        return varve_err_prefix(err, "standard input");
    return session_send_all(s, err);
}

/* Prints what has come; 0, or -errno. */
static int session_print_replies(struct qmp_session *s, struct varve_err *err)
{
    for (;;) {
        json_t *message;
        int rc = varve_control_receive(s->control, 0, &message, err);

        if (rc <= 0)
            return rc;
        if (json_object_get(message, "error"))
            s->refused++;
        if (json_object_get(message, "error") || json_object_get(message, "return"))
            s->answered++;
        json_dumpf(message, stdout, 0);
        putchar('\n');
        fflush(stdout);
        json_decref(message);
    }
}

/* After bad input the answers to what was sent before are still waited for. */
static int session_talk(struct qmp_session *s, struct varve_err *err)
{
    int bad_input = 0;

    while (!s->input_ended || s->answered < s->sent) {
        struct pollfd p[2] = {{.fd = varve_control_fd(s->control), .events = POLLIN},
                              {.fd = s->input_ended ? -1 : STDIN_FILENO, .events = POLLIN}};
        int rc = poll(p, 2, s->input_ended ? VARVE_CONTROL_REPLY_MS : -1);

        if (rc < 0 && errno != EINTR)
            return varve_err_sys(err, errno, "waiting for the daemon");
        if (rc == 0)
            return varve_err_set(err, ETIMEDOUT, "the daemon did not answer %lu of %lu commands",
                                 s->sent - s->answered, s->sent);
        if (rc > 0 && p[0].revents) {
            rc = session_print_replies(s, bad_input ? NULL : err);
            /* The last answer to 'quit' is the end of the connection. */
            if (rc == -EPIPE && s->sent > 0 && s->answered == s->sent)
                break;
            if (rc < 0)
                return rc;
        }
        if (p[1].revents) {
            bad_input = session_read_input(s, err);
            if (bad_input)
                s->input_ended = true;
        }
    }
    return bad_input;
}

static int qmp_run(const struct varve_cli *cli, const struct varve_args *args,
                   struct varve_err *err)
{
    struct qmp_session s = {0};
    int rc = varve_control_open(cli->control, &s.control, err);

    (void)args;
    if (rc != 0)
        return rc;
    s.input = varve_qmp_reader_new(VARVE_QMP_MESSAGE_MAX);
    rc = s.input ? session_talk(&s, err) : varve_err_set(err, ENOMEM, "no memory");
    if (rc == 0 && s.refused > 0)
        rc = varve_err_set(err, EREMOTEIO, "the daemon refused %lu of %lu commands", s.refused,
                           s.sent);
    varve_qmp_reader_free(s.input);
    varve_control_close(s.control);
    return rc;
}

const struct varve_verb varve_qmp_verbs[] = {
    {.name = "qmp",
     .synopsis = "",
     .summary = "Sends JSON commands from the standard input, prints replies and events",
     .run = qmp_run},
    {.name = NULL},
};
