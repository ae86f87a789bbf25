/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/http-request.h"

#include "lib/parse.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

/* --- lines -------------------------------------------------------------------------------- */

size_t varve_http_head_len(const char *buf, size_t len)
{
    const char *end = buf + len, *lf = buf;

    while ((lf = memchr(lf, '\n', (size_t)(end - lf))) != NULL) {
        lf++;
        if (lf < end && *lf == '\n')
            return (size_t)(lf + 1 - buf);
        if (lf + 1 < end && lf[0] == '\r' && lf[1] == '\n')
            return (size_t)(lf + 2 - buf);
    }
    return 0;
}

/* The next line, without its end, which becomes a NUL.  NULL: it holds what no line may. */
static char *line_next(char **at)
{
    char *line = *at, *lf = strchr(line, '\n');

    if (!lf)
        return NULL;
    *at = lf + 1;
    *lf = '\0';
    if (lf > line && lf[-1] == '\r')
        lf[-1] = '\0';
    for (const char *p = line; *p; p++) {
        if (((unsigned char)*p < ' ' && *p != '\t') || *p == 0x7f)
            return NULL;
    }
    return line;
}

static bool is_token(const char *text, size_t len)
{
    static const char other[] = "!#$%&'*+-.^_`|~";

    for (size_t i = 0; i < len; i++) {
        char c = text[i];

        if (!((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
              (c && strchr(other, c))))
            return false;
    }
    return len > 0;
}

/* --- the request line --------------------------------------------------------------------- */

/* Sets path and query, and host where the target has the form that proxies are asked with. */
static bool target_parse(char *target, struct varve_http_request *r)
{
    static const char scheme[] = "http://";
    char *query;

    for (const char *p = target; *p; p++) {
        if ((unsigned char)*p <= ' ' || (unsigned char)*p >= 0x7f || *p == '#')
            return false;
    }
    if (strncasecmp(target, scheme, strlen(scheme)) == 0) {
        char *host = target + strlen(scheme), *path = strchr(host, '/');

        if (!path || path == host)
            return false;
        memmove(host - 1, host, (size_t)(path - host)); /* room for a NUL */
        path[-1] = '\0';
        r->host = host - 1;
        target = path;
    }
    if (target[0] != '/')
        return false;
    query = strchr(target, '?');
    if (query)
        *query++ = '\0';
    r->path = target;
    r->query = query ? query : "";
    return true;
}

/* 0 or the status. */
static unsigned request_line_parse(char *line, struct varve_http_request *r, bool *host_required)
{
    char *target = strchr(line, ' '), *version = target ? strchr(target + 1, ' ') : NULL;
    size_t method_len = target ? (size_t)(target - line) : 0;

    if (!version || !is_token(line, method_len))
        return 400;
    *target++ = '\0';
    *version++ = '\0';
    if (strncmp(version, "HTTP/", 5) != 0 || version[5] < '0' || version[5] > '9' ||
        version[6] != '.' || version[7] < '0' || version[7] > '9' || version[8])
        return 400;
    if (version[5] != '1')
        return 505;
    r->head_only = strcmp(line, "HEAD") == 0;
    if (!r->head_only && strcmp(line, "GET") != 0)
        return 405;
    *host_required = version[7] != '0';
    return target_parse(target, r) ? 0 : 400;
}

/* --- fields ------------------------------------------------------------------------------- */

static char *trimmed(char *value)
{
    size_t len;

    value += strspn(value, " \t");
    len = strlen(value);
    while (len > 0 && (value[len - 1] == ' ' || value[len - 1] == '\t'))
        value[--len] = '\0';
    return value;
}

/* False: it is none, or says that a body follows, which nothing here wants. */
static bool field_parse(char *line, const char **host)
{
    char *colon = strchr(line, ':'), *value;

    if (!colon || !is_token(line, (size_t)(colon - line)))
        return false;
    *colon = '\0';
    value = trimmed(colon + 1);
    if (strcasecmp(line, "Transfer-Encoding") == 0)
        return false;
    if (strcasecmp(line, "Content-Length") == 0)
        return strcmp(value, "0") == 0;
    if (strcasecmp(line, "Host") != 0)
        return true;
    if (*host)
        return false;
    *host = value;
    return true;
}

unsigned varve_http_request_parse(char *head, size_t len, struct varve_http_request *r)
{
    const char *host = NULL;
    bool host_required = false;
    char *at = head, *line;
    unsigned status;

    *r = (struct varve_http_request){.path = "/", .query = ""};
    head[len] = '\0';
    if (memchr(head, '\0', len))
        return 400;
    line = line_next(&at);
    status = line ? request_line_parse(line, r, &host_required) : 400;
    if (status != 0)
        return status;
    while ((line = line_next(&at)) != NULL && line[0]) {
        if (!field_parse(line, &host))
            return 400;
    }
    if (!line || (host_required && !host))
        return 400;
    if (!r->host)
        r->host = host;
    return 0;
}

/* --- queries ------------------------------------------------------------------------------ */

/* The next NAME=VALUE; false: there is none. */
static bool pair_next(const char **query, const char **name, size_t *name_len, size_t *value_len)
{
    size_t len = strcspn(*query, "&");

    if (!**query)
        return false;
    *name = *query;
    *name_len = strcspn(*query, "=&");
    *value_len = *name_len < len ? len - *name_len - 1 : 0;
    *query += len + ((*query)[len] == '&');
    return true;
}

static bool name_is(const char *name, size_t len, const char *key)
{
    return strlen(key) == len && memcmp(name, key, len) == 0;
}

static int value_decode(const char *text, size_t len, char *out, size_t out_size)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++) {
        char c = text[i] == '+' ? ' ' : text[i];

        if (c == '%') {
            /* Two digits have to follow. */
            int high = i + 2 < len ? varve_parse_hex_digit(text[i + 1]) : -1;
            int low = high >= 0 ? varve_parse_hex_digit(text[i + 2]) : -1;

            if (low < 0)
                return -EINVAL;
            c = (char)(high << 4 | low);
            i += 2;
        }
        if (c == '\0' || n + 1 >= out_size)
            return -EINVAL;
        out[n++] = c;
    }
    out[n] = '\0';
    return 1;
}

int varve_http_query_get(const char *query, const char *key, char *out, size_t out_size)
{
    size_t name_len, value_len;
    const char *name;

    while (pair_next(&query, &name, &name_len, &value_len)) {
        if (name_is(name, name_len, key))
            return value_decode(name + name_len + (value_len > 0), value_len, out, out_size);
    }
    return 0;
}

bool varve_http_query_known(const char *query, const char *const *known)
{
    size_t name_len, value_len;
    uint64_t seen = 0;
    const char *name;

    while (pair_next(&query, &name, &name_len, &value_len)) {
        unsigned i = 0;

        while (known[i] && !name_is(name, name_len, known[i]))
            i++;
        if (!known[i] || seen >> i & 1)
            return false;
        seen |= UINT64_C(1) << i;
    }
    return true;
}

/* --- whom the client means ---------------------------------------------------------------- */

bool varve_http_host_is_ours(const char *host, const char *const *names)
{
    bool bracket = host[0] == '[';
    size_t len = bracket ? strcspn(host, "]") : strcspn(host, ":");
    const char *port = host + len + bracket;
    char name[256];
    struct in6_addr addr;

    if ((bracket && host[len] != ']') || len - bracket >= sizeof(name))
        return false;
    if (port[0] && (port[0] != ':' || port[1 + strspn(port + 1, "0123456789")]))
        return false;
    memcpy(name, host + bracket, len - bracket);
    name[len - bracket] = '\0';
    if (bracket)
        return inet_pton(AF_INET6, name, &addr) == 1;
    if (inet_pton(AF_INET, name, &addr) == 1 || strcasecmp(name, "localhost") == 0)
        return true;
    for (; *names; names++) {
        if (name[0] && strcasecmp(name, *names) == 0)
            return true;
    }
    return false;
}
