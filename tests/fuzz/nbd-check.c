/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Each option gets answers in order, the last of them an ACK or an error: so counting these tells
 * which option of the client's stream a reply is for, and where its requests begin.  Requests are
 * found by their cookie; where a client uses one twice, only the framing is judged.
 */
#include "tests/fuzz/nbd-check.h"

#include "lib/nbd-proto.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

/* More than any message of these exports. */
#define MESSAGE_MAX (1024u * 1024u)

enum check_phase { GREETING, OPTIONS, TRANSMISSION };

struct check_request {
    struct varve_nbd_request hdr;
    bool twin; /* another one has the same cookie */
    bool done, failed;
    uint64_t covered;  /* bytes of a read that came */
    uint32_t contexts; /* bit n: context n came */
    uint64_t status;   /* bytes that each of them told of */
};

struct nbd_check {
    const uint8_t *sent;
    size_t sent_len;
    uint32_t max_request;
    uint8_t (*byte_at)(uint64_t off);
    const struct nbd_check_guard *guard;

    uint8_t *buf; /* what came and was not judged yet */
    size_t len, cap;

    enum check_phase phase;
    size_t at; /* in sent: the option that is being answered */
    bool structured, tls;
    bool blind; /* the length of what comes cannot be known any more */
    uint64_t size;
    struct check_request *reqs;
    size_t nreqs;
    bool extended;
    bool regular; /* the requests are all the client sent, and none of them ends the connection */
};

struct nbd_check *nbd_check_new(const uint8_t *sent, size_t sent_len, uint32_t max_request,
                                uint8_t (*byte_at)(uint64_t off),
                                const struct nbd_check_guard *guard)
{
    struct nbd_check *c = calloc(1, sizeof(*c));

    FUZZ_CHECK(c);
    c->sent = sent;
    c->sent_len = sent_len;
    c->max_request = max_request;
    c->byte_at = byte_at;
    c->guard = guard;
    c->at = VARVE_NBD_CLIENT_FLAGS_LEN;
    return c;
}

void nbd_check_free(struct nbd_check *c)
{
    free(c->reqs);
    free(c->buf);
    free(c);
}

/* --- handshake ------------------------------------------------------------------------------ */

static void transmission_begins(struct nbd_check *c)
{
    size_t at = c->at;

    c->phase = TRANSMISSION;
    /* Chunks with extended headers are judged by tests/protocol only. */
    if (c->extended)
        c->blind = true;
    c->reqs = calloc(c->sent_len / VARVE_NBD_REQUEST_LEN + 1, sizeof(c->reqs[0]));
    FUZZ_CHECK(c->reqs);
    c->regular = true;
    while (at < c->sent_len && c->sent_len - at >= VARVE_NBD_REQUEST_LEN) {
        struct check_request *r = &c->reqs[c->nreqs];
        struct varve_err err = VARVE_ERR_INIT;

        if (varve_nbd_decode_request(c->sent + at, &r->hdr, &err)) {
            c->regular = false;
            break;
        }
        at += VARVE_NBD_REQUEST_LEN;
        if (r->hdr.type == VARVE_NBD_CMD_DISC)
            break;
        if (r->hdr.type == VARVE_NBD_CMD_WRITE)
            at += r->hdr.len;
        if (at > c->sent_len)
            c->regular = false;
        for (size_t i = 0; i < c->nreqs; i++) {
            if (c->reqs[i].hdr.cookie == r->hdr.cookie)
                c->reqs[i].twin = r->twin = true;
        }
        c->nreqs++;
    }
}

/* The option at c->at. */
static struct varve_nbd_option option_sent(const struct nbd_check *c)
{
    struct varve_nbd_option opt;
    struct varve_err err = VARVE_ERR_INIT;

    FUZZ_CHECK(c->at <= c->sent_len && c->sent_len - c->at >= VARVE_NBD_OPTION_LEN);
    FUZZ_CHECK(varve_nbd_decode_option(c->sent + c->at, &opt, &err) == 0);
    return opt;
}

static bool may_see(const struct nbd_check *c, const uint8_t *name, size_t len)
{
    const char *const *names = c->guard->names;

    for (; names && *names; names++) {
        if (strlen(*names) == len && memcmp(*names, name, len) == 0)
            return true;
    }
    return !names;
}

/* Nothing was told but errors, of what this client may not know, nor anything before TLS. */
static void judge_guard(const struct nbd_check *c, const struct varve_nbd_option *opt,
                        uint32_t reply, const uint8_t *p)
{
    const uint8_t *sent = c->sent + c->at + VARVE_NBD_OPTION_LEN;
    uint32_t len;

    if (reply >> 31 == 1)
        return;
    if (c->guard->tls_required && !c->tls)
        FUZZ_CHECK(opt->type == VARVE_NBD_OPT_STARTTLS || opt->type == VARVE_NBD_OPT_ABORT);
    switch (opt->type) {
    case VARVE_NBD_OPT_LIST:
        if (reply == VARVE_NBD_REP_SERVER)
            FUZZ_CHECK(may_see(c, p + 4, varve_nbd_get32(p)));
        break;
    case VARVE_NBD_OPT_INFO:
    case VARVE_NBD_OPT_GO:
    case VARVE_NBD_OPT_LIST_META_CONTEXT:
    case VARVE_NBD_OPT_SET_META_CONTEXT:
        FUZZ_CHECK(c->sent_len - (size_t)(sent - c->sent) >= opt->len && opt->len >= 4);
        len = varve_nbd_get32(sent);
        FUZZ_CHECK(len <= opt->len - 4 && (len == 0 || may_see(c, sent + 4, len)));
        break;
    default:
        break;
    }
}

static bool reply_fits(uint32_t reply, uint32_t option)
{
    switch (reply) {
    case VARVE_NBD_REP_SERVER:
        return option == VARVE_NBD_OPT_LIST;
    case VARVE_NBD_REP_INFO:
        return option == VARVE_NBD_OPT_INFO || option == VARVE_NBD_OPT_GO;
    case VARVE_NBD_REP_META_CONTEXT:
        return option == VARVE_NBD_OPT_LIST_META_CONTEXT ||
               option == VARVE_NBD_OPT_SET_META_CONTEXT;
    default:
        return reply == VARVE_NBD_REP_ACK || reply >> 31 == 1;
    }
}

static void judge_payload(struct nbd_check *c, uint32_t reply, const uint8_t *p, uint32_t len)
{
    switch (reply) {
    case VARVE_NBD_REP_ACK:
        FUZZ_CHECK(len == 0);
        break;
    case VARVE_NBD_REP_SERVER:
        FUZZ_CHECK(len >= 4 && varve_nbd_get32(p) <= len - 4);
        break;
    case VARVE_NBD_REP_META_CONTEXT:
        FUZZ_CHECK(len > 4 && varve_nbd_string_ok((const char *)p + 4, len - 4));
        break;
    case VARVE_NBD_REP_INFO:
        FUZZ_CHECK(len >= 2);
        if (varve_nbd_get16(p) == VARVE_NBD_INFO_EXPORT) {
            FUZZ_CHECK(len == 12);
            c->size = varve_nbd_get64(p + 2);
        }
        break;
    default:
        FUZZ_CHECK(varve_nbd_string_ok((const char *)p, len));
    }
}

/* Bytes judged; 0: more are needed. */
static size_t judge_option_reply(struct nbd_check *c)
{
    struct varve_nbd_option opt;
    uint32_t reply, len;

    if (c->len < VARVE_NBD_OPTION_REPLY_LEN)
        return 0;
    reply = varve_nbd_get32(c->buf + 12);
    len = varve_nbd_get32(c->buf + 16);
    FUZZ_CHECK(len <= MESSAGE_MAX);
    if (c->len < VARVE_NBD_OPTION_REPLY_LEN + len)
        return 0;
    opt = option_sent(c);
    FUZZ_CHECK(varve_nbd_get32(c->buf + 8) == opt.type);
    FUZZ_CHECK(reply_fits(reply, opt.type));
    judge_payload(c, reply, c->buf + VARVE_NBD_OPTION_REPLY_LEN, len);
    judge_guard(c, &opt, reply, c->buf + VARVE_NBD_OPTION_REPLY_LEN);
    if (reply == VARVE_NBD_REP_ACK || reply >> 31 == 1)
        c->at += VARVE_NBD_OPTION_LEN + (size_t)opt.len;
    if (reply == VARVE_NBD_REP_ACK && opt.type == VARVE_NBD_OPT_EXTENDED_HEADERS)
        c->extended = true;
    if (reply == VARVE_NBD_REP_ACK && opt.type == VARVE_NBD_OPT_STRUCTURED_REPLY)
        c->structured = true;
    if (reply == VARVE_NBD_REP_ACK && opt.type == VARVE_NBD_OPT_STARTTLS) {
        c->tls = true;
        c->structured = false;
        c->blind = !c->guard->tls_inside;
    }
    if (reply == VARVE_NBD_REP_ACK && opt.type == VARVE_NBD_OPT_GO)
        transmission_begins(c);
    return VARVE_NBD_OPTION_REPLY_LEN + len;
}

static size_t judge_export_name(struct nbd_check *c)
{
    bool zeroes = !(varve_nbd_get32(c->sent) & VARVE_NBD_FLAG_C_NO_ZEROES);
    size_t len = VARVE_NBD_EXPORT_NAME_LEN + (zeroes ? VARVE_NBD_ZEROES_LEN : 0);
    struct varve_nbd_option opt;

    if (c->len < len)
        return 0;
    opt = option_sent(c);
    FUZZ_CHECK(opt.type == VARVE_NBD_OPT_EXPORT_NAME);
    FUZZ_CHECK(c->tls || !c->guard->tls_required);
    FUZZ_CHECK(c->sent_len - c->at - VARVE_NBD_OPTION_LEN >= opt.len);
    FUZZ_CHECK(opt.len == 0 || may_see(c, c->sent + c->at + VARVE_NBD_OPTION_LEN, opt.len));
    for (size_t i = VARVE_NBD_EXPORT_NAME_LEN; i < len; i++)
        FUZZ_CHECK(c->buf[i] == 0);
    c->size = varve_nbd_get64(c->buf);
    c->at += VARVE_NBD_OPTION_LEN + (size_t)opt.len;
    transmission_begins(c);
    return len;
}

/* --- transmission --------------------------------------------------------------------------- */

static struct check_request *request_of(struct nbd_check *c, uint64_t cookie)
{
    for (size_t i = 0; i < c->nreqs; i++) {
        if (c->reqs[i].hdr.cookie == cookie)
            return &c->reqs[i];
    }
    fuzz_failed("a reply has the cookie of a request", __FILE__, __LINE__);
}

static void judge_content(struct nbd_check *c, const struct check_request *r, uint64_t off,
                          const uint8_t *data, uint64_t len)
{
    FUZZ_CHECK(len > 0 && off <= c->size && len <= c->size - off);
    if (!r->twin) {
        FUZZ_CHECK(r->hdr.type == VARVE_NBD_CMD_READ);
        FUZZ_CHECK(off >= r->hdr.off && off + len <= r->hdr.off + r->hdr.len);
    }
    for (uint64_t i = 0; i < len; i++)
        FUZZ_CHECK((data ? data[i] : 0) == c->byte_at(off + i));
}

static size_t judge_simple(struct nbd_check *c)
{
    struct check_request *r;
    uint32_t error;
    size_t len = VARVE_NBD_SIMPLE_REPLY_LEN;

    if (c->len < len)
        return 0;
    error = varve_nbd_get32(c->buf + 4);
    r = request_of(c, varve_nbd_get64(c->buf + 8));
    if (r->twin && !c->structured) {
        c->blind = true;
        return len;
    }
    if (r->twin)
        return len;
    if (c->structured)
        FUZZ_CHECK(r->hdr.type != VARVE_NBD_CMD_READ && r->hdr.type != VARVE_NBD_CMD_BLOCK_STATUS);
    if (r->hdr.type == VARVE_NBD_CMD_READ && error == 0) {
        FUZZ_CHECK(r->hdr.len <= c->max_request);
        if (c->len < len + r->hdr.len)
            return 0;
        if (r->hdr.len > 0)
            judge_content(c, r, r->hdr.off, c->buf + len, r->hdr.len);
        len += r->hdr.len;
    }
    FUZZ_CHECK(!r->done);
    FUZZ_CHECK(error != 0 || r->hdr.type != VARVE_NBD_CMD_WRITE);
    r->done = true;
    return len;
}

static void judge_status(struct check_request *r, const uint8_t *p, uint32_t len)
{
    uint32_t id = len >= 4 ? varve_nbd_get32(p) : 0;
    uint32_t n = (len - 4) / VARVE_NBD_EXTENT_LEN;
    uint64_t sum = 0;

    FUZZ_CHECK(len >= 4 + VARVE_NBD_EXTENT_LEN && (len - 4) % VARVE_NBD_EXTENT_LEN == 0);
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *e = p + 4 + i * VARVE_NBD_EXTENT_LEN;

        FUZZ_CHECK(varve_nbd_get32(e) > 0);
        if (i > 0)
            FUZZ_CHECK(varve_nbd_get32(e + 4) != varve_nbd_get32(e - 4));
        sum += varve_nbd_get32(e);
    }
    if (r->twin)
        return;
    FUZZ_CHECK(r->hdr.type == VARVE_NBD_CMD_BLOCK_STATUS && sum <= r->hdr.len);
    FUZZ_CHECK(n == 1 || !(r->hdr.flags & VARVE_NBD_CMD_FLAG_REQ_ONE));
    FUZZ_CHECK(id > 0 && id < 32 && !(r->contexts >> id & 1));
    FUZZ_CHECK(r->contexts == 0 || sum == r->status);
    r->status = sum;
    r->contexts |= 1u << id;
}

static void judge_error(struct check_request *r, uint16_t type, const uint8_t *p, uint32_t len)
{
    uint32_t tail = type == VARVE_NBD_CHUNK_ERROR_OFFSET ? 8 : 0;
    uint16_t n;

    FUZZ_CHECK(len >= 6 + tail);
    n = varve_nbd_get16(p + 4);
    FUZZ_CHECK(varve_nbd_get32(p) != 0 && len == 6 + n + tail);
    FUZZ_CHECK(varve_nbd_string_ok((const char *)p + 6, n));
    if (tail && !r->twin) {
        uint64_t off = varve_nbd_get64(p + 6 + n);

        FUZZ_CHECK(off >= r->hdr.off && off - r->hdr.off < r->hdr.len);
    }
    r->failed = true;
}

static void judge_done(struct check_request *r)
{
    if (r->twin)
        return;
    FUZZ_CHECK(!r->done);
    r->done = true;
    if (r->failed)
        return;
    if (r->hdr.type == VARVE_NBD_CMD_READ)
        FUZZ_CHECK(r->covered == r->hdr.len);
    if (r->hdr.type == VARVE_NBD_CMD_BLOCK_STATUS)
        FUZZ_CHECK(r->contexts != 0);
    FUZZ_CHECK(r->hdr.type != VARVE_NBD_CMD_WRITE);
}

static size_t judge_chunk(struct nbd_check *c)
{
    struct check_request *r;
    uint16_t flags, type;
    uint32_t len;
    const uint8_t *p;

    if (c->len < VARVE_NBD_CHUNK_LEN)
        return 0;
    FUZZ_CHECK(c->structured);
    flags = varve_nbd_get16(c->buf + 4);
    type = varve_nbd_get16(c->buf + 6);
    r = request_of(c, varve_nbd_get64(c->buf + 8));
    len = varve_nbd_get32(c->buf + 16);
    FUZZ_CHECK(len <= MESSAGE_MAX && (flags & ~VARVE_NBD_CHUNK_DONE) == 0);
    FUZZ_CHECK(r->twin || !r->done);
    if (c->len < VARVE_NBD_CHUNK_LEN + len)
        return 0;
    p = c->buf + VARVE_NBD_CHUNK_LEN;
    switch (type) {
    case VARVE_NBD_CHUNK_NONE:
        FUZZ_CHECK(len == 0 && flags == VARVE_NBD_CHUNK_DONE);
        break;
    case VARVE_NBD_CHUNK_OFFSET_DATA:
        FUZZ_CHECK(len > 8);
        judge_content(c, r, varve_nbd_get64(p), p + 8, len - 8);
        r->covered += len - 8;
        break;
    case VARVE_NBD_CHUNK_OFFSET_HOLE:
        FUZZ_CHECK(len == 12);
        judge_content(c, r, varve_nbd_get64(p), NULL, varve_nbd_get32(p + 8));
        r->covered += varve_nbd_get32(p + 8);
        break;
    case VARVE_NBD_CHUNK_BLOCK_STATUS:
        judge_status(r, p, len);
        break;
    default:
        FUZZ_CHECK(type == VARVE_NBD_CHUNK_ERROR || type == VARVE_NBD_CHUNK_ERROR_OFFSET);
        judge_error(r, type, p, len);
    }
    if (flags & VARVE_NBD_CHUNK_DONE)
        judge_done(r);
    return VARVE_NBD_CHUNK_LEN + len;
}

/* --- both ----------------------------------------------------------------------------------- */

static size_t judge_next(struct nbd_check *c)
{
    switch (c->phase) {
    case GREETING:
        if (c->len < VARVE_NBD_GREETING_LEN)
            return 0;
        FUZZ_CHECK(varve_nbd_get64(c->buf) == VARVE_NBD_MAGIC);
        FUZZ_CHECK(varve_nbd_get64(c->buf + 8) == VARVE_NBD_OPTION_MAGIC);
        c->phase = OPTIONS;
        return VARVE_NBD_GREETING_LEN;
    case OPTIONS:
        if (c->len < 8)
            return 0;
        if (varve_nbd_get64(c->buf) == VARVE_NBD_OPTION_REPLY_MAGIC)
            return judge_option_reply(c);
        return judge_export_name(c);
    case TRANSMISSION:
        if (c->len < 4)
            return 0;
        if (varve_nbd_get32(c->buf) == VARVE_NBD_SIMPLE_REPLY_MAGIC)
            return judge_simple(c);
        FUZZ_CHECK(varve_nbd_get32(c->buf) == VARVE_NBD_CHUNK_MAGIC);
        return judge_chunk(c);
    }
    return 0;
}

void nbd_check_answered(const struct nbd_check *c)
{
    if (c->phase != TRANSMISSION || !c->regular || c->blind)
        return;
    FUZZ_CHECK(c->len == 0);
    for (size_t i = 0; i < c->nreqs; i++)
        FUZZ_CHECK(c->reqs[i].done || c->reqs[i].twin);
}

void nbd_check_feed(struct nbd_check *c, const uint8_t *buf, size_t len)
{
    struct nbd_check rest;
    size_t n;

    if (c->blind)
        return;
    if (c->cap - c->len < len) {
        c->cap = (c->len + len) * 2;
        c->buf = realloc(c->buf, c->cap);
        FUZZ_CHECK(c->buf);
    }
    memcpy(c->buf + c->len, buf, len);
    c->len += len;

    /* Judges from the front, and moves the rest but once. */
    rest = *c;
    while (!rest.blind && (n = judge_next(&rest)) > 0) {
        rest.buf += n;
        rest.len -= n;
    }
    memmove(c->buf, rest.buf, rest.len);
    rest.buf = c->buf;
    rest.cap = c->cap;
    *c = rest;
}
