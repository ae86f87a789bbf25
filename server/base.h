/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bases: what the changes that an export tells are since.  Names and texts of them.
 * Any thread; they look at no file.
 */
#ifndef VARVE_SERVER_BASE_H
#define VARVE_SERVER_BASE_H

#include "lib/change-set.h"
#include "lib/err.h"

/* EXPORT@BASE; what is not a letter, a digit or one of ._-~ in BASE is percent-encoded.  free() it.
 * NULL: no memory. */
char *varve_base_export_name(const char *export, const char *base);

#define VARVE_BASE_TEXT_LEN 128

/* Writes what stands behind VARVE_DESC_CHANGES in the description of an export of that boundary: equal
 * texts mean equal bases.  granularity 0: it is a checkpoint. */
int varve_base_describe(const struct varve_change_set *set, uint64_t granularity, uint64_t boundary,
                        char text[VARVE_BASE_TEXT_LEN], struct varve_err *err);

#endif
