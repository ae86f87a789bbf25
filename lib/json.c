/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/json.h"

#include <stdlib.h>

static _Thread_local unsigned refused;

static void *json_malloc(size_t len)
{
    void *p = malloc(len);

    refused += p == NULL;
    return p;
}

/* While there is one thread.  What jansson had before is malloc's, too. */
__attribute__((constructor)) static void json_watch(void)
{
    json_set_alloc_funcs(json_malloc, free);
}

unsigned varve_json_refused(void)
{
    return refused;
}

char *varve_json_dump(const json_t *value, size_t flags)
{
    unsigned before = refused;
    char *text = json_dumps(value, flags);

    if (refused == before)
        return text;
    free(text);
    return NULL;
}
