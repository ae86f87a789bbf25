/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/doubt-note.h"

#include "lib/whole-file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT 1u
/* Behind it there is room for as many eras as anybody will doubt. */
#define NUMBER_MAX (UINT64_MAX / 4)

int varve_doubt_note_write(struct varve_world *w, const struct varve_paths *p,
                           const struct varve_doubt_note *note, struct varve_err *err)
{
    char path[PATH_MAX], text[VARVE_WITNESS_TEXT + 64];
    int len = snprintf(text, sizeof(text), "varve-doubt %u %" PRIu64 "\n%s\n", FORMAT, note->used,
                       note->why);

    return varve_whole_file_replace(w, varve_path_doubt(p, path), text, (size_t)len, err);
}

static int note_parse(const char *path, char *text, struct varve_doubt_note *note,
                      struct varve_err *err)
{
    char *line = strchr(text, '\n');
    unsigned format = 0;

    if (line)
        *line++ = '\0';
    if (!line || sscanf(text, "varve-doubt %u %" SCNu64, &format, &note->used) != 2 ||
        note->used > NUMBER_MAX) {
        note->used = 0;
        snprintf(note->why, sizeof(note->why), "somebody doubted it, and why cannot be read in its folder");
        return 1;
    }
    if (format > FORMAT)
        return varve_err_set(err, ENOTSUP,
                             "%s has format %u, this varve knows format %u only: use the version of "
                             "varve that wrote it",
                             path, format, FORMAT);
    line[strcspn(line, "\n")] = '\0';
    snprintf(note->why, sizeof(note->why), "%.255s", line);
    return 1;
}

int varve_doubt_note_read(struct varve_world *w, const struct varve_paths *p,
                          struct varve_doubt_note *note, struct varve_err *err)
{
    char path[PATH_MAX], *text;
    size_t len;
    int r = varve_whole_file_read(w, varve_path_doubt(p, path), 4096, &text, &len, err);

    memset(note, 0, sizeof(*note));
    if (r == -ENOENT)
        return 0;
    if (r == -EFBIG)
        return note_parse(path, (char[]){""}, note, err);
    if (r < 0)
        return r;
    r = note_parse(path, text, note, err);
    free(text);
    return r;
}

void varve_doubt_note_remove(struct varve_world *w, const struct varve_paths *p)
{
    char path[PATH_MAX];

    w->unlink(w, varve_path_doubt(p, path));
}
