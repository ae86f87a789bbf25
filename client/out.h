/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How the verbs write: JSON, sizes and times for people, tables; and how they read
 * what the daemon returned, which may lack anything.  Single-threaded.  It never fails: main()
 * looks at the standard output's error flag in the end.
 */
#ifndef VARVE_CLIENT_OUT_H
#define VARVE_CLIENT_OUT_H

#include "lib/qmp.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* The value as indented JSON and a newline. */
void varve_out_json(const json_t *value);

#define VARVE_OUT_SIZE_LEN 24

/* Bytes as 512, 64K, 1.5G: exact when it ends without a digit after the point, else rounded down.
 * Returns buf. */
const char *varve_out_size(char buf[VARVE_OUT_SIZE_LEN], uint64_t bytes);

#define VARVE_OUT_TIME_LEN 32

/* Seconds since 1970 as local time, "-" when 0.  Returns buf. */
const char *varve_out_time(char buf[VARVE_OUT_TIME_LEN], int64_t seconds);

#define VARVE_OUT_SPAN_LEN 24

/* Seconds as 0:01:30.  Returns buf. */
const char *varve_out_span(char buf[VARVE_OUT_SPAN_LEN], uint64_t seconds);

/* The terminal behind fd: its width in columns, or 0 when fd is none. */
int varve_out_columns(int fd);

/* True: people see colours here and want them. */
bool varve_out_colour(int fd);

/* Names are free: this writes one so that it does not drive the terminal. */
void varve_out_text(FILE *f, const char *text);

/* What is well is green, what somebody should look at yellow, what needs somebody red: the sequence
 * for a state such as "live", "live, degraded" or "failed: …"; "" for the rest. */
const char *varve_out_state_colour(const char *state);

/* A table: cells are added row by row, printed with columns as wide as needed. */
struct varve_table {
    int columns;
    int state_column; /* its words are coloured on a terminal; -1, as init leaves it: none */
    uint32_t right;   /* columns with numbers: they end where the others do */
    size_t count;     /* cells */
    size_t cap;
    char **cells;
};

/* The heading is the first row.  A NULL text prints as "-".  No memory ends the program. */
void varve_table_init(struct varve_table *t, int columns, const char *const *heading);
void varve_table_add(struct varve_table *t, const char *text);
/* Numbers, which stand on the right. */
void varve_table_add_right(struct varve_table *t, const char *text);
void varve_table_size(struct varve_table *t, const json_t *bytes);
void varve_table_number(struct varve_table *t, const json_t *number);
/* Prints and frees. */
void varve_table_print(struct varve_table *t);
/* The same into f; colour: the state column's words are coloured. */
void varve_table_write(struct varve_table *t, FILE *f, bool colour);

/* Reading: a missing, wrong or negative value is "-" or 0; reals are rounded down. */
const char *varve_get_string(const json_t *object, const char *key);
uint64_t varve_get_number(const json_t *object, const char *key);
/* Names of an array of strings, joined with ", ", or "-"; a new string, free() it. */
char *varve_get_names(const json_t *object, const char *key);

#endif
