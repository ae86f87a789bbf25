/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve apply: deltas onto the backup that they build upon.
 *
 *     all indexes checked | marker | delta by delta: data checked, written | synced | stamp | no
 * marker
 *
 * Where to begin is what the stamp says that FILE is; the user's word (--trust) stands in for it
 * only where nothing says anything.  Cut short, all of it is done again from the delta with which
 * it began: each byte that any of them has gets what the last of them has for it, and the others
 * are FILE's own. So the marker names the first and the last one: both have to be there again.
 */
#include "client/cli.h"
#include "client/deltas.h"
#include "client/out.h"
#include "client/progress.h"
#include "client/sink.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { APPLY_TRUST, APPLY_VERIFY };

static const struct varve_option apply_options[] = {
    {"trust", NULL,
     "FILE is what the first delta builds upon, although nothing\n"
     "says so"},
    {"verify", NULL, "read back and compare what was written"},
    {NULL, NULL, NULL},
};

struct apply {
    const char *file;
    bool trust, verify;
    struct varve_deltas deltas;
    struct varve_sink sink;
    size_t from; /* the first delta to apply; all of them: nothing is to be done */
    char *buf;
    struct varve_progress progress;
    uint64_t total, data_bytes, zero_bytes;
};

static int apply_resume(struct apply *a, const json_t *marker, struct varve_err *err)
{
    const char *kind = json_string_value(json_object_get(marker, "kind"));
    const char *first = json_string_value(json_object_get(marker, "first"));
    const char *last = json_string_value(json_object_get(marker, "last"));
    const char *deltas = json_string_value(json_object_get(marker, "deltas"));
    size_t end;

    if (strcmp(kind, "apply") != 0 || !first || !last)
        return varve_err_set(err, EEXIST,
                             "%.200s.partial: an unfinished pull must be finished first: run it "
                             "again, or remove both files",
                             a->file);
    a->from = varve_deltas_find(&a->deltas, first);
    end = varve_deltas_find(&a->deltas, last);
    if (a->from > end || end == a->deltas.count)
        return varve_err_set(err, EEXIST,
                             "%.120s.partial: the deltas %.32s to %.32s of %.120s were being "
                             "applied, and %.120s lacks one of them: finish that first, or remove "
                             "both files",
                             a->file, first, last, deltas ? deltas : "?", a->deltas.path);
    return 0;
}

/* Where FILE stands, by its stamp. */
static int apply_locate(struct apply *a, const struct varve_stamp *stamp, struct varve_err *err)
{
    const struct varve_delta_item *items = a->deltas.items;
    size_t n = a->deltas.count;

    a->from = stamp->delta[0] ? varve_deltas_find(&a->deltas, stamp->delta) + 1 : n + 1;
    if (a->from <= n)
        return 0;
    for (size_t i = 0; i < n && stamp->point[0]; i++) {
        a->from = i;
        if (strcmp(items[i].head.base, stamp->point) == 0)
            return 0;
    }
    a->from = n;
    if (stamp->point[0] && strcmp(items[n - 1].head.point, stamp->point) == 0)
        return 0;
    return varve_err_set(
        err, EEXIST,
        "%.120s is %.100s%.33s, by %.120s.varve, and %.120s begins at %.100s: they "
        "do not belong together",
        a->file, stamp->point[0] ? stamp->point : "what came of the delta ",
        stamp->point[0] ? "" : stamp->delta, a->file, items[0].path,
        items[0].head.base[0] ? items[0].head.base : "an instant without a name");
}

static int apply_begin_at(struct apply *a, struct varve_err *err)
{
    const struct varve_delta_item *first = &a->deltas.items[0];
    struct varve_stamp stamp;
    json_t *marker;
    int rc = varve_sink_read_marker(&a->sink, &marker, err);

    if (rc != 0)
        return rc;
    if (marker) {
        rc = apply_resume(a, marker, err);
        json_decref(marker);
        return rc;
    }
    rc = varve_sink_read_stamp(&a->sink, &stamp, err);
    if (rc != 0)
        return rc;
    if (stamp.holds && (stamp.point[0] || stamp.delta[0]))
        return apply_locate(a, &stamp, err);
    a->from = 0;
    if (a->trust)
        return 0;
    return varve_err_set(
        err, EINVAL,
        "%s %.120s%s, so nothing says that it is what %.120s builds upon (%.100s): if it is, say "
        "--trust",
        stamp.found ? "somebody wrote to" : "there is no", a->file,
        stamp.found ? " since its .varve was made" : ".varve", first->path,
        first->head.base[0] ? first->head.base : first->head.context);
}

static int apply_check(struct apply *a, struct varve_err *err)
{
    uint64_t disk_size = a->deltas.items[0].head.size;
    struct varve_stat st;
    int rc = varve_world_posix()->stat(varve_world_posix(), a->sink.fd, &st);

    if (rc < 0)
        return varve_err_sys(err, -rc, "%s", a->file);
    if (st.size != disk_size)
        return varve_err_set(err, EINVAL,
                             "%.200s has %" PRIu64 " bytes, and the deltas in %.200s are of a disk "
                             "of %" PRIu64 ": they do not belong together",
                             a->file, st.size, a->deltas.path, disk_size);
    rc = apply_begin_at(a, err);
    for (size_t i = a->from; rc == 0 && i < a->deltas.count; i++) {
        struct varve_delta_reader r;

        rc = varve_delta_open(varve_world_posix(), a->deltas.items[i].path, &r, err);
        if (rc != 0)
            break;
        rc = varve_delta_check(&r, err);
        a->total += r.head.data_bytes;
        varve_delta_reader_close(&r);
    }
    return rc;
}

static int apply_extent(struct apply *a, struct varve_delta_reader *r,
                        const struct varve_delta_extent *e, struct varve_err *err)
{
    int rc;

    if (!e->at) {
        a->zero_bytes += e->len;
        return varve_sink_zero(&a->sink, e->off, e->len, err);
    }
    rc = varve_delta_read(r, e, a->buf, err);
    if (rc == 0)
        rc = varve_sink_data(&a->sink, a->buf, e->off, (size_t)e->len, err);
    a->data_bytes += e->len;
    return rc;
}

static int verify_extent(struct apply *a, struct varve_delta_reader *r,
                         const struct varve_delta_extent *e, struct varve_err *err)
{
    int rc = 0;

    if (e->at) {
        rc = varve_delta_read(r, e, a->buf, err);
        return rc == 0 ? varve_sink_compare(&a->sink, a->buf, e->off, (size_t)e->len, err) : rc;
    }
    memset(a->buf, 0, VARVE_DELTA_PIECE_MAX);
    for (uint64_t done = 0; rc == 0 && done < e->len;) {
        uint64_t left = e->len - done;
        size_t len = left < VARVE_DELTA_PIECE_MAX ? (size_t)left : VARVE_DELTA_PIECE_MAX;

        rc = varve_sink_compare(&a->sink, a->buf, e->off + done, len, err);
        done += len;
    }
    return rc;
}

static int apply_extents(struct apply *a, struct varve_delta_reader *r,
                         int (*each)(struct apply *a, struct varve_delta_reader *r,
                                     const struct varve_delta_extent *e, struct varve_err *err),
                         struct varve_err *err)
{
    struct varve_delta_extent e;
    int rc;

    varve_delta_rewind(r);
    while ((rc = varve_delta_next(r, &e, err)) > 0) {
        rc = each(a, r, &e, err);
        if (rc != 0)
            return rc;
        varve_progress_draw(&a->progress, a->data_bytes, a->total, a->data_bytes);
    }
    return rc;
}

static int apply_delta(struct apply *a, const struct varve_delta_item *item, struct varve_err *err)
{
    struct varve_delta_reader r;
    int rc = varve_delta_open(varve_world_posix(), item->path, &r, err);

    if (rc != 0)
        return rc;
    if (memcmp(r.head.id, item->head.id, sizeof(item->head.id)) != 0)
        rc = varve_err_set(err, ESTALE, "%s was replaced meanwhile", item->path);
    if (rc == 0)
        rc = apply_extents(a, &r, apply_extent, err);
    if (rc == 0 && a->verify)
        rc = varve_sink_sync(&a->sink, err);
    if (rc == 0 && a->verify) {
        varve_sink_forget(&a->sink);
        rc = apply_extents(a, &r, verify_extent, err);
    }
    varve_delta_reader_close(&r);
    return rc;
}

static int apply_mark(struct apply *a, struct varve_err *err)
{
    char first[VARVE_DELTA_ID_TEXT], last[VARVE_DELTA_ID_TEXT];
    const struct varve_delta_item *items = a->deltas.items;
    struct varve_sink_apply mark = {
        .deltas = a->deltas.path,
        .first = varve_delta_id_text(items[a->from].head.id, first),
        .last = varve_delta_id_text(items[a->deltas.count - 1].head.id, last),
    };

    return varve_sink_mark_apply(&a->sink, &mark, err);
}

static int apply_all(struct apply *a, struct varve_err *err)
{
    const struct varve_delta_item *end = &a->deltas.items[a->deltas.count - 1];
    char id[VARVE_DELTA_ID_TEXT];
    struct varve_err was;
    int rc = apply_mark(a, err);

    if (rc != 0)
        return rc;
    varve_progress_begin(&a->progress, "applying");
    for (size_t i = a->from; rc == 0 && i < a->deltas.count; i++)
        rc = apply_delta(a, &a->deltas.items[i], err);
    varve_progress_end(&a->progress);
    if (rc == 0)
        rc = varve_sink_sync(&a->sink, err);
    if (rc == 0)
        rc = varve_sink_put_stamp(&a->sink, end->head.point[0] ? end->head.point : NULL,
                                  varve_delta_id_text(end->head.id, id), err);
    if (rc == 0)
        return varve_sink_finish(&a->sink, err);
    was = *err;
    return varve_err_set(err, was.code,
                         "%.300s (%.120s.partial marks the file as unfinished; the same command "
                         "again finishes it)",
                         was.msg, a->file);
}

static void apply_print(const struct apply *a, bool json)
{
    size_t n = a->deltas.count - a->from;
    char buf[2][VARVE_OUT_SIZE_LEN];

    if (json) {
        json_t *result = json_pack("{s:I, s:I, s:I, s:b}", "deltas", (json_int_t)n, "data-bytes",
                                   (json_int_t)a->data_bytes, "zero-bytes",
                                   (json_int_t)a->zero_bytes, "verified", a->verify && n > 0);

        varve_out_json(result);
        json_decref(result);
    } else if (n == 0) {
        printf("%s has all deltas of %s already\n", a->file, a->deltas.path);
    } else {
        printf("applied %zu delta%s of %s to %s (%s of data, %s of zeroes)%s\n", n,
               n == 1 ? "" : "s", a->deltas.path, a->file, varve_out_size(buf[0], a->data_bytes),
               varve_out_size(buf[1], a->zero_bytes), a->verify ? ", verified" : "");
    }
}

static int apply_file(struct apply *a, struct varve_err *err)
{
    int rc = varve_sink_open_backup(&a->sink, a->file, err);

    if (rc != 0)
        return rc;
    a->buf = malloc(VARVE_DELTA_PIECE_MAX);
    if (!a->buf)
        rc = varve_err_set(err, ENOMEM, "no memory");
    if (rc == 0)
        rc = apply_check(a, err);
    if (rc == 0 && a->from < a->deltas.count)
        rc = apply_all(a, err);
    free(a->buf);
    varve_sink_close(&a->sink);
    return rc;
}

static int apply_run(const struct varve_cli *cli, const struct varve_args *args,
                     struct varve_err *err)
{
    struct apply a = {
        .file = args->words[1],
        .trust = args->option[APPLY_TRUST] != NULL,
        .verify = args->option[APPLY_VERIFY] != NULL,
    };
    int rc = varve_deltas_open(&a.deltas, args->words[0], false, err);

    if (rc == 0 && a.deltas.count == 0)
        rc = varve_err_set(err, ENOENT, "%s holds no deltas", args->words[0]);
    if (rc == 0)
        rc = apply_file(&a, err);
    if (rc == 0)
        apply_print(&a, cli->json);
    varve_deltas_close(&a.deltas);
    return rc;
}

const struct varve_verb varve_apply_verbs[] = {
    {.name = "apply",
     .synopsis = "DIR FILE [--trust] [--verify]",
     .summary = "Puts the deltas of DIR, one after another, onto the backup FILE",
     .options = apply_options,
     .words_min = 2,
     .words_max = 2,
     .run = apply_run},
    {.name = NULL},
};
