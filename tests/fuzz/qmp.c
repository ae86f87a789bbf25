/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The QMP reader.  What it says of a stream must not depend on how the stream is cut, and a message
 * that it took must come back from its own dump.
 *
 *     0   the limit of a message, in steps
 *     1   seed of the cuts
 *     2   the stream
 */
#include "lib/qmp.h"
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

/* What a reader said, one line an answer. */
struct story {
    char *text;
    size_t len;
    FILE *f;
    bool idle;
};

static void dumps_to_itself(json_t *message, size_t limit, const char *line, size_t len)
{
    struct varve_qmp_reader *r = varve_qmp_reader_new(limit + len);
    struct varve_err err = VARVE_ERR_INIT;
    json_t *again;

    FUZZ_CHECK(r && varve_qmp_reader_feed(r, line, len, &err) == 0);
    FUZZ_CHECK(varve_qmp_reader_next(r, &again, &err) == 1);
    FUZZ_CHECK(json_equal(message, again));
    json_decref(again);
    FUZZ_CHECK(varve_qmp_reader_next(r, &again, &err) == 0 && !again);
    FUZZ_CHECK(varve_qmp_reader_idle(r));
    varve_qmp_reader_free(r);
}

/* Takes all that the reader has.  False: it is dead. */
static bool take(struct varve_qmp_reader *r, size_t limit, struct story *s)
{
    struct varve_err err = VARVE_ERR_INIT;
    json_t *message;
    int rc;

    while ((rc = varve_qmp_reader_next(r, &message, &err)) != 0) {
        FUZZ_CHECK(rc == 1 || rc == -EINVAL || rc == -E2BIG);
        if (rc == 1) {
            size_t len;
            char *line = varve_qmp_dump(message, &len);

            FUZZ_CHECK(line && json_is_object(message));
            dumps_to_itself(message, limit, line, len);
            fputs(line, s->f);
            free(line);
            json_decref(message);
        } else {
            json_t *answer = varve_qmp_error("GenericError", err.msg, NULL);

            FUZZ_CHECK(!message && err.code == -rc && err.msg[0] && answer);
            json_decref(answer);
            fprintf(s->f, "%d %s\n", rc, err.msg);
        }
        if (rc == -E2BIG)
            return false;
    }
    return true;
}

static void tell(struct story *s, const uint8_t *data, size_t size, size_t limit, uint8_t seed)
{
    struct varve_qmp_reader *r = varve_qmp_reader_new(limit);
    struct fuzz_cuts cuts = {seed};

    s->f = open_memstream(&s->text, &s->len);
    FUZZ_CHECK(r && s->f);
    for (size_t n; size > 0; data += n, size -= n) {
        struct varve_err err = VARVE_ERR_INIT;
        char *piece;

        n = fuzz_cut(&cuts, size);
        piece = malloc(n);
        FUZZ_CHECK(piece);
        memcpy(piece, data, n);
        FUZZ_CHECK(varve_qmp_reader_feed(r, piece, n, &err) == 0);
        free(piece);
        if (!take(r, limit, s)) {
            FUZZ_CHECK(varve_qmp_reader_feed(r, "{}", 2, &err) == -E2BIG);
            break;
        }
    }
    fclose(s->f);
    s->idle = varve_qmp_reader_idle(r);
    varve_qmp_reader_free(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const size_t limits[] = {64, 16, 200, 1000, 4096, 1, 0, VARVE_QMP_MESSAGE_MAX};
    struct story whole = {0}, cut = {0};
    size_t limit;

    if (size < 2)
        return -1;
    limit = limits[data[0] % 8];
    tell(&whole, data + 2, size - 2, limit, 0);
    tell(&cut, data + 2, size - 2, limit, data[1]);
    FUZZ_CHECK(strcmp(whole.text, cut.text) == 0);
    /* Where the reader died it had not looked at the same bytes. */
    FUZZ_CHECK(whole.idle == cut.idle || strstr(cut.text, "is longer than"));
    free(whole.text);
    free(cut.text);
    return 0;
}
