/* SPDX-License-Identifier: BSD-3-Clause
 *
 * varve complete: what may stand next on a command line, for the shells' completion.
 *
 * It reads the tables that --help is printed from: verbs, options, and the words of synopses, whose
 * names say what they stand for (DISK, NAME, ID, FILE, a|b).  Names of disks, checkpoints, bitmaps
 * and backups come from the daemon.  A key was pressed, so nobody wants to hear of an error, or to
 * wait: what cannot be known at once is not proposed, and the status is 0.
 */
#include "client/cli.h"
#include "client/control.h"
#include "client/out.h"
#include "lib/parse.h"
#include "lib/text.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

/* How long the daemon may take for all that is asked; $VARVE_COMPLETION_TIME says otherwise. */
#define PATIENCE_MS 700

/* A command line up to the word that is being typed. */
struct line {
    const char *verb, *sub;
    const struct varve_verb *v; /* NULL: not known yet */
    const char *control;
    const struct varve_option *pending; /* wants its argument now */
    const char *given[2 * VARVE_OPTIONS_MAX];
    int ngiven;
    const char *words[64]; /* positional ones, the first of them */
    int nwords;
    bool no_options; /* behind -- */
};

enum kind { KIND_NONE, KIND_DISK, KIND_CHECKPOINT, KIND_BITMAP, KIND_BASE, KIND_BACKUP, KIND_FILE };

/* --- proposals ---------------------------------------------------------------------------- */

/* One a line: the word, a tab, what it is.  The shell compares it with what was typed; here only
 * what cannot fit is left out.  A name with control characters is nothing to type. */
static void propose(const char *word, const char *about, const char *typed)
{
    if (strncmp(word, typed, strlen(typed)) != 0)
        return;
    if (!varve_text_is_harmless(word))
        return;
    printf("%s\t%.*s\n", word, (int)strcspn(about, "\n"), about);
}

/* The prefix `head` of `typed` stays as it is: --option= in front of its argument. */
static void propose_behind(int head, const char *word, const char *about, const char *typed)
{
    char whole[2048];
    int len = snprintf(whole, sizeof(whole), "%.*s%s", head, typed, word);

    if (len > 0 && (size_t)len < sizeof(whole))
        propose(whole, about, typed);
}

static void on_alarm(int number)
{
    (void)number;
    _exit(0);
}

static json_t *ask_disks(const char *control)
{
    const char *time = getenv("VARVE_COMPLETION_TIME");
    struct varve_err err = VARVE_ERR_INIT;
    struct itimerval patience = {.it_value = {0, 0}};
    unsigned ms = PATIENCE_MS;
    json_t *disks = NULL;

    if (time && (varve_parse_time_ms(time, &ms, &err) < 0 || ms == 0))
        ms = PATIENCE_MS;
    patience.it_value.tv_sec = ms / 1000;
    patience.it_value.tv_usec = ms % 1000 * 1000;

    fflush(stdout); /* what is known already is not lost */
    signal(SIGALRM, on_alarm);
    setitimer(ITIMER_REAL, &patience, NULL);
    varve_control_once(control, "query-disks", NULL, &disks, &err);
    return disks;
}

static void propose_names(const json_t *disk, const char *key, const char *about, int head,
                          const char *typed)
{
    const json_t *names = json_object_get(disk, key), *name;
    size_t i;

    json_array_foreach(names, i, name)
    {
        const char *text = json_is_string(name) ? json_string_value(name)
                                                : json_string_value(json_object_get(name, "name"));
        char what[128];

        snprintf(what, sizeof(what), "%s of %s", about, varve_get_string(disk, "name"));
        if (text)
            propose_behind(head, text, what, typed);
    }
}

/* In front of a name stand disks: it is of one of them. */
static bool disk_matters(const struct line *l, const char *name)
{
    for (int i = 0; i < l->nwords; i++)
        if (strcmp(l->words[i], name) == 0)
            return true;
    return l->nwords == 0 || !l->v || strcmp(l->v->name, "checkpoint") == 0;
}

static void propose_kind(const struct line *l, enum kind kind, int head, const char *typed)
{
    const json_t *disk;
    json_t *disks;
    size_t i;

    if (kind == KIND_NONE)
        return;
    if (kind == KIND_FILE) {
        printf("\tfiles\n");
        return;
    }
    disks = ask_disks(l->control);
    json_array_foreach(disks, i, disk)
    {
        const char *name = varve_get_string(disk, "name");

        if (kind == KIND_DISK)
            propose_behind(head, name, varve_get_string(disk, "state"), typed);
        if (!disk_matters(l, name))
            continue;
        if (kind == KIND_CHECKPOINT || kind == KIND_BASE)
            propose_names(disk, "checkpoints", "checkpoint", head, typed);
        if (kind == KIND_BITMAP || kind == KIND_BASE)
            propose_names(disk, "bitmaps", "bitmap", head, typed);
        if (kind == KIND_BACKUP)
            propose_names(disk, "backups", "backup", head, typed);
    }
    json_decref(disks);
}

/* --- what a word of a synopsis stands for ------------------------------------------------- */

static bool is(const char *a, const char *b)
{
    return a && strcmp(a, b) == 0;
}

/* word: one of DISK, NAME, …; option: the one whose argument it is, or NULL. */
static enum kind kind_of(const struct line *l, const char *option, const char *word)
{
    const char *verb = l->v ? l->v->name : "", *sub = l->v && l->v->sub ? l->v->sub : "";

    if (is(word, "DISK"))
        return KIND_DISK;
    if (is(word, "FILE") || is(word, "DIR") || is(word, "IMAGE") || is(word, "PATH") ||
        is(word, "REFERENCE") || is(word, "COPY"))
        return KIND_FILE;
    if (is(word, "BITMAP"))
        return KIND_BITMAP;
    if (is(verb, "job") || is(verb, "diff") || (is(verb, "push") && is(option, "id")))
        return KIND_NONE;
    if (is(word, "ID"))
        return is(sub, "begin") ? KIND_NONE : KIND_BACKUP; /* there it is a new one */
    if (is(option, "since") || is(option, "until"))
        return is(verb, "backup") || is(verb, "push") ? KIND_CHECKPOINT : KIND_BASE;
    if (is(option, "bitmap"))
        return KIND_BITMAP;
    if (option)
        return KIND_NONE;
    if (is(verb, "checkpoint") && is(word, "NAME"))
        return is(sub, "create") || is(sub, "import") ? KIND_NONE : KIND_CHECKPOINT;
    if (is(verb, "bitmap") && is(word, "NAME"))
        return is(sub, "add") ? KIND_NONE : KIND_BITMAP;
    if (is(verb, "bitmap") && is(word, "TARGET"))
        return is(sub, "copy") ? KIND_NONE : KIND_BITMAP;
    return KIND_NONE;
}

/* text: DISK, DISK|URI, or all|dirty.  head: the length of "--option=" in typed. */
static void propose_argument(const struct line *l, const char *option, const char *text, int head,
                             const char *typed)
{
    while (*text) {
        size_t len = strcspn(text, "|");
        char word[64];

        snprintf(word, sizeof(word), "%.*s", (int)len, text);
        if (word[0] >= 'a' && word[0] <= 'z')
            propose_behind(head, word, "", typed);
        else
            propose_kind(l, kind_of(l, option, word), head, typed);
        text += len + (text[len] == '|');
    }
}

static const struct varve_option *find_option(const struct line *l, const char *name, size_t len)
{
    const struct varve_option *lists[] = {l->v ? l->v->options : NULL, varve_global_options};

    for (int i = 0; i < 2; i++)
        for (const struct varve_option *o = lists[i]; o && o->name; o++)
            if (strncmp(o->name, name, len) == 0 && o->name[len] == '\0')
                return o;
    return NULL;
}

/* The word number n of the verb's synopsis that is no option, into out; the last one repeats if it
 * ends with dots.  false: there is none. */
static bool synopsis_word(const struct line *l, int n, char out[64])
{
    char copy[256], *save = NULL, *repeats = NULL;
    int at = 0;

    snprintf(copy, sizeof(copy), "%s", l->v->synopsis);
    for (char *t = strtok_r(copy, " []", &save); t; t = strtok_r(NULL, " []", &save)) {
        size_t len = strlen(t);

        if (strncmp(t, "--", 2) == 0) {
            const struct varve_option *o = find_option(l, t + 2, strcspn(t + 2, "|"));

            if (o && o->arg)
                strtok_r(NULL, " []", &save);
            continue;
        }
        if (t[0] < 'A' || t[0] > 'Z')
            continue; /* "options", "|" */
        repeats = len > 3 && strcmp(t + len - 3, "...") == 0 ? t : NULL;
        if (repeats)
            t[len - 3] = '\0';
        if (at++ == n || (repeats && n >= at)) {
            snprintf(out, 64, "%s", t);
            return true;
        }
    }
    return false;
}

/* --- the line ----------------------------------------------------------------------------- */

static void line_verb(struct line *l)
{
    for (size_t t = 0; varve_verb_tables[t]; t++)
        for (const struct varve_verb *v = varve_verb_tables[t]; v->name; v++)
            if (is(l->verb, v->name) && (!v->sub || is(l->sub, v->sub)))
                l->v = v;
}

static void line_take_option(struct line *l, const char *word)
{
    size_t len = strcspn(word, "=");
    const struct varve_option *o = find_option(l, word, len);

    if (!o)
        return;
    if (l->ngiven < 2 * VARVE_OPTIONS_MAX)
        l->given[l->ngiven++] = o->name;
    if (o->arg && word[len] == '\0')
        l->pending = o;
    else if (is(o->name, "control"))
        l->control = varve_cli_control(word + len + 1);
}

static void line_take(struct line *l, const char *word)
{
    if (l->pending) {
        if (is(l->pending->name, "control"))
            l->control = varve_cli_control(word);
        l->pending = NULL;
    } else if (!l->no_options && is(word, "--")) {
        l->no_options = true;
    } else if (!l->no_options && word[0] == '-' && word[1] == '-') {
        line_take_option(l, word + 2);
    } else if (!l->verb) {
        l->verb = word;
        line_verb(l);
    } else if (!l->v && !l->sub) {
        l->sub = word;
        line_verb(l);
    } else if (l->nwords < (int)(sizeof(l->words) / sizeof(l->words[0]))) {
        l->words[l->nwords++] = word;
    }
}

/* Once for each name, whatever the families' sizes. */
static void propose_verbs(const struct line *l, const char *typed)
{
    const char *before = NULL;

    for (size_t t = 0; varve_verb_tables[t]; t++) {
        for (const struct varve_verb *v = varve_verb_tables[t]; v->name; v++) {
            if (l->verb && is(l->verb, v->name) && v->sub)
                propose(v->sub, v->summary, typed);
            else if (!l->verb && !is(before, v->name))
                propose(v->name, v->sub ? "" : v->summary, typed);
            before = v->name;
        }
    }
}

static void propose_options(const struct line *l, const char *typed)
{
    const struct varve_option *lists[] = {l->v ? l->v->options : NULL, varve_global_options};

    for (int i = 0; i < 2; i++) {
        for (const struct varve_option *o = lists[i]; o && o->name; o++) {
            bool given = false;

            for (int g = 0; g < l->ngiven; g++)
                given |= is(l->given[g], o->name);
            if (!given)
                propose_behind(2, o->name, o->help, typed[1] ? typed : "--");
        }
    }
}

static int complete_run(const struct varve_cli *cli, const struct varve_args *args,
                        struct varve_err *err)
{
    struct line l = {.control = cli->control};
    const char *typed = args->nwords ? args->words[args->nwords - 1] : "";
    char word[64];

    (void)err;
    for (int i = 0; i + 1 < args->nwords; i++)
        line_take(&l, args->words[i]);
    if (l.pending) {
        propose_argument(&l, l.pending->name, l.pending->arg, 0, typed);
    } else if (!l.no_options && typed[0] == '-' && strchr(typed, '=')) {
        int head = (int)strcspn(typed, "=") + 1;
        const struct varve_option *o = head > 3 ? find_option(&l, typed + 2, (size_t)head - 3) : NULL;

        if (o && o->arg)
            propose_argument(&l, o->name, o->arg, head, typed);
    } else if (!l.no_options && typed[0] == '-') {
        propose_options(&l, typed);
    } else if (!l.v) {
        propose_verbs(&l, typed);
    } else if (synopsis_word(&l, l.nwords, word)) {
        propose_argument(&l, NULL, word, 0, typed);
    }
    return 0;
}

const struct varve_verb varve_complete_verbs[] = {
    {.name = "complete",
     .synopsis = "-- [WORD...]",
     .summary = "Prints what may stand in the place of the last WORD, for shells",
     .words_max = -1,
     .run = complete_run},
    {.name = NULL},
};
