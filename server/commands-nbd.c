/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbd-server-start, nbd-server-stop: listeners beside those that the daemon was started with.  They
 * are as those in everything (TLS, access, limits), and last until they are stopped or the daemon
 * ends.
 *
 * QEMU has one listener and takes its address as a SocketAddress, with or without `data` around it.
 */
#include "server/commands.h"

#include "server/args.h"
#include "server/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WHERE_LEN 512

/* The longest host name and unix path that make sense; nbd-socket.c looks closer. */
#define HOST_MAX     255
#define PATH_LEN_MAX 107

/* What is written into messages and the log is one line. */
static int plain_text(const char *text, const char *key, struct varve_err *err)
{
    for (; *text; text++) {
        if ((unsigned char)*text < ' ' || *text == 0x7f)
            return varve_err_set(err, EINVAL, "Parameter '%s' holds a control character", key);
    }
    return 0;
}

static int addr_unix(json_t *addr, char where[WHERE_LEN], struct varve_err *err)
{
    static const char *const known[] = {"type", "path", NULL};
    const char *path;
    int rc = varve_args_check(addr, known, NULL, err);

    if (rc == 0)
        rc = varve_args_string(addr, "path", true, &path, err);
    if (rc < 0)
        return rc;
    if (path[0] != '/' || strlen(path) > PATH_LEN_MAX)
        return varve_err_set(err, EINVAL,
                             "Parameter 'path' must be an absolute path of at most %d bytes",
                             PATH_LEN_MAX);
    snprintf(where, WHERE_LEN, "unix:%s", path);
    return plain_text(path, "path", err);
}

static bool is_number(const char *text)
{
    return text[0] && strlen(text) <= 10 && strspn(text, "0123456789") == strlen(text);
}

static int port_of(json_t *addr, const char **port, struct varve_err *err)
{
    int rc = varve_args_string(addr, "port", true, port, err);

    if (rc == 0 && !is_number(*port))
        rc = varve_err_set(err, EINVAL, "Parameter 'port' must be a number, as text");
    return rc;
}

static int addr_inet(json_t *addr, char where[WHERE_LEN], struct varve_err *err)
{
    static const char *const known[] = {"type", "host", "port", NULL};
    static const char *const later[] = {"numeric", "to",         "ipv4", "ipv6",
                                        "mptcp",   "keep-alive", NULL};
    const char *host, *port;
    int rc = varve_args_check(addr, known, later, err);

    if (rc == 0)
        rc = varve_args_string(addr, "host", true, &host, err);
    if (rc == 0)
        rc = port_of(addr, &port, err);
    if (rc < 0)
        return rc;
    if (host[0] == '\0' || strlen(host) > HOST_MAX || strpbrk(host, "[]"))
        return varve_err_set(err, EINVAL,
                             "Parameter 'host' must be a name or an address, without brackets");
    snprintf(where, WHERE_LEN, strchr(host, ':') ? "tcp:[%s]:%s" : "tcp:%s:%s", host, port);
    return plain_text(host, "host", err);
}

static int addr_vsock(json_t *addr, char where[WHERE_LEN], struct varve_err *err)
{
    static const char *const known[] = {"type", "cid", "port", NULL};
    const char *cid, *port;
    int rc = varve_args_check(addr, known, NULL, err);

    if (rc == 0)
        rc = varve_args_string(addr, "cid", false, &cid, err);
    if (rc == 0)
        rc = port_of(addr, &port, err);
    if (rc < 0)
        return rc;
    if (cid && strcmp(cid, "4294967295") != 0)
        return varve_err_set(err, EINVAL,
                             "Parameter 'cid' must be \"4294967295\", any, or left out");
    snprintf(where, WHERE_LEN, "vsock:%s", port);
    return 0;
}

/* The argument as WHERE. */
static int addr_parse(json_t *args, char where[WHERE_LEN], struct varve_err *err)
{
    static const char *const wrapped[] = {"type", "data", NULL};
    json_t *addr = json_object_get(args, "addr"), *data = NULL;
    const char *type;
    int rc;

    if (!addr)
        return varve_err_set(err, EINVAL, "Parameter 'addr' is missing");
    if (!json_is_object(addr))
        return varve_err_set(err, EINVAL, "Invalid parameter type for 'addr', expected: object");
    rc = varve_args_string(addr, "type", true, &type, err);
    data = json_object_get(addr, "data");
    if (rc == 0 && data) {
        rc = varve_args_check(addr, wrapped, NULL, err);
        if (rc == 0 && (!json_is_object(data) || json_object_get(data, "type")))
            rc = varve_err_set(err, EINVAL, "Invalid parameter type for 'data', expected: object");
        addr = data;
    }
    if (rc < 0)
        return rc;
    if (strcmp(type, "unix") == 0)
        return addr_unix(addr, where, err);
    if (strcmp(type, "inet") == 0)
        return addr_inet(addr, where, err);
    if (strcmp(type, "vsock") == 0)
        return addr_vsock(addr, where, err);
    return varve_err_set(
        err, EINVAL, "Parameter 'type' does not accept value '%.100s': unix, inet or vsock", type);
}

json_t *varve_command_nbd_server_start(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"addr", NULL};
    static const char *const later[] = {"handshake-max-seconds", "tls-creds", "tls-authz",
                                        "max-connections", NULL};
    char where[WHERE_LEN], real[WHERE_LEN], *kept;
    int rc = varve_args_check(args, known, later, err);

    if (rc == 0)
        rc = addr_parse(args, where, err);
    if (rc == 0 && d->nlisteners - d->nfixed >= VARVE_LISTENERS_MAX)
        rc = varve_err_set(err, ENOSPC,
                           "The NBD server has %d listeners that were started, more there cannot "
                           "be: stop one with nbd-server-stop",
                           VARVE_LISTENERS_MAX);
    if (rc == 0)
        rc = varve_nbd_server_add(d->nbd, where, real, sizeof(real), err);
    if (rc < 0)
        return NULL;
    kept = strdup(real);
    if (!kept) {
        varve_nbd_server_remove(d->nbd, real, NULL);
        varve_err_set(err, ENOMEM, "no memory for a listener");
        return NULL;
    }
    d->listeners[d->nlisteners++] = kept;
    varve_log("listens at %s", real);
    return json_pack("{s:s}", "listener", real);
}

static int stop_at(struct varve_daemon *d, size_t i, struct varve_err *err)
{
    int rc = varve_nbd_server_remove(d->nbd, d->listeners[i], err);

    if (rc < 0)
        return rc;
    varve_log("listens no longer at %s", d->listeners[i]);
    free(d->listeners[i]);
    d->nlisteners--;
    memmove(&d->listeners[i], &d->listeners[i + 1], (d->nlisteners - i) * sizeof(d->listeners[0]));
    return 0;
}

json_t *varve_command_nbd_server_stop(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    static const char *const known[] = {"addr", NULL};
    char where[WHERE_LEN] = "";
    size_t stopped = 0;
    int rc = varve_args_check(args, known, NULL, err);

    if (rc == 0 && json_object_get(args, "addr"))
        rc = addr_parse(args, where, err);
    for (size_t i = d->nlisteners; rc == 0 && i-- > d->nfixed;) {
        if (where[0] && strcmp(d->listeners[i], where) != 0)
            continue;
        rc = stop_at(d, i, err);
        stopped++;
    }
    if (rc == 0 && stopped == 0)
        rc = varve_err_set(err, ENOENT,
                           "NBD server not running%s%.200s: nbd-server-stop ends what "
                           "nbd-server-start began, query-nbd-server lists all listeners",
                           where[0] ? " at " : "", where);
    return rc < 0 ? NULL : json_object();
}
