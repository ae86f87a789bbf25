/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Going on with an unfinished pull where it was.  What may be kept is what was durable when the
 * marker said so, of the same view, and only while FILE is still what we left: not one that
 * somebody put there since, such as yesterday's backup once more.  So until it is finished FILE has
 * a tail, a text with a token that stands in the marker too; whoever writes another file there,
 * truncates it, or finishes it takes the tail away.
 *
 *     marker: view, token, copied 0 | tail behind the end, data ... | file synced | marker: copied
 * X | ... all synced, verified | tail cut, synced
 *
 * The marker that names another view is durable before the first byte of that view is written, so
 * what is below `copied` is of one view at any time.  A crash that leaves marker and tail apart
 * costs a second copy of what was there, no more.
 */
#include "client/sink.h"
#include "lib/world.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void tail_text(const char *token, char text[VARVE_SINK_TAIL + 1])
{
    snprintf(text, VARVE_SINK_TAIL + 1, "%s%s\n", VARVE_SINK_TAIL_WORDS, token);
}

static bool tail_is(const struct varve_sink *s, uint64_t export_size, const char *token)
{
    char text[VARVE_SINK_TAIL + 1], got[VARVE_SINK_TAIL];
    struct stat st;

    tail_text(token, text);
    return strlen(token) == VARVE_SINK_TOKEN && fstat(s->fd, &st) == 0 &&
           (uint64_t)st.st_size == export_size + VARVE_SINK_TAIL &&
           pread(s->fd, got, sizeof(got), (off_t)export_size) == (ssize_t)sizeof(got) &&
           memcmp(got, text, sizeof(got)) == 0;
}

static bool same(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

void varve_sink_keep(struct varve_sink *s, const json_t *marker, const struct varve_sink_want *want)
{
    const char *view = json_string_value(json_object_get(marker, "view"));
    const char *token = json_string_value(json_object_get(marker, "token"));
    const char *base = json_string_value(json_object_get(marker, "base"));
    json_int_t copied = json_integer_value(json_object_get(marker, "copied"));

    if (s->fd < 0 || !want->view || !same(view, want->view) || !token || copied <= 0 ||
        (uint64_t)copied > want->export_size || !tail_is(s, want->export_size, token))
        return;
    if (s->kind == VARVE_SINK_INCREMENTAL && !same(base, want->base))
        return;
    snprintf(s->token, sizeof(s->token), "%s", token);
    s->kept = (uint64_t)copied;
}

int varve_sink_new_token(struct varve_sink *s, struct varve_err *err)
{
    struct varve_world *w = varve_world_posix();
    uint8_t random[VARVE_SINK_TOKEN / 2];
    int rc = w->random(w, random, sizeof(random));

    if (rc < 0)
        return varve_err_sys(err, -rc, "no random numbers");
    for (size_t i = 0; i < sizeof(random); i++)
        snprintf(s->token + 2 * i, 3, "%02x", random[i]);
    return 0;
}

int varve_sink_put_tail(struct varve_sink *s, uint64_t export_size, struct varve_err *err)
{
    char text[VARVE_SINK_TAIL + 1];
    ssize_t n;

    if (!s->token[0])
        return 0;
    tail_text(s->token, text);
    n = pwrite(s->fd, text, VARVE_SINK_TAIL, (off_t)export_size);
    if (n == VARVE_SINK_TAIL)
        return 0;
    return varve_err_sys(err, n < 0 ? errno : EIO, "writing behind the end of %s", s->path);
}

int varve_sink_cut_tail(struct varve_sink *s, uint64_t export_size, struct varve_err *err)
{
    if (!s->token[0])
        return 0;
    if (ftruncate(s->fd, (off_t)export_size) != 0 || fsync(s->fd) != 0)
        return varve_err_sys(err, errno, "cutting %s to %" PRIu64 " bytes", s->path, export_size);
    return 0;
}
