/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which client may see which exports: the rules of --access FILE (see ACCESS in varved(1)).
 * Rules are constant once they are read, and counted by their users: any thread may ask.
 * It knows no connection and no export, only names; it never answers differently for a name that
 * exists and one that does not.
 */
#ifndef VARVE_SERVER_ACCESS_H
#define VARVE_SERVER_ACCESS_H

#include "lib/err.h"
#include "server/nbd/client-id.h"

#include <stdbool.h>
#include <stddef.h>

struct varve_access;

/* Rules in a text of len bytes; err names `file` and the line.  The caller gets a reference. */
int varve_access_parse(const char *file, const char *text, size_t len, struct varve_access **out,
                       struct varve_err *err);

/* The same from a file. */
int varve_access_load(const char *file, struct varve_access **out, struct varve_err *err);

struct varve_access *varve_access_ref(struct varve_access *a);
void varve_access_unref(struct varve_access *a); /* a may be NULL */

/* `who` may see the export of that name (len bytes, any).  a may be NULL: everybody sees all. */
bool varve_access_allows(const struct varve_access *a, const struct varve_client_id *who,
                         const char *name, size_t len);

#endif
