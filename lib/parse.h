/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sizes, times and digits as people type them.  Pure functions, any thread.
 */
#ifndef VARVE_LIB_PARSE_H
#define VARVE_LIB_PARSE_H

#include "lib/err.h"

#include <stdint.h>

/* A size in bytes with nbdkit's suffixes: b, k/K, m/M, g/G, t/T, p/P, e/E (powers of 1024), s
 * (512-byte sectors), each optionally followed by nothing else.  -EINVAL, -ERANGE. */
int varve_parse_size(const char *text, uint64_t *bytes, struct varve_err *err);

/* A time: digits with "ms" or "s" behind them, alone meaning seconds.  -EINVAL, -ERANGE (more than
 * 2^31 - 1 ms). */
int varve_parse_time_ms(const char *text, unsigned *ms, struct varve_err *err);

/* -1: it is no hexadecimal digit. */
int varve_parse_hex_digit(char c);

#endif
