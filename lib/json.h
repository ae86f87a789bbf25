/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What jansson does not tell: whether text could not be taken apart, or an answer is not whole, for
 * want of memory.  jansson 2.14 even cuts strings and numbers short where it has none.  Any thread;
 * each has its own count.  It parses nothing itself.  Home of <jansson.h>.
 */
#ifndef VARVE_LIB_JSON_H
#define VARVE_LIB_JSON_H

#include <jansson.h>
#include <stddef.h>

/* How often jansson was refused memory in this thread: what was made while that changed may lack
 * something. */
unsigned varve_json_refused(void);

/* json_dumps(), but whole, or NULL if there is no memory: jansson goes on behind a part of a key
 * that it had no room for.  The caller frees it. */
char *varve_json_dump(const json_t *value, size_t flags);

#endif
