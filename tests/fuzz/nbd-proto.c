/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The decoders of lib/nbd-proto.h, one by one, on a buffer of exactly the input's length: what they
 * hand out must lie within it.  The first byte chooses the decoder.
 */
#include "lib/nbd-proto.h"
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <string.h>

static void inside(const void *p, size_t n, const uint8_t *data, size_t size)
{
    const uint8_t *at = p;

    FUZZ_CHECK(at >= data && at <= data + size && n <= (size_t)(data + size - at));
    FUZZ_CHECK(varve_nbd_string_ok(p, n));
}

static void decode_info(const uint8_t *data, size_t size)
{
    struct varve_nbd_info_request req;
    struct varve_err err = VARVE_ERR_INIT;
    int rc = varve_nbd_decode_info(data, size, &req, &err);

    FUZZ_CHECK(rc == 0 || (rc == -EINVAL && err.code == EINVAL));
    if (rc)
        return;
    inside(req.name, req.name_len, data, size);
    FUZZ_CHECK(req.wanted < 1u << (VARVE_NBD_INFO_BLOCK_SIZE + 1));
}

static void decode_meta(const uint8_t *data, size_t size)
{
    struct varve_nbd_meta_request req;
    struct varve_err err = VARVE_ERR_INIT;
    int rc = varve_nbd_decode_meta(data, size, &req, &err);
    const uint8_t *at;

    FUZZ_CHECK(rc == 0 || (rc == -EINVAL && err.code == EINVAL));
    if (rc)
        return;
    inside(req.name, req.name_len, data, size);
    at = req.queries;
    for (uint32_t i = 0; i < req.nqueries; i++) {
        const char *query;
        size_t len;

        at = varve_nbd_next_query(at, &query, &len);
        inside(query, len, data, size);
    }
    FUZZ_CHECK(at == data + size);
}

static void decode_headers(const uint8_t *data, size_t size)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_nbd_option opt;
    struct varve_nbd_request req;

    if (size == VARVE_NBD_OPTION_LEN && varve_nbd_decode_option(data, &opt, &err) == 0)
        FUZZ_CHECK(varve_nbd_get64(data) == VARVE_NBD_OPTION_MAGIC);
    if (size == VARVE_NBD_REQUEST_LEN && varve_nbd_decode_request(data, &req, &err) == 0)
        FUZZ_CHECK(varve_nbd_get32(data) == VARVE_NBD_REQUEST_MAGIC);
}

/* An error chunk of any message: as long as was said, and its message is a string. */
static void encode_error(const uint8_t *data, size_t size)
{
    char *msg = fuzz_string(data, size);
    uint64_t off = size;
    const uint64_t *with = size & 1 ? &off : NULL;
    size_t len = varve_nbd_encode_error(NULL, 0, 1, VARVE_NBD_EIO, msg, with);
    uint8_t *buf = malloc(len);
    size_t tail = with ? 8 : 0;
    uint16_t n;

    FUZZ_CHECK(buf && len >= VARVE_NBD_CHUNK_LEN + 6 + tail);
    FUZZ_CHECK(varve_nbd_encode_error(buf, 0, 1, VARVE_NBD_EIO, msg, with) == len);
    FUZZ_CHECK(varve_nbd_get32(buf + 16) == len - VARVE_NBD_CHUNK_LEN);
    n = varve_nbd_get16(buf + VARVE_NBD_CHUNK_LEN + 4);
    FUZZ_CHECK(VARVE_NBD_CHUNK_LEN + 6 + n + tail == len);
    FUZZ_CHECK(n <= strlen(msg) && n <= VARVE_NBD_STRING_MAX);
    FUZZ_CHECK(!varve_nbd_string_ok(msg, strlen(msg)) ||
               varve_nbd_string_ok((char *)buf + VARVE_NBD_CHUNK_LEN + 6, n));
    free(buf);
    free(msg);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy;

    if (size < 1)
        return -1;
    copy = malloc(size > 1 ? size - 1 : 1);
    FUZZ_CHECK(copy);
    memcpy(copy, data + 1, size - 1);
    switch (data[0] % 4) {
    case 0:
        decode_info(copy, size - 1);
        break;
    case 1:
        decode_meta(copy, size - 1);
        break;
    case 2:
        decode_headers(copy, size - 1);
        break;
    default:
        encode_error(copy, size - 1);
    }
    free(copy);
    return 0;
}
