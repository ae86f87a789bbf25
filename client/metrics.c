/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve metrics: what one alerts on, in Prometheus' text format, for a file that node_exporter
 * reads. The daemon makes the text, as it does for those who scrape it.
 */
#include "client/cli.h"
#include "client/control.h"
#include "client/out.h"

#include <stdio.h>

static int metrics_run(const struct varve_cli *cli, const struct varve_args *args,
                       struct varve_err *err)
{
    json_t *value;
    int rc = varve_control_once(cli->control, "query-metrics", NULL, &value, err);

    (void)args;
    if (rc != 0)
        return rc;
    if (cli->json)
        varve_out_json(value);
    else
        fputs(varve_get_string(value, "text"), stdout);
    json_decref(value);
    return 0;
}

const struct varve_verb varve_metrics_verbs[] = {
    {.name = "metrics",
     .synopsis = "",
     .summary = "Prints what one alerts on, as Prometheus reads it",
     .run = metrics_run},
    {.name = NULL},
};
