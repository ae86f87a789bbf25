/* SPDX-License-Identifier: BSD-3-Clause */
#include "plugin/params.h"

#include "include/varve.h"
#include "lib/parse.h"
#include "plugin/nbdkit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const char varve_params_help[] =
    "[file=]IMAGE              (required) raw image or block device\n"
    "name=NAME                 the disk's name (default: the image's base name)\n"
    "state-dir=DIR             tracking state, on a disk (default: " VARVE_DEFAULT_STATE_DIR ")\n"
    "runtime-dir=DIR           live maps and link socket, on tmpfs (default: "
    VARVE_DEFAULT_RUNTIME_DIR ")\n"
    "granularity=SIZE          block size, 4K to 1M, when the disk's state is created\n"
    "durability=host|process   survive power loss (default), or only kill -9\n"
    "scratch-dir=DIR           where overwritten blocks are kept (default: state-dir)\n"
    "scratch-max=SIZE          how much of them may be kept (default: no limit)\n"
    "scratch-reserve=SIZE      what they leave free of their file system (default: 1 %,\n"
    "                          at least 64M, at most a tenth)\n"
    "on-scratch-full=degrade|break|wait\n"
    "                          what gives way when one cannot be kept: that range of\n"
    "                          the open backups (default), the backups, or the guest,\n"
    "                          whose write waits for scratch-wait and then as degrade\n"
    "scratch-wait=TIME         how long (default: 10s)\n"
    "freeze-timeout=TIME       how long a checkpoint may hold writes back (default: 1s)";

void varve_params_init(struct varve_params *c)
{
    memset(c, 0, sizeof(*c));
    c->on_scratch_full = VARVE_SCRATCH_DEGRADE;
    c->freeze_timeout_ms = 1000;
    c->scratch_wait_ms = 10000;
    c->scratch_reserve = VARVE_SCRATCH_RESERVE_DEFAULT;
}

void varve_params_fini(struct varve_params *c)
{
    free(c->image);
    free(c->name);
    free(c->state_dir);
    free(c->runtime_dir);
    free(c->scratch_dir);
}

/* The value takes the place of a former one. */
static int config_string(char **where, char *value)
{
    if (!value)
        return -1; /* nbdkit has said why */
    free(*where);
    *where = value;
    return 0;
}

static int config_name(struct varve_params *c, const char *value)
{
    char *copy = strdup(value);

    if (!copy)
        nbdkit_error("no memory for name=%s", value);
    return config_string(&c->name, copy);
}

static int config_granularity(struct varve_params *c, const char *value)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_geometry probe;
    uint64_t bytes;

    if (varve_parse_size(value, &bytes, &err) < 0 ||
        (bytes == 0 && varve_err_set(&err, EINVAL, "granularity 0 is no block size")) ||
        varve_geometry_init(&probe, 0, bytes, &err) < 0) {
        nbdkit_error("granularity=%s: %s", value, err.msg);
        return -1;
    }
    c->granularity = bytes;
    return 0;
}

static int config_scratch_full(struct varve_params *c, const char *value)
{
    if (strcmp(value, "degrade") == 0) {
        c->on_scratch_full = VARVE_SCRATCH_DEGRADE;
    } else if (strcmp(value, "break") == 0) {
        c->on_scratch_full = VARVE_SCRATCH_BREAK;
    } else if (strcmp(value, "wait") == 0) {
        c->on_scratch_full = VARVE_SCRATCH_WAIT;
    } else {
        nbdkit_error("on-scratch-full=%s: say degrade, break or wait", value);
        return -1;
    }
    return 0;
}

static int config_durability(struct varve_params *c, const char *value)
{
    if (strcmp(value, "host") != 0 && strcmp(value, "process") != 0) {
        nbdkit_error("durability=%s: say host or process", value);
        return -1;
    }
    c->durable_process = strcmp(value, "process") == 0;
    return 0;
}

int varve_params_set(struct varve_params *c, const char *key, const char *value)
{
    struct varve_err err = VARVE_ERR_INIT;

    if (strcmp(key, "file") == 0)
        return config_string(&c->image, nbdkit_absolute_path(value));
    if (strcmp(key, "name") == 0)
        return config_name(c, value);
    if (strcmp(key, "state-dir") == 0)
        return config_string(&c->state_dir, nbdkit_absolute_path(value));
    if (strcmp(key, "runtime-dir") == 0)
        return config_string(&c->runtime_dir, nbdkit_absolute_path(value));
    if (strcmp(key, "scratch-dir") == 0)
        return config_string(&c->scratch_dir, nbdkit_absolute_path(value));
    if (strcmp(key, "granularity") == 0)
        return config_granularity(c, value);
    if (strcmp(key, "on-scratch-full") == 0)
        return config_scratch_full(c, value);
    if (strcmp(key, "durability") == 0)
        return config_durability(c, value);
    if (strcmp(key, "scratch-max") == 0) {
        if (varve_parse_size(value, &c->scratch_max, &err) == 0)
            return 0;
    } else if (strcmp(key, "scratch-reserve") == 0) {
        if (varve_parse_size(value, &c->scratch_reserve, &err) == 0)
            return 0;
    } else if (strcmp(key, "scratch-wait") == 0) {
        if (varve_parse_time_ms(value, &c->scratch_wait_ms, &err) == 0)
            return 0;
    } else if (strcmp(key, "freeze-timeout") == 0) {
        if (varve_parse_time_ms(value, &c->freeze_timeout_ms, &err) == 0 &&
            (c->freeze_timeout_ms > 0 || !varve_err_set(&err, EINVAL, "it must not be 0")))
            return 0;
    } else {
        nbdkit_error("unknown parameter '%s'", key);
        return -1;
    }
    nbdkit_error("%s=%s: %s", key, value, err.msg);
    return -1;
}

/* The image's base name without its extension. */
static char *config_default_name(const char *image)
{
    const char *base = strrchr(image, '/') ? strrchr(image, '/') + 1 : image;
    const char *dot = strrchr(base, '.');

    return dot && dot != base ? strndup(base, (size_t)(dot - base)) : strdup(base);
}

int varve_params_complete(struct varve_params *c)
{
    struct varve_err err = VARVE_ERR_INIT;
    char *real;

    if (!c->image) {
        nbdkit_error("say which image: file=IMAGE");
        return -1;
    }
    real = realpath(c->image, NULL);
    if (!real) {
        varve_err_sys(&err, errno, "cannot open image %s", c->image);
        nbdkit_error("%s", err.msg);
        return -1;
    }
    free(c->image);
    c->image = real;
    if (!c->name)
        c->name = config_default_name(c->image);
    if (!c->state_dir)
        c->state_dir = strdup(VARVE_DEFAULT_STATE_DIR);
    if (!c->runtime_dir)
        c->runtime_dir = strdup(VARVE_DEFAULT_RUNTIME_DIR);
    if (!c->name || !c->state_dir || !c->runtime_dir) {
        nbdkit_error("no memory");
        return -1;
    }
    if (varve_name_check(c->name, "disk name", &err) < 0) {
        nbdkit_error("%s: give the disk another with name=NAME", err.msg);
        return -1;
    }
    return 0;
}
