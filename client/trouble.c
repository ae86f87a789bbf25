/* SPDX-License-Identifier: BSD-3-Clause */
#include "client/trouble.h"
#include "client/out.h"
#include "lib/text.h"

#include <string.h>

static void put_line(FILE *f, bool colour, const char *what, const char *name, const char *state,
                     const char *reason)
{
    const char *paint = colour ? varve_out_state_colour(state) : "";
    char text[512];

    snprintf(text, sizeof(text), "%s %s: %s", what, name, reason);
    varve_text_harmless(text);
    fprintf(f, "%s%s%s\n", paint, text, paint[0] ? "\033[0m" : "");
}

const char *varve_disk_state(const json_t *disk, char out[VARVE_DISK_STATE_LEN])
{
    snprintf(out, VARVE_DISK_STATE_LEN, "%s%s", varve_get_string(disk, "state"),
             json_is_true(json_object_get(disk, "degraded")) ? ", degraded" : "");
    return out;
}

void varve_trouble_disks(FILE *f, bool colour, const json_t *disks)
{
    const json_t *disk;
    size_t i;

    json_array_foreach(disks, i, disk)
    {
        const char *reason = json_string_value(json_object_get(disk, "reason"));
        bool degraded = json_is_true(json_object_get(disk, "degraded"));

        if (reason && reason[0])
            put_line(f, colour, "disk", varve_get_string(disk, "name"),
                     degraded ? "degraded" : varve_get_string(disk, "state"), reason);
    }
}

bool varve_backup_is_open(const json_t *backup)
{
    const char *state = varve_get_string(backup, "state");

    return strcmp(state, "completed") != 0 && strcmp(state, "failed") != 0;
}

void varve_trouble_backups(FILE *f, bool colour, const json_t *backups)
{
    const json_t *backup;
    size_t i;

    json_array_foreach(backups, i, backup)
    {
        const char *reason = json_string_value(json_object_get(backup, "reason"));
        uint64_t lost = varve_get_number(backup, "lost-bytes");
        char size[VARVE_OUT_SIZE_LEN], text[VARVE_OUT_SIZE_LEN + 64];

        if (!varve_backup_is_open(backup))
            continue;
        snprintf(text, sizeof(text), "%s could not be kept and cannot be read",
                 varve_out_size(size, lost));
        if (!reason || !reason[0])
            reason = lost > 0 ? text : NULL;
        if (reason)
            put_line(f, colour, "backup", varve_get_string(backup, "id"),
                     varve_get_string(backup, "state"), reason);
    }
}
