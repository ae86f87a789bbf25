/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve disk: what an operator says of a disk as a whole.
 */
#include "client/cli.h"
#include "client/control.h"
#include "client/out.h"
#include "lib/parse.h"

#include <stdio.h>

enum { ADOPT_TRUST, ADOPT_DISTRUST, ADOPT_IMAGE };

static int disk_say(const struct varve_cli *cli, const char *command, json_t *arguments,
                    const char *done, const char *disk, struct varve_err *err)
{
    json_t *value = NULL;
    int rc;

    if (!arguments)
        return varve_cli_usage(err, "names of disks and images must be UTF-8");
    rc = varve_control_once(cli->control, command, arguments, &value, err);
    if (rc == 0 && cli->json)
        varve_out_json(value);
    else if (rc == 0)
        printf("disk %s%s\n", disk, done);
    json_decref(value);
    return rc;
}

static int disk_adopt(const struct varve_cli *cli, const struct varve_args *args,
                      struct varve_err *err)
{
    bool trust = args->option[ADOPT_TRUST] != NULL;
    const char *image = args->option[ADOPT_IMAGE];

    if (trust == (args->option[ADOPT_DISTRUST] != NULL))
        return varve_cli_usage(err, "say --trust or --distrust");
    return disk_say(
        cli, "disk-adopt",
        json_pack("{s:s, s:b, s:s*}", "disk", args->words[0], "trust", (int)trust, "image", image),
        trust ? ": the image is taken as it is" : ": all of the image counts as written",
        args->words[0], err);
}

static int disk_resize(const struct varve_cli *cli, const struct varve_args *args,
                       struct varve_err *err)
{
    uint64_t bytes;
    char done[64];

    if (varve_parse_size(args->words[1], &bytes, NULL) < 0 || bytes > INT64_MAX)
        return varve_cli_usage(err, "'%s' is no size: say bytes, with a suffix as in 20G",
                               args->words[1]);
    snprintf(done, sizeof(done), " has %llu bytes", (unsigned long long)bytes);
    return disk_say(cli, "disk-resize",
                    json_pack("{s:s, s:I}", "disk", args->words[0], "size", (json_int_t)bytes), done,
                    args->words[0], err);
}

static int disk_forget(const struct varve_cli *cli, const struct varve_args *args,
                       struct varve_err *err)
{
    return disk_say(cli, "disk-forget", json_pack("{s:s}", "disk", args->words[0]), " is forgotten",
                    args->words[0], err);
}

static const struct varve_option adopt_options[] = {
    [ADOPT_TRUST] = {"trust", NULL, "nobody else wrote to the image: all that is known holds"},
    [ADOPT_DISTRUST] = {"distrust", NULL, "all of the image counts as written"},
    [ADOPT_IMAGE] = {"image", "PATH", "the image is there now; the disk must not be served"},
    {NULL, NULL, NULL},
};

const struct varve_verb varve_disk_verbs[] = {
    {.name = "disk",
     .sub = "adopt",
     .synopsis = "--trust|--distrust [--image PATH] DISK",
     .summary = "Accepts the image as it is, after it was moved, restored or changed by others",
     .options = adopt_options,
     .words_min = 1,
     .words_max = 1,
     .run = disk_adopt},
    {.name = "disk",
     .sub = "resize",
     .synopsis = "DISK SIZE",
     .summary = "Gives the image of a disk that nobody serves another size, and the tracking with it",
     .words_min = 2,
     .words_max = 2,
     .run = disk_resize},
    {.name = "disk",
     .sub = "forget",
     .synopsis = "DISK",
     .summary = "Drops all that is known of a disk that nobody serves; the image stays",
     .words_min = 1,
     .words_max = 1,
     .run = disk_forget},
    {.name = NULL},
};
