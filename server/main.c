/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varved: puts the parts together and takes them apart again.
 *
 *     prepare    directories, lock, catalogue; no threads yet
 *     restore    the clerk brings back what was running; the loop already heeds signals
 *     serve      sockets are open
 *     stop       clerk and NBD server end, side by side
 *     close      control connections, handles; then the loop is empty
 */
#include "server/backup.h"
#include "server/clerk.h"
#include "server/control.h"
#include "server/daemon.h"
#include "server/freeze.h"
#include "server/job.h"
#include "server/log.h"
#include "server/mailbox.h"
#include "server/metrics.h"
#include "server/options.h"
#include "server/runtime.h"
#include "server/sd-listen.h"
#include "server/sd-notify.h"
#include "server/web.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Clients' replies in flight get this long at the end; all of the end, that long. */
#define NBD_CLOSE_MS 1000
#define END_MS       1900

struct app {
    struct varve_options options;
    struct varve_daemon daemon;
    struct varve_runtime runtime;
    struct varve_sd_sockets passed;
    size_t nown; /* of the listeners are ours, and come first */
    uv_loop_t loop;
    struct varve_control *control;
    struct varve_http *metrics, *web;
    struct varve_mailbox *mailbox; /* news from the clerk to this file */
    struct varve_job restore;
    struct varve_letter restored, clerk_ended;
    uv_signal_t sigterm, sigint, sighup;
    uv_timer_t end_timer, watchdog;
    unsigned watchdog_ms; /* 0: nobody waits for a sign of life */
    bool clerk_running, nbd_running, stopping;
    unsigned http_running; /* sites that are not closed */
    int status;
};

static void app_stop(struct app *app);

/* --- the end ------------------------------------------------------------------------------ */

static void app_on_control_closed(void *arg)
{
    struct app *app = arg;

    varve_events_close(app->daemon.events);
    varve_mailbox_close(app->mailbox);
    uv_close((uv_handle_t *)&app->sigterm, NULL);
    uv_close((uv_handle_t *)&app->sigint, NULL);
    uv_close((uv_handle_t *)&app->sighup, NULL);
    uv_close((uv_handle_t *)&app->end_timer, NULL);
    uv_close((uv_handle_t *)&app->watchdog, NULL);
}

static void app_on_jobs_closed(void *arg)
{
    struct app *app = arg;

    varve_clerk_join(app->daemon.clerk);
    varve_control_close(app->control, app_on_control_closed, app);
}

static void app_maybe_close(struct app *app)
{
    if (!app->stopping || app->clerk_running || app->nbd_running || app->http_running > 0)
        return;
    varve_jobs_close(app->daemon.jobs, app_on_jobs_closed, app);
}

static void app_on_nbd_closed(void *arg)
{
    struct app *app = arg;

    app->nbd_running = false;
    app_maybe_close(app);
}

static void app_on_http_closed(void *arg)
{
    struct app *app = arg;

    app->http_running--;
    app_maybe_close(app);
}

static void app_on_clerk_ended(struct varve_letter *letter)
{
    struct app *app = (struct app *)((char *)letter - offsetof(struct app, clerk_ended));

    app->clerk_running = false;
    app_maybe_close(app);
}

/* On the clerk's thread. */
static void clerk_on_end(void *arg)
{
    struct app *app = arg;

    varve_mailbox_post(app->mailbox, &app->clerk_ended);
}

/* Something does not end: a disk that does not answer a read, say.  What matters is durable. */
static void app_on_end_timer(uv_timer_t *timer)
{
    struct app *app = timer->data;

    varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING), "not all ended in time; leaving");
    for (size_t i = 0; i < app->nown; i++) {
        if (strncmp(app->daemon.listeners[i], "unix:", 5) == 0)
            unlink(app->daemon.listeners[i] + 5);
    }
    if (app->passed.control < 0)
        unlink(app->options.control);
    _exit(app->status);
}

static void app_stop(struct app *app)
{
    if (app->stopping)
        return;
    app->stopping = true;
    varve_sd_notify("STOPPING=1");
    uv_timer_start(&app->end_timer, app_on_end_timer, END_MS, 0);
    varve_control_stop(app->control);
    varve_http_close(app->metrics, app_on_http_closed, app);
    varve_http_close(app->web, app_on_http_closed, app);
    varve_jobs_stop(app->daemon.jobs);
    varve_clerk_stop(app->daemon.clerk);
    varve_nbd_server_close(app->daemon.nbd, NBD_CLOSE_MS, app_on_nbd_closed, app);
}

static void app_on_quit(void *arg)
{
    varve_log("ends: asked to quit");
    app_stop(arg);
}

static void app_on_signal(uv_signal_t *handle, int number)
{
    varve_log("ends: %s", strsignal(number));
    app_stop(handle->data);
}

/* --- who gets in -------------------------------------------------------------------------- */

static int app_load_tls(struct app *app, struct varve_err *err)
{
    struct varve_tls *tls;
    int rc = varve_tls_load(&app->options.tls, &tls, err);

    if (rc == 0)
        varve_nbd_server_set_tls(app->daemon.nbd, tls);
    return rc;
}

static int app_load_access(struct app *app, struct varve_err *err)
{
    struct varve_access *access = NULL;
    int rc = app->options.access ? varve_access_load(app->options.access, &access, err) : 0;

    if (rc == 0)
        varve_nbd_server_set_access(app->daemon.nbd, access);
    return rc;
}

static void app_on_sighup(uv_signal_t *handle, int number)
{
    struct app *app = handle->data;
    struct varve_err err = VARVE_ERR_INIT;

    if (app->stopping)
        return;
    if (app_load_tls(app, &err) < 0)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING),
                        "%s; certificates and keys stay as they were", err.msg);
    else
        varve_log("%s: certificates and keys are read", strsignal(number));
    if (app_load_access(app, &err) < 0)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING), "%s; access stays as it was",
                        err.msg);
    else
        varve_log("%s: access rules are read", strsignal(number));
}

/* --- the beginning ------------------------------------------------------------------------ */

static int app_add_listener(struct app *app, const char *real, struct varve_err *err)
{
    struct varve_daemon *d = &app->daemon;

    d->listeners[d->nlisteners] = strdup(real);
    if (!d->listeners[d->nlisteners])
        return varve_err_set(err, ENOMEM, "no memory");
    d->nlisteners++;
    varve_log("listens at %s", real);
    return 0;
}

static int app_listen_http(struct varve_http *h, const struct varve_where *own,
                           const struct varve_sd_list *passed, struct varve_err *err)
{
    int rc = 0;

    for (size_t i = 0; i < own->n && rc == 0; i++)
        rc = varve_http_listen(h, own->list[i], err);
    for (unsigned i = 0; i < passed->n && rc == 0; i++)
        rc = varve_http_adopt(h, passed->fds[i], err);
    return rc;
}

static int app_listen(struct app *app, struct varve_err *err)
{
    const struct varve_options *o = &app->options;
    size_t own = o->default_listen && app->passed.nbd.n ? 0 : o->listen.n;
    char real[512];
    int rc = 0;

    for (size_t i = 0; i < own && rc == 0; i++) {
        rc = varve_nbd_server_listen(app->daemon.nbd, o->listen.list[i], real, sizeof(real), err);
        if (rc == 0)
            rc = app_add_listener(app, real, err);
        app->nown = app->daemon.nlisteners;
    }
    for (unsigned i = 0; i < app->passed.nbd.n && rc == 0; i++) {
        rc = varve_nbd_server_adopt(app->daemon.nbd, app->passed.nbd.fds[i], real, sizeof(real),
                                    err);
        if (rc == 0)
            rc = app_add_listener(app, real, err);
    }
    app->daemon.nfixed = app->daemon.nlisteners;
    if (rc == 0)
        rc = app_listen_http(app->metrics, &o->metrics, &app->passed.metrics, err);
    if (rc == 0)
        rc = app_listen_http(app->web, &o->web, &app->passed.web, err);
    if (rc < 0)
        return rc;
    if (app->passed.control >= 0)
        return varve_control_adopt(app->control, app->passed.control, err);
    return varve_control_listen(app->control, o->control, err);
}

static void app_on_restored(struct varve_letter *letter)
{
    struct app *app = (struct app *)((char *)letter - offsetof(struct app, restored));
    struct varve_err err = VARVE_ERR_INIT;

    if (app->stopping)
        return;
    if (app_listen(app, &err) < 0) {
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_ERROR), "%s", err.msg);
        app->status = EXIT_FAILURE;
        app_stop(app);
        return;
    }
    varve_log("ready; control socket %s",
              app->passed.control < 0 ? app->options.control : "as it was passed to us");
    varve_sd_notify("READY=1");
}

/* What the service manager takes for life is that this loop turns; the clerk may wait for a disk. */
static void app_on_watchdog(uv_timer_t *timer)
{
    (void)timer;
    varve_sd_notify("WATCHDOG=1");
}

/* On the clerk's thread. */
static void clerk_restore(struct varve_job *job, bool stopping)
{
    struct app *app = (struct app *)((char *)job - offsetof(struct app, restore));

    if (!stopping)
        varve_daemon_restore(&app->daemon);
    varve_mailbox_post(app->mailbox, &app->restored);
}

static int app_watch(struct app *app, uv_signal_t *handle, int number, uv_signal_cb seen,
                     struct varve_err *err)
{
    int rc = uv_signal_init(&app->loop, handle);

    handle->data = app;
    if (rc == 0)
        rc = uv_signal_start(handle, seen, number);
    return rc < 0 ? varve_err_set(err, -rc, "cannot wait for signals: %s", uv_strerror(rc)) : 0;
}

static int app_watch_signals(struct app *app, struct varve_err *err)
{
    int rc = app_watch(app, &app->sigterm, SIGTERM, app_on_signal, err);

    if (rc == 0)
        rc = app_watch(app, &app->sigint, SIGINT, app_on_signal, err);
    return rc < 0 ? rc : app_watch(app, &app->sighup, SIGHUP, app_on_sighup, err);
}

/* A failure here ends the process: nothing is taken apart. */
static int app_start(struct app *app, struct varve_err *err)
{
    struct varve_daemon *d = &app->daemon;
    int rc = uv_loop_init(&app->loop);

    if (rc < 0)
        return varve_err_set(err, -rc, "cannot make an event loop: %s", uv_strerror(rc));
    uv_timer_init(&app->loop, &app->end_timer);
    app->end_timer.data = app;
    uv_timer_init(&app->loop, &app->watchdog);
    if (app->watchdog_ms)
        uv_timer_start(&app->watchdog, app_on_watchdog, app->watchdog_ms, app->watchdog_ms);
    app->options.nbd.log = varve_log;
    rc = app_watch_signals(app, err);
    if (rc < 0)
        return rc;
    d->exports = varve_exports_new();
    if (!d->exports)
        return varve_err_set(err, ENOMEM, "no memory");
    rc = varve_mailbox_new(&app->loop, &app->mailbox, err);
    if (rc == 0)
        rc = varve_control_new(&app->loop, d, app_on_quit, app, &app->control, err);
    if (rc == 0)
        rc = varve_events_new(&app->loop, varve_control_event, app->control, &d->events, err);
    if (rc == 0)
        rc = varve_jobs_new(&app->loop, d, err);
    if (rc == 0)
        rc = varve_nbd_server_new(&app->loop, d->exports, &app->options.nbd, &d->nbd, err);
    if (rc == 0)
        rc = varve_http_new(&app->loop, d, &varve_metrics_site, &app->metrics, err);
    if (rc == 0)
        rc = varve_http_new(&app->loop, d, &varve_web_site, &app->web, err);
    if (rc == 0)
        rc = app_load_tls(app, err);
    if (rc == 0)
        rc = app_load_access(app, err);
    if (rc == 0)
        rc = varve_clerk_start(varve_daemon_tick, d, clerk_on_end, app, &d->clerk, err);
    if (rc < 0)
        return rc;
    app->clerk_running = app->nbd_running = true;
    app->http_running = 2;
    app->clerk_ended.deliver = app_on_clerk_ended;
    app->restored.deliver = app_on_restored;
    app->restore.run = clerk_restore;
    varve_clerk_post(d->clerk, &app->restore);
    return 0;
}

static int app_prepare(struct app *app, struct varve_err *err)
{
    struct varve_daemon *d = &app->daemon;
    int rc;

    d->w = varve_world_posix();
    d->options = &app->options;
    varve_daemon_init(d);
    rc = varve_runtime_prepare(&app->runtime, d->w, &app->options, err);
    if (rc < 0)
        return rc;
    return varve_catalogue_open(d->w, app->options.state_dir, &d->store, &d->catalogue, err);
}

static void app_fini(struct app *app)
{
    struct varve_daemon *d = &app->daemon;

    varve_daemon_fini(d);
    varve_nbd_server_free(d->nbd);
    varve_exports_free(d->exports);
    for (size_t i = 0; i < d->nlisteners; i++)
        free(d->listeners[i]);
    varve_runtime_release(&app->runtime);
    varve_options_fini(&app->options);
    if (uv_loop_close(&app->loop) < 0)
        varve_log("the loop still has handles");
    uv_library_shutdown();
}

int main(int argc, char **argv)
{
    static struct app app; /* what is left at a failed start is the process's to free */
    struct varve_err err = VARVE_ERR_INIT;

    varve_log_begin();
    if (argc == 4 && strcmp(argv[1], VARVE_FREEZE_KEEPER_ARG) == 0)
        return varve_freeze_keeper(argv[2], argv[3]); /* another process with a life of its own */
    switch (varve_options_parse(&app.options, argc, argv, &err)) {
    case VARVE_OPTIONS_DONE:
        return EXIT_SUCCESS;
    case VARVE_OPTIONS_USAGE:
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_ERROR), "%s; see varved --help", err.msg);
        return 2;
    case VARVE_OPTIONS_RUN:
        break;
    }
    app.watchdog_ms = varve_sd_watchdog_ms();
    if (varve_sd_listen(&app.passed, &err) < 0 || app_prepare(&app, &err) < 0 ||
        app_start(&app, &err) < 0) {
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_ERROR), "%s", err.msg);
        return EXIT_FAILURE;
    }
    uv_run(&app.loop, UV_RUN_DEFAULT);
    app_fini(&app);
    return app.status;
}
