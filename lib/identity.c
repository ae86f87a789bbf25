/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/identity.h"

#include "lib/json.h"
#include "lib/whole-file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A path of PATH_MAX bytes in JSON's longest escapes, and the rest. */
#define IDENTITY_BYTES_MAX (6u * PATH_MAX + 4096u)

#define UUID_TEXT_LEN 36u

static void uuid_format(const uint8_t uuid[16], char text[UUID_TEXT_LEN + 1])
{
    char *at = text;

    for (unsigned i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *at++ = '-';
        at += sprintf(at, "%02x", uuid[i]);
    }
}

static bool uuid_parse(const char *text, uint8_t uuid[16])
{
    char again[UUID_TEXT_LEN + 1];

    if (strlen(text) != UUID_TEXT_LEN)
        return false;
    memset(uuid, 0, 16);
    for (unsigned i = 0, at = 0; i < 16; i++, at += 2) {
        unsigned byte;

        if (i == 4 || i == 6 || i == 8 || i == 10)
            at++;
        if (sscanf(text + at, "%2x", &byte) != 1)
            return false;
        uuid[i] = (uint8_t)byte;
    }
    /* sscanf takes more than we ever write: signs, spaces, capitals. */
    uuid_format(uuid, again);
    return strcmp(text, again) == 0;
}

static int damaged(const char *path, const char *why, struct varve_err *err)
{
    return varve_err_set(err, EUCLEAN,
                         "%s is damaged (%s): restore it from a copy, or remove the folder it lies "
                         "in to begin the disk's history anew",
                         path, why);
}

/* What an older varve leaves alone, it does not serve an image of another size. */
static int resize_decode(json_t *resize, const char *path, struct varve_resize *r,
                         struct varve_err *err)
{
    json_t *size = json_object_get(resize, "size"), *time = json_object_get(resize, "time");

    *r = (struct varve_resize){0, 0};
    if (!resize)
        return 0;
    if (!json_is_integer(size) || json_integer_value(size) < 0 || !json_is_integer(time) ||
        json_integer_value(time) <= 0)
        return damaged(path, "no valid resize", err);
    r->size = (uint64_t)json_integer_value(size);
    r->time_ns = (uint64_t)json_integer_value(time);
    return 0;
}

static int identity_decode(json_t *root, const char *path, struct varve_identity *id,
                           struct varve_err *err)
{
    json_t *format = json_object_get(root, "format");
    const char *uuid = json_string_value(json_object_get(root, "uuid"));
    const char *image = json_string_value(json_object_get(root, "image"));
    json_t *size = json_object_get(root, "size");
    json_t *block_size = json_object_get(root, "block-size");

    if (!json_is_integer(format))
        return damaged(path, "no format version", err);
    /* First of all: nothing else is known of another format. */
    if (json_integer_value(format) != VARVE_STATE_FORMAT)
        return varve_err_set(err, ENOTSUP,
                             "%s has format %" JSON_INTEGER_FORMAT
                             ", this varve knows format %d only: use the version of varve that "
                             "wrote it, or remove the folder it lies in to begin the disk's "
                             "history anew",
                             path, json_integer_value(format), VARVE_STATE_FORMAT);
    if (!uuid || !uuid_parse(uuid, id->uuid))
        return damaged(path, "no valid uuid", err);
    if (!image || image[0] != '/' || strlen(image) >= sizeof(id->image))
        return damaged(path, "no valid image path", err);
    strcpy(id->image, image);
    if (!json_is_integer(size) || json_integer_value(size) < 0)
        return damaged(path, "no valid size", err);
    if (!json_is_integer(block_size) || json_integer_value(block_size) <= 0 ||
        varve_geometry_init(&id->geometry, (uint64_t)json_integer_value(size),
                            (uint64_t)json_integer_value(block_size), NULL) < 0)
        return damaged(path, "no valid block size", err);
    return resize_decode(json_object_get(root, "resize"), path, &id->resize, err);
}

int varve_identity_read(struct varve_world *w, const struct varve_paths *p,
                        struct varve_identity *id, struct varve_err *err)
{
    char path[PATH_MAX];
    char *text;
    size_t len;
    json_t *root;
    unsigned refused = varve_json_refused();
    int rc;

    varve_path_identity(p, path);
    rc = varve_whole_file_read(w, path, IDENTITY_BYTES_MAX, &text, &len, err);
    if (rc == -EFBIG)
        return damaged(path, "too long", err);
    if (rc < 0)
        return rc;
    root = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
    free(text);
    if (varve_json_refused() != refused)
        rc = varve_err_set(err, ENOMEM, "no memory for %s", path);
    else if (!json_is_object(root))
        rc = damaged(path, "not a JSON object", err);
    else
        rc = identity_decode(root, path, id, err);
    json_decref(root);
    return rc;
}

int varve_identity_write(struct varve_world *w, const struct varve_paths *p,
                         const struct varve_identity *id, struct varve_err *err)
{
    char path[PATH_MAX], uuid[UUID_TEXT_LEN + 1];
    json_t *image = json_string(id->image);
    json_t *root;
    char *text;
    int rc;

    if (!image)
        return varve_err_set(err, EINVAL,
                             "the image's path is not UTF-8: serve it through a symbolic link "
                             "whose name is");
    uuid_format(id->uuid, uuid);
    root = json_pack("{s:i, s:s, s:o, s:I, s:I}", "format", VARVE_STATE_FORMAT, "uuid", uuid,
                     "image", image, "size", (json_int_t)id->geometry.size, "block-size",
                     (json_int_t)varve_block_size(&id->geometry));
    if (root && id->resize.time_ns != 0 &&
        json_object_set_new(root, "resize",
                            json_pack("{s:I, s:I}", "size", (json_int_t)id->resize.size, "time",
                                      (json_int_t)id->resize.time_ns)) < 0) {
        json_decref(root);
        root = NULL;
    }
    text = root ? varve_json_dump(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    varve_path_identity(p, path);
    if (!text)
        return varve_err_sys(err, ENOMEM, "cannot write %s", path);
    rc = varve_whole_file_replace(w, path, text, strlen(text), err);
    free(text);
    return rc;
}
