/* SPDX-License-Identifier: BSD-3-Clause */
#include "client/uri.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What may stand as it is in an export's name: ours have @ and +. */
#define PATH_ALSO "@+"

char *varve_uri_encode(const char *text, const char *also)
{
    static const char plain[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
    char *out = malloc(3 * strlen(text) + 1);
    char *to = out;

    if (!out)
        return NULL;
    for (; *text; text++) {
        if (strchr(plain, *text) || strchr(also, *text))
            *to++ = *text;
        else
            to += sprintf(to, "%%%02X", (unsigned char)*text);
    }
    *to = '\0';
    return out;
}

char *varve_uri_of_export(const char *listener, const char *export)
{
    char *name = varve_uri_encode(export, PATH_ALSO);
    char *uri = NULL, *path;
    int rc = -1;

    if (!name)
        return NULL;
    if (strncmp(listener, "unix:", 5) == 0) {
        path = varve_uri_encode(listener + 5, "/");
        if (path)
            rc = asprintf(&uri, "nbd+unix:///%s?socket=%s", name, path);
        free(path);
    } else if (strncmp(listener, "tcp:", 4) == 0) {
        rc = asprintf(&uri, "nbd://%s/%s", listener + 4, name);
    } else if (strncmp(listener, "vsock:", 6) == 0) {
        /* Context id 1 is this machine. */
        rc = asprintf(&uri, "nbd+vsock://1:%s/%s", listener + 6, name);
    }
    free(name);
    return rc >= 0 ? uri : NULL;
}

int varve_uri_listener(struct varve_control *c, char **listener, struct varve_err *err)
{
    static const char *const kinds[] = {"unix:", "tcp:", "vsock:"};
    json_t *server = NULL;
    int rc;

    *listener = NULL;
    rc = varve_control_execute(c, "query-nbd-server", NULL, &server, err);
    if (rc != 0)
        return rc;
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]) && !*listener; k++) {
        const json_t *one;
        size_t i;

        json_array_foreach(json_object_get(server, "listeners"), i, one)
        {
            const char *text = json_string_value(one);

            if (text && strncmp(text, kinds[k], strlen(kinds[k])) == 0) {
                *listener = strdup(text);
                break;
            }
        }
    }
    json_decref(server);
    if (!*listener)
        return varve_err_set(err, ENOENT, "the daemon has no NBD listener (varved --listen)");
    return 0;
}
