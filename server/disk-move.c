/* SPDX-License-Identifier: BSD-3-Clause
 *
 *     export   FOLDER.tmp made | files, synced | manifest, synced | folder synced | FOLDER
 *     import   the manifest is whole | each file copied, its size and digest as the manifest says
 *
 * A manifest comes from elsewhere: names in it are judged by a list of those that a disk has,
 * numbers by what can be, before a file is opened.
 */
#include "server/disk-move.h"

#include "lib/digest.h"
#include "lib/json.h"
#include "lib/whole-file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MANIFEST     "export.json"
#define MANIFEST_MAX ((size_t)64 << 20)
#define PIECE        ((size_t)1 << 20)

static void hex(const uint8_t *bytes, size_t n, char *text)
{
    for (size_t i = 0; i < n; i++)
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
}

static int text_digest(const char *text, char out[2 * VARVE_DIGEST_LEN + 1], struct varve_err *err)
{
    uint8_t digest[VARVE_DIGEST_LEN];
    struct varve_digest d;
    int rc = varve_digest_init(&d, err);

    if (rc < 0)
        return rc;
    varve_digest_update(&d, text, strlen(text));
    rc = varve_digest_final(&d, digest, err);
    if (rc == 0)
        hex(digest, sizeof(digest), out);
    return rc;
}

/* Files of a disk's folder that are its state. */
static bool is_state(const char *name)
{
    static const char *const plain[] = {"disk.json", "intent.log", "image-witness", "doubt"};
    uint64_t first, last;

    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++) {
        if (strcmp(name, plain[i]) == 0)
            return true;
    }
    if (strncmp(name, "blocks-", 7) == 0)
        return strlen(name) == 7 + 64 + 4 && strspn(name + 7, "0123456789abcdef") == 64 &&
               strcmp(name + 71, ".map") == 0;
    return varve_path_parse_epoch(name, &first, &last);
}

static int join(char path[PATH_MAX], const char *folder, const char *name, struct varve_err *err)
{
    if (snprintf(path, PATH_MAX, "%s/%s", folder, name) >= PATH_MAX)
        return varve_err_set(err, ENAMETOOLONG, "the folder name '%.200s...' is too long", folder);
    return 0;
}

static int copy_fd(struct varve_world *w, int from, int to, uint64_t *size, char *sha256,
                   struct varve_err *err)
{
    uint8_t digest[VARVE_DIGEST_LEN], *buf = malloc(PIECE);
    struct varve_digest d;
    ssize_t got = 0;
    int rc, final;

    *size = 0;
    if (!buf)
        return varve_err_set(err, ENOMEM, "no memory");
    rc = varve_digest_init(&d, err);
    if (rc < 0) {
        free(buf);
        return rc;
    }
    while (rc == 0 && (got = w->pread(w, from, buf, PIECE, *size)) > 0) {
        varve_digest_update(&d, buf, (size_t)got);
        rc = w->pwrite(w, to, buf, (size_t)got, *size);
        *size += (uint64_t)got;
    }
    if (rc == 0 && got < 0)
        rc = (int)got;
    if (rc == 0)
        rc = w->sync(w, to);
    if (rc < 0)
        varve_err_sys(err, -rc, "cannot copy");
    final = varve_digest_final(&d, digest, rc == 0 ? err : NULL);
    if (rc == 0 && final == 0)
        hex(digest, sizeof(digest), sha256);
    free(buf);
    return rc < 0 ? rc : final;
}

static int copy_file(struct varve_world *w, const char *from_folder, const char *to_folder,
                     const char *name, uint64_t *size, char *sha256, struct varve_err *err)
{
    char from[PATH_MAX], to[PATH_MAX];
    int rc = join(from, from_folder, name, err), in, out;

    if (rc == 0)
        rc = join(to, to_folder, name, err);
    if (rc < 0)
        return rc;
    in = w->open(w, from, O_RDONLY | O_NONBLOCK | O_NOFOLLOW, 0);
    if (in < 0)
        return varve_err_sys(err, -in, "cannot open %s", from);
    out = w->open(w, to, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (out < 0) {
        w->close(w, in);
        return varve_err_sys(err, -out, "cannot create %s", to);
    }
    rc = copy_fd(w, in, out, size, sha256, err);
    w->close(w, out);
    w->close(w, in);
    return rc < 0 ? varve_err_prefix(err, "%s", from) : 0;
}

/* --- writing -------------------------------------------------------------------------------- */

/* The export as text under its digest, into FOLDER, durably. */
static int manifest_write(struct varve_world *w, const char *folder, json_t *export,
                          struct varve_err *err)
{
    char path[PATH_MAX], sha256[2 * VARVE_DIGEST_LEN + 1], *text, *all;
    int rc = join(path, folder, MANIFEST, err), len;

    text = varve_json_dump(export, JSON_COMPACT | JSON_SORT_KEYS);
    if (!text)
        return varve_err_set(err, ENOMEM, "no memory for %s", path);
    if (rc == 0)
        rc = text_digest(text, sha256, err);
    if (rc == 0) {
        len = asprintf(&all, "{\"sha256\":\"%s\",\"export\":%s}\n", sha256, text);
        rc = len < 0 ? varve_err_set(err, ENOMEM, "no memory for %s", path)
                     : varve_whole_file_replace(w, path, all, (size_t)len, err);
        if (len >= 0)
            free(all);
    }
    free(text);
    return rc;
}

struct names {
    json_t *list;
};

static int names_add(void *arg, const char *name)
{
    struct names *n = arg;

    if (is_state(name))
        json_array_append_new(n->list, json_string(name));
    return 0;
}

static int files_copy(struct varve_world *w, const char *from, const char *to, json_t *files,
                      struct varve_err *err)
{
    struct names names = {json_array()};
    size_t i;
    json_t *name;
    int rc = w->list(w, from, names_add, &names);

    if (rc < 0)
        varve_err_sys(err, -rc, "cannot read %s", from);
    json_array_foreach(names.list, i, name)
    {
        char sha256[2 * VARVE_DIGEST_LEN + 1];
        uint64_t size;

        if (rc == 0)
            rc = copy_file(w, from, to, json_string_value(name), &size, sha256, err);
        if (rc == 0)
            json_array_append_new(files, json_pack("{s:O, s:I, s:s}", "name", name, "size",
                                                   (json_int_t)size, "sha256", sha256));
    }
    json_decref(names.list);
    return rc;
}

static void folder_remove(struct varve_world *w, const char *folder)
{
    char path[PATH_MAX];
    size_t i;
    json_t *name;
    struct names names = {json_array()};

    w->list(w, folder, names_add, &names);
    json_array_foreach(names.list, i, name)
    {
        if (join(path, folder, json_string_value(name), NULL) == 0)
            w->unlink(w, path);
    }
    if (join(path, folder, MANIFEST, NULL) == 0)
        w->unlink(w, path);
    json_decref(names.list);
    remove(folder);
}

static int folder_above(const char *folder, char above[PATH_MAX])
{
    char *slash;

    snprintf(above, PATH_MAX, "%s", folder);
    slash = strrchr(above, '/');
    if (!slash)
        return -EINVAL;
    slash[slash == above] = '\0';
    return 0;
}

static int move_fill(struct varve_world *w, const struct varve_paths *p, const char *tmp,
                     json_t *export, struct varve_err *err)
{
    int rc = files_copy(w, p->state, tmp, json_object_get(export, "files"), err);

    if (rc == 0)
        rc = manifest_write(w, tmp, export, err);
    if (rc == 0) {
        rc = w->sync_dir(w, tmp);
        if (rc < 0)
            varve_err_sys(err, -rc, "cannot make %s durable", tmp);
    }
    return rc;
}

int varve_move_write(struct varve_world *w, const struct varve_paths *p, const char *folder,
                     const char *disk, const uint8_t uuid[16], uint64_t witness,
                     const struct varve_catalogue *cat, struct varve_err *err)
{
    char tmp[PATH_MAX], above[PATH_MAX], uuid_text[33], *text = varve_catalogue_dump(cat);
    json_t *export;
    int rc;

    hex(uuid, 16, uuid_text);
    export =
        text ? json_pack("{s:i, s:s, s:s, s:I, s:I, s:[], s:s}", "format", VARVE_MOVE_FORMAT,
                         "disk", disk, "uuid", uuid_text, "time-ns", (json_int_t)w->realtime_ns(w),
                         "witness", (json_int_t)witness, "files", "catalogue", text)
             : NULL;
    free(text);
    if (!export)
        return varve_err_set(err, ENOMEM, "no memory for the export of '%s'", disk);
    if (snprintf(tmp, sizeof(tmp), "%s.tmp", folder) >= (int)sizeof(tmp) ||
        folder_above(folder, above) < 0) {
        json_decref(export);
        return varve_err_set(err, ENAMETOOLONG, "the folder name '%.200s...' is too long", folder);
    }
    rc = w->mkdir(w, tmp, 0700);
    if (rc < 0) {
        json_decref(export);
        return rc == -EEXIST ? varve_err_set(err, EEXIST,
                                             "%.200s exists: an export that died may "
                                             "have left it: remove it",
                                             tmp)
                             : varve_err_sys(err, -rc, "cannot make %.200s", tmp);
    }
    rc = move_fill(w, p, tmp, export, err);
    if (rc == 0) {
        rc = w->rename_new(w, tmp, folder);
        if (rc == -EEXIST)
            varve_err_set(err, EEXIST, "%.200s exists already: give another name, or remove it",
                          folder);
        else if (rc < 0)
            varve_err_sys(err, -rc, "cannot make %.200s", folder);
    }
    if (rc < 0) {
        folder_remove(w, tmp);
    } else {
        rc = w->sync_dir(w, above);
        if (rc < 0)
            varve_err_sys(err, -rc, "cannot make %.200s durable: remove it", folder);
    }
    json_decref(export);
    return rc;
}

int varve_move_note_digest(struct varve_world *w, const char *folder, struct varve_move *m,
                           const char *digest, struct varve_err *err)
{
    if (json_object_set_new(m->export, "digest", json_string(digest)) < 0)
        return varve_err_set(err, ENOMEM, "no memory");
    m->digest = json_string_value(json_object_get(m->export, "digest"));
    return manifest_write(w, folder, m->export, err);
}

/* --- reading -------------------------------------------------------------------------------- */

static int damaged(const char *folder, const char *how, struct varve_err *err)
{
    return varve_err_set(err, EUCLEAN, "%.200s is damaged: %s: use another copy of it", folder,
                         how);
}

static bool is_hex(const char *text, size_t len)
{
    return text && strlen(text) == len && strspn(text, "0123456789abcdef") == len;
}

static int export_parse(const char *folder, struct varve_move *m, struct varve_err *err)
{
    const char *uuid = json_string_value(json_object_get(m->export, "uuid"));
    const char *cat = json_string_value(json_object_get(m->export, "catalogue"));
    json_t *witness = json_object_get(m->export, "witness");
    int rc;

    if (json_integer_value(json_object_get(m->export, "format")) != VARVE_MOVE_FORMAT)
        return varve_err_set(
            err, ENOTSUP,
            "%.200s has another format than this varve knows (%d): use the version "
            "of varve that wrote it",
            folder, VARVE_MOVE_FORMAT);
    m->disk = json_string_value(json_object_get(m->export, "disk"));
    m->digest = json_string_value(json_object_get(m->export, "digest"));
    if (!m->disk || varve_name_check(m->disk, "disk name", NULL) < 0 || !is_hex(uuid, 32) || !cat ||
        !json_is_integer(witness) || json_integer_value(witness) < 0 ||
        !json_is_array(json_object_get(m->export, "files")) ||
        (m->digest && !is_hex(m->digest, 64)))
        return damaged(folder, "its manifest makes no sense", err);
    m->witness = (uint64_t)json_integer_value(witness);
    for (size_t i = 0; i < 16; i++) {
        char byte[3] = {uuid[2 * i], uuid[2 * i + 1], '\0'};

        m->uuid[i] = (uint8_t)strtoul(byte, NULL, 16);
    }
    rc = varve_catalogue_parse(cat, &m->cat, err);
    if (rc < 0)
        return varve_err_prefix(err, "%.200s", folder);
    if (m->cat->ndisks > 1 || m->cat->nbackups > 0 || m->cat->njobs > 0 ||
        (m->cat->ndisks == 1 && memcmp(m->cat->disks[0].uuid, m->uuid, 16) != 0))
        return damaged(folder, "its catalogue is of something else", err);
    return 0;
}

int varve_move_read(struct varve_world *w, const char *folder, struct varve_move *m,
                    struct varve_err *err)
{
    char path[PATH_MAX], sha256[2 * VARVE_DIGEST_LEN + 1], *all = NULL, *text = NULL;
    json_t *root = NULL;
    const char *said;
    size_t len;
    int rc = join(path, folder, MANIFEST, err);

    *m = (struct varve_move){.export = NULL};
    if (rc == 0)
        rc = varve_whole_file_read(w, path, MANIFEST_MAX, &all, &len, err);
    if (rc == -ENOENT)
        return varve_err_set(err, EINVAL, "%.200s is no folder that disk-export made", folder);
    if (rc < 0)
        return rc;
    root = json_loadb(all, len, JSON_REJECT_DUPLICATES, NULL);
    free(all);
    said = json_string_value(json_object_get(root, "sha256"));
    m->export = json_incref(json_object_get(root, "export"));
    if (!said || !json_is_object(m->export))
        rc = damaged(folder, "its manifest is none", err);
    if (rc == 0) {
        text = varve_json_dump(m->export, JSON_COMPACT | JSON_SORT_KEYS);
        rc = text ? text_digest(text, sha256, err) : varve_err_set(err, ENOMEM, "no memory");
        free(text);
    }
    if (rc == 0 && strcmp(said, sha256) != 0)
        rc = damaged(folder, "the checksum of its manifest does not match", err);
    json_decref(root);
    if (rc == 0)
        rc = export_parse(folder, m, err);
    if (rc < 0)
        varve_move_fini(m);
    return rc;
}

void varve_move_fini(struct varve_move *m)
{
    json_decref(m->export);
    varve_catalogue_free(m->cat);
    *m = (struct varve_move){.export = NULL};
}

int varve_move_take(struct varve_world *w, const char *folder, const struct varve_move *m,
                    const char *to, struct varve_err *err)
{
    size_t i;
    json_t *file;
    int rc = 0;

    json_array_foreach(json_object_get(m->export, "files"), i, file)
    {
        const char *name = json_string_value(json_object_get(file, "name"));
        const char *said = json_string_value(json_object_get(file, "sha256"));
        json_t *len = json_object_get(file, "size");
        char sha256[2 * VARVE_DIGEST_LEN + 1];
        uint64_t size;

        if (!name || !is_state(name) || !is_hex(said, 64) || !json_is_integer(len))
            return damaged(folder, "its manifest names files that no disk has", err);
        rc = copy_file(w, folder, to, name, &size, sha256, err);
        if (rc == -ENOENT)
            return damaged(folder, "a file of it is missing", err);
        if (rc < 0)
            return rc;
        if (size != (uint64_t)json_integer_value(len) || strcmp(said, sha256) != 0)
            return damaged(folder, "the checksum of a file does not match", err);
    }
    rc = w->sync_dir(w, to);
    return rc < 0 ? varve_err_sys(err, -rc, "cannot make %s durable", to) : 0;
}
