/* SPDX-License-Identifier: BSD-3-Clause
 *
 * NBD URIs: names inside them, and the daemon's own exports.  Any thread, one daemon connection
 * each.  It never opens an NBD connection.
 */
#ifndef VARVE_CLIENT_URI_H
#define VARVE_CLIENT_URI_H

#include "client/control.h"

/* text with all but letters, digits, "-._~" and what stands in `also` percent-encoded; a new
 * string, NULL: no memory. */
char *varve_uri_encode(const char *text, const char *also);

/* The URI of an export on a listener as query-nbd-server writes them ("unix:PATH",
 * "tcp:HOST:PORT", "vsock:PORT"); a new string, NULL: no memory or no such listener. */
char *varve_uri_of_export(const char *listener, const char *export);

/* Asks the daemon for its listeners; the best for this machine (unix first).  0, *listener is a
 * new string; or -errno. */
int varve_uri_listener(struct varve_control *c, char **listener, struct varve_err *err);

#endif
