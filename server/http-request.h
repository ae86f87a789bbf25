/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The head of an HTTP request (RFC 9112), taken apart.  Any thread.  It does no I/O, allocates
 * nothing, and is strict: what may be read in two ways is refused.
 */
#ifndef VARVE_SERVER_HTTP_REQUEST_H
#define VARVE_SERVER_HTTP_REQUEST_H

#include <stdbool.h>
#include <stddef.h>

/* The longest head that is read. */
#define VARVE_HTTP_HEAD_MAX 8192u

/* Strings lie in the head. */
struct varve_http_request {
    bool head_only;    /* HEAD; else it is GET */
    const char *path;  /* begins with / */
    const char *query; /* behind the question mark; "": none */
    const char *host;  /* whom the client means, with its port; NULL: it does not say (HTTP/1.0) */
};

/* Bytes of the head with the empty line behind it; 0: it has not come whole yet. */
size_t varve_http_head_len(const char *buf, size_t len);

/* Takes it apart in place; head[len] must be the caller's, too.  0, or the status to answer: 400,
 * 405 or 505. */
unsigned varve_http_request_parse(char *head, size_t len, struct varve_http_request *r);

/* Decodes the value of `key` in a query (NAME=VALUE&…) into out.  1: there it is; 0: there is none;
 * -EINVAL: it is not decodable, too long, or holds a NUL. */
int varve_http_query_get(const char *query, const char *key, char *out, size_t out_size);

/* Every name in the query is one of `known`, which ends with NULL, and stands there once. */
bool varve_http_query_known(const char *query, const char *const *known);

/* Whether a browser may mean this listener by that name: an address, localhost, or one of `names`,
 * which ends with NULL.  Any other may be a name that somebody else's name server just gave our
 * address (DNS rebinding). */
bool varve_http_host_is_ours(const char *host, const char *const *names);

#endif
