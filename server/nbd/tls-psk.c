/* SPDX-License-Identifier: BSD-3-Clause
 *
 * GnuTLS could read the file by itself, but does so for each client, on the loop, and finds out
 * about a broken line only then.
 */
#include "server/nbd/tls-psk.h"

#include "lib/parse.h"
#include "server/nbd/client-id.h"
#include "server/nbd/small-file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    struct entry *next;
    size_t user_len, key_len;
    uint8_t key[VARVE_PSK_KEY_MAX];
    uint8_t user[VARVE_CLIENT_NAME_MAX];
};

struct varve_psk {
    struct entry *entries;
};

static int unhex(const char *what, const char *text, size_t len, uint8_t *out, size_t max,
                 size_t *out_len, struct varve_err *err)
{
    if (!len || len % 2 || len / 2 > max)
        return varve_err_set(err, EINVAL, "%s wants 2 to %zu hexadecimal digits, two for each byte",
                             what, 2 * max);
    for (size_t i = 0; i < len / 2; i++) {
        int high = varve_parse_hex_digit(text[2 * i]), low = varve_parse_hex_digit(text[2 * i + 1]);

        if (high < 0 || low < 0)
            return varve_err_set(err, EINVAL, "%s is not hexadecimal", what);
        out[i] = (uint8_t)(high << 4 | low);
    }
    *out_len = len / 2;
    return 0;
}

static int parse_user(struct entry *e, const char *text, size_t len, struct varve_err *err)
{
    /* psktool's way to write names that would not fit on a line. */
    if (len && text[0] == '#')
        return unhex("the user behind #", text + 1, len - 1, e->user, sizeof(e->user), &e->user_len,
                     err);
    if (!len || len > sizeof(e->user))
        return varve_err_set(
            err, EINVAL, "a user of 1 to %zu bytes is needed in front of the :", sizeof(e->user));
    memcpy(e->user, text, len);
    e->user_len = len;
    return 0;
}

static int parse_entry(struct entry *e, const char *line, size_t len, struct varve_err *err)
{
    const char *colon = memrchr(line, ':', len);
    int rc;

    if (!colon)
        return varve_err_set(err, EINVAL, "USER:HEXKEY is needed; psktool(1) makes such lines");
    rc = parse_user(e, line, (size_t)(colon - line), err);
    if (rc)
        return rc;
    return unhex("the key", colon + 1, len - (size_t)(colon + 1 - line), e->key, sizeof(e->key),
                 &e->key_len, err);
}

static void entry_free(struct entry *e)
{
    explicit_bzero(e, sizeof(*e));
    free(e);
}

/* A line without its end. */
static int add_line(struct varve_psk *p, const char *line, size_t len, struct varve_err *err)
{
    struct entry *e;
    size_t key_len;
    int rc;

    if (len && line[len - 1] == '\r')
        len--;
    if (!len)
        return 0;
    e = calloc(1, sizeof(*e));
    if (!e)
        return varve_err_set(err, ENOMEM, "no memory");
    rc = parse_entry(e, line, len, err);
    if (rc == 0 && varve_psk_find(p, e->user, e->user_len, &key_len))
        rc = varve_err_set(err, EINVAL, "the user has a key already");
    if (rc) {
        entry_free(e);
        return rc;
    }
    e->next = p->entries;
    p->entries = e;
    return 0;
}

static int add_lines(struct varve_psk *p, const char *file, const char *text, size_t len,
                     struct varve_err *err)
{
    const char *at = text, *end = text + len;

    for (unsigned number = 1; at < end; number++) {
        const char *nl = memchr(at, '\n', (size_t)(end - at));
        struct varve_err e = VARVE_ERR_INIT;

        if (add_line(p, at, (size_t)((nl ? nl : end) - at), &e))
            return varve_err_set(err, e.code, "%s:%u: %s", file, number, e.msg);
        at = nl ? nl + 1 : end;
    }
    if (!p->entries)
        return varve_err_set(err, EINVAL, "%s holds no key; psktool(1) makes them", file);
    return 0;
}

int varve_psk_parse(const char *file, const char *text, size_t len, struct varve_psk **out,
                    struct varve_err *err)
{
    struct varve_psk *p = calloc(1, sizeof(*p));
    int rc;

    if (!p)
        return varve_err_set(err, ENOMEM, "%s: no memory", file);
    rc = add_lines(p, file, text, len, err);
    if (rc)
        varve_psk_free(p);
    else
        *out = p;
    return rc;
}

int varve_psk_load(const char *file, struct varve_psk **out, struct varve_err *err)
{
    char *text;
    size_t len;
    int rc = varve_small_file_read(file, &text, &len, err);

    if (rc)
        return rc;
    rc = varve_psk_parse(file, text, len, out, err);
    varve_small_file_wipe(text, len);
    return rc;
}

void varve_psk_free(struct varve_psk *p)
{
    struct entry *e;

    if (!p)
        return;
    while ((e = p->entries)) {
        p->entries = e->next;
        entry_free(e);
    }
    free(p);
}

const uint8_t *varve_psk_find(const struct varve_psk *p, const void *user, size_t user_len,
                              size_t *key_len)
{
    for (const struct entry *e = p->entries; e; e = e->next) {
        if (e->user_len == user_len && memcmp(e->user, user, user_len) == 0) {
            *key_len = e->key_len;
            return e->key;
        }
    }
    return NULL;
}
