/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/nbd-uri.h"

#include "lib/parse.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* In place. */
static void unescape(char *text)
{
    char *to = text;

    for (; *text; text++) {
        int high = text[0] == '%' ? varve_parse_hex_digit(text[1]) : -1;
        int low = high >= 0 ? varve_parse_hex_digit(text[2]) : -1;

        *to++ = low >= 0 ? (char)(high << 4 | low) : *text;
        if (low >= 0)
            text += 2;
    }
    *to = '\0';
}

/* The query's value of that name as libnbd takes it: the last one; free() it.  NULL: none, or no
 * memory. */
static char *query_value(const char *uri, const char *name)
{
    const char *at = strchr(uri, '?'), *end;
    size_t len = strlen(name);
    char *value = NULL;

    for (; at && *at && *at != '#'; at = end) {
        at++;
        end = at + strcspn(at, "&#");
        if (strncasecmp(at, name, len) != 0 || at[len] != '=')
            continue;
        free(value);
        value = strndup(at + len + 1, (size_t)(end - at) - len - 1);
    }
    if (value)
        unescape(value);
    return value;
}

static int check_folder(const char *uri, const char *folder, struct varve_err *err)
{
    char *cert;
    int rc = 0;

    if (asprintf(&cert, "%s/ca-cert.pem", folder) < 0)
        return varve_err_set(err, ENOMEM, "no memory");
    if (access(cert, R_OK) != 0)
        rc = varve_err_sys(err, errno, "%.200s: the server cannot prove itself without %.200s", uri,
                           cert);
    free(cert);
    return rc;
}

int varve_nbd_uri_check_tls(const char *uri, bool has_to_say, struct varve_err *err)
{
    char *folder, *keys;
    bool by_key;
    int rc = 0;

    if (strncasecmp(uri, "nbds", 4) != 0)
        return 0;
    keys = query_value(uri, "tls-psk-file");
    folder = query_value(uri, "tls-certificates");
    by_key = keys && keys[0];
    if (!by_key && folder && folder[0])
        rc = check_folder(uri, folder, err);
    else if (!by_key && has_to_say)
        rc = varve_err_set(err, EINVAL,
                           "%.200s: for TLS say what the server has to prove itself by, "
                           "tls-certificates=FOLDER with its authority's ca-cert.pem, or "
                           "tls-psk-file=FILE",
                           uri);
    free(folder);
    free(keys);
    return rc;
}
