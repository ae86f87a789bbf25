/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A delta's bytes (lib/delta-file.h), for its reader and its writer only.
 */
#ifndef VARVE_LIB_DELTA_INTERNAL_H
#define VARVE_LIB_DELTA_INTERNAL_H

#include "lib/delta-file.h"

#define DELTA_MAGIC "varvedlt"

struct delta_head {
    char magic[8];
    uint32_t version;
    uint32_t zero;
    uint8_t id[16], parent[16];
    uint64_t size, time_ns;
    uint64_t index, nextents;
    uint64_t data_bytes, zero_bytes;
    char point[VARVE_DELTA_TEXT], base[VARVE_DELTA_TEXT], context[VARVE_DELTA_TEXT];
    uint8_t zeroes[3168];
    uint8_t index_digest[VARVE_DIGEST_LEN];
    uint8_t check[VARVE_DIGEST_LEN];
};

struct delta_extent {
    uint64_t off, len, at;
    uint8_t digest[VARVE_DIGEST_LEN];
};

#endif
