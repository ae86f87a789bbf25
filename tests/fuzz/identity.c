/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The identity file with any content.  One that was read can be written, and reads the same again.
 */
#include "lib/identity.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/world.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct varve_identity id, again;
    static struct varve_paths p;
    struct varve_world *w = fuzz_world();
    struct varve_err err = VARVE_ERR_INIT;
    char path[PATH_MAX];
    int rc;

    FUZZ_CHECK(varve_paths_init(&p, fuzz_dir(), "/r", NULL, "disk", &err) == 0);
    mkdir(p.state, 0700);
    varve_path_identity(&p, path);
    unlink(path);
    fuzz_write_file(path, data, size, 0);
    rc = varve_identity_read(w, &p, &id, &err);
    if (rc) {
        FUZZ_CHECK((rc == -EUCLEAN || rc == -ENOTSUP) && err.code == -rc && err.msg[0]);
        return 0;
    }
    FUZZ_CHECK(id.image[0] == '/' && id.geometry.shift >= 12 && id.geometry.shift <= 20);
    FUZZ_CHECK(varve_identity_write(w, &p, &id, &err) == 0);
    FUZZ_CHECK(varve_identity_read(w, &p, &again, &err) == 0);
    FUZZ_CHECK(strcmp(id.image, again.image) == 0 && memcmp(id.uuid, again.uuid, 16) == 0);
    FUZZ_CHECK(id.geometry.size == again.geometry.size && id.geometry.nblks == again.geometry.nblks);
    return 0;
}
