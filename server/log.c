/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void varve_log(const char *fmt, ...)
{
    char line[1024] = "varved: ";
    size_t head = strlen(line), len;
    ssize_t done;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line + head, sizeof(line) - head - 1, fmt, ap);
    va_end(ap);
    len = strlen(line);
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
            line[i] = '?';
    }
    line[len++] = '\n';
    done = write(STDERR_FILENO, line, len);
    (void)done; /* there is nobody left to tell */
}
