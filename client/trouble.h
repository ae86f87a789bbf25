/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is not as it should be with disks and backups, one line each, for status and top.
 * Single-threaded.  It asks nobody, and takes what the daemon told as it is.
 */
#ifndef VARVE_CLIENT_TROUBLE_H
#define VARVE_CLIENT_TROUBLE_H

#include "lib/qmp.h"

#include <stdbool.h>
#include <stdio.h>

/* True: it has not ended, whatever its state. */
bool varve_backup_is_open(const json_t *backup);

/* "disk NAME: REASON", of what query-disks returned. */
void varve_trouble_disks(FILE *f, bool colour, const json_t *disks);
/* "backup ID: REASON", of what query-backups returned, for those that are open. */
void varve_trouble_backups(FILE *f, bool colour, const json_t *backups);

#endif
