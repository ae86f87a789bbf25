/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The daemon's log: lines on standard error, "varved: …"; or entries in systemd's journal, if
 * standard error is that, which tell apart what they are about.  Any thread.  It never waits for
 * anything but that one write, and never breaks a line in two.
 */
#ifndef VARVE_SERVER_LOG_H
#define VARVE_SERVER_LOG_H

#include <stdbool.h>

/* Before other threads log: entries go to the journal that listens at `path` from now on.  What it
 * does not take becomes a line on standard error. */
void varve_log_to_journal(const char *path);

/* main(): does so where $JOURNAL_STREAM says that standard error is the journal. */
void varve_log_begin(void);

enum varve_log_level {
    VARVE_LOG_INFO,
    VARVE_LOG_WARNING, /* somebody should look at it */
    VARVE_LOG_ERROR    /* somebody has to */
};

/* What a line is about, NULL: none of that kind.  Names are the objects' own. */
struct varve_log_about {
    enum varve_log_level level;
    const char *disk, *backup, *checkpoint, *job;
};
#define VARVE_ABOUT(...) (&(const struct varve_log_about){__VA_ARGS__})

/* One line; what could end it or drive a terminal is replaced. */
void varve_log_about(const struct varve_log_about *about, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* About nothing in particular. */
void varve_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
