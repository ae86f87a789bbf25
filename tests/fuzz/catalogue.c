/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The catalogue's text.  What was parsed can be dumped, and means the same when it is parsed again.
 */
#include "lib/catalogue.h"
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = fuzz_string(data, size), *dump, *again;
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_catalogue *c = NULL, *clone = NULL;
    int rc = varve_catalogue_parse(text, &c, &err);

    free(text);
    if (rc) {
        FUZZ_CHECK(err.code == -rc && err.msg[0]);
        FUZZ_CHECK(rc == -EUCLEAN);
        return 0;
    }
    dump = varve_catalogue_dump(c);
    FUZZ_CHECK(dump);
    clone = varve_catalogue_clone(c);
    FUZZ_CHECK(clone);
    varve_catalogue_free(c);
    again = varve_catalogue_dump(clone);
    FUZZ_CHECK(again && strcmp(dump, again) == 0);
    free(again);

    FUZZ_CHECK(varve_catalogue_parse(dump, &c, &err) == 0);
    again = varve_catalogue_dump(c);
    FUZZ_CHECK(again && strcmp(dump, again) == 0);
    free(again);
    varve_catalogue_trim(c);
    for (size_t i = 0; i < clone->ndisks; i++) {
        struct varve_cat_disk *d = varve_catalogue_disk(clone, clone->disks[i].uuid);

        FUZZ_CHECK(d == &clone->disks[i]);
        while (d->ncheckpoints > 0)
            FUZZ_CHECK(varve_catalogue_remove_checkpoint(d, d->checkpoints[0].name));
    }
    varve_catalogue_free(c);
    varve_catalogue_free(clone);
    free(dump);
    return 0;
}
