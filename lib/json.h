/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What jansson does not tell: whether text could not be taken apart, or an answer is not whole, for
 * want of memory.  jansson 2.14 even cuts strings and numbers short where it has none.  Any thread;
 * each has its own count.  It parses nothing itself.
 */
#ifndef VARVE_LIB_JSON_H
#define VARVE_LIB_JSON_H

/* How often jansson was refused memory in this thread: what was made while that changed may lack
 * something. */
unsigned varve_json_refused(void);

#endif
