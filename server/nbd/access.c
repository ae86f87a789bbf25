/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A rule is a line: who, then patterns of exports.  Words are separated by blanks; `#` in front of
 * a word begins a comment; in double quotes blanks and `#` are ordinary, \" and \\ are " and \.
 *
 *     any                            public-*
 *     dn:"CN=backup1,O=Example"      vda vdb
 *     ip:192.0.2.0/24                web-?
 *
 * There is no rule that forbids: what no rule allows is forbidden, so their order means nothing.
 *
 * A pattern is compared with the name in front of the first `@` or `+`: who may see vda may see
 * vda@BASE and vda+delta, which are the same bytes.  It is compared with nothing else, so that a
 * pattern like *-web never matches secret@nightly-web.
 */
#include "server/nbd/access.h"

#include "server/nbd/small-file.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fnmatch.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Longer names no disk and no export has; what is asked for may have any length. */
#define NAME_MAX_LEN 255u

enum who_kind {
    WHO_ANY,
    WHO_DN,
    WHO_PSK,
    WHO_IP,
    WHO_UID,
    WHO_CID,
};

struct rule {
    struct rule *next;
    enum who_kind kind;
    char *name; /* DN, PSK */
    uid_t uid;
    unsigned cid;
    int family; /* IP: */
    uint8_t net[16];
    unsigned prefix; /* bits of it that count */
    char **patterns;
    size_t npatterns;
};

struct varve_access {
    _Atomic unsigned refs;
    struct rule *rules;
};

/* --- asking --------------------------------------------------------------------------------- */

static bool net_has(const uint8_t *net, unsigned prefix, const uint8_t *addr)
{
    unsigned bytes = prefix / 8, bits = prefix % 8;

    if (memcmp(net, addr, bytes))
        return false;
    return !bits || (net[bytes] ^ addr[bytes]) >> (8 - bits) == 0;
}

static bool rule_is_net_of(const struct rule *r, const struct varve_client_id *who)
{
    struct sockaddr_in6 six;
    struct sockaddr_in four;

    if (who->addr.ss_family != r->family)
        return false;
    if (r->family == AF_INET) {
        memcpy(&four, &who->addr, sizeof(four));
        return net_has(r->net, r->prefix, (const uint8_t *)&four.sin_addr);
    }
    memcpy(&six, &who->addr, sizeof(six));
    return net_has(r->net, r->prefix, six.sin6_addr.s6_addr);
}

static bool cid_is(const struct rule *r, const struct varve_client_id *who)
{
    struct sockaddr_vm vm;

    memcpy(&vm, &who->addr, sizeof(vm));
    return who->addr.ss_family == AF_VSOCK && vm.svm_cid == r->cid;
}

static bool rule_means(const struct rule *r, const struct varve_client_id *who)
{
    switch (r->kind) {
    case WHO_ANY:
        return true;
    case WHO_DN:
        return who->proof == VARVE_CLIENT_DN && strcmp(who->name, r->name) == 0;
    case WHO_PSK:
        return who->proof == VARVE_CLIENT_PSK && strcmp(who->name, r->name) == 0;
    case WHO_IP:
        return rule_is_net_of(r, who);
    case WHO_UID:
        return who->has_uid && who->uid == r->uid;
    case WHO_CID:
        return cid_is(r, who);
    }
    return false;
}

static bool rule_has_export(const struct rule *r, const char *disk)
{
    for (size_t i = 0; i < r->npatterns; i++) {
        if (fnmatch(r->patterns[i], disk, FNM_NOESCAPE) == 0)
            return true;
    }
    return false;
}

bool varve_access_allows(const struct varve_access *a, const struct varve_client_id *who,
                         const char *name, size_t len)
{
    char disk[NAME_MAX_LEN + 1];
    size_t n = 0;

    if (!a)
        return true;
    while (n < len && name[n] != '@' && name[n] != '+') {
        if (n == NAME_MAX_LEN || !name[n])
            return false;
        disk[n] = name[n];
        n++;
    }
    disk[n] = 0;
    for (const struct rule *r = a->rules; r; r = r->next) {
        if (rule_means(r, who) && rule_has_export(r, disk))
            return true;
    }
    return false;
}

/* --- reading -------------------------------------------------------------------------------- */

static void rule_free(struct rule *r)
{
    for (size_t i = 0; i < r->npatterns; i++)
        free(r->patterns[i]);
    free(r->patterns);
    free(r->name);
    free(r);
}

/* Where we are in the text; errors are put in front by varve_access_parse. */
struct reader {
    const char *p, *end; /* of the line */
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* One character of a word at r->p; in quotes a backslash hides the next. */
static int word_char(struct reader *r, bool quoted, char *c, struct varve_err *err)
{
    if (quoted && *r->p == '\\') {
        r->p++;
        if (r->p == r->end || (*r->p != '"' && *r->p != '\\'))
            return varve_err_set(err, EINVAL, "in quotes \\ stands before \" or \\ only");
    }
    *c = *r->p++;
    if ((unsigned char)*c < ' ' && *c != '\t')
        return varve_err_set(err, EINVAL, "a control byte (0x%02x)", (unsigned char)*c);
    return 0;
}

/* The next word, to be freed.  1: there is one, 0: the line ends. */
static int next_word(struct reader *r, char **word, struct varve_err *err)
{
    bool quoted = false;
    size_t n = 0;

    while (r->p < r->end && is_blank(*r->p))
        r->p++;
    if (r->p == r->end || *r->p == '#')
        return 0;
    *word = malloc((size_t)(r->end - r->p) + 1);
    if (!*word)
        return varve_err_set(err, ENOMEM, "no memory");
    while (r->p < r->end && (quoted || !is_blank(*r->p))) {
        if (*r->p == '"') {
            quoted = !quoted;
            r->p++;
        } else if (word_char(r, quoted, *word + n, err) == 0) {
            n++;
        } else {
            free(*word);
            return -EINVAL;
        }
    }
    (*word)[n] = 0;
    if (!quoted)
        return 1;
    free(*word);
    return varve_err_set(err, EINVAL, "a \" has no end");
}

static bool starts_with(const char *s, const char *prefix, const char **rest)
{
    size_t len = strlen(prefix);

    if (strncmp(s, prefix, len))
        return false;
    *rest = s + len;
    return true;
}

/* Digits only. */
static bool parse_number(const char *s, uint64_t max, uint64_t *value)
{
    *value = 0;
    if (!*s)
        return false;
    for (; *s; s++) {
        if (*s < '0' || *s > '9')
            return false;
        *value = *value * 10 + (uint64_t)(*s - '0');
        if (*value > max)
            return false;
    }
    return true;
}

static bool net_is_clean(const struct rule *r, unsigned bits)
{
    for (unsigned i = r->prefix; i < bits; i++) {
        if (r->net[i / 8] & 0x80u >> i % 8)
            return false;
    }
    return true;
}

static int parse_net(struct rule *r, char *text, struct varve_err *err)
{
    char *slash = strchr(text, '/');
    unsigned bits;
    uint64_t prefix;

    if (slash)
        *slash = 0;
    r->family = strchr(text, ':') ? AF_INET6 : AF_INET;
    bits = r->family == AF_INET6 ? 128 : 32;
    prefix = bits;
    if (inet_pton(r->family, text, r->net) != 1 ||
        (slash && !parse_number(slash + 1, bits, &prefix)))
        return varve_err_set(err, EINVAL,
                             "ip: wants an address like 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32");
    r->prefix = (unsigned)prefix;
    if (!net_is_clean(r, bits))
        return varve_err_set(err, EINVAL, "%s/%u: there are bits behind the first %u", text,
                             r->prefix, r->prefix);
    if (r->family == AF_INET6 && IN6_IS_ADDR_V4MAPPED((struct in6_addr *)r->net))
        return varve_err_set(err, EINVAL, "%s: write the IPv4 address", text);
    return 0;
}

static int parse_name(struct rule *r, enum who_kind kind, const char *text, struct varve_err *err)
{
    if (!*text || strlen(text) > VARVE_CLIENT_NAME_MAX)
        return varve_err_set(err, EINVAL, "a name of 1 to %u bytes is needed behind %s",
                             VARVE_CLIENT_NAME_MAX, kind == WHO_DN ? "dn:" : "psk:");
    r->kind = kind;
    r->name = strdup(text);
    return r->name ? 0 : varve_err_set(err, ENOMEM, "no memory");
}

static int parse_who(struct rule *r, char *word, struct varve_err *err)
{
    const char *rest;
    uint64_t number;

    r->kind = WHO_ANY;
    if (strcmp(word, "any") == 0)
        return 0;
    if (starts_with(word, "dn:", &rest))
        return parse_name(r, WHO_DN, rest, err);
    if (starts_with(word, "psk:", &rest))
        return parse_name(r, WHO_PSK, rest, err);
    if (starts_with(word, "ip:", &rest)) {
        r->kind = WHO_IP;
        return parse_net(r, word + 3, err);
    }
    if (starts_with(word, "uid:", &rest)) {
        r->kind = WHO_UID;
        /* The last number is no user: (uid_t)-1. */
        if (!parse_number(rest, UINT32_MAX - 1u, &number))
            return varve_err_set(err, EINVAL, "uid: wants a number");
        r->uid = (uid_t)number;
        return 0;
    }
    if (starts_with(word, "cid:", &rest)) {
        r->kind = WHO_CID;
        if (!parse_number(rest, VMADDR_CID_ANY - 1u, &number))
            return varve_err_set(err, EINVAL, "cid: wants a number");
        r->cid = (unsigned)number;
        return 0;
    }
    return varve_err_set(err, EINVAL, "'%.64s' is none of any, dn:, psk:, ip:, uid:, cid:", word);
}

/* Takes over the pattern, but not on failure. */
static int rule_add_pattern(struct rule *r, char *pattern, struct varve_err *err)
{
    char **more;

    if (!*pattern)
        return varve_err_set(err, EINVAL, "a pattern is empty");
    if (strpbrk(pattern, "@+"))
        return varve_err_set(
            err, EINVAL, "'%.64s': write the disk's export only; its @BASE and +delta follow it",
            pattern);
    more = realloc(r->patterns, (r->npatterns + 1) * sizeof(*more));
    if (!more)
        return varve_err_set(err, ENOMEM, "no memory");
    r->patterns = more;
    r->patterns[r->npatterns++] = pattern;
    return 0;
}

static int parse_patterns(struct rule *r, struct reader *line, struct varve_err *err)
{
    char *word;
    int rc;

    while ((rc = next_word(line, &word, err)) > 0) {
        rc = rule_add_pattern(r, word, err);
        if (rc) {
            free(word);
            return rc;
        }
    }
    if (rc == 0 && !r->npatterns)
        return varve_err_set(err, EINVAL, "which exports? patterns stand behind who sees them");
    return rc;
}

/* *out stays NULL for a line that holds no rule. */
static int parse_line(struct reader *line, struct rule **out, struct varve_err *err)
{
    struct rule *r;
    char *word;
    int rc = next_word(line, &word, err);

    if (rc <= 0)
        return rc;
    r = calloc(1, sizeof(*r));
    rc = r ? parse_who(r, word, err) : varve_err_set(err, ENOMEM, "no memory");
    free(word);
    if (rc == 0)
        rc = parse_patterns(r, line, err);
    if (rc == 0)
        *out = r;
    else if (r)
        rule_free(r);
    return rc;
}

static int parse_lines(struct varve_access *a, const char *file, const char *text, size_t len,
                       struct varve_err *err)
{
    const char *p = text, *end = text + len;
    struct rule **tail = &a->rules;

    for (unsigned number = 1; p < end; number++) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        struct reader line = {p, nl ? nl : end};
        struct varve_err e = VARVE_ERR_INIT;

        if (parse_line(&line, tail, &e))
            return varve_err_set(err, e.code, "%s:%u: %s", file, number, e.msg);
        if (*tail)
            tail = &(*tail)->next;
        p = nl ? nl + 1 : end;
    }
    return 0;
}

int varve_access_parse(const char *file, const char *text, size_t len, struct varve_access **out,
                       struct varve_err *err)
{
    struct varve_access *a = calloc(1, sizeof(*a));
    int rc;

    if (!a)
        return varve_err_set(err, ENOMEM, "%s: no memory", file);
    atomic_init(&a->refs, 1);
    rc = parse_lines(a, file, text, len, err);
    if (rc)
        varve_access_unref(a);
    else
        *out = a;
    return rc;
}

int varve_access_load(const char *file, struct varve_access **out, struct varve_err *err)
{
    char *text;
    size_t len;
    int rc = varve_small_file_read(file, &text, &len, err);

    if (rc)
        return rc;
    rc = varve_access_parse(file, text, len, out, err);
    varve_small_file_wipe(text, len);
    return rc;
}

struct varve_access *varve_access_ref(struct varve_access *a)
{
    if (a)
        atomic_fetch_add(&a->refs, 1);
    return a;
}

void varve_access_unref(struct varve_access *a)
{
    struct rule *r;

    if (!a || atomic_fetch_sub(&a->refs, 1) != 1)
        return;
    while ((r = a->rules)) {
        a->rules = r->next;
        rule_free(r);
    }
    free(a);
}
