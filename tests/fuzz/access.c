/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The files that say who may connect: access rules and pre-shared keys, of any content.  A rule that
 * allows an export allows what is derived from it, and a key that is found is one of the file's.
 *
 *     0   0: access rules, else: keys
 *     1   length of the name that is asked for, which comes first
 *     2   how the client is known: an address, a user, a name that TLS proved
 *     3   the name, and the file
 */
#include "server/nbd/access.h"
#include "server/nbd/tls-psk.h"
#include "tests/fuzz/fuzz.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

static void make_client(struct varve_client_id *who, uint8_t how, const void *name, size_t len)
{
    char text[VARVE_CLIENT_TEXT_MAX];

    memset(who, 0, sizeof(*who));
    if (how & 1) {
        struct sockaddr_in *four = (struct sockaddr_in *)&who->addr;

        four->sin_family = AF_INET;
        inet_pton(AF_INET, "192.0.2.77", &four->sin_addr);
    } else if (how & 2) {
        struct sockaddr_in6 *six = (struct sockaddr_in6 *)&who->addr;

        six->sin6_family = AF_INET6;
        inet_pton(AF_INET6, "2001:db8::1", &six->sin6_addr);
    } else if (how & 4) {
        who->addr.ss_family = AF_UNIX;
        who->has_uid = true;
        who->uid = 1000;
    }
    if (how & 8) {
        int rc = varve_client_id_prove(who, how & 16 ? VARVE_CLIENT_PSK : VARVE_CLIENT_DN, name,
                                       len, NULL);

        FUZZ_CHECK(rc == 0 || (rc == -EINVAL && who->proof == VARVE_CLIENT_PLAIN));
    }
    varve_client_id_text(who, text, sizeof(text));
    FUZZ_CHECK(strlen(text) < sizeof(text));
}

static void ask_rules(const char *name, size_t name_len, uint8_t how, const char *file,
                      size_t file_len)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_client_id who;
    struct varve_access *a = NULL;
    size_t base = 0;
    int rc = varve_access_parse("rules", file, file_len, &a, &err);

    make_client(&who, how, name, name_len);
    if (rc) {
        FUZZ_CHECK(rc < 0 && err.code == -rc && strncmp(err.msg, "rules", 5) == 0);
        return;
    }
    while (base < name_len && name[base] != '@' && name[base] != '+')
        base++;
    FUZZ_CHECK(varve_access_allows(a, &who, name, name_len) ==
               varve_access_allows(a, &who, name, base));
    FUZZ_CHECK(varve_access_allows(NULL, &who, name, name_len));
    varve_access_unref(varve_access_ref(a));
    varve_access_unref(a);
}

static void ask_keys(const char *name, size_t name_len, const char *file, size_t file_len)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_psk *p = NULL;
    const uint8_t *key;
    size_t len = 0;
    int rc = varve_psk_parse("keys", file, file_len, &p, &err);

    if (rc) {
        FUZZ_CHECK(rc < 0 && err.code == -rc && strncmp(err.msg, "keys", 4) == 0);
        return;
    }
    key = varve_psk_find(p, name, name_len, &len);
    if (key) {
        FUZZ_CHECK(len > 0 && len <= VARVE_PSK_KEY_MAX);
        FUZZ_CHECK(memmem(file, file_len, ":", 1));
    }
    varve_psk_free(p);
}

/* Exactly so long, so that a sanitizer sees a byte too many. */
static char *piece(const uint8_t *data, size_t len)
{
    char *copy = malloc(len ? len : 1);

    FUZZ_CHECK(copy);
    memcpy(copy, data, len);
    return copy;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t name_len, file_len;
    char *name, *file;

    if (size < 3)
        return -1;
    name_len = data[1] < size - 3 ? data[1] : size - 3;
    file_len = size - 3 - name_len;
    name = piece(data + 3, name_len);
    file = piece(data + 3 + name_len, file_len);
    if (data[0] == 0)
        ask_rules(name, name_len, data[2], file, file_len);
    else
        ask_keys(name, name_len, file, file_len);
    free(name);
    free(file);
    return 0;
}
