/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Arguments of a command, taken out of their JSON object with the error messages that QEMU's users
 * know.  Any thread.  Strings and lists it returns are borrowed from the object.
 */
#ifndef VARVE_SERVER_ARGS_H
#define VARVE_SERVER_ARGS_H

#include "lib/err.h"
#include "lib/qmp.h"

#include <stdbool.h>
#include <stdint.h>

/* Every key stands in `known` or in `later` (both end with NULL, `later` may be NULL): what is
 * meant for a later version is refused as such.  -EINVAL */
int varve_args_check(json_t *args, const char *const *known, const char *const *later,
                     struct varve_err *err);

/* *out is NULL where an optional one is missing. */
int varve_args_string(json_t *args, const char *key, bool required, const char **out,
                      struct varve_err *err);
/* A name as varve_name_check() wants it. */
int varve_args_name(json_t *args, const char *key, bool required, const char **out,
                    struct varve_err *err);
int varve_args_bool(json_t *args, const char *key, bool dflt, bool *out, struct varve_err *err);
int varve_args_u63(json_t *args, const char *key, uint64_t dflt, uint64_t *out,
                   struct varve_err *err);
/* A list that is not empty. */
int varve_args_list(json_t *args, const char *key, bool required, json_t **out,
                    struct varve_err *err);

#endif
