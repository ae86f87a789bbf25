/* SPDX-License-Identifier: BSD-3-Clause
 *
 * systemd's journal in its native protocol: one datagram an entry, made of fields.
 * Any thread.  It never waits: a journal that has no room takes nothing.
 */
#ifndef VARVE_SERVER_JOURNAL_H
#define VARVE_SERVER_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>

#define VARVE_JOURNAL_SOCKET "/run/systemd/journal/socket"

struct varve_journal_field {
    const char *name;
    const char *value; /* NULL: the entry has no such field */
};

/* Whether fd is the stream that the service manager connected to the journal: what it says in
 * $JOURNAL_STREAM (NULL: nothing). */
bool varve_journal_is(int fd, const char *stream);

/* A socket for varve_journal_send(), the caller's to close; or -errno. */
int varve_journal_open(void);

/* False: the journal at `path` did not take it. */
bool varve_journal_send(int fd, const char *path, const struct varve_journal_field *fields,
                        size_t n);

#endif
