/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How disks and backups are, and what is not as it should be with them, for status and top.
 * Single-threaded.  It asks nobody, and takes what the daemon told as it is.
 */
#ifndef VARVE_CLIENT_TROUBLE_H
#define VARVE_CLIENT_TROUBLE_H

#include "lib/qmp.h"

#include <stdbool.h>
#include <stdio.h>

/* True: it has not ended, whatever its state. */
bool varve_backup_is_open(const json_t *backup);

/* The disk's state, "live, degraded"; returns out. */
#define VARVE_DISK_STATE_LEN 64
const char *varve_disk_state(const json_t *disk, char out[VARVE_DISK_STATE_LEN]);

/* "disk NAME: REASON", of what query-disks returned. */
void varve_trouble_disks(FILE *f, bool colour, const json_t *disks);
/* "backup ID: REASON", of what query-backups returned, for those that are open. */
void varve_trouble_backups(FILE *f, bool colour, const json_t *backups);

#endif
