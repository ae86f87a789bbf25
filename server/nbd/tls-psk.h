/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The users of pre-shared keys: a file as psktool(1) writes it, USER:HEXKEY, one a line.
 * Constant once it is read; any thread may look up.  It never reads the file again.
 */
#ifndef VARVE_SERVER_TLS_PSK_H
#define VARVE_SERVER_TLS_PSK_H

#include "lib/err.h"

#include <stddef.h>
#include <stdint.h>

/* The longest key in bytes; psktool makes 32. */
#define VARVE_PSK_KEY_MAX 64u

struct varve_psk;

int varve_psk_load(const char *file, struct varve_psk **out, struct varve_err *err);
int varve_psk_parse(const char *file, const char *text, size_t len, struct varve_psk **out,
                    struct varve_err *err);
void varve_psk_free(struct varve_psk *p); /* wipes; p may be NULL */

/* The key of that user, p's own; NULL: no such user. */
const uint8_t *varve_psk_find(const struct varve_psk *p, const void *user, size_t user_len,
                              size_t *key_len);

#endif
