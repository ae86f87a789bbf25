/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the verbs of the command line share: the global options, the shape of a verb and of its
 * options, and the verbs themselves.  Single-threaded, called from main() only.
 * It prints nothing but help; errors are returned for main() to print.
 */
#ifndef VARVE_CLIENT_CLI_H
#define VARVE_CLIENT_CLI_H

#include "lib/err.h"

#include <stdbool.h>

/* A usage error: main() prints the sentence with a hint at --help and exits with status 2. */
#define VARVE_CLI_USAGE 2

struct varve_cli {
    const char *control; /* path of the daemon's control socket */
    bool json;
};

#define VARVE_OPTIONS_MAX 16

struct varve_option {
    const char *name; /* without "--"; NULL ends a verb's list */
    const char *arg;  /* what its argument is called in --help; NULL: it has none */
    const char *help;
};

/* A verb's command line, taken apart.  Everything is borrowed from argv. */
struct varve_args {
    const char *option[VARVE_OPTIONS_MAX]; /* in the order of the verb's list; NULL: not given;
                                              "" for an option without an argument */
    char **words;
    int nwords;
};

struct varve_verb {
    const char *name;
    const char *sub; /* second word, NULL: none */
    const char *synopsis;
    const char *summary;
    const struct varve_option *options; /* NULL: none */
    int words_min;
    int words_max; /* -1: any number */
    /* 0, VARVE_CLI_USAGE, or a negative errno value; err is set unless it is 0. */
    int (*run)(const struct varve_cli *cli, const struct varve_args *args, struct varve_err *err);
};

/* Writes the sentence; returns VARVE_CLI_USAGE. */
int varve_cli_usage(struct varve_err *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Each ends with an entry whose name is NULL. */
extern const struct varve_verb varve_status_verbs[];
extern const struct varve_verb varve_checkpoint_verbs[];
extern const struct varve_verb varve_backup_verbs[];
extern const struct varve_verb varve_bitmap_verbs[];
extern const struct varve_verb varve_disk_verbs[];
extern const struct varve_verb varve_diff_verbs[];
extern const struct varve_verb varve_job_verbs[];
extern const struct varve_verb varve_disk_move_verbs[];
extern const struct varve_verb varve_map_verbs[];
extern const struct varve_verb varve_pull_verbs[];
extern const struct varve_verb varve_apply_verbs[];
extern const struct varve_verb varve_push_verbs[];
extern const struct varve_verb varve_qmp_verbs[];
extern const struct varve_verb varve_watch_verbs[];
extern const struct varve_verb varve_top_verbs[];
extern const struct varve_verb varve_metrics_verbs[];
extern const struct varve_verb varve_complete_verbs[];

/* main.c: all of the above, up to a NULL; and the options that every verb takes. */
extern const struct varve_verb *const varve_verb_tables[];
extern const struct varve_option varve_global_options[];

/* The control socket: the one given (may be NULL), else the environment's, else the default. */
const char *varve_cli_control(const char *given);

#endif
