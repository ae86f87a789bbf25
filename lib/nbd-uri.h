/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Whom libnbd believes.  Where it finds no ca-cert.pem it takes any certificate for good
 * (until 1.20.3), so that a folder that is not there, or is called otherwise, would send a disk to
 * anybody, or take a copy from him.  A key is proved by both sides.  Any thread that may wait for
 * files; it connects nowhere.
 */
#ifndef VARVE_LIB_NBD_URI_H
#define VARVE_LIB_NBD_URI_H

#include "lib/err.h"

#include <stdbool.h>

/* -errno: with this nbds: URI anybody would be believed, as the folder that it names has no
 * ca-cert.pem, or, with has_to_say, as it names none and no keys.  0: it would not be so, or the
 * URI is of another kind. */
int varve_nbd_uri_check_tls(const char *uri, bool has_to_say, struct varve_err *err);

#endif
