/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What one alerts on, in Prometheus' text format 0.0.4.  For the clerk's thread.  The one place
 * that knows names of metrics; what they tell is what query-* commands tell.
 */
#ifndef VARVE_SERVER_METRICS_H
#define VARVE_SERVER_METRICS_H

#include "server/http.h"

/* *out: the text, to be freed. */
int varve_metrics_text(struct varve_daemon *d, char **out, size_t *len, struct varve_err *err);

/* GET /metrics */
extern const struct varve_http_site varve_metrics_site;

#endif
