/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/args.h"

#include "lib/paths.h"

#include <errno.h>
#include <string.h>

static bool in_list(const char *key, const char *const *list)
{
    for (; list && *list; list++) {
        if (strcmp(key, *list) == 0)
            return true;
    }
    return false;
}

int varve_args_check(json_t *args, const char *const *known, const char *const *later,
                     struct varve_err *err)
{
    const char *key;
    json_t *value;

    json_object_foreach(args, key, value)
    {
        if (in_list(key, later))
            return varve_err_set(err, EINVAL, "Parameter '%.100s' is not available in this version",
                                 key);
        if (!in_list(key, known))
            return varve_err_set(err, EINVAL, "Parameter '%.100s' is unexpected", key);
    }
    return 0;
}

static int missing(const char *key, struct varve_err *err)
{
    return varve_err_set(err, EINVAL, "Parameter '%s' is missing", key);
}

static int wrong_type(const char *key, const char *expected, struct varve_err *err)
{
    return varve_err_set(err, EINVAL, "Invalid parameter type for '%s', expected: %s", key,
                         expected);
}

int varve_args_string(json_t *args, const char *key, bool required, const char **out,
                      struct varve_err *err)
{
    json_t *value = json_object_get(args, key);

    *out = NULL;
    if (!value)
        return required ? missing(key, err) : 0;
    if (!json_is_string(value))
        return wrong_type(key, "string", err);
    if (strlen(json_string_value(value)) != json_string_length(value))
        return varve_err_set(err, EINVAL, "Parameter '%s' holds a NUL character", key);
    *out = json_string_value(value);
    return 0;
}

int varve_args_name(json_t *args, const char *key, bool required, const char **out,
                    struct varve_err *err)
{
    int rc = varve_args_string(args, key, required, out, err);

    if (rc < 0 || !*out)
        return rc;
    return varve_name_check(*out, key, err);
}

int varve_args_bool(json_t *args, const char *key, bool dflt, bool *out, struct varve_err *err)
{
    json_t *value = json_object_get(args, key);

    *out = value ? json_is_true(value) : dflt;
    return !value || json_is_boolean(value) ? 0 : wrong_type(key, "boolean", err);
}

int varve_args_u63(json_t *args, const char *key, uint64_t dflt, uint64_t *out,
                   struct varve_err *err)
{
    json_t *value = json_object_get(args, key);

    *out = dflt;
    if (!value)
        return 0;
    if (!json_is_integer(value))
        return wrong_type(key, "integer", err);
    if (json_integer_value(value) < 0)
        return varve_err_set(err, EINVAL, "Parameter '%s' must not be negative", key);
    *out = (uint64_t)json_integer_value(value);
    return 0;
}

int varve_args_list(json_t *args, const char *key, bool required, json_t **out,
                    struct varve_err *err)
{
    *out = json_object_get(args, key);
    if (!*out)
        return required ? missing(key, err) : 0;
    if (!json_is_array(*out))
        return wrong_type(key, "array", err);
    if (json_array_size(*out) == 0)
        return varve_err_set(err, EINVAL, "Parameter '%s' must not be empty", key);
    return 0;
}
