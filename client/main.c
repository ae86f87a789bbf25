/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve: finds the verb, takes its options apart by its table, runs it, prints its error.
 */
#include <config.h>

#include "client/cli.h"
#include "include/varve.h"
#include "lib/text.h"

#include <errno.h>
#include <getopt.h>
#include <locale.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct varve_verb *const varve_verb_tables[] = {
    varve_status_verbs,  varve_checkpoint_verbs, varve_backup_verbs,
    varve_bitmap_verbs,  varve_disk_verbs,       varve_disk_move_verbs,
    varve_map_verbs,     varve_pull_verbs,       varve_apply_verbs,
    varve_push_verbs,    varve_diff_verbs,       varve_job_verbs,
    varve_qmp_verbs,     varve_watch_verbs,      varve_top_verbs,
    varve_metrics_verbs, varve_complete_verbs,   NULL,
};

const struct varve_option varve_global_options[] = {
    {"control", "PATH",
     "control socket of varved (default: $VARVE_CONTROL, else\n" VARVE_DEFAULT_RUNTIME_DIR
     "/" VARVE_CONTROL_SOCKET ")"},
    {"json", NULL, "print JSON"},
    {"help", NULL, "print this help, after a VERB the verb's"},
    {"version", NULL, "print the version"},
    {NULL, NULL, NULL},
};

enum { GLOBAL_CONTROL, GLOBAL_JSON, GLOBAL_HELP, GLOBAL_VERSION, GLOBAL_COUNT };

int varve_cli_usage(struct varve_err *err, const char *fmt, ...)
{
    char text[sizeof(err->msg)];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    varve_err_set(err, EINVAL, "%s", text);
    return VARVE_CLI_USAGE;
}

const char *varve_cli_control(const char *given)
{
    if (!given)
        given = getenv("VARVE_CONTROL");
    return given && given[0] ? given : VARVE_DEFAULT_RUNTIME_DIR "/" VARVE_CONTROL_SOCKET;
}

static void help_options(const struct varve_option *options)
{
    for (const struct varve_option *o = options; o && o->name; o++) {
        const char *help = o->help;
        int width = printf("  --%s%s%s", o->name, o->arg ? " " : "", o->arg ? o->arg : "");

        /* Help of several lines is indented as a block. */
        for (;;) {
            const char *end = strchr(help, '\n');
            int len = end ? (int)(end - help) : (int)strlen(help);

            printf("%*s%.*s\n", width < 24 ? 24 - width : 1, "", len, help);
            if (!end)
                break;
            help = end + 1;
            width = 0;
        }
    }
}

static void help_verb(const struct varve_verb *v)
{
    printf("usage: varve [--control PATH] [--json] %s%s%s%s%s\n\n%s.\n", v->name, v->sub ? " " : "",
           v->sub ? v->sub : "", v->synopsis[0] ? " " : "", v->synopsis, v->summary);
    if (v->options) {
        printf("\noptions:\n");
        help_options(v->options);
    }
}

/* Verbs whose first word is `name`, or all. */
static void help_program(const char *name)
{
    printf("usage: varve [--control PATH] [--json] VERB [options] ...\n\nverbs:\n");
    for (size_t t = 0; varve_verb_tables[t]; t++) {
        for (const struct varve_verb *v = varve_verb_tables[t]; v->name; v++) {
            if (name && strcmp(v->name, name) != 0)
                continue;
            printf("  %s%s%s%s%s\n      %s\n", v->name, v->sub ? " " : "", v->sub ? v->sub : "",
                   v->synopsis[0] ? " " : "", v->synopsis, v->summary);
        }
    }
    printf("\noptions:\n");
    help_options(varve_global_options);
    printf("\nExit status: 0 done, 1 refused or failed, 2 usage.\n");
}

/* *consumed: how many words named it.  NULL: none; *err says why. */
static const struct varve_verb *find_verb(int nwords, char **words, int *consumed,
                                          struct varve_err *err)
{
    const struct varve_verb *family = NULL;

    for (size_t t = 0; varve_verb_tables[t]; t++) {
        for (const struct varve_verb *v = varve_verb_tables[t]; v->name; v++) {
            if (strcmp(v->name, words[0]) != 0)
                continue;
            if (!v->sub) {
                *consumed = 1;
                return v;
            }
            family = v;
            if (nwords > 1 && strcmp(v->sub, words[1]) == 0) {
                *consumed = 2;
                return v;
            }
        }
    }
    if (!family)
        varve_cli_usage(err, "there is no verb '%s'", words[0]);
    else if (nwords > 1)
        varve_cli_usage(err, "there is no verb '%s %s'", words[0], words[1]);
    else
        varve_cli_usage(err, "'%s' needs a second word", words[0]);
    return NULL;
}

/* Takes options of `own` (may be NULL) and the global ones out of argv; the rest is args->words. */
static int parse_options(int argc, char **argv, const struct varve_option *own, bool stop_at_word,
                         struct varve_args *args, const char **global, struct varve_err *err)
{
    struct option table[VARVE_OPTIONS_MAX + GLOBAL_COUNT + 1] = {{0}};
    int nown = 0, n = 0, c;

    for (; own && own[nown].name; nown++)
        table[n++] = (struct option){
            own[nown].name, own[nown].arg ? required_argument : no_argument, NULL, 256 + nown};
    for (int g = 0; g < GLOBAL_COUNT; g++)
        table[n++] = (struct option){varve_global_options[g].name,
                                     varve_global_options[g].arg ? required_argument : no_argument,
                                     NULL, 512 + g};
    optind = 0; /* glibc: start afresh */
    opterr = 0;
    while ((c = getopt_long(argc, argv, stop_at_word ? "+:h" : ":h", table, NULL)) != -1) {
        if (c == 'h')
            global[GLOBAL_HELP] = "";
        else if (c >= 512)
            global[c - 512] = optarg ? optarg : "";
        else if (c >= 256)
            args->option[c - 256] = optarg ? optarg : "";
        else if (c == ':')
            return varve_cli_usage(err, "option '%s' needs an argument", argv[optind - 1]);
        else if (optopt && optopt < 256)
            return varve_cli_usage(err, "unknown option '-%c'", optopt);
        else
            return varve_cli_usage(err, "unknown, ambiguous or misplaced option '%s'",
                                   argv[optind - 1]);
    }
    args->words = argv + optind;
    args->nwords = argc - optind;
    return 0;
}

static int complain(int rc, const struct varve_verb *v, struct varve_err *err)
{
    varve_text_harmless(err->msg);
    if (rc != VARVE_CLI_USAGE) {
        fprintf(stderr, "varve: %s\n", err->msg);
        return 1;
    }
    fprintf(stderr, "varve: %s (see 'varve %s%s%s%s--help')\n", err->msg, v ? v->name : "",
            v ? " " : "", v && v->sub ? v->sub : "", v && v->sub ? " " : "");
    return 2;
}

static int run_verb(const struct varve_verb *v, const struct varve_cli *cli,
                    const struct varve_args *args, struct varve_err *err)
{
    int rc;

    if (args->nwords < v->words_min)
        return varve_cli_usage(err, "'%s%s%s' needs %s", v->name, v->sub ? " " : "",
                               v->sub ? v->sub : "", v->synopsis);
    if (v->words_max >= 0 && args->nwords > v->words_max)
        return varve_cli_usage(err, "'%s' is one word too many for '%s%s%s'",
                               args->words[v->words_max], v->name, v->sub ? " " : "",
                               v->sub ? v->sub : "");
    rc = v->run(cli, args, err);
    if (rc == 0 && (fflush(stdout) != 0 || ferror(stdout)))
        rc = varve_err_sys(err, errno, "writing to the standard output");
    return rc;
}

int main(int argc, char **argv)
{
    const char *global[GLOBAL_COUNT] = {NULL};
    const struct varve_verb *v = NULL;
    struct varve_args args = {0};
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_cli cli = {0};
    int consumed, rc;

    setlocale(LC_CTYPE, "");
    rc = parse_options(argc, argv, NULL, true, &args, global, &err);
    if (rc != 0)
        return complain(rc, NULL, &err);
    if (global[GLOBAL_VERSION]) {
        printf("%s\n", PACKAGE_STRING);
        return 0;
    }
    if (global[GLOBAL_HELP]) {
        help_program(NULL);
        return 0;
    }
    if (args.nwords == 0)
        return complain(varve_cli_usage(&err, "which verb?"), NULL, &err);

    v = find_verb(args.nwords, args.words, &consumed, &err);
    if (!v) {
        if (args.nwords > 1 &&
            (strcmp(args.words[1], "--help") == 0 || strcmp(args.words[1], "-h") == 0)) {
            help_program(args.words[0]);
            return 0;
        }
        return complain(VARVE_CLI_USAGE, NULL, &err);
    }
    /* The verb's last word stands in for argv[0]. */
    rc = parse_options(args.nwords - consumed + 1, args.words + consumed - 1, v->options, false,
                       &args, global, &err);
    if (rc != 0)
        return complain(rc, v, &err);
    if (global[GLOBAL_HELP]) {
        help_verb(v);
        return 0;
    }
    cli.control = varve_cli_control(global[GLOBAL_CONTROL]);
    cli.json = global[GLOBAL_JSON] != NULL;
    rc = run_verb(v, &cli, &args, &err);
    return rc == 0 ? 0 : complain(rc, v, &err);
}
