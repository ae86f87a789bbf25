/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Jobs of the daemon, for the verbs that begin one: begins it, shows how far it is, waits for its
 * end. Single-threaded; it prints the progress bar only.
 */
#ifndef VARVE_CLIENT_JOB_H
#define VARVE_CLIENT_JOB_H

#include "client/cli.h"
#include "lib/qmp.h"

#include <limits.h>

/* A path or an NBD URI as the daemon, which has another working directory, is to be told: `path`,
 * or the word itself. */
const char *varve_job_path(const char *word, char path[PATH_MAX]);

/* Executes `command`, which returns the "id" of a job, and waits for its end; `what` stands before
 * the progress bar.  arguments is stolen.  *job is what query-jobs says of it at last, the caller's
 * to json_decref.  An interrupt (Ctrl-C) cancels the job; whatever else ends this program does not.
 * 0; -ECANCELED: it was cancelled; -EREMOTEIO: it was refused, or has failed; -errno: it goes on,
 * but nobody tells us how.  wait false: returns when it has begun. */
int varve_job_follow(const struct varve_cli *cli, const char *what, const char *command,
                     json_t *arguments, bool wait, json_t **job, struct varve_err *err);

#endif
