/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/base.h"

#include "include/varve.h"
#include "lib/digest.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char *varve_base_export_name(const char *export, const char *base)
{
    static const char plain[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
    char *name = malloc(strlen(export) + 1 + 3 * strlen(base) + 1);
    char *to = name;

    if (!name)
        return NULL;
    to += sprintf(to, "%s@", export);
    for (; *base; base++) {
        if (strchr(plain, *base))
            *to++ = *base;
        else
            to += sprintf(to, "%%%02X", (unsigned char)*base);
    }
    *to = '\0';
    return name;
}

int varve_base_describe(const struct varve_change_set *set, uint64_t granularity, uint64_t boundary,
                        char text[VARVE_BASE_TEXT_LEN], struct varve_err *err)
{
    uint8_t digest[VARVE_DIGEST_LEN];
    struct varve_digest d;
    int rc, len;

    /* A checkpoint: what it knows of errors never changes.  But what an imported one has of its own
     * is not what another at the same boundary has. */
    if (granularity == 0 && set->nspans == 1 && !set->has_blocks) {
        snprintf(text, VARVE_BASE_TEXT_LEN, VARVE_DESC_INSTANT "%" PRIu64, set->spans[0].first);
        return 0;
    }
    /* A bitmap that holds all that was written from an instant on, and nothing else. */
    if (granularity != 0 && set->nspans == 1 && set->spans[0].end >= boundary && !set->has_blocks &&
        set->nranges == 0) {
        snprintf(text, VARVE_BASE_TEXT_LEN,
                 VARVE_DESC_INSTANT "%" PRIu64 VARVE_DESC_UNITS "%" PRIu64, set->spans[0].first,
                 granularity);
        return 0;
    }
    rc = varve_digest_init(&d, err);
    if (rc < 0)
        return rc;
    varve_digest_update(&d, &granularity, sizeof(granularity));
    varve_digest_update(&d, set->blocks, sizeof(set->blocks));
    varve_digest_update(&d, &set->nspans, sizeof(set->nspans));
    varve_digest_update(&d, set->spans, set->nspans * sizeof(*set->spans));
    varve_digest_update(&d, set->ranges, set->nranges * sizeof(*set->ranges));
    rc = varve_digest_final(&d, digest, err);
    if (rc < 0)
        return rc;
    len = snprintf(text, VARVE_BASE_TEXT_LEN, "the set of blocks ");
    for (size_t i = 0; i < 16; i++)
        len += snprintf(text + len, VARVE_BASE_TEXT_LEN - (size_t)len, "%02x", digest[i]);
    return 0;
}
