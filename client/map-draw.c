/* SPDX-License-Identifier: BSD-3-Clause */
#include "client/map-draw.h"
#include "client/out.h"
#include "lib/text.h"

#include <errno.h>
#include <inttypes.h>
#include <langinfo.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROWS_MAX        16
#define COLUMNS_DEFAULT 64
#define COLUMNS_MIN     8
#define LABEL_WIDTH     8 /* the offset before each row, and what stands between */
#define CELL_MIN        512

int varve_picture_init(struct varve_picture *p, uint64_t export_size, int columns, int rows,
                       struct varve_err *err)
{
    uint64_t most = (uint64_t)columns * (uint64_t)rows;

    *p = (struct varve_picture){
        .export_size = export_size, .cell_bytes = CELL_MIN, .columns = columns};
    while ((export_size + p->cell_bytes - 1) / p->cell_bytes > most)
        p->cell_bytes *= 2;
    p->ncells = (size_t)((export_size + p->cell_bytes - 1) / p->cell_bytes);
    p->cells = calloc(p->ncells + 1, sizeof(*p->cells));
    return p->cells ? 0 : varve_err_set(err, ENOMEM, "no memory");
}

void varve_picture_fini(struct varve_picture *p)
{
    free(p->cells);
}

void varve_picture_add(struct varve_picture *p, uint64_t off, uint64_t len,
                       enum varve_map_class what)
{
    struct varve_picture_sum *sum = &p->sums[what];
    uint64_t end = off + len;

    sum->runs += sum->end != off || sum->runs == 0;
    sum->bytes += len;
    sum->end = end;
    while (off < end) {
        uint64_t behind = (off / p->cell_bytes + 1) * p->cell_bytes;
        uint64_t part = (behind < end ? behind : end) - off;

        p->cells[off / p->cell_bytes].bytes[what] += part;
        off += part;
    }
}

enum varve_map_look varve_picture_look(const struct varve_picture *p, size_t cell)
{
    const uint64_t *bytes = p->cells[cell].bytes;
    uint64_t off = cell * p->cell_bytes;
    uint64_t len = p->export_size - off < p->cell_bytes ? p->export_size - off : p->cell_bytes;

    if (bytes[VARVE_MAP_MARKED] > 0)
        return bytes[VARVE_MAP_MARKED] == len ? VARVE_LOOK_MARKED : VARVE_LOOK_MARKED_PARTLY;
    if (bytes[VARVE_MAP_EARLIER] > 0)
        return bytes[VARVE_MAP_EARLIER] == len ? VARVE_LOOK_EARLIER : VARVE_LOOK_EARLIER_PARTLY;
    return bytes[VARVE_MAP_HOLE] == len ? VARVE_LOOK_HOLE : VARVE_LOOK_CLEAN;
}

bool varve_picture_legend(const struct varve_picture *p, enum varve_map_class what,
                          char out[VARVE_LEGEND_LEN])
{
    const struct varve_picture_sum *sum = &p->sums[what];
    char size[VARVE_OUT_SIZE_LEN];
    int len;

    if (!p->names[what])
        return false;
    len = snprintf(out, VARVE_LEGEND_LEN, "%.255s %s", p->names[what],
                   varve_out_size(size, sum->bytes));
    if (what == VARVE_MAP_MARKED || what == VARVE_MAP_EARLIER)
        snprintf(out + len, VARVE_LEGEND_LEN - (size_t)len, " in %" PRIu64 " extent%s", sum->runs,
                 sum->runs == 1 ? "" : "s");
    varve_text_harmless(out);
    return true;
}

/* --- the terminal --------------------------------------------------------------------------- */

int varve_picture_init_terminal(struct varve_picture *p, uint64_t export_size,
                                struct varve_err *err)
{
    int width = varve_out_columns(STDOUT_FILENO);
    int columns = width ? width - LABEL_WIDTH - 1 : COLUMNS_DEFAULT;

    return varve_picture_init(p, export_size, columns < COLUMNS_MIN ? COLUMNS_MIN : columns,
                              ROWS_MAX, err);
}

static void print_cells(const struct varve_picture *p, const char *const *chars, bool colour)
{
    static const char *const colours[VARVE_LOOKS] = {"\033[31m", "\033[33m", "\033[34m",
                                                     "\033[36m", "\033[32m", "\033[2m"};
    char size[VARVE_OUT_SIZE_LEN];
    int last = -1;

    for (size_t i = 0; i < p->ncells; i++) {
        int look = varve_picture_look(p, i);

        if (i % (size_t)p->columns == 0) {
            printf("%s%s%*s ", colour && i ? "\033[0m" : "", i ? "\n" : "", LABEL_WIDTH - 1,
                   varve_out_size(size, i * p->cell_bytes));
            last = -1;
        }
        if (colour && look != last)
            printf("\033[0m%s", colours[look]);
        last = look;
        fputs(chars[look], stdout);
    }
    printf("%s\n", colour ? "\033[0m" : "");
}

void varve_picture_print(const struct varve_picture *p)
{
    static const char *const ascii[VARVE_LOOKS] = {"#", "+", "o", ":", ".", "-"};
    static const char *const utf8[VARVE_LOOKS] = {"\u2588", "\u2592", "\u2580",
                                                  "\u2598", "\u2591", "\u00b7"};
    static const int look_of[VARVE_MAP_CLASSES] = {VARVE_LOOK_MARKED, VARVE_LOOK_EARLIER,
                                                   VARVE_LOOK_CLEAN, VARVE_LOOK_HOLE};
    const char *const *chars =
        isatty(STDOUT_FILENO) && strcmp(nl_langinfo(CODESET), "UTF-8") == 0 ? utf8 : ascii;
    char size[VARVE_OUT_SIZE_LEN], legend[VARVE_LEGEND_LEN];

    print_cells(p, chars, varve_out_colour(STDOUT_FILENO));
    printf("%s, %s a cell\n", p->title, varve_out_size(size, p->cell_bytes));
    for (int c = 0; c < VARVE_MAP_CLASSES; c++) {
        int look = look_of[c];

        if (!varve_picture_legend(p, c, legend))
            continue;
        printf("%s %s", chars[look], legend);
        if (look == VARVE_LOOK_MARKED || look == VARVE_LOOK_EARLIER)
            printf(", %s partly", chars[look + 1]);
        printf("\n");
    }
    printf("  size  %s (%" PRIu64 " bytes)\n", varve_out_size(size, p->export_size),
           p->export_size);
}
