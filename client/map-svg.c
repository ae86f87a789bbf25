/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The picture as SVG: one file that needs no other, readable on light and on dark ground.
 *
 *     heading: the subject         what is shown, size, size of a cell
 *     offset  ▪▪▪▪▪▪▪▪▪▪▪▪▪▪       cells of one look are one path
 *     offset  ▪▪▪▪▪▪▪▪
 *     legend
 */
#include "client/map-draw.h"
#include "client/out.h"
#include "lib/qmp.h"
#include "lib/whole-file.h"
#include "lib/world.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define COLUMNS  128
#define ROWS_MAX 64
#define PITCH    8 /* from one cell to the next; between them is 1 */
#define LEFT     64
#define TOP      64
#define LINE     20
#define MARGIN   16

static const char *const look_class[VARVE_LOOKS] = {"m", "mp", "e", "ep", "c", "h"};

/* Partly written cells are paler on light ground and darker on dark. */
static const char style[] =
    "text{font:12px sans-serif;fill:#222}.t{font-size:16px;font-weight:bold}.o{font-size:9px;"
    "fill:#666}.g{fill:#fff}.m{fill:#d55e00}.mp{fill:#f0b27a}.e{fill:#0072b2}.ep{fill:#8cc4e8}"
    ".c{fill:#b5d3b5}.h{fill:#e8e8e8}\n"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.o{fill:#999}.g{fill:#1c1c1c}.m{fill:#ff8533}"
    ".mp{fill:#994d1a}.e{fill:#4da6e0}.ep{fill:#2a5d80}.c{fill:#3d5c3d}.h{fill:#333}}\n";

/* Text that may hold anything, so that it stands for itself in XML. */
static void put_text(FILE *f, const char *text)
{
    json_t *utf8 = json_string(text); /* NULL: it is none */
    /* Two characters of Unicode are none of XML. */
    bool wide = utf8 && !strstr(text, "\xef\xbf\xbe") && !strstr(text, "\xef\xbf\xbf");

    for (const char *p = text; *p; p++) {
        unsigned char c = (unsigned char)*p;

        if (c == '&')
            fputs("&amp;", f);
        else if (c == '<')
            fputs("&lt;", f);
        else if (c == '>')
            fputs("&gt;", f);
        else if (c < ' ' || c == 0x7f || (c >= 0x80 && !wide))
            putc('?', f);
        else
            putc(c, f);
    }
    json_decref(utf8);
}

static void put_cells(FILE *f, const struct varve_picture *p)
{
    char size[VARVE_OUT_SIZE_LEN];

    for (size_t i = 0; i < p->ncells; i += 2 * (size_t)p->columns)
        fprintf(f, "<text class=\"o\" x=\"%d\" y=\"%zu\" text-anchor=\"end\">%s</text>\n", LEFT - 6,
                TOP + i / (size_t)p->columns * PITCH + PITCH - 1,
                varve_out_size(size, i * p->cell_bytes));
    for (int look = 0; look < VARVE_LOOKS; look++) {
        bool any = false;

        for (size_t i = 0; i < p->ncells; i++) {
            if (varve_picture_look(p, i) != (enum varve_map_look)look)
                continue;
            if (!any)
                fprintf(f, "<path class=\"%s\" d=\"", look_class[look]);
            any = true;
            fprintf(f, "M%zu %zuh%dv%dh-%dz", LEFT + i % (size_t)p->columns * PITCH,
                    TOP + i / (size_t)p->columns * PITCH, PITCH - 1, PITCH - 1, PITCH - 1);
        }
        if (any)
            fputs("\"/>\n", f);
    }
}

static void put_legend(FILE *f, const struct varve_picture *p, size_t y)
{
    static const int look_of[VARVE_MAP_CLASSES] = {VARVE_LOOK_MARKED, VARVE_LOOK_EARLIER,
                                                   VARVE_LOOK_CLEAN, VARVE_LOOK_HOLE};
    char text[VARVE_LEGEND_LEN];

    for (int c = 0; c < VARVE_MAP_CLASSES; c++) {
        int look = look_of[c];
        bool partly = look == VARVE_LOOK_MARKED || look == VARVE_LOOK_EARLIER;

        if (!varve_picture_legend(p, c, text))
            continue;
        fprintf(f, "<path class=\"%s\" d=\"M%d %zuh8v8h-8z\"/>", look_class[look], LEFT, y - 8);
        if (partly)
            fprintf(f, "<path class=\"%s\" d=\"M%d %zuh8v8h-8z\"/>", look_class[look + 1],
                    LEFT + PITCH + 1, y - 8);
        fprintf(f, "<text x=\"%d\" y=\"%zu\">", LEFT + 2 * PITCH + 8, y);
        put_text(f, text);
        fprintf(f, "%s</text>\n", partly ? " (right: partly)" : "");
        y += LINE;
    }
}

static void put_svg(FILE *f, const struct varve_picture *p, const char *subject)
{
    size_t rows = (p->ncells + (size_t)p->columns - 1) / (size_t)p->columns, lines = 0;
    char size[2][VARVE_OUT_SIZE_LEN];
    size_t width = LEFT + (size_t)p->columns * PITCH + MARGIN;
    size_t legend = TOP + rows * PITCH + LINE + 4, height;

    for (int c = 0; c < VARVE_MAP_CLASSES; c++)
        lines += p->names[c] != NULL;
    height = legend + lines * LINE;
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%zu\" height=\"%zu\" "
            "viewBox=\"0 0 %zu %zu\" role=\"img\">\n<title>",
            width, height, width, height);
    put_text(f, subject);
    fprintf(f, "</title>\n<style>%s</style>\n<rect class=\"g\" width=\"%zu\" height=\"%zu\"/>\n",
            style, width, height);
    fprintf(f, "<text class=\"t\" x=\"%d\" y=\"26\">", LEFT);
    put_text(f, subject);
    fprintf(f, "</text>\n<text x=\"%d\" y=\"48\">", LEFT);
    put_text(f, p->title);
    fprintf(f, ", %s (%" PRIu64 " bytes), %s a cell</text>\n",
            varve_out_size(size[0], p->export_size), p->export_size,
            varve_out_size(size[1], p->cell_bytes));
    put_cells(f, p);
    put_legend(f, p, legend);
    fputs("</svg>\n", f);
}

/* The rename would replace a device or a link as well. */
static int judge_place(const char *path, struct varve_err *err)
{
    struct stat st;

    if (lstat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return varve_err_set(err, EINVAL, "%.400s is there and is not a file: name another", path);
    return 0;
}

int varve_picture_init_svg(struct varve_picture *p, uint64_t export_size, struct varve_err *err)
{
    return varve_picture_init(p, export_size, COLUMNS, ROWS_MAX, err);
}

int varve_picture_save_svg(const struct varve_picture *p, const char *subject, const char *path,
                           struct varve_err *err)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f;
    int rc = judge_place(path, err);

    if (rc < 0)
        return rc;
    f = open_memstream(&text, &len);
    if (f)
        put_svg(f, p, subject);
    if (!f || fclose(f) != 0)
        rc = varve_err_set(err, ENOMEM, "no memory");
    else
        rc = varve_whole_file_replace(varve_world_posix(), path, text, len, err);
    free(text);
    return rc;
}
