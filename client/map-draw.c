/* SPDX-License-Identifier: BSD-3-Clause */
#include "client/map-draw.h"
#include "client/out.h"

#include <errno.h>
#include <inttypes.h>
#include <langinfo.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROWS_MAX        16
#define COLUMNS_DEFAULT 64
#define LABEL_WIDTH     8 /* the offset before each row, and what stands between */
#define CELL_MIN        512

enum { MARKED, PARTLY, CLEAN, HOLE, KINDS };

int varve_picture_init(struct varve_picture *p, const char *context, bool dirty,
                       uint64_t export_size, struct varve_err *err)
{
    int columns = varve_out_columns(STDOUT_FILENO);

    *p = (struct varve_picture){
        .context = context, .dirty = dirty, .export_size = export_size, .cell_bytes = CELL_MIN};
    p->columns = columns ? columns - LABEL_WIDTH - 1 : COLUMNS_DEFAULT;
    if (p->columns < 8)
        p->columns = 8;
    while ((export_size + p->cell_bytes - 1) / p->cell_bytes > (uint64_t)p->columns * ROWS_MAX)
        p->cell_bytes *= 2;
    p->ncells = (size_t)((export_size + p->cell_bytes - 1) / p->cell_bytes);
    p->cells = calloc(p->ncells + 1, sizeof(*p->cells));
    return p->cells ? 0 : varve_err_set(err, ENOMEM, "no memory");
}

void varve_picture_fini(struct varve_picture *p)
{
    free(p->cells);
}

void varve_picture_add(struct varve_picture *p, const struct varve_status_run *run)
{
    /* In a dirty bitmap's picture the second context tells the holes. */
    uint64_t allocation = p->dirty ? run->flags[1] : run->flags[0];
    bool hole = allocation & (LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO);
    bool marked = p->dirty ? run->flags[0] & VARVE_NBD_DIRTY : !hole;
    uint64_t off = run->off, end = run->off + run->len;

    if (marked) {
        p->marked += run->len;
        p->runs += p->marked_end != off || p->runs == 0;
        p->marked_end = end;
    } else if (hole) {
        p->holes += run->len;
    } else {
        return;
    }
    while (off < end) {
        struct varve_picture_cell *cell = &p->cells[off / p->cell_bytes];
        uint64_t behind = (off / p->cell_bytes + 1) * p->cell_bytes;
        uint64_t len = (behind < end ? behind : end) - off;

        if (marked)
            cell->marked += len;
        else
            cell->holes += len;
        off += len;
    }
}

static int cell_kind(const struct varve_picture *p, size_t i)
{
    uint64_t off = i * p->cell_bytes;
    uint64_t len = p->export_size - off < p->cell_bytes ? p->export_size - off : p->cell_bytes;

    if (p->cells[i].marked == len)
        return MARKED;
    if (p->cells[i].marked > 0)
        return PARTLY;
    return p->cells[i].holes == len ? HOLE : CLEAN;
}

void varve_picture_print(const struct varve_picture *p)
{
    static const char *const ascii[KINDS] = {"#", "+", ".", "-"};
    static const char *const utf8[KINDS] = {"\u2588", "\u2592", "\u2591", "\u00b7"};
    static const char *const colours[KINDS] = {"\033[31m", "\033[33m", "\033[32m", "\033[2m"};
    bool terminal = isatty(STDOUT_FILENO);
    bool colour = varve_out_colour(STDOUT_FILENO);
    const char *const *chars =
        terminal && strcmp(nl_langinfo(CODESET), "UTF-8") == 0 ? utf8 : ascii;
    uint64_t clean = p->export_size - p->marked - p->holes;
    char size[VARVE_OUT_SIZE_LEN];
    int last = -1;

    for (size_t i = 0; i < p->ncells; i++) {
        int kind = cell_kind(p, i);

        if (i % (size_t)p->columns == 0) {
            printf("%s%s%*s ", colour && i ? "\033[0m" : "", i ? "\n" : "", LABEL_WIDTH - 1,
                   varve_out_size(size, i * p->cell_bytes));
            last = -1;
        }
        if (colour && kind != last)
            printf("\033[0m%s", colours[kind]);
        last = kind;
        fputs(chars[kind], stdout);
    }
    printf("%s\n", colour ? "\033[0m" : "");
    printf("%s, %s a cell\n", p->context, varve_out_size(size, p->cell_bytes));
    printf("%s %s %s in %" PRIu64 " extents, %s partly\n", chars[MARKED],
           p->dirty ? "dirty" : "data", varve_out_size(size, p->marked), p->runs, chars[PARTLY]);
    if (p->dirty || clean > 0)
        printf("%s clean %s\n", chars[CLEAN], varve_out_size(size, clean));
    printf("%s hole  %s\n", chars[HOLE], varve_out_size(size, p->holes));
    printf("  size  %s (%" PRIu64 " bytes)\n", varve_out_size(size, p->export_size),
           p->export_size);
}
