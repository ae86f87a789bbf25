/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Messages carry what peers and files say: what could end a line or drive a terminal goes. */
static void err_one_line(char *s)
{
    for (; *s; s++) {
        if ((unsigned char)*s < ' ' || *s == 0x7f)
            *s = '?';
    }
}

int varve_err_set(struct varve_err *err, int code, const char *fmt, ...)
{
    va_list ap;

    if (!err)
        return -code;
    err->code = code;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
    va_end(ap);
    err_one_line(err->msg);
    return -code;
}

int varve_err_sys(struct varve_err *err, int code, const char *fmt, ...)
{
    va_list ap;
    const char *what;
    size_t used;

    if (!err)
        return -code;
    err->code = code;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
    va_end(ap);
    used = strlen(err->msg);
    what = strerrordesc_np(code); /* untranslated, and without the locale's lock */
    snprintf(err->msg + used, sizeof(err->msg) - used, ": %s", what ? what : "unknown error");
    err_one_line(err->msg);
    return -code;
}

int varve_err_prefix(struct varve_err *err, const char *fmt, ...)
{
    char was[sizeof(err->msg)];
    va_list ap;
    size_t used;

    if (!err)
        return -EIO;
    memcpy(was, err->msg, sizeof(was));
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
    va_end(ap);
    used = strlen(err->msg);
    if (used < sizeof(err->msg) - 1) {
        int room = (int)(sizeof(err->msg) - used - 1);

        snprintf(err->msg + used, sizeof(err->msg) - used, ": %.*s", room, was);
    }
    err_one_line(err->msg);
    return -err->code;
}
