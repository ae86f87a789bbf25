/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/web.h"

#include "server/commands.h"
#include "server/http-request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The longest argument is a bitmap's name. */
#define VALUE_MAX 1024u

#define JSON_TYPE "application/json"

/* What a path asks for, and the arguments that may be given in its query. */
struct api {
    const char *command;
    const char *arguments[4];
};

static int api_arguments(const struct varve_http_page *page, const char *query, json_t *args,
                         struct varve_err *err)
{
    const struct api *api = page->of;
    char value[VALUE_MAX];

    if (!varve_http_query_known(query, api->arguments))
        return varve_err_set(err, EINVAL, "%s does not take these parameters", page->path);
    for (const char *const *key = api->arguments; *key; key++) {
        int rc = varve_http_query_get(query, *key, value, sizeof(value));
        json_t *text = rc == 1 ? json_string(value) : NULL;

        if (rc < 0 || (rc == 1 && !text))
            return varve_err_set(err, EINVAL, "Parameter '%s' cannot be decoded", *key);
        if (text)
            json_object_set_new(args, *key, text);
    }
    return 0;
}

static json_t *api_version(void)
{
    json_t *greeting = varve_qmp_greeting();
    json_t *version = json_incref(json_object_get(json_object_get(greeting, "QMP"), "version"));

    json_decref(greeting);
    return version;
}

static json_t *api_run(struct varve_daemon *d, const struct varve_http_page *page,
                       const char *query, struct varve_err *err)
{
    const struct api *api = page->of;
    const struct varve_command *command = varve_command_find(api->command);
    json_t *args = json_object(), *value = NULL;
    int rc = api_arguments(page, query, args, err);

    if (rc == 0)
        value = command->run ? command->run(d, args, err) : api_version();
    json_decref(args);
    return value;
}

static unsigned api_status(const struct varve_err *err)
{
    switch (err->code) {
    case ENODEV:
    case ENOENT:
        return 404;
    case EINVAL:
        return 400;
    default:
        return 500;
    }
}

/* What the command returns; or its error as the control socket tells it. */
static void api_make(struct varve_daemon *d, const struct varve_http_page *page, const char *query,
                     struct varve_http_answer *a)
{
    struct varve_err err = VARVE_ERR_INIT;
    json_t *value = api_run(d, page, query, &err);

    if (!value) {
        a->status = api_status(&err);
        value =
            varve_qmp_error(err.code == ENODEV ? "DeviceNotFound" : "GenericError", err.msg, NULL);
    }
    a->text = value ? varve_qmp_dump(value, &a->len) : NULL;
    json_decref(value);
}

#define FILE_PAGE(at, kind, name)                                                                  \
    {                                                                                              \
        .path = at, .type = kind, .text = name, .len = &name##_len                                 \
    }
#define API_PAGE(at, ...)                                                                          \
    {                                                                                              \
        .path = at, .type = JSON_TYPE, .make = api_make, .of = &(const struct api)                 \
        {                                                                                          \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

static const struct varve_http_page pages[] = {
    FILE_PAGE("/", "text/html; charset=utf-8", varve_web_page_html),
    FILE_PAGE("/page.css", "text/css; charset=utf-8", varve_web_page_css),
    FILE_PAGE("/page.js", "text/javascript; charset=utf-8", varve_web_page_js),
    FILE_PAGE("/icon.svg", "image/svg+xml", varve_web_icon_svg),
    API_PAGE("/api/backups", "query-backups", {NULL}),
    API_PAGE("/api/block", "query-block", {NULL}),
    API_PAGE("/api/changes", "query-changes", {"disk", "since", "bitmap", NULL}),
    API_PAGE("/api/checkpoints", "query-checkpoints", {"disk", NULL}),
    API_PAGE("/api/disks", "query-disks", {"disk", NULL}),
    API_PAGE("/api/jobs", "query-jobs", {NULL}),
    API_PAGE("/api/nbd-server", "query-nbd-server", {NULL}),
    API_PAGE("/api/version", "query-version", {NULL}),
    {.path = NULL},
};

/* A browser is to load what is ours alone, to run no text of a name as a script, and to show it in
 * nobody's frame. */
const struct varve_http_site varve_web_site = {
    .name = "web page",
    .fields = "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; "
              "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
              "frame-ancestors 'none'\r\n"
              "Cross-Origin-Resource-Policy: same-origin\r\n"
              "Referrer-Policy: no-referrer\r\n",
    .guards_host = true,
    .pages = pages,
};
