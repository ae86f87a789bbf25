/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve pull: an NBD export into a file, whole or only what is dirty.
 */
#include "client/cli.h"
#include "client/out.h"
#include "client/pull.h"
#include "include/varve.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PULL_CONTEXT, PULL_SINCE, PULL_DELTA, PULL_VERIFY };

static const struct varve_option pull_options[] = {
    {"context", "CTX",
     "FILE is the previous backup: write only what is dirty in this\n"
     "meta context onto it, such as qemu:dirty-bitmap:NAME"},
    {"since", "NAME",
     "the same with the changes since a checkpoint or bitmap of\n"
     "varved's: the export NAME@BASE"},
    {"delta", "DIR",
     "no FILE: put what changed into the folder DIR, for varve apply,\n"
     "behind the deltas that are there"},
    {"verify", NULL, "read back and compare what was written"},
    {NULL, NULL, NULL},
};

/* Exports of one view under several names need not tell the same: vda+delta has holes where vda has
 * data. */
static int pull_view(struct varve_pull *p, struct varve_err *err)
{
    char *id = varve_view_id(p->description), *name = id ? nbd_get_export_name(p->h) : NULL;
    int rc = 0;

    if (name && asprintf(&p->view, "%s as %s", id, name) < 0) {
        p->view = NULL;
        rc = varve_err_set(err, ENOMEM, "no memory");
    }
    free(name);
    free(id);
    return rc;
}

/* Connects, with the context that is asked checked even where a full copy makes no use of it. */
static int pull_connect(struct varve_pull *p, struct varve_err *err)
{
    const char *const ctx[2] = {p->context, VARVE_CTX_ALLOCATION};
    const char *base;
    int64_t export_size;
    uint64_t epoch = 0;
    int rc = varve_nbd_dial(&p->h, &p->target, NULL, err);

    if (rc == 0)
        rc = varve_nbd_go(p->h, &p->target, ctx, NULL, err);
    if (rc != 0)
        return rc;
    export_size = nbd_get_size(p->h);
    if (export_size < 0)
        return varve_nbd_failed(err, p->target.uri);
    p->description = nbd_get_export_description(p->h);
    varve_instants(p->description, p->point, p->base);
    base = p->description ? strstr(p->description, VARVE_DESC_CHANGES) : NULL;
    rc = pull_view(p, err);
    if (rc != 0)
        return rc;
    if (p->point[0])
        epoch = strtoull(p->point + strlen(VARVE_DESC_INSTANT), NULL, 10);
    p->want = (struct varve_sink_want){
        .uri = p->target.uri,
        .context = p->context,
        .view = p->view,
        .epoch = epoch < INT64_MAX ? epoch : 0,
        .base = base ? base + strlen(VARVE_DESC_CHANGES) : NULL,
        .export_size = (uint64_t)export_size,
    };
    return 0;
}

int varve_pull_again(struct varve_pull *p,
                     int (*compare)(void *opaque, const char *buf, uint64_t off, size_t len,
                                    struct varve_err *err),
                     void *opaque, struct varve_err *err)
{
    struct varve_copy again = {
        .target = &p->target,
        .what = "verifying",
        .dirty_ctx = p->copy.dirty_ctx,
        .read_zeroes = true,
        .data = compare,
        .opaque = opaque,
    };

    return varve_copy_run(&again, p->h, err);
}

static int pull_verify(struct varve_pull *p, struct varve_sink *sink, struct varve_err *err)
{
    int rc;

    varve_sink_forget(sink);
    rc = varve_pull_again(p, varve_sink_compare, sink, err);
    /* Nothing of it is to be kept by the next one. */
    if (rc != 0 && atomic_load(&sink->differs))
        varve_sink_mark(sink, &p->want, 0, NULL);
    return rc;
}

struct pull_into {
    struct varve_pull *pull;
    struct varve_sink *sink;
};

static int into_data(void *opaque, const char *buf, uint64_t off, size_t len, struct varve_err *err)
{
    return varve_sink_data(((struct pull_into *)opaque)->sink, buf, off, len, err);
}

static int into_zero(void *opaque, uint64_t off, uint64_t len, struct varve_err *err)
{
    return varve_sink_zero(((struct pull_into *)opaque)->sink, off, len, err);
}

static int into_reached(void *opaque, uint64_t off, struct varve_err *err)
{
    struct pull_into *into = opaque;

    return varve_sink_save(into->sink, &into->pull->want, off, err);
}

static int pull_into(struct varve_pull *p, struct varve_sink *sink, struct varve_err *err)
{
    struct pull_into into = {p, sink};
    struct varve_err was;
    int rc = varve_sink_begin(sink, &p->want, err);

    if (rc != 0)
        return rc;
    p->copy = (struct varve_copy){
        .target = &p->target,
        .what = "pulling",
        .dirty_ctx = sink->kind == VARVE_SINK_INCREMENTAL ? p->context : NULL,
        .from = sink->kept,
        .data = into_data,
        .zero = into_zero,
        .reached = sink->token[0] ? into_reached : NULL,
        .opaque = &into,
    };
    rc = varve_copy_run(&p->copy, p->h, err);
    if (rc == 0)
        rc = varve_sink_sync(sink, err);
    if (rc == 0 && p->verify)
        rc = pull_verify(p, sink, err);
    if (rc == 0)
        rc = varve_sink_cut_tail(sink, p->want.export_size, err);
    if (rc == 0)
        rc = varve_sink_put_stamp(sink, p->point[0] ? p->point : NULL, NULL, err);
    if (rc == 0)
        return varve_sink_finish(sink, err);
    was = *err;
    return varve_err_set(err, was.code,
                         "%.300s (%.120s.partial marks the file as unfinished; the "
                         "same command again finishes it)",
                         was.msg, p->file);
}

static void pull_print_delta(const struct varve_pull *p)
{
    const struct varve_copy *c = &p->copy;
    char buf[3][VARVE_OUT_SIZE_LEN];

    if (p->there)
        printf("%s has these changes already\n", p->delta);
    else
        printf("pulled %s of %s into %s (what changed; %s of zeroes not moved)%s\n",
               varve_out_size(buf[0], c->data_bytes), varve_out_size(buf[1], p->want.export_size),
               p->delta, varve_out_size(buf[2], c->zero_bytes), p->verify ? ", verified" : "");
}

static void pull_print(const struct varve_pull *p, bool json)
{
    const struct varve_copy *c = &p->copy;
    char buf[4][VARVE_OUT_SIZE_LEN];

    if (json) {
        json_t *result = json_pack(
            "{s:I, s:I, s:I, s:I, s:I, s:b, s:s*}", "size", (json_int_t)p->want.export_size, "from",
            (json_int_t)c->from, "dirty-bytes", (json_int_t)c->dirty_bytes, "data-bytes",
            (json_int_t)c->data_bytes, "zero-bytes", (json_int_t)c->zero_bytes, "verified",
            p->verify && !p->there, "delta", p->delta);

        varve_out_json(result);
        json_decref(result);
        return;
    }
    if (p->delta) {
        pull_print_delta(p);
        return;
    }
    printf("pulled %s of %s into %s (%s; %s of zeroes not moved%s%s)%s\n",
           varve_out_size(buf[0], c->data_bytes), varve_out_size(buf[1], p->want.export_size),
           p->file, c->dirty_ctx ? "what changed" : "a full copy",
           varve_out_size(buf[2], c->zero_bytes), c->from > 0 ? "; went on at " : "",
           c->from > 0 ? varve_out_size(buf[3], c->from) : "", p->verify ? ", verified" : "");
}

static int pull_file(struct varve_pull *p, struct varve_err *err)
{
    struct varve_sink sink;
    int rc = varve_sink_open(&sink, p->file, &p->want, err);

    if (rc != 0)
        return rc;
    rc = pull_into(p, &sink, err);
    varve_sink_close(&sink);
    return rc;
}

static int pull_usage(const struct varve_args *args, struct varve_err *err)
{
    const char *context = args->option[PULL_CONTEXT];

    if (args->option[PULL_SINCE] && context)
        return varve_cli_usage(err, "--context and --since exclude each other");
    if (context && !varve_nbd_is_dirty_context(context))
        return varve_cli_usage(
            err, "--context %s: not a dirty bitmap such as " VARVE_CTX_DIRTY_PREFIX "NAME",
            context);
    if (!args->option[PULL_DELTA] && args->nwords != 2)
        return varve_cli_usage(err, "URI FILE, or URI --delta DIR, are needed");
    if (args->option[PULL_DELTA] && args->nwords != 1)
        return varve_cli_usage(err, "with --delta DIR there is no FILE");
    if (args->option[PULL_DELTA] && !args->option[PULL_SINCE] && !context)
        return varve_cli_usage(err, "--delta needs --context or --since");
    return 0;
}

static int pull_run(const struct varve_cli *cli, const struct varve_args *args,
                    struct varve_err *err)
{
    const char *since = args->option[PULL_SINCE];
    struct varve_pull p = {
        .target = {.uri = args->words[0], .since = since},
        .file = args->nwords > 1 ? args->words[1] : NULL,
        .deltas = args->option[PULL_DELTA],
        .verify = args->option[PULL_VERIFY] != NULL,
    };
    int rc = pull_usage(args, err);

    if (rc != 0)
        return rc;
    if (since) {
        if (asprintf(&p.context, "%s%s", VARVE_CTX_DIRTY_PREFIX, since) < 0)
            return varve_err_set(err, ENOMEM, "no memory");
    } else if (args->option[PULL_CONTEXT]) {
        p.context = strdup(args->option[PULL_CONTEXT]);
        if (!p.context)
            return varve_err_set(err, ENOMEM, "no memory");
    }
    rc = pull_connect(&p, err);
    if (rc == 0)
        rc = p.deltas ? varve_pull_delta(&p, err) : pull_file(&p, err);
    if (rc == 0)
        pull_print(&p, cli->json);
    free(p.delta);
    varve_nbd_close(p.h);
    free(p.view);
    free(p.description);
    free(p.context);
    return rc;
}

const struct varve_verb varve_pull_verbs[] = {
    {.name = "pull",
     .synopsis = "URI FILE|--delta DIR [--context CTX | --since NAME] [--verify]",
     .summary = "Copies an NBD export into a new FILE, or what changed onto an old one",
     .options = pull_options,
     .words_min = 1,
     .words_max = 2,
     .run = pull_run},
    {.name = NULL},
};
