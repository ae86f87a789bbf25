/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Options of the fixed newstyle handshake.
 *
 *     CLIENT_FLAGS ──▶ OPTION ──▶ PAYLOAD ──▶ answer ──▶ OPTION ... until GO, EXPORT_NAME or ABORT
 *                        └──▶ SKIPPED (too long: thrown away) ──▶ answer
 *
 * An option is looked at only when the peer has taken every answer before it: what it does not read
 * stays bounded by one answer.
 */
#include "server/nbd/nbd-handshake.h"

#include "server/nbd/nbd-conn.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define HANDSHAKE_FLAGS (VARVE_NBD_FLAG_FIXED_NEWSTYLE | VARVE_NBD_FLAG_NO_ZEROES)
#define CLIENT_FLAGS    (VARVE_NBD_FLAG_C_FIXED_NEWSTYLE | VARVE_NBD_FLAG_C_NO_ZEROES)

/* Bytes of an INFO reply's payload. */
#define INFO_EXPORT_LEN     12u
#define INFO_BLOCK_SIZE_LEN 14u

/* --- answers -------------------------------------------------------------------------------- */

/* A reply to the current option with room for len bytes; NULL: no memory, c is closing. */
static struct varve_nbd_out *reply_new(struct varve_nbd_conn *c, uint32_t type, size_t len)
{
    struct varve_nbd_out *out = varve_nbd_out_new(VARVE_NBD_OPTION_REPLY_LEN + len);

    if (!out) {
        varve_nbd_conn_close(c);
        return NULL;
    }
    varve_nbd_encode_option_reply(out->data, c->hs.opt.type, type, (uint32_t)len);
    return out;
}

static uint8_t *reply_payload(struct varve_nbd_out *out)
{
    return out->data + VARVE_NBD_OPTION_REPLY_LEN;
}

static void reply_ack(struct varve_nbd_conn *c)
{
    struct varve_nbd_out *out = reply_new(c, VARVE_NBD_REP_ACK, 0);

    if (out)
        varve_nbd_conn_send(c, out);
}

static void reply_error(struct varve_nbd_conn *c, uint32_t type, const char *msg)
{
    size_t len = strlen(msg);
    struct varve_nbd_out *out = reply_new(c, type, len);

    if (!out)
        return;
    memcpy(reply_payload(out), msg, len);
    varve_nbd_conn_send(c, out);
}

static bool may_see(void *arg, const struct varve_export *e)
{
    const struct varve_nbd_conn *c = arg;

    return varve_access_allows(c->host->access, &c->id, e->name, strlen(e->name));
}

/* A name is judged before anybody looks whether it exists: so what a client may not see is to it
 * what does not exist, in answer and in time. */
static struct varve_export *find_export(struct varve_nbd_conn *c, const char *name, size_t len)
{
    if (!len)
        return varve_exports_get_only(c->host->exports, may_see, c);
    if (!varve_access_allows(c->host->access, &c->id, name, len))
        return NULL;
    return varve_exports_get(c->host->exports, name, len);
}

static uint16_t transmission_flags(const struct varve_nbd_conn *c, const struct varve_export *e)
{
    uint16_t flags = VARVE_NBD_FLAG_HAS_FLAGS | VARVE_NBD_FLAG_SEND_FLUSH |
                     VARVE_NBD_FLAG_CAN_MULTI_CONN | VARVE_NBD_FLAG_SEND_CACHE;

    /* To an export that is read-only clients send no TRIM, whatever else is said. */
    flags |= e->releasable ? VARVE_NBD_FLAG_SEND_TRIM : VARVE_NBD_FLAG_READ_ONLY;
    if (c->hs.structured)
        flags |= VARVE_NBD_FLAG_SEND_DF;
    if (c->hs.extended && c->hs.meta.export == e && c->hs.meta.n)
        flags |= VARVE_NBD_FLAG_BLOCK_STATUS_PAYLOAD;
    return flags;
}

/* Takes over the reference to e. */
static void enter_transmission(struct varve_nbd_conn *c, struct varve_export *e)
{
    if (c->hs.meta.export != e)
        varve_nbd_metactx_clear(&c->hs.meta);
    varve_nbd_transmit_begin(c, e);
    varve_nbd_conn_transmit(c);
}

/* --- EXPORT_NAME ---------------------------------------------------------------------------- */

/* It cannot be answered with an error: then the protocol wants the session to end. */
static void handle_export_name(struct varve_nbd_conn *c)
{
    size_t zeroes = c->hs.client_flags & VARVE_NBD_FLAG_C_NO_ZEROES ? 0 : VARVE_NBD_ZEROES_LEN;
    const char *name = (const char *)c->hs.payload;
    struct varve_export *e = NULL;
    struct varve_nbd_out *out;

    /* After EXTENDED_HEADERS a client must not ask this way. */
    if (!c->host->going_down && !c->hs.extended && varve_nbd_string_ok(name, c->hs.opt.len))
        e = find_export(c, name, c->hs.opt.len);
    if (!e) {
        varve_nbd_conn_hang_up(c);
        return;
    }
    out = varve_nbd_out_new(VARVE_NBD_EXPORT_NAME_LEN + zeroes);
    if (!out) {
        varve_export_unref(e);
        varve_nbd_conn_close(c);
        return;
    }
    varve_nbd_encode_export_name(out->data, e->size, transmission_flags(c, e));
    memset(out->data + VARVE_NBD_EXPORT_NAME_LEN, 0, zeroes);
    varve_nbd_conn_send(c, out);
    enter_transmission(c, e);
}

/* --- LIST ----------------------------------------------------------------------------------- */

static void list_one(void *arg, struct varve_export *e)
{
    struct varve_nbd_conn *c = arg;
    size_t name_len = strlen(e->name);
    size_t desc_len = e->description ? strnlen(e->description, VARVE_NBD_STRING_MAX) : 0;
    struct varve_nbd_out *out;
    uint8_t *p;

    if (!may_see(c, e))
        return;
    out = reply_new(c, VARVE_NBD_REP_SERVER, 4 + name_len + desc_len);
    if (!out)
        return;
    p = reply_payload(out);
    varve_nbd_put32(p, (uint32_t)name_len);
    memcpy(p + 4, e->name, name_len);
    if (desc_len)
        memcpy(p + 4 + name_len, e->description, desc_len);
    varve_nbd_conn_send(c, out);
}

static void handle_list(struct varve_nbd_conn *c)
{
    if (c->hs.opt.len) {
        reply_error(c, VARVE_NBD_REP_ERR_INVALID, "LIST carries no data");
        return;
    }
    varve_exports_each(c->host->exports, list_one, c);
    reply_ack(c);
}

/* --- INFO and GO ---------------------------------------------------------------------------- */

/* The option's data was thrown away; that is answered. */
static bool was_skipped(struct varve_nbd_conn *c)
{
    if (c->hs.payload)
        return false;
    reply_error(c, VARVE_NBD_REP_ERR_TOO_BIG, "the option is too long");
    return true;
}

static void info_export(struct varve_nbd_conn *c, const struct varve_export *e)
{
    struct varve_nbd_out *out = reply_new(c, VARVE_NBD_REP_INFO, INFO_EXPORT_LEN);
    uint8_t *p;

    if (!out)
        return;
    p = reply_payload(out);
    varve_nbd_put16(p, VARVE_NBD_INFO_EXPORT);
    varve_nbd_put64(p + 2, e->size);
    varve_nbd_put16(p + 10, transmission_flags(c, e));
    varve_nbd_conn_send(c, out);
}

static void info_string(struct varve_nbd_conn *c, uint16_t type, const char *s)
{
    size_t len = strnlen(s, VARVE_NBD_STRING_MAX);
    struct varve_nbd_out *out = reply_new(c, VARVE_NBD_REP_INFO, 2 + len);

    if (!out)
        return;
    varve_nbd_put16(reply_payload(out), type);
    memcpy(reply_payload(out) + 2, s, len);
    varve_nbd_conn_send(c, out);
}

static void info_block_size(struct varve_nbd_conn *c, const struct varve_export *e)
{
    struct varve_nbd_out *out = reply_new(c, VARVE_NBD_REP_INFO, INFO_BLOCK_SIZE_LEN);
    uint8_t *p;

    if (!out)
        return;
    p = reply_payload(out);
    varve_nbd_put16(p, VARVE_NBD_INFO_BLOCK_SIZE);
    varve_nbd_put32(p + 2, 1);
    varve_nbd_put32(p + 6, e->block_pref);
    varve_nbd_put32(p + 10, c->host->options.max_request);
    varve_nbd_conn_send(c, out);
}

static void handle_info(struct varve_nbd_conn *c)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_nbd_info_request req;
    struct varve_export *e;

    if (was_skipped(c))
        return;
    if (varve_nbd_decode_info(c->hs.payload, c->hs.opt.len, &req, &err)) {
        reply_error(c, VARVE_NBD_REP_ERR_INVALID, err.msg);
        return;
    }
    e = find_export(c, req.name, req.name_len);
    if (!e) {
        reply_error(c, VARVE_NBD_REP_ERR_UNKNOWN, "no such export");
        return;
    }
    info_export(c, e);
    if (req.wanted & 1u << VARVE_NBD_INFO_NAME)
        info_string(c, VARVE_NBD_INFO_NAME, e->name);
    if ((req.wanted & 1u << VARVE_NBD_INFO_DESCRIPTION) && e->description)
        info_string(c, VARVE_NBD_INFO_DESCRIPTION, e->description);
    if (req.wanted & 1u << VARVE_NBD_INFO_BLOCK_SIZE)
        info_block_size(c, e);
    reply_ack(c);
    if (c->hs.opt.type == VARVE_NBD_OPT_GO && c->state == VARVE_NBD_HANDSHAKE)
        enter_transmission(c, e);
    else
        varve_export_unref(e);
}

/* --- meta contexts -------------------------------------------------------------------------- */

static void send_context(struct varve_nbd_conn *c, uint32_t id, const char *name)
{
    size_t len = strlen(name);
    struct varve_nbd_out *out = reply_new(c, VARVE_NBD_REP_META_CONTEXT, 4 + len);

    if (!out)
        return;
    varve_nbd_put32(reply_payload(out), id);
    memcpy(reply_payload(out) + 4, name, len);
    varve_nbd_conn_send(c, out);
}

static void list_contexts(struct varve_nbd_conn *c, struct varve_export *e,
                          const struct varve_nbd_meta_request *req)
{
    for (unsigned ctx = 0; ctx < e->ncontexts; ctx++) {
        if (varve_nbd_metactx_listed(e, ctx, req))
            send_context(c, 0, e->contexts[ctx]);
    }
    reply_ack(c);
}

static void set_contexts(struct varve_nbd_conn *c, struct varve_export *e,
                         const struct varve_nbd_meta_request *req)
{
    struct varve_nbd_metactx *meta = &c->hs.meta;
    struct varve_err err = VARVE_ERR_INIT;

    if (varve_nbd_metactx_select(meta, e, req, &err)) {
        reply_error(c, VARVE_NBD_REP_ERR_TOO_BIG, err.msg);
        return;
    }
    for (unsigned i = 0; i < meta->n; i++)
        send_context(c, varve_nbd_metactx_id(meta->ctx[i]), e->contexts[meta->ctx[i]]);
    reply_ack(c);
}

static void handle_meta(struct varve_nbd_conn *c)
{
    bool set = c->hs.opt.type == VARVE_NBD_OPT_SET_META_CONTEXT;
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_nbd_meta_request req;
    struct varve_export *e;

    /* A SET that fails also ends what an earlier one selected. */
    if (set)
        varve_nbd_metactx_clear(&c->hs.meta);
    if (set && !c->hs.structured) {
        reply_error(c, VARVE_NBD_REP_ERR_INVALID, "structured replies must be negotiated first");
        return;
    }
    if (was_skipped(c))
        return;
    if (varve_nbd_decode_meta(c->hs.payload, c->hs.opt.len, &req, &err)) {
        reply_error(c, VARVE_NBD_REP_ERR_INVALID, err.msg);
        return;
    }
    e = find_export(c, req.name, req.name_len);
    if (!e) {
        reply_error(c, VARVE_NBD_REP_ERR_UNKNOWN, "no such export");
        return;
    }
    if (set)
        set_contexts(c, e, &req);
    else
        list_contexts(c, e, &req);
    varve_export_unref(e);
}

/* --- options -------------------------------------------------------------------------------- */

static void handle_extended_headers(struct varve_nbd_conn *c)
{
    if (c->hs.opt.len) {
        reply_error(c, VARVE_NBD_REP_ERR_INVALID, "EXTENDED_HEADERS carries no data");
        return;
    }
    c->hs.structured = true;
    c->hs.extended = true;
    reply_ack(c);
}

static void handle_structured_reply(struct varve_nbd_conn *c)
{
    if (c->hs.opt.len) {
        reply_error(c, VARVE_NBD_REP_ERR_INVALID, "STRUCTURED_REPLY carries no data");
        return;
    }
    if (c->hs.extended) {
        reply_error(c, VARVE_NBD_REP_ERR_EXT_HEADER_REQD,
                    "extended headers were negotiated, which is more");
        return;
    }
    c->hs.structured = true;
    reply_ack(c);
}

static void handle_starttls(struct varve_nbd_conn *c)
{
    if (c->hs.opt.len) {
        reply_error(c, VARVE_NBD_REP_ERR_INVALID, "STARTTLS carries no data");
        return;
    }
    if (c->tls.session) {
        reply_error(c, VARVE_NBD_REP_ERR_INVALID, "TLS is on already");
        return;
    }
    /* Without fixed newstyle the protocol knows no TLS. */
    if (!c->host->tls || !(c->hs.client_flags & VARVE_NBD_FLAG_C_FIXED_NEWSTYLE)) {
        reply_error(c, VARVE_NBD_REP_ERR_POLICY, "this server does not offer TLS");
        return;
    }
    /* What was negotiated in plain could have been said by anybody on the way. */
    c->hs.structured = false;
    c->hs.extended = false;
    varve_nbd_metactx_clear(&c->hs.meta);
    c->hs.starttls = true;
    reply_ack(c);
}

/* This option is not for ears on the way. */
static bool lacks_tls(const struct varve_nbd_conn *c)
{
    return !c->tls.session && varve_tls_required(c->host->tls) &&
           c->hs.opt.type != VARVE_NBD_OPT_STARTTLS && c->hs.opt.type != VARVE_NBD_OPT_ABORT;
}

static void refuse_without_tls(struct varve_nbd_conn *c)
{
    /* One cannot be answered with an error, and who has no fixed newstyle cannot be told of TLS. */
    if (c->hs.opt.type == VARVE_NBD_OPT_EXPORT_NAME ||
        !(c->hs.client_flags & VARVE_NBD_FLAG_C_FIXED_NEWSTYLE))
        varve_nbd_conn_close(c);
    else
        reply_error(c, VARVE_NBD_REP_ERR_TLS_REQD, "this server wants TLS first");
}

/* One connection too many learns why from the answer to whatever it asks. */
static void refuse_surplus(struct varve_nbd_conn *c)
{
    if (c->hs.opt.type == VARVE_NBD_OPT_EXPORT_NAME)
        varve_nbd_conn_close(c);
    else
        reply_error(c, VARVE_NBD_REP_ERR_POLICY, c->refusal.msg);
}

static void handle_option(struct varve_nbd_conn *c)
{
    uint32_t type = c->hs.opt.type;

    if (c->host->going_down && type != VARVE_NBD_OPT_ABORT && type != VARVE_NBD_OPT_EXPORT_NAME) {
        reply_error(c, VARVE_NBD_REP_ERR_SHUTDOWN, "the server is shutting down");
        return;
    }
    if (lacks_tls(c)) {
        refuse_without_tls(c);
        return;
    }
    if (c->refusal.code && type != VARVE_NBD_OPT_ABORT) {
        refuse_surplus(c);
        return;
    }
    switch (type) {
    case VARVE_NBD_OPT_EXPORT_NAME:
        handle_export_name(c);
        break;
    case VARVE_NBD_OPT_ABORT:
        reply_ack(c);
        c->deaf = true;
        break;
    case VARVE_NBD_OPT_LIST:
        handle_list(c);
        break;
    case VARVE_NBD_OPT_STARTTLS:
        handle_starttls(c);
        break;
    case VARVE_NBD_OPT_INFO:
    case VARVE_NBD_OPT_GO:
        handle_info(c);
        break;
    case VARVE_NBD_OPT_STRUCTURED_REPLY:
        handle_structured_reply(c);
        break;
    case VARVE_NBD_OPT_EXTENDED_HEADERS:
        handle_extended_headers(c);
        break;
    case VARVE_NBD_OPT_LIST_META_CONTEXT:
    case VARVE_NBD_OPT_SET_META_CONTEXT:
        handle_meta(c);
        break;
    default:
        reply_error(c, VARVE_NBD_REP_ERR_UNSUP, "this server does not know the option");
        break;
    }
}

static void finish_option(struct varve_nbd_conn *c)
{
    c->hs.step = VARVE_NBD_STEP_OPTION;
    handle_option(c);
    free(c->hs.payload);
    c->hs.payload = NULL;
}

/* --- steps ---------------------------------------------------------------------------------- */

static size_t feed_client_flags(struct varve_nbd_conn *c, const uint8_t *buf, size_t len)
{
    if (len < VARVE_NBD_CLIENT_FLAGS_LEN)
        return 0;
    c->hs.client_flags = varve_nbd_get32(buf);
    if (c->hs.client_flags & ~CLIENT_FLAGS)
        varve_nbd_conn_close(c);
    c->hs.step = VARVE_NBD_STEP_OPTION;
    return VARVE_NBD_CLIENT_FLAGS_LEN;
}

static void skip_option(struct varve_nbd_conn *c)
{
    /* EXPORT_NAME has no error reply, and skipping much more is what an attacker wants. */
    if (c->hs.opt.type == VARVE_NBD_OPT_EXPORT_NAME || c->hs.opt.len > VARVE_NBD_OPTION_SKIP_MAX) {
        varve_nbd_conn_hang_up(c);
        return;
    }
    c->skip = c->hs.opt.len;
    c->hs.step = VARVE_NBD_STEP_SKIPPED;
}

static size_t feed_option(struct varve_nbd_conn *c, const uint8_t *buf, size_t len)
{
    if (len < VARVE_NBD_OPTION_LEN)
        return 0;
    if (varve_nbd_decode_option(buf, &c->hs.opt, NULL)) {
        varve_nbd_conn_hang_up(c);
        return 0;
    }
    if (c->hs.opt.len > VARVE_NBD_OPTION_MAX) {
        skip_option(c);
        return VARVE_NBD_OPTION_LEN;
    }
    /* One byte more, so that an empty payload is not NULL. */
    c->hs.payload = malloc(c->hs.opt.len + 1u);
    if (!c->hs.payload) {
        varve_nbd_conn_close(c);
        return 0;
    }
    c->hs.have = 0;
    c->hs.step = VARVE_NBD_STEP_PAYLOAD;
    if (!c->hs.opt.len)
        finish_option(c);
    return VARVE_NBD_OPTION_LEN;
}

static size_t feed_payload(struct varve_nbd_conn *c, const uint8_t *buf, size_t len)
{
    size_t missing = c->hs.opt.len - c->hs.have;
    size_t n = len < missing ? len : missing;

    memcpy(c->hs.payload + c->hs.have, buf, n);
    c->hs.have += (uint32_t)n;
    if (c->hs.have == c->hs.opt.len)
        finish_option(c);
    return n;
}

size_t varve_nbd_handshake_feed(struct varve_nbd_conn *c, const uint8_t *buf, size_t len)
{
    if (varve_nbd_conn_has_output(c))
        return 0;
    switch (c->hs.step) {
    case VARVE_NBD_STEP_CLIENT_FLAGS:
        return feed_client_flags(c, buf, len);
    case VARVE_NBD_STEP_OPTION:
        return feed_option(c, buf, len);
    case VARVE_NBD_STEP_PAYLOAD:
        return feed_payload(c, buf, len);
    case VARVE_NBD_STEP_SKIPPED:
        finish_option(c);
        return 0;
    }
    return 0;
}

void varve_nbd_handshake_begin(struct varve_nbd_conn *c)
{
    struct varve_nbd_out *out = varve_nbd_out_new(VARVE_NBD_GREETING_LEN);

    if (!out) {
        varve_nbd_conn_close(c);
        return;
    }
    varve_nbd_encode_greeting(out->data, HANDSHAKE_FLAGS);
    varve_nbd_conn_send(c, out);
}

bool varve_nbd_handshake_may_use(const struct varve_nbd_conn *c, const struct varve_export *e)
{
    return !atomic_load(&e->withdrawn) &&
           varve_access_allows(c->host->access, &c->id, e->name, strlen(e->name));
}

void varve_nbd_handshake_forget_lost(struct varve_nbd_conn *c)
{
    if (c->hs.meta.export && !varve_nbd_handshake_may_use(c, c->hs.meta.export))
        varve_nbd_metactx_clear(&c->hs.meta);
}

void varve_nbd_handshake_end(struct varve_nbd_conn *c)
{
    free(c->hs.payload);
    c->hs.payload = NULL;
}
