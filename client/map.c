/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve map: block status as a picture or as JSON, of one base or of two that are compared.
 */
#include "client/cli.h"
#include "client/map-draw.h"
#include "client/nbd.h"
#include "client/out.h"
#include "client/uri.h"
#include "include/varve.h"
#include "lib/text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAP_SINCE, MAP_UNTIL, MAP_CONTEXT, MAP_SVG };

static const struct varve_option map_options[] = {
    {"since", "NAME",
     "what changed since this checkpoint or bitmap of varved's:\n"
     "the export NAME@BASE"},
    {"until", "NAME",
     "tells what changed since this one, newer than --since, from\n"
     "what changed between the two only"},
    {"context", "CTX",
     "the meta context to show (default: the export's first dirty\n"
     "bitmap, else base:allocation)"},
    {"svg", "FILE", "draw into FILE, which is replaced"},
    {NULL, NULL, NULL},
};

/* The export under which the newest running backup publishes the disk; NULL: none.  Borrowed from
 * backups. */
static const char *newest_export(const json_t *backups, const char *disk)
{
    const json_t *backup, *one;
    const char *export = NULL;
    double newest = 0;
    size_t i, j;

    json_array_foreach(backups, i, backup)
    {
        const char *state = varve_get_string(backup, "state");
        double begun = json_number_value(json_object_get(backup, "time"));

        if ((strcmp(state, "running") != 0 && strcmp(state, "degraded") != 0) || begun < newest)
            continue;
        json_array_foreach(json_object_get(backup, "disks"), j, one)
        {
            if (strcmp(varve_get_string(one, "disk"), disk) != 0)
                continue;
            export = json_string_value(json_object_get(one, "export"));
            newest = begun;
        }
    }
    return export;
}

static int uri_of_disk(const struct varve_cli *cli, const char *disk, char **uri,
                       struct varve_err *err)
{
    struct varve_control *c;
    json_t *backups = NULL;
    char *listener = NULL;
    const char *export;
    int rc = varve_control_open(cli->control, &c, err);

    if (rc != 0)
        return rc;
    rc = varve_control_execute(c, "query-backups", NULL, &backups, err);
    if (rc == 0)
        rc = varve_uri_listener(c, &listener, err);
    if (rc == 0) {
        export = newest_export(backups, disk);
        *uri = export ? varve_uri_of_export(listener, export) : NULL;
        if (!*uri)
            rc = varve_err_set(err, ENOENT,
                               "disk %s has no running backup to show: 'varve backup "
                               "begin %s' begins one",
                               disk, disk);
    }
    free(listener);
    json_decref(backups);
    varve_control_close(c);
    return rc;
}

/* --- reading -------------------------------------------------------------------------------- */

/* One export, read in the order of the disk. */
struct map_reader {
    struct nbd_handle *h;
    char *context;
    struct varve_status status;
    struct varve_status_run run; /* what is known of where we are, and behind it */
};

struct map {
    const struct varve_args *args;
    struct map_reader readers[2]; /* the second: since the newer of two bases */
    int nreaders;
    bool dirty; /* the context is a dirty bitmap, else an allocation or something else */
    uint64_t export_size;
    struct varve_picture *picture; /* NULL: none */
    bool json;
    struct { /* JSON: equal neighbours come as one */
        uint64_t off, len, type;
    } held;
};

/* Which context is wanted, a new string. */
static int choose_context(struct nbd_handle *h, const char *since, const char *named,
                          char **context, struct varve_err *err)
{
    char *comma;
    int rc = 0;

    *context = NULL;
    if (since) {
        rc = asprintf(context, "%s%s", VARVE_CTX_DIRTY_PREFIX, since);
    } else if (named) {
        *context = strdup(named);
    } else {
        *context = varve_nbd_list(h, VARVE_CTX_DIRTY_PREFIX);
        comma = *context ? strstr(*context, ", " VARVE_CTX_DIRTY_PREFIX) : NULL;
        if (comma)
            *comma = '\0';
        if (!*context)
            *context = strdup(VARVE_CTX_ALLOCATION);
    }
    if (rc < 0 || !*context)
        return varve_err_set(err, ENOMEM, "no memory");
    return 0;
}

/* The next reader, of the export or of its base `since`. */
static int reader_open(struct map *m, const char *uri, const char *since, bool draws,
                       struct varve_err *err)
{
    struct varve_nbd_target target = {.uri = uri, .since = since};
    struct map_reader *r = &m->readers[m->nreaders];
    const char *ctx[2] = {NULL, NULL};
    int64_t export_size;
    int rc = varve_nbd_dial(&r->h, &target, NULL, err);

    if (rc != 0)
        return rc;
    m->nreaders++;
    rc = choose_context(r->h, since, m->args->option[MAP_CONTEXT], &r->context, err);
    if (rc != 0)
        return rc;
    ctx[0] = r->context;
    m->dirty = varve_nbd_is_dirty_context(r->context);
    if (draws && m->dirty)
        ctx[1] = VARVE_CTX_ALLOCATION;
    else if (draws && strcmp(r->context, VARVE_CTX_ALLOCATION) != 0)
        return varve_err_set(err, ENOTSUP, "there is no picture of context '%s': use --json",
                             r->context);
    rc = varve_nbd_go(r->h, &target, ctx, NULL, err);
    if (rc != 0)
        return rc;
    export_size = nbd_get_size(r->h);
    if (export_size < 0)
        return varve_nbd_failed(err, uri);
    if (m->nreaders > 1 && (uint64_t)export_size != m->export_size)
        return varve_err_set(err, EIO, "%s: the exports of two bases differ in size", uri);
    m->export_size = (uint64_t)export_size;
    varve_status_init(&r->status, r->h, ctx, m->export_size);
    return 0;
}

static void map_close(struct map *m)
{
    for (int i = 0; i < m->nreaders; i++) {
        varve_status_fini(&m->readers[i].status);
        varve_nbd_close(m->readers[i].h);
        free(m->readers[i].context);
    }
}

/* Afterwards the run holds off. */
static int reader_seek(struct map_reader *r, uint64_t off, struct varve_err *err)
{
    int rc = 0;

    while (r->run.off + r->run.len <= off && rc == 0)
        if (!varve_status_next(&r->status, &r->run))
            rc = varve_status_get(&r->status, r->h, off, err);
    return rc;
}

/* --- what is told --------------------------------------------------------------------------- */

static const char *describe(const struct map *m, uint64_t type, char buf[48])
{
    static const char *const allocation[] = {"data", "hole", "zero", "hole,zero"};
    static const char *const dirty[] = {"clean", "dirty"};
    static const char *const two[] = {"clean", "until", NULL, "since"};
    const char *context = m->readers[0].context;

    if (m->nreaders > 1)
        return two[type];
    if (strcmp(context, VARVE_CTX_ALLOCATION) == 0)
        return type < 4 ? allocation[type] : NULL;
    if (strncmp(context, VARVE_CTX_DIRTY_PREFIX, strlen(VARVE_CTX_DIRTY_PREFIX)) == 0)
        return type < 2 ? dirty[type] : NULL;
    if (strcmp(context, "qemu:allocation-depth") == 0) {
        if (type < 2)
            return type ? "local" : "absent";
        snprintf(buf, 48, "backing depth %" PRIu64, type);
        return buf;
    }
    return NULL;
}

/* What is held, as nbdinfo --map --json writes it. */
static void json_held(const struct map *m)
{
    char buf[48];
    const char *description = describe(m, m->held.type, buf);

    printf("%s{ \"offset\": %" PRIu64 ", \"length\": %" PRIu64 ", \"type\": %" PRIu64,
           m->held.off ? ",\n" : "[\n", m->held.off, m->held.len, m->held.type);
    if (description)
        printf(", \"description\": \"%s\"", description);
    printf("}");
}

static void json_add(struct map *m, uint64_t off, uint64_t len, uint64_t type)
{
    if (m->held.len > 0 && m->held.type == type) {
        m->held.len += len;
        return;
    }
    if (m->held.len > 0)
        json_held(m);
    m->held.off = off;
    m->held.len = len;
    m->held.type = type;
}

static void json_end(const struct map *m)
{
    if (m->held.len > 0)
        json_held(m);
    else
        printf("[");
    printf("\n]\n");
}

static enum varve_map_class classify(const struct map *m, uint64_t type)
{
    /* In a dirty bitmap's picture the second context tells the holes. */
    uint64_t allocation = m->readers[0].run.flags[m->dirty ? 1 : 0];
    bool hole = allocation & (LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO);

    if (!m->dirty)
        return hole ? VARVE_MAP_HOLE : VARVE_MAP_MARKED;
    if (m->nreaders > 1 && type == 1)
        return VARVE_MAP_EARLIER;
    if (type & VARVE_NBD_DIRTY)
        return VARVE_MAP_MARKED;
    return hole ? VARVE_MAP_HOLE : VARVE_MAP_CLEAN;
}

/* Of two bases, bit 0 says that it changed since the older one, bit 1 since the newer one. */
static int piece_type(const struct map *m, uint64_t *type, struct varve_err *err)
{
    const struct map_reader *r = m->readers;

    *type = r[0].run.flags[0];
    if (m->nreaders == 1)
        return 0;
    *type = (*type & VARVE_NBD_DIRTY) | (r[1].run.flags[0] & VARVE_NBD_DIRTY) << 1;
    if (*type == 2)
        return varve_err_set(err, EINVAL,
                             "not all that changed since '%.100s' changed since '%.100s': "
                             "--since wants the older one of the two",
                             m->args->option[MAP_UNTIL], m->args->option[MAP_SINCE]);
    return 0;
}

/* Walks the whole export. */
static int map_walk(struct map *m, struct varve_err *err)
{
    uint64_t off = 0, type;

    while (off < m->export_size) {
        uint64_t end = m->export_size;
        int rc = 0;

        for (int i = 0; i < m->nreaders && rc == 0; i++) {
            const struct varve_status_run *run = &m->readers[i].run;

            rc = reader_seek(&m->readers[i], off, err);
            if (rc == 0 && run->off + run->len < end)
                end = run->off + run->len;
        }
        if (rc == 0)
            rc = piece_type(m, &type, err);
        if (rc != 0)
            return rc;
        if (m->picture)
            varve_picture_add(m->picture, off, end - off, classify(m, type));
        if (m->json)
            json_add(m, off, end - off, type);
        off = end;
    }
    if (m->json)
        json_end(m);
    return 0;
}

/* --- the verb ------------------------------------------------------------------------------- */

static void name_classes(const struct map *m, struct varve_picture *p, const char *title,
                         const char *const two[2])
{
    p->title = title;
    p->names[VARVE_MAP_MARKED] = m->nreaders > 1 ? two[0] : m->dirty ? "dirty" : "data";
    p->names[VARVE_MAP_EARLIER] = m->nreaders > 1 ? two[1] : NULL;
    p->names[VARVE_MAP_CLEAN] = m->dirty ? "clean" : NULL;
    p->names[VARVE_MAP_HOLE] = "hole ";
}

/* What the pictures are to be of, as new strings: the heading, and what the legend says of two
 * bases. */
static int make_names(const struct map *m, char *names[3], struct varve_err *err)
{
    const char *since = m->args->option[MAP_SINCE], *until = m->args->option[MAP_UNTIL];
    int rc;

    if (m->nreaders == 1)
        rc = asprintf(&names[0], "%s", m->readers[0].context);
    else
        rc = asprintf(&names[0], "since %s, until %s", since, until);
    if (rc >= 0 && m->nreaders > 1)
        rc = asprintf(&names[1], "since %s", until);
    if (rc >= 0 && m->nreaders > 1)
        rc = asprintf(&names[2], "until %s", until);
    if (rc < 0)
        return varve_err_set(err, ENOMEM, "no memory");
    varve_text_harmless(names[0]);
    return 0;
}

static int map_draw(const struct varve_cli *cli, struct map *m, struct varve_err *err)
{
    const char *svg = m->args->option[MAP_SVG];
    struct varve_picture picture = {.cells = NULL};
    char *names[3] = {NULL, NULL, NULL};
    int rc = make_names(m, names, err);

    m->json = cli->json;
    if (svg || !cli->json)
        m->picture = &picture;
    if (rc == 0 && svg)
        rc = varve_picture_init_svg(&picture, m->export_size, err);
    else if (rc == 0 && !cli->json)
        rc = varve_picture_init_terminal(&picture, m->export_size, err);
    name_classes(m, &picture, names[0], (const char *const *)names + 1);
    if (rc == 0)
        rc = map_walk(m, err);
    if (rc == 0 && svg)
        rc = varve_picture_save_svg(&picture, m->args->words[0], svg, err);
    else if (rc == 0 && !cli->json)
        varve_picture_print(&picture);
    varve_picture_fini(&picture);
    for (int i = 0; i < 3; i++)
        free(names[i]);
    return rc;
}

static int map_export(const struct varve_cli *cli, const struct varve_args *args, const char *uri,
                      struct varve_err *err)
{
    bool draws = !cli->json || args->option[MAP_SVG];
    struct map m = {.args = args};
    int rc = reader_open(&m, uri, args->option[MAP_SINCE], draws, err);

    if (rc == 0 && args->option[MAP_UNTIL])
        rc = reader_open(&m, uri, args->option[MAP_UNTIL], draws, err);
    if (rc == 0)
        rc = map_draw(cli, &m, err);
    map_close(&m);
    return rc;
}

static int map_run(const struct varve_cli *cli, const struct varve_args *args,
                   struct varve_err *err)
{
    const char *since = args->option[MAP_SINCE], *until = args->option[MAP_UNTIL];
    char *uri = NULL;
    int rc;

    if (since && args->option[MAP_CONTEXT])
        return varve_cli_usage(err, "--context and --since exclude each other");
    if (until && (!since || strcmp(since, until) == 0))
        return varve_cli_usage(err, "--until NAME is compared with --since, an older one");
    if (strstr(args->words[0], "://"))
        return map_export(cli, args, args->words[0], err);
    rc = uri_of_disk(cli, args->words[0], &uri, err);
    if (rc == 0)
        rc = map_export(cli, args, uri, err);
    free(uri);
    return rc;
}

const struct varve_verb varve_map_verbs[] = {
    {.name = "map",
     .synopsis = "DISK|URI [--since NAME [--until NAME] | --context CTX] [--svg FILE]",
     .summary = "Draws what changed on a disk with a running backup, or on an NBD export",
     .options = map_options,
     .words_min = 1,
     .words_max = 1,
     .run = map_run},
    {.name = NULL},
};
