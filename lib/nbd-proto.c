/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/nbd-proto.h"

#include <errno.h>
#include <string.h>

uint32_t varve_nbd_error(int code)
{
    switch (code) {
    case EPERM:
    case EACCES:
    case EROFS:
        return VARVE_NBD_EPERM;
    case ENOMEM:
        return VARVE_NBD_ENOMEM;
    case EINVAL:
    case EOPNOTSUPP: /* the protocol keeps ENOTSUP for fast zeroes */
        return VARVE_NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return VARVE_NBD_ENOSPC;
    case EOVERFLOW:
        return VARVE_NBD_EOVERFLOW;
    case ESHUTDOWN:
        return VARVE_NBD_ESHUTDOWN;
    default:
        return VARVE_NBD_EIO;
    }
}

/* Bytes that follow a first byte in UTF-8, and the smallest number so many bytes may say. */
static int utf8_tail(uint8_t first, uint32_t *min)
{
    if (first >= 0xc2 && first <= 0xdf) {
        *min = 0x80;
        return 1;
    }
    if ((first & 0xf0) == 0xe0) {
        *min = 0x800;
        return 2;
    }
    if (first >= 0xf0 && first <= 0xf4) {
        *min = 0x10000;
        return 3;
    }
    return -1;
}

bool varve_nbd_string_ok(const char *s, size_t len)
{
    const uint8_t *p = (const uint8_t *)s;
    const uint8_t *end = p + len;

    if (len > VARVE_NBD_STRING_MAX)
        return false;
    while (p < end) {
        uint8_t first = *p++;
        uint32_t min, v;
        int tail;

        if (first == 0)
            return false;
        if (first < 0x80)
            continue;
        tail = utf8_tail(first, &min);
        if (tail < 0 || end - p < tail)
            return false;
        v = first & (0x3fu >> tail);
        for (; tail > 0; tail--, p++) {
            if ((*p & 0xc0) != 0x80)
                return false;
            v = v << 6 | (*p & 0x3fu);
        }
        if (v < min || v > 0x10ffff || (v >= 0xd800 && v <= 0xdfff))
            return false;
    }
    return true;
}

/* --- handshake, what a client sends --------------------------------------------------------- */

/* A peer's bytes, taken from the front. */
struct cursor {
    const uint8_t *at;
    size_t left;
};

static bool take32(struct cursor *c, uint32_t *v)
{
    if (c->left < 4)
        return false;
    *v = varve_nbd_get32(c->at);
    c->at += 4;
    c->left -= 4;
    return true;
}

static bool take16(struct cursor *c, uint16_t *v)
{
    if (c->left < 2)
        return false;
    *v = varve_nbd_get16(c->at);
    c->at += 2;
    c->left -= 2;
    return true;
}

/* A string with its length before it. */
static int take_string(struct cursor *c, const char **s, size_t *len, const char *what,
                       struct varve_err *err)
{
    uint32_t n;

    if (!take32(c, &n) || n > c->left)
        return varve_err_set(err, EINVAL, "%s is longer than its option", what);
    if (!varve_nbd_string_ok((const char *)c->at, n))
        return varve_err_set(err, EINVAL, "%s is not UTF-8 of at most %u bytes", what,
                             VARVE_NBD_STRING_MAX);
    *s = (const char *)c->at;
    *len = n;
    c->at += n;
    c->left -= n;
    return 0;
}

int varve_nbd_decode_option(const uint8_t buf[VARVE_NBD_OPTION_LEN], struct varve_nbd_option *opt,
                            struct varve_err *err)
{
    if (varve_nbd_get64(buf) != VARVE_NBD_OPTION_MAGIC)
        return varve_err_set(err, EPROTO, "an option has a wrong magic number");
    opt->type = varve_nbd_get32(buf + 8);
    opt->len = varve_nbd_get32(buf + 12);
    return 0;
}

int varve_nbd_decode_info(const uint8_t *data, size_t len, struct varve_nbd_info_request *req,
                          struct varve_err *err)
{
    struct cursor c = {data, len};
    uint16_t ninfos, info;
    int rc;

    rc = take_string(&c, &req->name, &req->name_len, "export name", err);
    if (rc)
        return rc;
    if (!take16(&c, &ninfos) || c.left != 2u * ninfos)
        return varve_err_set(err, EINVAL, "information requests do not fit the option's length");
    req->wanted = 0;
    while (take16(&c, &info)) {
        if (info <= VARVE_NBD_INFO_BLOCK_SIZE)
            req->wanted |= 1u << info;
    }
    return 0;
}

int varve_nbd_decode_meta(const uint8_t *data, size_t len, struct varve_nbd_meta_request *req,
                          struct varve_err *err)
{
    struct cursor c = {data, len};
    int rc;

    rc = take_string(&c, &req->name, &req->name_len, "export name", err);
    if (rc)
        return rc;
    if (!take32(&c, &req->nqueries))
        return varve_err_set(err, EINVAL, "the number of queries is missing");
    req->queries = c.at;
    for (uint32_t i = 0; i < req->nqueries; i++) {
        const char *query;
        size_t query_len;

        rc = take_string(&c, &query, &query_len, "query", err);
        if (rc)
            return rc;
    }
    if (c.left)
        return varve_err_set(err, EINVAL, "bytes follow the last query");
    return 0;
}

const uint8_t *varve_nbd_next_query(const uint8_t *at, const char **query, size_t *len)
{
    *len = varve_nbd_get32(at);
    *query = (const char *)at + 4;
    return at + 4 + *len;
}

/* --- handshake, what a server sends --------------------------------------------------------- */

void varve_nbd_encode_greeting(uint8_t buf[VARVE_NBD_GREETING_LEN], uint16_t flags)
{
    varve_nbd_put64(buf, VARVE_NBD_MAGIC);
    varve_nbd_put64(buf + 8, VARVE_NBD_OPTION_MAGIC);
    varve_nbd_put16(buf + 16, flags);
}

void varve_nbd_encode_option_reply(uint8_t buf[VARVE_NBD_OPTION_REPLY_LEN], uint32_t option,
                                   uint32_t reply, uint32_t len)
{
    varve_nbd_put64(buf, VARVE_NBD_OPTION_REPLY_MAGIC);
    varve_nbd_put32(buf + 8, option);
    varve_nbd_put32(buf + 12, reply);
    varve_nbd_put32(buf + 16, len);
}

void varve_nbd_encode_export_name(uint8_t buf[VARVE_NBD_EXPORT_NAME_LEN], uint64_t export_size,
                                  uint16_t flags)
{
    varve_nbd_put64(buf, export_size);
    varve_nbd_put16(buf + 8, flags);
}

/* --- transmission --------------------------------------------------------------------------- */

int varve_nbd_decode_request(const uint8_t buf[VARVE_NBD_REQUEST_LEN],
                             struct varve_nbd_request *req, struct varve_err *err)
{
    if (varve_nbd_get32(buf) != VARVE_NBD_REQUEST_MAGIC)
        return varve_err_set(err, EPROTO, "a request has a wrong magic number");
    req->flags = varve_nbd_get16(buf + 4);
    req->type = varve_nbd_get16(buf + 6);
    req->cookie = varve_nbd_get64(buf + 8);
    req->off = varve_nbd_get64(buf + 16);
    req->len = varve_nbd_get32(buf + 24);
    return 0;
}

int varve_nbd_decode_ext_request(const uint8_t buf[VARVE_NBD_EXT_REQUEST_LEN],
                                 struct varve_nbd_request *req, struct varve_err *err)
{
    if (varve_nbd_get32(buf) != VARVE_NBD_EXT_REQUEST_MAGIC)
        return varve_err_set(err, EPROTO, "an extended request has a wrong magic number");
    req->flags = varve_nbd_get16(buf + 4);
    req->type = varve_nbd_get16(buf + 6);
    req->cookie = varve_nbd_get64(buf + 8);
    req->off = varve_nbd_get64(buf + 16);
    req->len = varve_nbd_get64(buf + 24);
    return 0;
}

void varve_nbd_encode_simple_reply(uint8_t buf[VARVE_NBD_SIMPLE_REPLY_LEN], uint32_t error,
                                   uint64_t cookie)
{
    varve_nbd_put32(buf, VARVE_NBD_SIMPLE_REPLY_MAGIC);
    varve_nbd_put32(buf + 4, error);
    varve_nbd_put64(buf + 8, cookie);
}

void varve_nbd_encode_chunk(uint8_t buf[VARVE_NBD_CHUNK_LEN], uint16_t flags, uint16_t type,
                            uint64_t cookie, uint32_t len)
{
    varve_nbd_put32(buf, VARVE_NBD_CHUNK_MAGIC);
    varve_nbd_put16(buf + 4, flags);
    varve_nbd_put16(buf + 6, type);
    varve_nbd_put64(buf + 8, cookie);
    varve_nbd_put32(buf + 16, len);
}

void varve_nbd_encode_data_header(uint8_t buf[VARVE_NBD_DATA_HEADER_LEN], uint16_t flags,
                                  uint64_t cookie, uint64_t off, uint32_t data_len)
{
    varve_nbd_encode_chunk(buf, flags, VARVE_NBD_CHUNK_OFFSET_DATA, cookie, data_len + 8);
    varve_nbd_put64(buf + VARVE_NBD_CHUNK_LEN, off);
}

void varve_nbd_encode_hole(uint8_t buf[VARVE_NBD_HOLE_LEN], uint16_t flags, uint64_t cookie,
                           uint64_t off, uint32_t hole_len)
{
    varve_nbd_encode_chunk(buf, flags, VARVE_NBD_CHUNK_OFFSET_HOLE, cookie, 12);
    varve_nbd_put64(buf + VARVE_NBD_CHUNK_LEN, off);
    varve_nbd_put32(buf + VARVE_NBD_CHUNK_LEN + 8, hole_len);
}

void varve_nbd_extend_chunk(uint8_t *buf, uint64_t off)
{
    const uint8_t *compact = buf + VARVE_NBD_EXTENSION_LEN;
    uint32_t len = varve_nbd_get32(compact + 16);

    varve_nbd_put32(buf, VARVE_NBD_EXT_CHUNK_MAGIC);
    memmove(buf + 4, compact + 4, 12); /* flags, type, cookie */
    varve_nbd_put64(buf + 16, off);
    varve_nbd_put64(buf + 24, len);
}

void varve_nbd_chunk_set_done(uint8_t *chunk)
{
    varve_nbd_put16(chunk + 4, (uint16_t)(varve_nbd_get16(chunk + 4) | VARVE_NBD_CHUNK_DONE));
}

/* Bytes of a message that may go out: the protocol wants UTF-8, and a long one may have been cut
 * in the middle of a letter. */
static size_t message_len(const char *msg)
{
    size_t len = strnlen(msg, VARVE_NBD_STRING_MAX);

    while (!varve_nbd_string_ok(msg, len))
        len--;
    return len;
}

size_t varve_nbd_encode_error(uint8_t *buf, uint16_t flags, uint64_t cookie, uint32_t error,
                              const char *msg, const uint64_t *off)
{
    size_t msg_len = message_len(msg);
    size_t payload = 6 + msg_len + (off ? 8 : 0);

    if (!buf)
        return VARVE_NBD_CHUNK_LEN + payload;
    varve_nbd_encode_chunk(buf, flags, off ? VARVE_NBD_CHUNK_ERROR_OFFSET : VARVE_NBD_CHUNK_ERROR,
                           cookie, (uint32_t)payload);
    buf += VARVE_NBD_CHUNK_LEN;
    varve_nbd_put32(buf, error);
    varve_nbd_put16(buf + 4, (uint16_t)msg_len);
    memcpy(buf + 6, msg, msg_len);
    if (off)
        varve_nbd_put64(buf + 6 + msg_len, *off);
    return VARVE_NBD_CHUNK_LEN + payload;
}
