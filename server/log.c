/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/log.h"

#include "lib/text.h"
#include "server/journal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char prefix[] = "varved: ";

/* Set once, before other threads are there. */
static int journal_fd = -1;
static const char *journal_path;

void varve_log_to_journal(const char *path)
{
    journal_fd = varve_journal_open();
    journal_path = path;
}

void varve_log_begin(void)
{
    if (varve_journal_is(STDERR_FILENO, getenv("JOURNAL_STREAM")))
        varve_log_to_journal(VARVE_JOURNAL_SOCKET);
}

static bool log_to_journal(const struct varve_log_about *about, const char *message)
{
    static const char *const priorities[] = {"6", "4", "3"}; /* as syslog(3) numbers them */
    struct varve_journal_field fields[] = {
        {"MESSAGE", message},
        {"PRIORITY", priorities[about->level]},
        {"SYSLOG_IDENTIFIER", "varved"},
        {"VARVE_DISK", about->disk},
        {"VARVE_BACKUP", about->backup},
        {"VARVE_CHECKPOINT", about->checkpoint},
        {"VARVE_JOB", about->job},
    };

    return journal_fd >= 0 &&
           varve_journal_send(journal_fd, journal_path, fields, sizeof(fields) / sizeof(fields[0]));
}

static void __attribute__((format(printf, 2, 0)))
log_line(const struct varve_log_about *about, const char *fmt, va_list ap)
{
    char line[1024];
    size_t head = sizeof(prefix) - 1, len;
    ssize_t done;

    memcpy(line, prefix, sizeof(prefix));
    vsnprintf(line + head, sizeof(line) - head - 1, fmt, ap);
    varve_text_harmless(line);
    len = strlen(line);
    if (log_to_journal(about, line + head))
        return;
    line[len++] = '\n';
    done = write(STDERR_FILENO, line, len);
    (void)done; /* there is nobody left to tell */
}

void varve_log_about(const struct varve_log_about *about, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_line(about, fmt, ap);
    va_end(ap);
}

void varve_log(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_line(VARVE_ABOUT(.level = VARVE_LOG_INFO), fmt, ap);
    va_end(ap);
}
