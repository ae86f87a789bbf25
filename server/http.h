/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A small HTTP server for pages that are only looked at: GET and HEAD, one request a connection.
 * Lives on the loop's thread.  What has to be looked up is made on the clerk's, one page at a time,
 * so that a command of the control socket never waits for more than one.  It knows neither users
 * nor sessions: whoever can connect sees all of a site.
 */
#ifndef VARVE_SERVER_HTTP_H
#define VARVE_SERVER_HTTP_H

#include "lib/err.h"
#include "server/daemon.h"

#include <uv.h>

struct varve_http_answer {
    unsigned status; /* 200, 400, 404, 500 or 503 */
    char *text;      /* free() it; NULL: there was no memory */
    size_t len;
};

struct varve_http_page {
    const char *path;
    const char *type; /* Content-Type */
    /* What the page is; NULL: it is made. */
    const unsigned char *text;
    const size_t *len;
    /* On the clerk's thread, may wait.  `query` is borrowed; *a is {200, NULL, 0} before. */
    void (*make)(struct varve_daemon *d, const struct varve_http_page *page, const char *query,
                 struct varve_http_answer *a);
    const void *of; /* make's own */
};

struct varve_http_site {
    const char *name;                    /* for the log */
    const char *fields;                  /* more fields of each answer's head: whole lines */
    bool guards_host;                    /* over TCP, only names that are ours are answered */
    const struct varve_http_page *pages; /* up to one without a path */
};

struct varve_http;

/* `site` stays the caller's. */
int varve_http_new(uv_loop_t *loop, struct varve_daemon *d, const struct varve_http_site *site,
                   struct varve_http **out, struct varve_err *err);

/* Listens, as varve_nbd_server_listen does. */
int varve_http_listen(struct varve_http *h, const char *where, struct varve_err *err);
/* The same with a socket that listens already; takes over fd, also on failure. */
int varve_http_adopt(struct varve_http *h, int fd, struct varve_err *err);

/* No more connections; answers under way get out for a moment.  closed(arg) is called on the loop
 * when all is gone, at the latest when the clerk has given back what it has; h is freed by then. */
void varve_http_close(struct varve_http *h, void (*closed)(void *arg), void *arg);

#endif
