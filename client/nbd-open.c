/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The handshake, asynchronously: a server that is busy with another client (qemu-nbd takes one at a
 * time) accepts the connection and then says nothing.
 */
#include "client/nbd.h"
#include "client/uri.h"
#include "include/varve.h"
#include "lib/nbd-uri.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

/* How often a wait looks at its stop flag. */
#define TICK_MS 100

int varve_nbd_failed(struct varve_err *err, const char *what)
{
    const char *text = nbd_get_error();
    int code = nbd_get_errno();

    if (!text)
        text = "unknown error";
    /* Which function of the library failed is nothing to the user. */
    if (strncmp(text, "nbd_", 4) == 0 && strstr(text, ": "))
        text = strstr(text, ": ") + 2;
    return varve_err_set(err, code ? code : EIO, "%s: %s", what, text);
}

bool varve_nbd_is_dirty_context(const char *context)
{
    static const char *const prefixes[] = {VARVE_CTX_DIRTY_PREFIX, "varve:changes:"};

    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
        if (strncmp(context, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    return false;
}

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Turns the handle until it is no longer connecting. */
static int open_wait(struct nbd_handle *h, const char *uri, const atomic_bool *stop,
                     struct varve_err *err)
{
    int64_t deadline = now_ms() + VARVE_NBD_HANDSHAKE_MS;

    while (nbd_aio_is_connecting(h)) {
        if (stop && atomic_load(stop))
            return varve_err_set(err, ECANCELED, "%s: no longer needed", uri);
        if (now_ms() >= deadline)
            return varve_err_set(err, ETIMEDOUT,
                                 "%s: the server does not answer (busy with "
                                 "another client?)",
                                 uri);
        if (nbd_poll(h, TICK_MS) == -1)
            return varve_nbd_failed(err, uri);
    }
    return 0;
}

/* Replaces the export NAME of the dialled handle by NAME@SINCE. */
static int open_since(struct nbd_handle *h, const struct varve_nbd_target *t, struct varve_err *err)
{
    char *name = nbd_get_export_name(h);
    char *since = varve_uri_encode(t->since, "");
    char *whole = NULL;
    int rc = -ENOMEM;

    if (name && since && asprintf(&whole, "%s@%s", name, since) >= 0) {
        rc = 0;
        if (nbd_set_export_name(h, whole) == -1)
            rc = varve_nbd_failed(err, t->uri);
        free(whole);
    } else {
        varve_err_set(err, ENOMEM, "no memory");
    }
    free(since);
    free(name);
    return rc;
}

int varve_nbd_dial(struct nbd_handle **out, const struct varve_nbd_target *t,
                   const atomic_bool *stop, struct varve_err *err)
{
    struct nbd_handle *h;
    int on = 1;
    int rc;

    *out = NULL;
    rc = varve_nbd_uri_check_tls(t->uri, false, err);
    if (rc != 0)
        return rc;
    h = nbd_create();
    if (!h)
        return varve_nbd_failed(err, t->uri);
    /* Bounds and flags stay checked by the library; alignment is left to the server, which knows
     * whether the odd end of its export can be read. */
    if (nbd_set_opt_mode(h, true) == -1 || nbd_set_full_info(h, true) == -1 || nbd_set_uri_allow_local_file(h, true) == -1 ||
        nbd_set_strict_mode(h, nbd_get_strict_mode(h) & ~(uint32_t)LIBNBD_STRICT_ALIGN) == -1 ||
        nbd_set_pread_initialize(h, false) == -1 || nbd_aio_connect_uri(h, t->uri) == -1)
        rc = varve_nbd_failed(err, t->uri);
    else
        rc = open_wait(h, t->uri, stop, err);
    if (rc == 0 && t->since) {
        if (nbd_aio_is_negotiating(h))
            rc = open_since(h, t, err);
        else
            rc = varve_err_set(err, ENOTSUP, "%s: the server knows no export names", t->uri);
    }
    if (rc != 0) {
        nbd_close(h);
        return rc;
    }
    /* A server whose machine died is noticed some day; unix sockets refuse this, no matter. */
    setsockopt(nbd_aio_get_fd(h), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    *out = h;
    return 0;
}

void varve_nbd_close(struct nbd_handle *h)
{
    if (!h)
        return;
    /* Sending lets answers in too: none may come for buffers that are gone by now. */
    if (nbd_aio_is_ready(h) && nbd_aio_in_flight(h) == 0)
        nbd_aio_disconnect(h, 0);
    else if (nbd_aio_is_negotiating(h))
        nbd_aio_opt_abort(h);
    nbd_close(h);
}

struct list {
    const char *prefix;
    char *names;
};

static int list_add(void *opaque, const char *name)
{
    struct list *l = opaque;
    char *longer;

    if (strncmp(name, l->prefix, strlen(l->prefix)) != 0 || (l->names && strlen(l->names) > 4096) ||
        asprintf(&longer, "%s%s%s", l->names ? l->names : "", l->names ? ", " : "", name) < 0)
        return 0;
    free(l->names);
    l->names = longer;
    return 0;
}

char *varve_nbd_list(struct nbd_handle *h, const char *prefix)
{
    struct list l = {.prefix = prefix};
    nbd_context_callback cb = {.callback = list_add, .user_data = &l};

    if (!nbd_aio_is_negotiating(h) || nbd_clear_meta_contexts(h) == -1)
        return NULL;
    if (prefix[0] && nbd_add_meta_context(h, prefix) == -1)
        return NULL;
    /* A server that cannot list offers nothing that could be named. */
    nbd_opt_list_meta_context(h, cb);
    nbd_clear_meta_contexts(h);
    return l.names;
}

static int go_done(void *opaque, int *error)
{
    *(int *)opaque = *error;
    return 0;
}

static int open_go(struct nbd_handle *h, const struct varve_nbd_target *t, const atomic_bool *stop,
                   struct varve_err *err)
{
    int error = 0;
    nbd_completion_callback cb = {.callback = go_done, .user_data = &error};
    char *name;
    int rc;

    if (nbd_aio_opt_go(h, cb) == -1)
        return varve_nbd_failed(err, t->uri);
    rc = open_wait(h, t->uri, stop, err);
    if (rc != 0)
        return rc;
    if (nbd_aio_is_ready(h))
        return 0;
    name = nbd_get_export_name(h);
    if (error == ENOENT)
        rc = varve_err_set(err, ENOENT, "%s: the server has no export '%s'%s", t->uri,
                           name ? name : "?",
                           t->since ? " (--since wants a checkpoint or bitmap "
                                      "of varve's)"
                                    : "");
    else
        rc = varve_err_set(err, error ? error : EPROTO, "%s: the server refuses export '%s': %s",
                           t->uri, name ? name : "?", strerror(error ? error : EPROTO));
    free(name);
    return rc;
}

int varve_nbd_go(struct nbd_handle *h, const struct varve_nbd_target *t, const char *const ctx[2],
                 const atomic_bool *stop, struct varve_err *err)
{
    char *offered = NULL;
    int rc = 0;

    if (nbd_aio_is_negotiating(h)) {
        if (ctx[0])
            offered = varve_nbd_list(h, "");
        for (int i = 0; i < 2; i++)
            if (ctx[i] && nbd_add_meta_context(h, ctx[i]) == -1)
                rc = varve_nbd_failed(err, t->uri);
        if (rc == 0)
            rc = open_go(h, t, stop, err);
    }
    if (rc == 0 && ctx[0] && nbd_can_meta_context(h, ctx[0]) != 1)
        rc = varve_err_set(err, ENOENT, "%.180s: the export has no context '%.100s'; it offers %s",
                           t->uri, ctx[0], offered ? offered : "none");
    free(offered);
    return rc;
}
