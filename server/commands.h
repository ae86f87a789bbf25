/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The commands of the control socket: a table of names and functions.  The functions run on the
 * clerk's thread, may wait, and know nothing of sockets or of JSON's way over them.
 */
#ifndef VARVE_SERVER_COMMANDS_H
#define VARVE_SERVER_COMMANDS_H

#include "lib/err.h"
#include "lib/qmp.h"
#include "server/daemon.h"

struct varve_command {
    const char *name;
    /* The value to return (a new reference), or NULL with err; -ENODEV is DeviceNotFound.  args is
     * an object, maybe empty, borrowed.  NULL: the connection answers it itself. */
    json_t *(*run)(struct varve_daemon *d, json_t *args, struct varve_err *err);
};

/* NULL: there is none of that name. */
const struct varve_command *varve_command_find(const char *name);

/* What query-commands returns. */
json_t *varve_command_list(void);

/* transaction.c */
json_t *varve_command_transaction(struct varve_daemon *d, json_t *args, struct varve_err *err);
/* commands-bitmap.c */
json_t *varve_command_bitmap_add(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_bitmap_remove(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_bitmap_clear(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_bitmap_enable(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_bitmap_disable(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_bitmap_merge(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_bitmap_copy(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_query_block(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_query_named_block_nodes(struct varve_daemon *d, json_t *args,
                                              struct varve_err *err);
/* commands-job.c */
json_t *varve_command_bitmap_diff(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_query_jobs(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_job_pause(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_job_resume(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_job_cancel(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_job_dismiss(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_job_set_speed(struct varve_daemon *d, json_t *args, struct varve_err *err);
/* commands-query.c */
json_t *varve_command_query_disks(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_query_nbd_server(struct varve_daemon *d, json_t *args, struct varve_err *err);
/* commands-changes.c */
json_t *varve_command_query_changes(struct varve_daemon *d, json_t *args, struct varve_err *err);
/* metrics.c */
json_t *varve_command_query_metrics(struct varve_daemon *d, json_t *args, struct varve_err *err);
/* commands-checkpoint.c */
json_t *varve_command_checkpoint_create(struct varve_daemon *d, json_t *args,
                                        struct varve_err *err);
json_t *varve_command_checkpoint_delete(struct varve_daemon *d, json_t *args,
                                        struct varve_err *err);
/* commands-checkpoint-file.c */
json_t *varve_command_checkpoint_export(struct varve_daemon *d, json_t *args,
                                        struct varve_err *err);
json_t *varve_command_checkpoint_import(struct varve_daemon *d, json_t *args,
                                        struct varve_err *err);
/* commands-checkpoints.c */
json_t *varve_command_query_checkpoints(struct varve_daemon *d, json_t *args,
                                        struct varve_err *err);
/* commands-nbd.c */
json_t *varve_command_nbd_server_start(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_nbd_server_stop(struct varve_daemon *d, json_t *args, struct varve_err *err);
/* commands-backup.c */
json_t *varve_command_backup_begin(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_backup_end(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_query_backups(struct varve_daemon *d, json_t *args, struct varve_err *err);
/* commands-export.c */
json_t *varve_command_block_export_add(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_block_export_del(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_query_block_exports(struct varve_daemon *d, json_t *args,
                                          struct varve_err *err);
/* push.c */
json_t *varve_command_backup_push(struct varve_daemon *d, json_t *args, struct varve_err *err);
/* commands-disk.c */
json_t *varve_command_disk_adopt(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_disk_resize(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_disk_forget(struct varve_daemon *d, json_t *args, struct varve_err *err);
/* Of a disk that nobody serves: as disk-adopt with trust false. */
int varve_disk_adopt_all_written(struct varve_daemon *d, const char *name, struct varve_err *err);
/* A folder without folders in it, which may not be there.  Logs what goes wrong. */
void varve_folder_remove(const char *path);
/* commands-move.c */
json_t *varve_command_disk_export(struct varve_daemon *d, json_t *args, struct varve_err *err);
json_t *varve_command_disk_import(struct varve_daemon *d, json_t *args, struct varve_err *err);
/* commands-estimate.c */
json_t *varve_command_backup_estimate(struct varve_daemon *d, json_t *args, struct varve_err *err);

#endif
