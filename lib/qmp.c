/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A message ends where its outermost bracket closes, so the stream is cut by a scanner that knows
 * brackets, strings and escapes and nothing else; whether the piece is JSON is jansson's business.
 *
 *     BETWEEN --'{'--> VALUE --its '}'--> BETWEEN, a message
 *        |               | '"'            VALUE <--> STRING <--> ESCAPE
 *        |               `-- bracket of the wrong kind, control character in a string --.
 *        |--'['--> VALUE, bad: skipped to its ']'                                       |
 *        `--anything else--> LINE, skipped to the newline <-----------------------------'
 *
 * Every byte is looked at once, and what is skipped is not kept.
 */
#include <config.h>

#include "lib/qmp.h"

#include "lib/json.h"
#include "lib/nbd-proto.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* As deep as QEMU's parser goes; below jansson's own limit. */
#define DEPTH_MAX 1024u

enum reader_state { BETWEEN, VALUE, STRING, ESCAPE, LINE };

enum reader_step { STEP_MORE, STEP_WHOLE, STEP_BAD };

struct varve_qmp_reader {
    size_t max;
    char *buf;
    size_t cap;
    size_t start; /* of the message under way, or of what was not looked at yet */
    size_t scan;  /* next byte to look at */
    size_t end;
    enum reader_state state;
    bool bad;                        /* the value was refused, only its end is wanted */
    bool dead;                       /* too long */
    size_t skipped;                  /* bytes of the refused value or line */
    uint64_t depth;                  /* open brackets */
    const char *why;                 /* the refusal, in words */
    uint64_t braces[DEPTH_MAX / 64]; /* bit per level: '{' rather than '[' */
};

struct varve_qmp_reader *varve_qmp_reader_new(size_t message_max)
{
    struct varve_qmp_reader *r = calloc(1, sizeof(*r));

    if (r)
        r->max = message_max;
    return r;
}

void varve_qmp_reader_free(struct varve_qmp_reader *r)
{
    if (!r)
        return;
    free(r->buf);
    free(r);
}

static int reader_too_long(struct varve_qmp_reader *r, struct varve_err *err)
{
    r->dead = true;
    return varve_err_set(err, E2BIG, "message is longer than %zu bytes", r->max);
}

int varve_qmp_reader_feed(struct varve_qmp_reader *r, const char *buf, size_t len,
                          struct varve_err *err)
{
    size_t held = r->end - r->start;

    if (r->dead || held > r->max)
        return reader_too_long(r, err);
    /* Moving no more bytes than were consumed keeps the whole linear. */
    if (r->start >= held || r->cap - r->end < len) {
        if (held > 0)
            memmove(r->buf, r->buf + r->start, held);
        r->scan -= r->start;
        r->end = held;
        r->start = 0;
    }
    if (r->cap - r->end < len) {
        size_t cap = r->end + len;
        char *grown;

        if (cap < r->cap * 2 && r->cap * 2 <= r->max)
            cap = r->cap * 2;
        grown = realloc(r->buf, cap);
        if (!grown)
            return varve_err_set(err, ENOMEM, "no memory for a message of %zu bytes", cap);
        r->buf = grown;
        r->cap = cap;
    }
    if (len > 0)
        memcpy(r->buf + r->end, buf, len);
    r->end += len;
    return 0;
}

static enum reader_step reader_refuse(struct varve_qmp_reader *r, enum reader_state next,
                                      const char *why)
{
    bool first = !r->bad;

    r->state = next;
    r->bad = true;
    if (!first)
        return STEP_MORE;
    r->why = why;
    return STEP_BAD;
}

static void reader_open(struct varve_qmp_reader *r, char c)
{
    if (r->depth < DEPTH_MAX) {
        uint64_t bit = (uint64_t)1 << (r->depth % 64);

        if (c == '{')
            r->braces[r->depth / 64] |= bit;
        else
            r->braces[r->depth / 64] &= ~bit;
    }
    r->depth++;
}

/* False: the bracket does not belong to the one that is open. */
static bool reader_close(struct varve_qmp_reader *r, char c)
{
    r->depth--;
    if (r->depth >= DEPTH_MAX)
        return true;
    return (r->braces[r->depth / 64] >> (r->depth % 64) & 1) == (c == '}');
}

static enum reader_step reader_step(struct varve_qmp_reader *r, char c)
{
    switch (r->state) {
    case BETWEEN:
        if (c == ' ' || c == '\t' || c == '\r' || c == '\n') {
            r->start = r->scan;
            return STEP_MORE;
        }
        r->skipped = 0;
        r->bad = false;
        r->depth = 0;
        if (c != '{' && c != '[')
            return reader_refuse(r, LINE, "it does not begin with '{'");
        reader_open(r, c);
        r->state = VALUE;
        if (c == '[')
            return reader_refuse(r, VALUE, "it is an array");
        return STEP_MORE;
    case VALUE:
        if (c == '"') {
            r->state = STRING;
        } else if (c == '{' || c == '[') {
            reader_open(r, c);
            if (r->depth > DEPTH_MAX)
                return reader_refuse(r, VALUE, "its brackets are nested too deeply");
        } else if (c == '}' || c == ']') {
            if (!reader_close(r, c))
                return reader_refuse(r, LINE, "a bracket is closed by one of another kind");
            if (r->depth == 0) {
                r->state = BETWEEN;
                return r->bad ? STEP_MORE : STEP_WHOLE;
            }
        }
        return STEP_MORE;
    case STRING:
        if (c == '"')
            r->state = VALUE;
        else if (c == '\\')
            r->state = ESCAPE;
        else if ((unsigned char)c < 0x20)
            /* Most likely the quote was forgotten: do not swallow the next line too. */
            return reader_refuse(r, c == '\n' ? BETWEEN : LINE,
                                 "a string has a control character in it");
        return STEP_MORE;
    case ESCAPE:
        r->state = STRING;
        return STEP_MORE;
    case LINE:
        if (c == '\n')
            r->state = BETWEEN;
        return STEP_MORE;
    }
    return STEP_MORE;
}

static int reader_parse(const char *text, size_t len, json_t **out, struct varve_err *err)
{
    unsigned refused = varve_json_refused();
    json_error_t jerr;
    char *more;

    *out = json_loadb(text, len, JSON_REJECT_DUPLICATES, &jerr);
    if (varve_json_refused() != refused) {
        json_decref(*out);
        *out = NULL;
        return varve_err_set(err, ENOMEM, "no memory for a message of %zu bytes", len);
    }
    if (*out)
        return 1;
    /* jansson quotes the peer's bytes behind one word, and names a flag of its own behind another:
     * they are no part of our sentence. */
    if ((more = strstr(jerr.text, " near '")) != NULL)
        *more = '\0';
    if ((more = strstr(jerr.text, " without JSON_")) != NULL)
        *more = '\0';
    return varve_err_set(err, EINVAL, "message is not JSON: %s at byte %d", jerr.text,
                         jerr.position);
}

int varve_qmp_reader_next(struct varve_qmp_reader *r, json_t **out, struct varve_err *err)
{
    *out = NULL;
    if (r->dead)
        return reader_too_long(r, err);
    while (r->scan < r->end) {
        enum reader_step step = reader_step(r, r->buf[r->scan++]);
        const char *text = r->buf + r->start;
        size_t len = r->scan - r->start;

        if (r->bad) {
            r->skipped += len;
            r->start = r->scan;
        }
        /* Said at the same byte, however the stream came in pieces. */
        if ((r->bad ? r->skipped : len) > r->max)
            return reader_too_long(r, err);
        if (step == STEP_WHOLE) {
            r->start = r->scan;
            return reader_parse(text, len, out, err);
        }
        if (step == STEP_BAD)
            return varve_err_set(err, EINVAL, "message is not a JSON object: %s", r->why);
    }
    return 0;
}

bool varve_qmp_reader_idle(const struct varve_qmp_reader *r)
{
    return r->state == BETWEEN && r->scan == r->end;
}

json_t *varve_qmp_greeting(void)
{
    int major = 0, minor = 0, micro = 0;

    if (sscanf(PACKAGE_VERSION, "%d.%d.%d", &major, &minor, &micro) < 2)
        return NULL;
    return json_pack("{s:{s:{s:{s:i, s:i, s:i}, s:s}, s:[]}}", "QMP", "version", "varve", "major",
                     major, "minor", minor, "micro", micro, "package", PACKAGE_STRING,
                     "capabilities");
}

/* Puts the id, if any, into the message that is taken. */
static json_t *message_with_id(json_t *message, json_t *id)
{
    if (message && id && json_object_set(message, "id", id) != 0) {
        json_decref(message);
        return NULL;
    }
    return message;
}

json_t *varve_qmp_return(json_t *value, json_t *id)
{
    if (!value)
        value = json_object();
    if (!value)
        return NULL;
    return message_with_id(json_pack("{s:o}", "return", value), id);
}

/* What is no whole letter (a long name may have been cut in one) becomes '?'. */
static void whole_letters(char *text)
{
    size_t left = strlen(text), n;

    for (char *p = text; left > 0; p += n, left -= n) {
        for (n = 1; n < 4 && n < left && !varve_nbd_string_ok(p, n); n++)
            ;
        if (!varve_nbd_string_ok(p, n)) {
            *p = '?';
            n = 1;
        }
    }
}

json_t *varve_qmp_error(const char *cls, const char *desc, json_t *id)
{
    json_t *text = json_string(desc);
    json_t *message;

    if (!text) {
        char *copy = strdup(desc);

        if (!copy)
            return NULL;
        whole_letters(copy);
        text = json_string(copy);
        free(copy);
        if (!text)
            return NULL;
    }
    message = json_pack("{s:{s:s, s:o}}", "error", "class", cls, "desc", text);
    return message_with_id(message, id);
}

json_t *varve_qmp_event(const char *name, json_t *data, uint64_t realtime_ns)
{
    json_int_t seconds = (json_int_t)(realtime_ns / 1000000000);
    json_int_t micros = (json_int_t)(realtime_ns / 1000 % 1000000);
    json_t *message = json_pack("{s:s}", "event", name);

    if (!message) {
        json_decref(data);
        return NULL;
    }
    if ((data && json_object_set_new(message, "data", data) != 0) ||
        json_object_set_new(message, "timestamp",
                            json_pack("{s:I, s:I}", "seconds", seconds, "microseconds", micros)) !=
            0) {
        json_decref(message);
        return NULL;
    }
    return message;
}

char *varve_qmp_dump(const json_t *message, size_t *len)
{
    char *text = varve_json_dump(message, 0);
    size_t bytes;
    char *line;

    if (!text)
        return NULL;
    bytes = strlen(text);
    line = realloc(text, bytes + 3);
    if (!line) {
        free(text);
        return NULL;
    }
    memcpy(line + bytes, "\r\n", 3);
    *len = bytes + 2;
    return line;
}
