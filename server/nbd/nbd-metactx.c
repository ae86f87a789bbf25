/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/nbd/nbd-metactx.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* A query that is one of these means every context that begins with it. */
static const char *const wildcards[] = {
    "base:", "qemu:", "qemu:dirty-bitmap:", "varve:", "varve:changes:",
};

static bool metactx_is_exact(const char *name, const char *query, size_t len)
{
    return strlen(name) == len && memcmp(name, query, len) == 0;
}

static bool metactx_is_wildcard(const char *query, size_t len)
{
    for (size_t i = 0; i < sizeof(wildcards) / sizeof(wildcards[0]); i++) {
        if (metactx_is_exact(wildcards[i], query, len))
            return true;
    }
    return false;
}

bool varve_nbd_metactx_listed(const struct varve_export *e, unsigned ctx,
                              const struct varve_nbd_meta_request *req)
{
    const char *name = e->contexts[ctx];
    const uint8_t *at = req->queries;

    if (req->nqueries == 0)
        return true;
    for (uint32_t i = 0; i < req->nqueries; i++) {
        const char *query;
        size_t len;

        at = varve_nbd_next_query(at, &query, &len);
        if (metactx_is_exact(name, query, len))
            return true;
        if (strncmp(name, query, len) == 0 && metactx_is_wildcard(query, len))
            return true;
    }
    return false;
}

static bool metactx_named(const char *name, const struct varve_nbd_meta_request *req)
{
    const uint8_t *at = req->queries;

    for (uint32_t i = 0; i < req->nqueries; i++) {
        const char *query;
        size_t len;

        at = varve_nbd_next_query(at, &query, &len);
        if (metactx_is_exact(name, query, len))
            return true;
    }
    return false;
}

int varve_nbd_metactx_select(struct varve_nbd_metactx *m, struct varve_export *e,
                             const struct varve_nbd_meta_request *req, struct varve_err *err)
{
    assert(!m->export && m->n == 0);
    for (unsigned ctx = 0; ctx < e->ncontexts; ctx++) {
        if (!metactx_named(e->contexts[ctx], req))
            continue;
        if (m->n == VARVE_NBD_METACTX_MAX) {
            m->n = 0;
            return varve_err_set(err, E2BIG, "more than %u meta contexts", VARVE_NBD_METACTX_MAX);
        }
        m->ctx[m->n++] = ctx;
    }
    varve_export_ref(e);
    m->export = e;
    return 0;
}

void varve_nbd_metactx_clear(struct varve_nbd_metactx *m)
{
    if (m->export)
        varve_export_unref(m->export);
    m->export = NULL;
    m->n = 0;
}
