/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The daemon's command line.  Read once, by main, before there are threads; constant afterwards.
 * It opens nothing and makes nothing.
 */
#ifndef VARVE_SERVER_OPTIONS_H
#define VARVE_SERVER_OPTIONS_H

#include "lib/err.h"
#include "server/nbd/nbd-server.h"
#include "server/nbd/tls.h"

#include <stdbool.h>
#include <stddef.h>

#define VARVE_LISTENERS_MAX 32

/* What was given of one option that says where to listen. */
struct varve_where {
    char *list[VARVE_LISTENERS_MAX];
    size_t n;
};

struct varve_options {
    const char *state_dir;
    const char *runtime_dir;
    const char *scratch_dir;           /* NULL: the state directory */
    char *control;                     /* path of the control socket */
    struct varve_where listen;         /* NBD */
    struct varve_where metrics, web;   /* HTTP */
    bool default_listen;               /* nobody named one: not needed where sockets were passed */
    unsigned threads; /* of the pool that reads disks */
    uint64_t map_memory; /* bytes of maps that are kept though nobody uses them just now */
    bool list_bases;  /* exports NAME@BASE stand in LIST */
    struct varve_tls_options tls;
    const char *access; /* file of rules, or NULL */
    const char *freeze_hook; /* program, or NULL */
    unsigned freeze_hook_timeout_ms;
    struct varve_nbd_options nbd;
};

enum varve_options_result {
    VARVE_OPTIONS_RUN,
    VARVE_OPTIONS_DONE,  /* --help or --version: printed, exit 0 */
    VARVE_OPTIONS_USAGE, /* err says what is wrong: exit 2 */
};

/* Strings in o point into argv or are o's own.  Fini it in every case. */
enum varve_options_result varve_options_parse(struct varve_options *o, int argc, char **argv,
                                              struct varve_err *err);
void varve_options_fini(struct varve_options *o);

#endif
