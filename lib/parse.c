/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/parse.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static int parse_digits(const char *text, char **end, uint64_t *value, struct varve_err *err,
                        const char *what)
{
    unsigned long long n;

    if (!isdigit((unsigned char)text[0]))
        return varve_err_set(err, EINVAL, "'%.64s' is no %s", text, what);
    errno = 0;
    n = strtoull(text, end, 10);
    if (errno == ERANGE)
        return varve_err_set(err, ERANGE, "the %s %.64s is too large", what, text);
    *value = n;
    return 0;
}

int varve_parse_size(const char *text, uint64_t *bytes, struct varve_err *err)
{
    static const char units[] = "bkmgtpe";
    const char *unit;
    char *end;
    uint64_t n;
    unsigned shift = 0;
    int r = parse_digits(text, &end, &n, err, "size");

    if (r < 0)
        return r;
    if (end[0] == 's') {
        shift = 9;
    } else if (end[0] != '\0') {
        unit = strchr(units, tolower((unsigned char)end[0]));
        if (!unit)
            return varve_err_set(err, EINVAL, "'%.64s' is no size: the suffixes are b, s, K, M, G, "
                                 "T, P, E", text);
        shift = (unsigned)(unit - units) * 10;
    }
    if (end[0] != '\0' && end[1] != '\0')
        return varve_err_set(err, EINVAL, "'%.64s' is no size", text);
    if (n > UINT64_MAX >> shift)
        return varve_err_set(err, ERANGE, "the size %.64s is too large", text);
    *bytes = n << shift;
    return 0;
}

int varve_parse_time_ms(const char *text, unsigned *ms, struct varve_err *err)
{
    char *end;
    uint64_t n;
    int r = parse_digits(text, &end, &n, err, "time");

    if (r < 0)
        return r;
    if (n > INT_MAX)
        return varve_err_set(err, ERANGE, "the time %.64s is too long", text);
    if (strcmp(end, "s") == 0 || end[0] == '\0')
        n *= 1000;
    else if (strcmp(end, "ms") != 0)
        return varve_err_set(err, EINVAL, "'%.64s' is no time: say 500ms or 2s", text);
    if (n > INT_MAX)
        return varve_err_set(err, ERANGE, "the time %.64s is too long", text);
    *ms = (unsigned)n;
    return 0;
}

int varve_parse_hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}
