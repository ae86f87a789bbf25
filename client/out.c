/* SPDX-License-Identifier: BSD-3-Clause */
#include "client/out.h"
#include "lib/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>

void varve_out_json(const json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY);
    putchar('\n');
}

const char *varve_out_size(char buf[VARVE_OUT_SIZE_LEN], uint64_t bytes)
{
    static const char suffixes[] = "KMGTPE";
    uint64_t unit = 1;
    int s = -1;

    while (s < 5 && bytes / unit >= 1024) {
        unit *= 1024;
        s++;
    }
    if (s < 0)
        snprintf(buf, VARVE_OUT_SIZE_LEN, "%" PRIu64, bytes);
    else if (bytes % unit == 0)
        snprintf(buf, VARVE_OUT_SIZE_LEN, "%" PRIu64 "%c", bytes / unit, suffixes[s]);
    else
        snprintf(buf, VARVE_OUT_SIZE_LEN, "%" PRIu64 ".%u%c", bytes / unit,
                 (unsigned)(bytes % unit / (unit / 1024) * 10 / 1024), suffixes[s]);
    return buf;
}

const char *varve_out_time(char buf[VARVE_OUT_TIME_LEN], int64_t seconds)
{
    time_t t = (time_t)seconds;
    struct tm tm;

    if (seconds == 0 || !localtime_r(&t, &tm) ||
        strftime(buf, VARVE_OUT_TIME_LEN, "%Y-%m-%d %H:%M:%S", &tm) == 0)
        strcpy(buf, "-");
    return buf;
}

const char *varve_out_span(char buf[VARVE_OUT_SPAN_LEN], uint64_t seconds)
{
    snprintf(buf, VARVE_OUT_SPAN_LEN, "%" PRIu64 ":%02u:%02u", seconds / 3600,
             (unsigned)(seconds / 60 % 60), (unsigned)(seconds % 60));
    return buf;
}

int varve_out_columns(int fd)
{
    struct winsize ws;

    if (!isatty(fd))
        return 0;
    if (ioctl(fd, TIOCGWINSZ, &ws) != 0 || ws.ws_col == 0)
        return 80;
    return ws.ws_col;
}

bool varve_out_colour(int fd)
{
    const char *no_color = getenv("NO_COLOR");
    const char *term = getenv("TERM");

    return isatty(fd) && (!no_color || !no_color[0]) && term && term[0] &&
           strcmp(term, "dumb") != 0;
}

static void *must(void *p)
{
    if (!p) {
        fprintf(stderr, "varve: no memory\n");
        exit(1);
    }
    return p;
}

void varve_table_init(struct varve_table *t, int columns, const char *const *heading)
{
    *t = (struct varve_table){.columns = columns, .state_column = -1};
    for (int i = 0; i < columns; i++)
        varve_table_add(t, heading[i]);
}

void varve_table_add(struct varve_table *t, const char *text)
{
    char *cell;

    if (t->count == t->cap) {
        t->cap = t->cap ? 2 * t->cap : 64;
        t->cells = must(realloc(t->cells, t->cap * sizeof(*t->cells)));
    }
    cell = must(strdup(text && text[0] ? text : "-"));
    varve_text_harmless(cell);
    t->cells[t->count++] = cell;
}

void varve_table_add_right(struct varve_table *t, const char *text)
{
    t->right |= UINT32_C(1) << t->count % (size_t)t->columns;
    varve_table_add(t, text);
}

void varve_table_size(struct varve_table *t, const json_t *bytes)
{
    char buf[VARVE_OUT_SIZE_LEN];

    if (json_is_integer(bytes) && json_integer_value(bytes) >= 0)
        varve_table_add_right(t, varve_out_size(buf, (uint64_t)json_integer_value(bytes)));
    else
        varve_table_add_right(t, NULL);
}

void varve_table_number(struct varve_table *t, const json_t *number)
{
    char buf[32] = "";

    if (json_is_integer(number))
        snprintf(buf, sizeof(buf), "%" JSON_INTEGER_FORMAT, json_integer_value(number));
    varve_table_add_right(t, buf);
}

void varve_out_text(FILE *f, const char *text)
{
    char *copy = must(strdup(text));

    varve_text_harmless(copy);
    fputs(copy, f);
    free(copy);
}

/* Columns that a text takes on the screen. */
static int text_width(const char *text)
{
    size_t n = mbstowcs(NULL, text, 0);
    wchar_t *wide;
    int width;

    if (n == (size_t)-1)
        return (int)strlen(text);
    wide = must(calloc(n + 1, sizeof(*wide)));
    mbstowcs(wide, text, n + 1);
    width = wcswidth(wide, n);
    free(wide);
    return width >= 0 ? width : (int)n;
}

const char *varve_out_state_colour(const char *text)
{
    static const char *const colours[][2] = {
        {"live", "\033[32m"},         {"running", "\033[32m"},   {"completed", "\033[32m"},
        {"usable", "\033[32m"},       {"recording", "\033[32m"}, {"paused", "\033[33m"},
        {"degraded", "\033[33m"},     {"offline", "\033[33m"},   {"cancelled", "\033[33m"},
        {"inconsistent", "\033[31m"}, {"missing", "\033[31m"},   {"broken", "\033[31m"},
        {"failed", "\033[31m"},
    };
    static const char also[] = ", degraded";
    size_t len = strcspn(text, ":"), tail = sizeof(also) - 1;

    if (len > tail && memcmp(text + len - tail, also, tail) == 0)
        text += len - tail + 2;
    len = strcspn(text, ":,");
    for (size_t i = 0; i < sizeof(colours) / sizeof(colours[0]); i++)
        if (strlen(colours[i][0]) == len && strncmp(colours[i][0], text, len) == 0)
            return colours[i][1];
    return "";
}

void varve_table_write(struct varve_table *t, FILE *f, bool colour)
{
    int *widths = must(calloc((size_t)t->columns, sizeof(*widths)));

    for (size_t i = 0; i < t->count; i++) {
        int width = text_width(t->cells[i]);

        if (width > widths[i % (size_t)t->columns])
            widths[i % (size_t)t->columns] = width;
    }
    for (size_t i = 0; i < t->count; i++) {
        size_t column = i % (size_t)t->columns;
        bool last = column + 1 == (size_t)t->columns;
        const char *paint = colour && (int)column == t->state_column && i != column
                                ? varve_out_state_colour(t->cells[i])
                                : "";

        int room = widths[column] - text_width(t->cells[i]);
        bool right = t->right >> column & 1;

        fprintf(f, "%*s%s%s%s%*s%s", right ? room : 0, "", paint, t->cells[i],
                paint[0] ? "\033[0m" : "", right || last ? 0 : room, "", last ? "\n" : "  ");
        free(t->cells[i]);
    }
    free(t->cells);
    free(widths);
}

void varve_table_print(struct varve_table *t)
{
    varve_table_write(t, stdout, varve_out_colour(STDOUT_FILENO));
}

const char *varve_get_string(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "-";
}

uint64_t varve_get_number(const json_t *object, const char *key)
{
    const json_t *number = json_object_get(object, key);
    double real = json_real_value(number);

    if (json_is_integer(number))
        return json_integer_value(number) > 0 ? (uint64_t)json_integer_value(number) : 0;
    return real > 0 && real < 0x1p63 ? (uint64_t)real : 0;
}

char *varve_get_names(const json_t *object, const char *key)
{
    const json_t *names = json_object_get(object, key), *name;
    char *joined = NULL;
    size_t i, len;
    FILE *f = must(open_memstream(&joined, &len));

    json_array_foreach(names, i, name)
        fprintf(f, "%s%s", i ? ", " : "",
                json_is_string(name) ? json_string_value(name) : varve_get_string(name, "name"));
    if (json_array_size(names) == 0)
        fputs("-", f);
    if (fclose(f) != 0)
        must(NULL);
    return joined;
}
