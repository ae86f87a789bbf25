/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The QMP wire (QEMU's docs/interop/qmp-spec): JSON objects one after another on a stream, with or
 * without white space between them.  This page cuts a stream into objects and makes the messages;
 * it does no I/O and knows no command.  One thread at a time per reader.
 */
#ifndef VARVE_LIB_QMP_H
#define VARVE_LIB_QMP_H

#include "lib/err.h"
#include "lib/json.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The longest single message that a server accepts, in bytes. */
#define VARVE_QMP_MESSAGE_MAX ((size_t)1024 * 1024)

struct varve_qmp_reader;

/* NULL: no memory. */
struct varve_qmp_reader *varve_qmp_reader_new(size_t message_max);
void varve_qmp_reader_free(struct varve_qmp_reader *r);

/* Adds bytes from the peer; they are copied.  Call varve_qmp_reader_next() until it says 0 between
 * two feeds, then no more than the limit plus len is ever held.
 * -E2BIG: a message is longer than the limit; the reader is dead and says so from now on.
 * -ENOMEM. */
int varve_qmp_reader_feed(struct varve_qmp_reader *r, const char *buf, size_t len,
                          struct varve_err *err);

/* The next whole message.  1: *out has it (a JSON object, the caller's to json_decref).
 * 0: more bytes are needed.
 * -EINVAL: what came is not a JSON object.  It is skipped, up to its end where that can be told,
 * else to the next newline; the caller may answer the error and go on.  Said once for each value or
 * line, as soon as it is known.
 * -E2BIG: as above, also when more than the limit had to be skipped. */
int varve_qmp_reader_next(struct varve_qmp_reader *r, json_t **out, struct varve_err *err);

/* False: the stream so far ends inside a message or a line that is being skipped. */
bool varve_qmp_reader_idle(const struct varve_qmp_reader *r);

/* Messages; a new reference each, NULL: no memory.  `id` is borrowed and may be NULL.  Values that
 * are stolen are gone also when there was no memory.  What is not UTF-8 in `desc` becomes '?'. */
json_t *varve_qmp_greeting(void);
json_t *varve_qmp_return(json_t *value /* stolen; NULL: {} */, json_t *id);
json_t *varve_qmp_error(const char *cls, const char *desc, json_t *id);
json_t *varve_qmp_event(const char *name, json_t *data /* stolen; NULL: none */,
                        uint64_t realtime_ns);

/* The message as one line with "\r\n" behind it; *len without a final NUL.  free() it.  NULL: no
 * memory. */
char *varve_qmp_dump(const json_t *message, size_t *len);

#endif
