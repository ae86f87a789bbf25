/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve disk export, varve disk import: what is known of a disk, carried beside its image.
 * The daemon copies what it knows; a digest of the image, which takes as long as reading it, is
 * made here, between two looks of the daemon's (server/commands-move.c).
 */
#include "client/cli.h"
#include "client/control.h"
#include "client/out.h"
#include "client/progress.h"
#include "lib/image-digest.h"
#include "lib/image-witness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { EXPORT_DIGEST };
enum { IMPORT_NAME, IMPORT_TRUST, IMPORT_DISTRUST };

struct reading {
    struct varve_progress progress;
    uint64_t total;
};

static void read_so_far(void *arg, uint64_t done)
{
    struct reading *r = arg;

    varve_progress_draw(&r->progress, done, r->total, done);
}

/* The image's digest, and its time before it was read.  A device that is in use cannot be read so.
 */
static int image_digest(const char *image, char text[2 * VARVE_DIGEST_LEN + 1], int64_t *mtime_ns,
                        struct varve_err *err)
{
    struct varve_world *w = varve_world_posix();
    uint8_t digest[VARVE_DIGEST_LEN];
    struct varve_image_look look;
    struct reading r = {.total = 0};
    struct stat st;
    int rc, fd;

    if (stat(image, &st) != 0)
        return varve_err_sys(err, errno, "%s", image);
    fd = w->open(w, image, O_RDONLY | O_NONBLOCK | (S_ISBLK(st.st_mode) ? O_EXCL : 0), 0);
    if (fd < 0)
        return varve_err_sys(err, -fd, "%s", image);
    rc = varve_image_look_settled(w, fd, &look, err);
    if (rc == 0) {
        *mtime_ns = look.mtime_ns;
        r.total = look.size;
        varve_progress_begin(&r.progress, "reading");
        rc = varve_image_digest(w, fd, look.size, read_so_far, &r, digest, err);
        varve_progress_end(&r.progress);
    }
    w->close(w, fd);
    for (size_t i = 0; rc == 0 && i < VARVE_DIGEST_LEN; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    return rc < 0 ? varve_err_prefix(err, "%s", image) : 0;
}

static int export_digest(const struct varve_cli *cli, const char *disk, const char *dir,
                         const char *image, struct varve_err *err)
{
    char digest[2 * VARVE_DIGEST_LEN + 1];
    json_t *value = NULL;
    int64_t mtime_ns;
    int rc = image_digest(image, digest, &mtime_ns, err);

    if (rc == 0)
        rc = varve_control_once(
            cli->control, "disk-export",
            json_pack("{s:s, s:s, s:s}", "disk", disk, "directory", dir, "digest", digest), &value,
            err);
    json_decref(value);
    return rc < 0 ? varve_err_prefix(err, "%s is there, but without a digest", dir) : 0;
}

static int disk_export(const struct varve_cli *cli, const struct varve_args *args,
                       struct varve_err *err)
{
    const char *disk = args->words[0];
    json_t *value = NULL, *arguments;
    char *dir;
    int rc = varve_control_absolute(args->words[1], &dir, err);

    if (rc != 0)
        return rc;
    arguments = json_pack("{s:s, s:s}", "disk", disk, "directory", dir);
    if (!arguments)
        rc = varve_cli_usage(err, "names of disks and folders must be UTF-8");
    if (rc == 0)
        rc = varve_control_once(cli->control, "disk-export", arguments, &value, err);
    if (rc == 0 && args->option[EXPORT_DIGEST])
        rc = export_digest(cli, disk, dir, varve_get_string(value, "image"), err);
    if (rc == 0 && cli->json)
        varve_out_json(value);
    else if (rc == 0)
        printf("disk %s exported to %s%s\n", disk, dir,
               args->option[EXPORT_DIGEST] ? ", with a digest of its image" : "");
    json_decref(value);
    free(dir);
    return rc;
}

/* Whether the export has a digest to compare with.  Only so that nothing is read for nothing. */
static bool has_digest(const char *dir)
{
    json_t *root;
    char *path;
    bool has;

    if (asprintf(&path, "%s/export.json", dir) < 0)
        return true;
    root = json_load_file(path, 0, NULL);
    free(path);
    has = !root || json_object_get(json_object_get(root, "export"), "digest") != NULL;
    json_decref(root);
    return has;
}

static int disk_import(const struct varve_cli *cli, const struct varve_args *args,
                       struct varve_err *err)
{
    bool trust = args->option[IMPORT_TRUST] != NULL, said;
    char *dir = NULL, *image = NULL, digest[2 * VARVE_DIGEST_LEN + 1];
    json_t *value = NULL, *arguments = NULL;
    int64_t mtime_ns;
    int rc;

    said = trust || args->option[IMPORT_DISTRUST];
    if (trust && args->option[IMPORT_DISTRUST])
        return varve_cli_usage(err, "--trust and --distrust exclude each other");
    rc = varve_control_absolute(args->words[0], &dir, err);
    if (rc == 0)
        rc = varve_control_absolute(args->words[1], &image, err);
    if (rc == 0) {
        arguments = json_pack("{s:s, s:s, s:s*}", "directory", dir, "image", image, "disk",
                              args->option[IMPORT_NAME]);
        if (!arguments)
            rc = varve_cli_usage(err, "names of disks, folders and images must be UTF-8");
    }
    if (rc == 0 && said)
        json_object_set_new(arguments, "trust", json_boolean(trust));
    if (rc == 0 && !said && has_digest(dir)) {
        rc = image_digest(image, digest, &mtime_ns, err);
        if (rc == 0) {
            json_object_set_new(arguments, "digest", json_string(digest));
            json_object_set_new(arguments, "mtime-ns", json_integer(mtime_ns));
        }
    }
    if (rc == 0)
        rc = varve_control_once(cli->control, "disk-import", json_incref(arguments), &value, err);
    if (rc == 0 && cli->json)
        varve_out_json(value);
    else if (rc == 0)
        printf("disk %s imported, its image is %s\n", varve_get_string(value, "disk"), image);
    json_decref(arguments);
    json_decref(value);
    free(image);
    free(dir);
    return rc;
}

static const struct varve_option export_options[] = {
    [EXPORT_DIGEST] = {"digest", NULL,
                       "read the whole image, so that a copy of it proves itself\n"
                       "where it is imported"},
    {NULL, NULL, NULL},
};

static const struct varve_option import_options[] = {
    [IMPORT_NAME] = {"name", "NAME", "what the disk is called here (default: as before)"},
    [IMPORT_TRUST] = {"trust", NULL, "IMAGE is what was exported, although nothing proves it"},
    [IMPORT_DISTRUST] = {"distrust", NULL, "all of IMAGE counts as written"},
    {NULL, NULL, NULL},
};

const struct varve_verb varve_disk_move_verbs[] = {
    {.name = "disk",
     .sub = "export",
     .synopsis = "[--digest] DISK DIR",
     .summary = "Writes what is known of a disk that nobody serves into the new folder DIR",
     .options = export_options,
     .words_min = 2,
     .words_max = 2,
     .run = disk_export},
    {.name = "disk",
     .sub = "import",
     .synopsis = "[--name NAME] [--trust|--distrust] DIR IMAGE",
     .summary = "Makes the disk of an exported DIR and its moved IMAGE a disk here",
     .options = import_options,
     .words_min = 2,
     .words_max = 2,
     .run = disk_import},
    {.name = NULL},
};
