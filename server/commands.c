/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/commands.h"

#include <string.h>

static const struct varve_command commands[] = {
    {"backup-begin", varve_command_backup_begin},
    {"backup-end", varve_command_backup_end},
    {"backup-estimate", varve_command_backup_estimate},
    {"backup-push", varve_command_backup_push},
    {"block-dirty-bitmap-add", varve_command_bitmap_add},
    {"block-dirty-bitmap-clear", varve_command_bitmap_clear},
    {"block-dirty-bitmap-copy", varve_command_bitmap_copy},
    {"block-dirty-bitmap-diff", varve_command_bitmap_diff},
    {"block-dirty-bitmap-disable", varve_command_bitmap_disable},
    {"block-dirty-bitmap-enable", varve_command_bitmap_enable},
    {"block-dirty-bitmap-merge", varve_command_bitmap_merge},
    {"block-dirty-bitmap-remove", varve_command_bitmap_remove},
    {"block-export-add", varve_command_block_export_add},
    {"block-export-del", varve_command_block_export_del},
    {"block-job-set-speed", varve_command_job_set_speed},
    {"checkpoint-create", varve_command_checkpoint_create},
    {"checkpoint-delete", varve_command_checkpoint_delete},
    {"checkpoint-export", varve_command_checkpoint_export},
    {"checkpoint-import", varve_command_checkpoint_import},
    {"nbd-server-start", varve_command_nbd_server_start},
    {"nbd-server-stop", varve_command_nbd_server_stop},
    {"disk-adopt", varve_command_disk_adopt},
    {"disk-export", varve_command_disk_export},
    {"disk-resize", varve_command_disk_resize},
    {"disk-forget", varve_command_disk_forget},
    {"disk-import", varve_command_disk_import},
    {"job-cancel", varve_command_job_cancel},
    {"job-dismiss", varve_command_job_dismiss},
    {"job-pause", varve_command_job_pause},
    {"job-resume", varve_command_job_resume},
    {"qmp_capabilities", NULL},
    {"query-backups", varve_command_query_backups},
    {"query-block", varve_command_query_block},
    {"query-block-exports", varve_command_query_block_exports},
    {"query-changes", varve_command_query_changes},
    {"query-checkpoints", varve_command_query_checkpoints},
    {"query-commands", NULL},
    {"query-disks", varve_command_query_disks},
    {"query-jobs", varve_command_query_jobs},
    {"query-metrics", varve_command_query_metrics},
    {"query-named-block-nodes", varve_command_query_named_block_nodes},
    {"query-nbd-server", varve_command_query_nbd_server},
    {"query-version", NULL},
    {"quit", NULL},
    {"transaction", varve_command_transaction},
};

#define NCOMMANDS (sizeof(commands) / sizeof(commands[0]))

const struct varve_command *varve_command_find(const char *name)
{
    for (size_t i = 0; i < NCOMMANDS; i++) {
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    }
    return NULL;
}

json_t *varve_command_list(void)
{
    json_t *list = json_array();

    for (size_t i = 0; i < NCOMMANDS; i++)
        json_array_append_new(list, json_pack("{s:s}", "name", commands[i].name));
    return list;
}
