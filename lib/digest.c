/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/digest.h"

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>

#include <errno.h>

static int digest_error(struct varve_err *err, int code)
{
    if (code == GNUTLS_E_MEMORY_ERROR)
        return varve_err_sys(err, ENOMEM, "cannot compute a checksum");
    return varve_err_set(err, EIO, "cannot compute a checksum: %s", gnutls_strerror(code));
}

int varve_digest_init(struct varve_digest *d, struct varve_err *err)
{
    gnutls_hash_hd_t state;
    int rc = gnutls_hash_init(&state, GNUTLS_DIG_SHA256);

    if (rc < 0)
        return digest_error(err, rc);
    d->state = state;
    d->failed = false;
    return 0;
}

void varve_digest_update(struct varve_digest *d, const void *data, size_t len)
{
    if (gnutls_hash(d->state, data, len) < 0)
        d->failed = true;
}

int varve_digest_final(struct varve_digest *d, uint8_t out[VARVE_DIGEST_LEN], struct varve_err *err)
{
    gnutls_hash_deinit(d->state, out);
    d->state = NULL;
    return d->failed ? digest_error(err, GNUTLS_E_HASH_FAILED) : 0;
}
