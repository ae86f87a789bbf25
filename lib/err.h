/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An error: a code that programs test and a sentence that people read.
 * Any thread may use its own; it allocates nothing and never prints.
 * The lowest layer writes the fact, layers above may add a prefix, only an edge prints.
 */
#ifndef VARVE_LIB_ERR_H
#define VARVE_LIB_ERR_H

#include <errno.h>
#include <stdbool.h>

struct varve_err {
    int code;      /* positive errno value, 0: no error */
    char msg[480]; /* one line, no full stop, no newline; empty: none */
};

#define VARVE_ERR_INIT {0, ""}

/* Writes code (a positive errno value) and the sentence; returns -code.  err may be NULL. */
int varve_err_set(struct varve_err *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The same with ": " and the C library's (English) text for code behind the sentence. */
int varve_err_sys(struct varve_err *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the sentence that is there; returns -err->code.  err NULL: -EIO, the code
 * is not known. */
int varve_err_prefix(struct varve_err *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Of an errno value: there was no memory, or no descriptor; what was asked for may be there. */
static inline bool varve_err_is_shortage(int code)
{
    return code == ENOMEM || code == EMFILE || code == ENFILE;
}

#endif
