/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/paths.h"

#include "include/varve.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Room that the longest file name below a folder needs, with its slash, NUL and ".tmp":
 * "/epoch-<20 digits>-<20 digits>.map.tmp". */
#define FILE_NAME_ROOM 64u

static bool name_char_ok(char c, bool first)
{
    if ((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))
        return true;
    return !first && (c == '.' || c == '_' || c == '-');
}

int varve_name_check(const char *name, const char *what, struct varve_err *err)
{
    size_t len = strlen(name);

    if (len == 0)
        return varve_err_set(err, EINVAL, "the %s is empty", what);
    if (len > VARVE_NAME_MAX)
        return varve_err_set(err, EINVAL, "the %s has %zu characters: at most %d are allowed", what,
                             len, VARVE_NAME_MAX);
    for (size_t i = 0; i < len; i++) {
        if (!name_char_ok(name[i], i == 0))
            return varve_err_set(err, EINVAL,
                                 "%s '%s' is not allowed: use letters, digits and . _ -, "
                                 "beginning with a letter or digit",
                                 what, name);
    }
    return 0;
}

static int folder_init(char *out, const char *dir, const char *name, struct varve_err *err)
{
    if (dir[0] == '\0')
        return varve_err_set(err, EINVAL, "a directory's name is empty");
    if (strlen(dir) + 1 + strlen(name) + FILE_NAME_ROOM > PATH_MAX)
        return varve_err_set(err, ENAMETOOLONG, "the directory name '%.200s...' is too long", dir);
    stpcpy(stpcpy(stpcpy(out, dir), "/"), name);
    return 0;
}

int varve_paths_init(struct varve_paths *p, const char *state_dir, const char *runtime_dir,
                     const char *scratch_dir, const char *name, struct varve_err *err)
{
    int rc = varve_name_check(name, "disk name", err);

    if (rc == 0)
        rc = folder_init(p->state, state_dir, name, err);
    if (rc == 0)
        rc = folder_init(p->runtime, runtime_dir, name, err);
    if (rc == 0)
        rc = folder_init(p->scratch, scratch_dir ? scratch_dir : state_dir, name, err);
    return rc;
}

/* folder_init has left room for every name that is made here. */
__attribute__((format(printf, 3, 4))) static char *path_below(char *buf, const char *folder,
                                                              const char *fmt, ...)
{
    size_t len = strlen(folder);
    va_list ap;

    memcpy(buf, folder, len);
    buf[len] = '/';
    va_start(ap, fmt);
    vsnprintf(buf + len + 1, PATH_MAX - len - 1, fmt, ap);
    va_end(ap);
    return buf;
}

char *varve_path_identity(const struct varve_paths *p, char *buf)
{
    return path_below(buf, p->state, "disk.json");
}

char *varve_path_lock(const struct varve_paths *p, char *buf)
{
    return path_below(buf, p->state, "lock");
}

char *varve_path_intent(const struct varve_paths *p, char *buf)
{
    return path_below(buf, p->state, "intent.log");
}

char *varve_path_epoch(const struct varve_paths *p, uint64_t first, uint64_t last, char *buf)
{
    return path_below(buf, p->state, "epoch-%" PRIu64 "-%" PRIu64 ".map", first, last);
}

char *varve_path_blocks(const struct varve_paths *p, const uint8_t digest[32], char *buf)
{
    char hex[33];

    for (size_t i = 0; i < 16; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    return path_below(buf, p->state, "blocks-%s.map", hex);
}

char *varve_path_witness(const struct varve_paths *p, char *buf)
{
    return path_below(buf, p->state, "image-witness");
}

char *varve_path_doubt(const struct varve_paths *p, char *buf)
{
    return path_below(buf, p->state, "doubt");
}

char *varve_path_beat(const struct varve_paths *p, char *buf)
{
    return path_below(buf, p->runtime, "beat");
}

char *varve_path_scratch(const struct varve_paths *p, uint64_t epoch, char *buf)
{
    return path_below(buf, p->scratch, "epoch-%" PRIu64 ".scratch", epoch);
}

char *varve_path_dead(const struct varve_paths *p, uint64_t epoch, char *buf)
{
    return path_below(buf, p->scratch, "epoch-%" PRIu64 ".dead", epoch);
}

char *varve_path_control(const struct varve_paths *p, char *buf)
{
    return path_below(buf, p->runtime, "control");
}

char *varve_path_live(const struct varve_paths *p, uint64_t epoch, char *buf)
{
    return path_below(buf, p->runtime, "epoch-%" PRIu64 ".live", epoch);
}

char *varve_path_lost(const struct varve_paths *p, uint64_t epoch, char *buf)
{
    return path_below(buf, p->runtime, "epoch-%" PRIu64 ".lost", epoch);
}

char *varve_path_done(const struct varve_paths *p, uint64_t view, char *buf)
{
    return path_below(buf, p->runtime, "view-%016" PRIx64 ".done", view);
}

char *varve_path_failed(const struct varve_paths *p, uint64_t view, char *buf)
{
    return path_below(buf, p->runtime, "view-%016" PRIx64 ".failed", view);
}

char *varve_path_link(const struct varve_paths *p, char *buf)
{
    return path_below(buf, p->runtime, VARVE_LINK_SOCKET);
}

char *varve_path_spare_link(const struct varve_paths *p, char *buf)
{
    return path_below(buf, p->state, VARVE_LINK_SOCKET);
}

/* A decimal number from 1 on as we write it; returns what follows it, or NULL. */
static const char *parse_number(const char *s, uint64_t *number)
{
    uint64_t n = 0;

    if (*s < '1' || *s > '9')
        return NULL;
    for (; *s >= '0' && *s <= '9'; s++) {
        uint64_t digit = (uint64_t)(*s - '0');

        if (n > (UINT64_MAX - digit) / 10)
            return NULL;
        n = n * 10 + digit;
    }
    *number = n;
    return s;
}

bool varve_path_parse_epoch(const char *name, uint64_t *first, uint64_t *last)
{
    static const char prefix[] = "epoch-";

    if (strncmp(name, prefix, sizeof(prefix) - 1) != 0)
        return false;
    name = parse_number(name + sizeof(prefix) - 1, first);
    if (!name || *name != '-')
        return false;
    name = parse_number(name + 1, last);
    return name && strcmp(name, ".map") == 0 && *first <= *last;
}

void varve_path_folder(const char *path, char folder[PATH_MAX])
{
    char *slash;

    snprintf(folder, PATH_MAX, "%s", path);
    slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder] = '\0';
    else
        strcpy(folder, ".");
}
