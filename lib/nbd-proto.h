/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What NBD puts on the wire: the numbers of doc/proto.md of the NBD project, and functions that
 * take messages apart and put them together. Pure functions, any thread.  They do no I/O, allocate
 * nothing and trust no byte of a peer: what they hand out points into the buffer they were given
 * and lies within it.
 */
#ifndef VARVE_LIB_NBD_PROTO_H
#define VARVE_LIB_NBD_PROTO_H

#include "lib/err.h"

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VARVE_NBD_MAGIC              0x4e42444d41474943ull /* "NBDMAGIC" */
#define VARVE_NBD_OPTION_MAGIC       0x49484156454f5054ull /* "IHAVEOPT" */
#define VARVE_NBD_OPTION_REPLY_MAGIC 0x0003e889045565a9ull
#define VARVE_NBD_REQUEST_MAGIC      0x25609513u
#define VARVE_NBD_EXT_REQUEST_MAGIC  0x21e41c71u
#define VARVE_NBD_SIMPLE_REPLY_MAGIC 0x67446698u
#define VARVE_NBD_CHUNK_MAGIC        0x668e33efu
#define VARVE_NBD_EXT_CHUNK_MAGIC    0x6e8a278cu

/* A string (name, query, message) in bytes. */
#define VARVE_NBD_STRING_MAX 4096u

/* Handshake flags of the server, and the client's answers to them. */
#define VARVE_NBD_FLAG_FIXED_NEWSTYLE   (1u << 0)
#define VARVE_NBD_FLAG_NO_ZEROES        (1u << 1)
#define VARVE_NBD_FLAG_C_FIXED_NEWSTYLE (1u << 0)
#define VARVE_NBD_FLAG_C_NO_ZEROES      (1u << 1)

enum varve_nbd_option_type {
    VARVE_NBD_OPT_EXPORT_NAME = 1,
    VARVE_NBD_OPT_ABORT = 2,
    VARVE_NBD_OPT_LIST = 3,
    VARVE_NBD_OPT_STARTTLS = 5,
    VARVE_NBD_OPT_INFO = 6,
    VARVE_NBD_OPT_GO = 7,
    VARVE_NBD_OPT_STRUCTURED_REPLY = 8,
    VARVE_NBD_OPT_LIST_META_CONTEXT = 9,
    VARVE_NBD_OPT_SET_META_CONTEXT = 10,
    VARVE_NBD_OPT_EXTENDED_HEADERS = 11,
};

#define VARVE_NBD_REP_ACK          1u
#define VARVE_NBD_REP_SERVER       2u
#define VARVE_NBD_REP_INFO         3u
#define VARVE_NBD_REP_META_CONTEXT 4u
#define VARVE_NBD_REP_ERR_UNSUP    0x80000001u
#define VARVE_NBD_REP_ERR_POLICY   0x80000002u
#define VARVE_NBD_REP_ERR_INVALID  0x80000003u
#define VARVE_NBD_REP_ERR_TLS_REQD 0x80000005u
#define VARVE_NBD_REP_ERR_UNKNOWN  0x80000006u
#define VARVE_NBD_REP_ERR_SHUTDOWN 0x80000007u
#define VARVE_NBD_REP_ERR_TOO_BIG  0x80000009u

#define VARVE_NBD_REP_ERR_EXT_HEADER_REQD 0x8000000au

#define VARVE_NBD_INFO_EXPORT      0u
#define VARVE_NBD_INFO_NAME        1u
#define VARVE_NBD_INFO_DESCRIPTION 2u
#define VARVE_NBD_INFO_BLOCK_SIZE  3u

/* Transmission flags. */
#define VARVE_NBD_FLAG_HAS_FLAGS      (1u << 0)
#define VARVE_NBD_FLAG_READ_ONLY      (1u << 1)
#define VARVE_NBD_FLAG_SEND_FLUSH     (1u << 2)
#define VARVE_NBD_FLAG_SEND_TRIM      (1u << 5)
#define VARVE_NBD_FLAG_SEND_DF        (1u << 7)
#define VARVE_NBD_FLAG_CAN_MULTI_CONN (1u << 8)
#define VARVE_NBD_FLAG_SEND_CACHE     (1u << 10)

#define VARVE_NBD_FLAG_BLOCK_STATUS_PAYLOAD (1u << 12)

enum varve_nbd_command_type {
    VARVE_NBD_CMD_READ = 0,
    VARVE_NBD_CMD_WRITE = 1,
    VARVE_NBD_CMD_DISC = 2,
    VARVE_NBD_CMD_FLUSH = 3,
    VARVE_NBD_CMD_TRIM = 4,
    VARVE_NBD_CMD_CACHE = 5,
    VARVE_NBD_CMD_WRITE_ZEROES = 6,
    VARVE_NBD_CMD_BLOCK_STATUS = 7,
};

#define VARVE_NBD_CMD_FLAG_DF          (1u << 2)
#define VARVE_NBD_CMD_FLAG_REQ_ONE     (1u << 3)
#define VARVE_NBD_CMD_FLAG_PAYLOAD_LEN (1u << 5)

#define VARVE_NBD_CHUNK_DONE         (1u << 0) /* flag: the last chunk of a reply */
#define VARVE_NBD_CHUNK_NONE         0u
#define VARVE_NBD_CHUNK_OFFSET_DATA  1u
#define VARVE_NBD_CHUNK_OFFSET_HOLE  2u
#define VARVE_NBD_CHUNK_BLOCK_STATUS 5u
#define VARVE_NBD_CHUNK_STATUS_EXT   6u
#define VARVE_NBD_CHUNK_ERROR        0x8001u
#define VARVE_NBD_CHUNK_ERROR_OFFSET 0x8002u

/* base:allocation */
#define VARVE_NBD_STATE_HOLE (1u << 0)
#define VARVE_NBD_STATE_ZERO (1u << 1)

/* Errors on the wire: the values stand in the protocol, errno of the machine may differ. */
#define VARVE_NBD_EPERM     1u
#define VARVE_NBD_EIO       5u
#define VARVE_NBD_ENOMEM    12u
#define VARVE_NBD_EINVAL    22u
#define VARVE_NBD_ENOSPC    28u
#define VARVE_NBD_EOVERFLOW 75u
#define VARVE_NBD_ESHUTDOWN 108u

/* Lengths of fixed messages, bytes. */
#define VARVE_NBD_GREETING_LEN     18u
#define VARVE_NBD_CLIENT_FLAGS_LEN 4u
#define VARVE_NBD_OPTION_LEN       16u
#define VARVE_NBD_OPTION_REPLY_LEN 20u
#define VARVE_NBD_EXPORT_NAME_LEN  10u  /* the answer to EXPORT_NAME, without its zeroes */
#define VARVE_NBD_ZEROES_LEN       124u /* and these */
#define VARVE_NBD_REQUEST_LEN      28u
#define VARVE_NBD_SIMPLE_REPLY_LEN 16u
#define VARVE_NBD_CHUNK_LEN        20u
#define VARVE_NBD_DATA_HEADER_LEN  28u /* chunk header and offset, before the data */
#define VARVE_NBD_HOLE_LEN         32u /* a whole OFFSET_HOLE chunk */
#define VARVE_NBD_EXTENT_LEN       8u  /* one extent of a BLOCK_STATUS chunk */

/* With extended headers. */
#define VARVE_NBD_EXT_REQUEST_LEN 32u
#define VARVE_NBD_EXTENSION_LEN   12u /* what a chunk's header is longer by */
#define VARVE_NBD_EXT_EXTENT_LEN  16u /* one extent of a BLOCK_STATUS_EXT chunk */
#define VARVE_NBD_EFFECT_LEN      8u  /* of a BLOCK_STATUS payload, before its contexts */

/* --- numbers -------------------------------------------------------------------------------- */

static inline void varve_nbd_put16(uint8_t *p, uint16_t v)
{
    v = htobe16(v);
    memcpy(p, &v, sizeof(v));
}

static inline void varve_nbd_put32(uint8_t *p, uint32_t v)
{
    v = htobe32(v);
    memcpy(p, &v, sizeof(v));
}

static inline void varve_nbd_put64(uint8_t *p, uint64_t v)
{
    v = htobe64(v);
    memcpy(p, &v, sizeof(v));
}

static inline uint16_t varve_nbd_get16(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return be16toh(v);
}

static inline uint32_t varve_nbd_get32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return be32toh(v);
}

static inline uint64_t varve_nbd_get64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return be64toh(v);
}

/* The protocol's number for an errno value (positive); what it does not know becomes EIO. */
uint32_t varve_nbd_error(int code);

/* A string as the protocol wants it: UTF-8, no NUL, at most VARVE_NBD_STRING_MAX bytes. */
bool varve_nbd_string_ok(const char *s, size_t len);

/* --- handshake, what a client sends --------------------------------------------------------- */

struct varve_nbd_option {
    uint32_t type;
    uint32_t len; /* bytes that follow: the peer's word, not yet bounded */
};

/* -EPROTO: the magic number is wrong. */
int varve_nbd_decode_option(const uint8_t buf[VARVE_NBD_OPTION_LEN], struct varve_nbd_option *opt,
                            struct varve_err *err);

/* INFO and GO. */
struct varve_nbd_info_request {
    const char *name; /* not terminated */
    size_t name_len;
    uint32_t wanted; /* bit n: VARVE_NBD_INFO n was asked for; unknown ones are left out */
};

/* -EINVAL: lengths do not fit together, or the name is no string. */
int varve_nbd_decode_info(const uint8_t *data, size_t len, struct varve_nbd_info_request *req,
                          struct varve_err *err);

/* LIST_META_CONTEXT and SET_META_CONTEXT. */
struct varve_nbd_meta_request {
    const char *name; /* not terminated */
    size_t name_len;
    uint32_t nqueries;
    const uint8_t *queries; /* checked as a whole; read them with varve_nbd_next_query */
};

/* -EINVAL: lengths do not fit together, or the name or a query is no string. */
int varve_nbd_decode_meta(const uint8_t *data, size_t len, struct varve_nbd_meta_request *req,
                          struct varve_err *err);

/* The query at `at` (first: req->queries) into *query, *len; returns where the next one begins.
 * To be called req->nqueries times. */
const uint8_t *varve_nbd_next_query(const uint8_t *at, const char **query, size_t *len);

/* --- handshake, what a server sends --------------------------------------------------------- */

void varve_nbd_encode_greeting(uint8_t buf[VARVE_NBD_GREETING_LEN], uint16_t flags);
void varve_nbd_encode_option_reply(uint8_t buf[VARVE_NBD_OPTION_REPLY_LEN], uint32_t option,
                                   uint32_t reply, uint32_t len);
void varve_nbd_encode_export_name(uint8_t buf[VARVE_NBD_EXPORT_NAME_LEN], uint64_t export_size,
                                  uint16_t flags);

/* --- transmission --------------------------------------------------------------------------- */

struct varve_nbd_request {
    uint16_t flags;
    uint16_t type;
    uint64_t cookie;
    uint64_t off;
    uint64_t len; /* 32 bits in the compact header */
};

/* -EPROTO: the magic number is wrong. */
int varve_nbd_decode_request(const uint8_t buf[VARVE_NBD_REQUEST_LEN],
                             struct varve_nbd_request *req, struct varve_err *err);

/* The same for the header that extended headers bring. */
int varve_nbd_decode_ext_request(const uint8_t buf[VARVE_NBD_EXT_REQUEST_LEN],
                                 struct varve_nbd_request *req, struct varve_err *err);

void varve_nbd_encode_simple_reply(uint8_t buf[VARVE_NBD_SIMPLE_REPLY_LEN], uint32_t error,
                                   uint64_t cookie);
void varve_nbd_encode_chunk(uint8_t buf[VARVE_NBD_CHUNK_LEN], uint16_t flags, uint16_t type,
                            uint64_t cookie, uint32_t len);
/* Before data_len bytes of data. */
void varve_nbd_encode_data_header(uint8_t buf[VARVE_NBD_DATA_HEADER_LEN], uint16_t flags,
                                  uint64_t cookie, uint64_t off, uint32_t data_len);
void varve_nbd_encode_hole(uint8_t buf[VARVE_NBD_HOLE_LEN], uint16_t flags, uint64_t cookie,
                           uint64_t off, uint32_t hole_len);
/* Gives a chunk, which was encoded VARVE_NBD_EXTENSION_LEN bytes behind buf, the extended header;
 * it begins at buf then.  off: the request's. */
void varve_nbd_extend_chunk(uint8_t *buf, uint64_t off);
/* Marks an encoded chunk as the last of its reply. */
void varve_nbd_chunk_set_done(uint8_t *chunk);

/* A whole error chunk with the message (cut at the protocol's limit); off: if not NULL the chunk is
 * an ERROR_OFFSET.  Returns its length; buf may be NULL to ask for that. */
size_t varve_nbd_encode_error(uint8_t *buf, uint16_t flags, uint64_t cookie, uint32_t error,
                              const char *msg, const uint64_t *off);

#endif
