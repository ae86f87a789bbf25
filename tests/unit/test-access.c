/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Rules of --access: what they mean, and what is refused with file and line.
 */
#include "server/nbd/access.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static struct varve_access *rules(const char *text)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_access *a = NULL;

    if (varve_access_parse("rules", text, strlen(text), &a, &err))
        fail_msg("%s", err.msg);
    assert_non_null(a);
    return a;
}

static void refused(const char *text, const char *expected)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_access *a = NULL;

    assert_int_equal(varve_access_parse("rules", text, strlen(text), &a, &err), -EINVAL);
    assert_null(a);
    assert_null(strchr(err.msg, '\n'));
    if (!strstr(err.msg, expected))
        fail_msg("'%s' does not say '%s'", err.msg, expected);
}

static bool sees(const struct varve_access *a, const struct varve_client_id *who, const char *name)
{
    return varve_access_allows(a, who, name, strlen(name));
}

static struct varve_client_id with_proof(enum varve_client_proof proof, const char *name)
{
    struct varve_client_id id = {0};

    assert_int_equal(varve_client_id_prove(&id, proof, name, strlen(name), NULL), 0);
    return id;
}

static struct varve_client_id at(const char *text)
{
    struct varve_client_id id = {0};
    struct sockaddr_in four = {.sin_family = AF_INET};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6};

    if (inet_pton(AF_INET, text, &four.sin_addr) == 1)
        memcpy(&id.addr, &four, sizeof(four));
    else if (inet_pton(AF_INET6, text, &six.sin6_addr) == 1)
        memcpy(&id.addr, &six, sizeof(six));
    else
        fail();
    return id;
}

static struct varve_client_id user(uid_t uid)
{
    struct varve_client_id id = {.has_uid = true, .uid = uid};

    id.addr.ss_family = AF_UNIX;
    return id;
}

static void without_rules_everybody_sees_all(void **state)
{
    struct varve_client_id nobody = {0};

    (void)state;
    assert_true(sees(NULL, &nobody, "vda"));
    assert_true(sees(NULL, &nobody, ""));
}

static void empty_file_lets_nobody_see_anything(void **state)
{
    struct varve_access *a = rules("# only a comment\n\n   \n\t# another");
    struct varve_client_id root = user(0);

    (void)state;
    assert_false(sees(a, &root, "vda"));
    varve_access_unref(a);
}

static void any_means_everybody_and_only_its_exports(void **state)
{
    struct varve_access *a = rules("any public-*\n");
    struct varve_client_id who = at("192.0.2.1");

    (void)state;
    assert_true(sees(a, &who, "public-1"));
    assert_false(sees(a, &who, "vda"));
    assert_false(sees(a, &who, "xpublic-1"));
    varve_access_unref(a);
}

static void rule_for_a_disk_covers_its_bases_and_delta(void **state)
{
    struct varve_access *a = rules("any vda\n");
    struct varve_client_id who = {0};

    (void)state;
    assert_true(sees(a, &who, "vda"));
    assert_true(sees(a, &who, "vda@monday"));
    assert_true(sees(a, &who, "vda+delta"));
    assert_true(sees(a, &who, "vda@monday+delta"));
    assert_false(sees(a, &who, "vdab"));
    assert_false(sees(a, &who, "vdab@vda"));
    varve_access_unref(a);
}

static void pattern_never_matches_by_the_name_of_a_base(void **state)
{
    struct varve_access *a = rules("any *-web\n");
    struct varve_client_id who = {0};

    (void)state;
    assert_true(sees(a, &who, "shop-web@x"));
    assert_false(sees(a, &who, "secret@nightly-web"));
    assert_false(sees(a, &who, "secret+nightly-web"));
    varve_access_unref(a);
}

static void name_with_a_nul_or_of_any_length_is_just_refused(void **state)
{
    struct varve_access *a = rules("any vda v*\n");
    struct varve_client_id who = {0};
    char name[5000];

    (void)state;
    assert_false(varve_access_allows(a, &who, "vda\0b", 5));
    assert_false(varve_access_allows(a, &who, "\0", 1));
    memset(name, 'v', sizeof(name));
    assert_false(varve_access_allows(a, &who, name, sizeof(name)));
    assert_true(varve_access_allows(a, &who, name, 255));
    assert_false(varve_access_allows(a, &who, name, 256));
    varve_access_unref(a);
}

static void dn_matches_exactly(void **state)
{
    struct varve_access *a = rules("dn:\"CN=backup1,O=Example\" vda\n");
    struct varve_client_id right = with_proof(VARVE_CLIENT_DN, "CN=backup1,O=Example");
    struct varve_client_id longer = with_proof(VARVE_CLIENT_DN, "CN=backup1,O=Example,C=DE");
    struct varve_client_id shorter = with_proof(VARVE_CLIENT_DN, "CN=backup1");
    struct varve_client_id other = with_proof(VARVE_CLIENT_DN, "cn=backup1,o=Example");
    struct varve_client_id psk = with_proof(VARVE_CLIENT_PSK, "CN=backup1,O=Example");
    struct varve_client_id none = {.proof = VARVE_CLIENT_ANONYMOUS};

    (void)state;
    assert_true(sees(a, &right, "vda"));
    assert_false(sees(a, &right, "vdb"));
    assert_false(sees(a, &longer, "vda"));
    assert_false(sees(a, &shorter, "vda"));
    assert_false(sees(a, &other, "vda"));
    assert_false(sees(a, &psk, "vda"));
    assert_false(sees(a, &none, "vda"));
    varve_access_unref(a);
}

static void psk_user_is_no_dn(void **state)
{
    struct varve_access *a = rules("psk:alice vda\npsk:\"bob b\" vdb\n");
    struct varve_client_id alice = with_proof(VARVE_CLIENT_PSK, "alice");
    struct varve_client_id bob = with_proof(VARVE_CLIENT_PSK, "bob b");
    struct varve_client_id fake = with_proof(VARVE_CLIENT_DN, "alice");

    (void)state;
    assert_true(sees(a, &alice, "vda"));
    assert_false(sees(a, &alice, "vdb"));
    assert_true(sees(a, &bob, "vdb"));
    assert_false(sees(a, &fake, "vda"));
    varve_access_unref(a);
}

static void name_that_tls_could_not_prove_is_refused(void **state)
{
    struct varve_client_id id = {0};
    char longest[VARVE_CLIENT_NAME_MAX + 1];

    (void)state;
    memset(longest, 'x', sizeof(longest));
    assert_int_equal(varve_client_id_prove(&id, VARVE_CLIENT_DN, "a\0b", 3, NULL), -EINVAL);
    assert_int_equal(varve_client_id_prove(&id, VARVE_CLIENT_DN, "", 0, NULL), -EINVAL);
    assert_int_equal(varve_client_id_prove(&id, VARVE_CLIENT_DN, longest, sizeof(longest), NULL),
                     -EINVAL);
    assert_int_equal(id.proof, VARVE_CLIENT_PLAIN);
    assert_int_equal(
        varve_client_id_prove(&id, VARVE_CLIENT_DN, longest, sizeof(longest) - 1, NULL), 0);
}

static void networks_end_where_their_bits_end(void **state)
{
    struct varve_access *a =
        rules("ip:192.0.2.0/24 a\nip:198.51.100.7 b\nip:2001:db8::/33 c\nip:0.0.0.0/0 d\n"
              "ip:10.0.0.128/25 e\nip:::1 f\n");
    struct varve_client_id in = at("192.0.2.255"), out = at("192.0.3.0"), one = at("198.51.100.7");
    struct varve_client_id six = at("2001:db8:7fff::1"), beyond = at("2001:db8:8000::");
    struct varve_client_id high = at("10.0.0.128"), low = at("10.0.0.127"), lo = at("::1");

    (void)state;
    assert_true(sees(a, &in, "a"));
    assert_false(sees(a, &out, "a"));
    assert_true(sees(a, &one, "b"));
    assert_false(sees(a, &in, "b"));
    assert_true(sees(a, &six, "c"));
    assert_false(sees(a, &beyond, "c"));
    assert_true(sees(a, &out, "d"));
    assert_false(sees(a, &six, "d"));
    assert_true(sees(a, &high, "e"));
    assert_false(sees(a, &low, "e"));
    assert_true(sees(a, &lo, "f"));
    varve_access_unref(a);
}

static void uid_is_of_unix_sockets_only(void **state)
{
    struct varve_access *a = rules("uid:1000 vda\nuid:0 vdb\n");
    struct varve_client_id u1000 = user(1000), root = user(0), net = at("127.0.0.1");

    (void)state;
    assert_true(sees(a, &u1000, "vda"));
    assert_false(sees(a, &u1000, "vdb"));
    assert_true(sees(a, &root, "vdb"));
    assert_false(sees(a, &net, "vdb"));
    varve_access_unref(a);
}

static struct varve_client_id vm(unsigned cid)
{
    struct sockaddr_vm addr = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = 1024};
    struct varve_client_id id = {.has_uid = false};

    memcpy(&id.addr, &addr, sizeof(addr));
    return id;
}

static void cid_is_of_vsock_only(void **state)
{
    struct varve_access *a = rules("cid:3 vda\ncid:4294967294 vdb\n");
    struct varve_client_id three = vm(3), four = vm(4), root = user(0), net = at("0.0.0.3");

    (void)state;
    assert_true(sees(a, &three, "vda"));
    assert_false(sees(a, &three, "vdb"));
    assert_false(sees(a, &four, "vda"));
    assert_false(sees(a, &root, "vda"));
    assert_false(sees(a, &net, "vda"));
    varve_access_unref(a);
    refused("cid:4294967295 vda", "number");
    refused("cid:x vda", "number");
}

static void rules_add_up_in_any_order(void **state)
{
    struct varve_access *a = rules("uid:1 vdb\nany vda\nuid:1 vdc  vd[x-z]\t# and a comment\n");
    struct varve_client_id u1 = user(1), u2 = user(2);

    (void)state;
    assert_true(sees(a, &u1, "vda") && sees(a, &u1, "vdb") && sees(a, &u1, "vdc"));
    assert_true(sees(a, &u1, "vdy") && !sees(a, &u1, "vdw"));
    assert_true(sees(a, &u2, "vda") && !sees(a, &u2, "vdb") && !sees(a, &u2, "vdy"));
    assert_false(sees(a, &u1, "comment"));
    varve_access_unref(a);
}

static void quotes_hide_blanks_and_hashes(void **state)
{
    struct varve_access *a = rules("dn:\"CN=a \\\"b\\\" #c\\\\d\" vda # x\r\n\"psk:x y\" v#b\n");
    struct varve_client_id dn = with_proof(VARVE_CLIENT_DN, "CN=a \"b\" #c\\d");
    struct varve_client_id psk = with_proof(VARVE_CLIENT_PSK, "x y");

    (void)state;
    assert_true(sees(a, &dn, "vda"));
    assert_true(sees(a, &psk, "v#b"));
    varve_access_unref(a);
}

static void errors_name_file_and_line(void **state)
{
    (void)state;
    refused("any vda\n\n# x\nuser:me vda\n", "rules:4: ");
    refused("any", "rules:1: which exports?");
    refused("any # vda", "which exports?");
    refused("vda any", "none of any, dn:");
    refused("dn: vda", "a name of 1");
    refused("psk:\"\" vda", "a name of 1");
    refused("dn:\"CN=a vda", "has no end");
    refused("dn:\"CN=\\a\" vda", "in quotes");
    refused("dn:\"CN=a\\", "in quotes");
    refused("any vda@monday", "@BASE");
    refused("any vda+delta", "@BASE");
    refused("any \"\"", "empty");
    refused("uid:root vda", "number");
    refused("uid:4294967295 vda", "number");
    refused("uid:99999999999999999999 vda", "number");
    refused("uid: vda", "number");
    refused("uid:-1 vda", "number");
    refused("ip:192.0.2.1/24 vda", "bits behind");
    refused("ip:192.0.2.0/33 vda", "wants an address");
    refused("ip:192.0.2.0/ vda", "wants an address");
    refused("ip:host vda", "wants an address");
    refused("ip: vda", "wants an address");
    refused("ip:2001:db8::1/32 vda", "bits behind");
    refused("ip:::ffff:192.0.2.1 vda", "IPv4");
    refused("any v\x01", "control byte");
}

static void file_that_is_not_there_is_named(void **state)
{
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_access *a = NULL;

    (void)state;
    assert_int_equal(varve_access_load("/nonexistent/rules", &a, &err), -ENOENT);
    assert_non_null(strstr(err.msg, "/nonexistent/rules"));
    assert_int_equal(varve_access_load("/", &a, &err), -EINVAL);
    assert_null(a);
}

static void random_bytes_are_rules_or_an_error(void **state)
{
    static const char alphabet[] = "any dnpskipuid:\"\\#*?[]!/.0129@+\n\t=,";
    struct varve_client_id who = user(0);

    (void)state;
    srand(7);
    for (int i = 0; i < 50000; i++) {
        struct varve_access *a = NULL;
        char text[64];
        size_t len = (size_t)rand() % sizeof(text);

        for (size_t k = 0; k < len; k++)
            text[k] = rand() % 50 ? alphabet[(size_t)rand() % (sizeof(alphabet) - 1)]
                                  : (char)(rand() & 255);
        if (varve_access_parse("f", text, len, &a, NULL) == 0)
            varve_access_allows(a, &who, text, len);
        varve_access_unref(a);
    }
}

static void peers_are_known_by_their_sockets(void **state)
{
    struct varve_client_id id = {0};
    char text[VARVE_CLIENT_TEXT_MAX], expected[64];
    int pair[2];

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(varve_client_id_of_socket(&id, pair[0], NULL), 0);
    assert_true(id.has_uid && id.uid == geteuid() && id.pid == getpid());
    snprintf(expected, sizeof(expected), "uid %u (pid %d)", geteuid(), getpid());
    assert_string_equal(varve_client_id_text(&id, text, sizeof(text)), expected);
    close(pair[0]);
    close(pair[1]);

    id = at("192.0.2.1");
    assert_string_equal(varve_client_id_text(&id, text, sizeof(text)), "192.0.2.1:0");
    id = at("2001:db8::1");
    assert_int_equal(varve_client_id_prove(&id, VARVE_CLIENT_PSK, "alice", 5, NULL), 0);
    assert_string_equal(varve_client_id_text(&id, text, sizeof(text)), "[2001:db8::1]:0 psk:alice");
    assert_string_equal(varve_client_id_text(&id, text, 10), "[2001:db8");
}

static void ipv4_on_a_dual_listener_is_ipv4(void **state)
{
    struct varve_access *a = rules("ip:127.0.0.0/8 vda\n");
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct varve_client_id id = {0};
    socklen_t len = sizeof(any);
    int off = 0, l, c, s;

    (void)state;
    l = socket(AF_INET6, SOCK_STREAM, 0);
    if (l < 0) {
        varve_access_unref(a);
        skip(); /* a machine without IPv6 has no such listener */
    }
    assert_int_equal(setsockopt(l, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)), 0);
    assert_int_equal(bind(l, (struct sockaddr *)&any, sizeof(any)), 0);
    assert_int_equal(listen(l, 1), 0);
    assert_int_equal(getsockname(l, (struct sockaddr *)&any, &len), 0);
    to.sin_port = any.sin6_port;
    c = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(c, (struct sockaddr *)&to, sizeof(to)), 0);
    s = accept(l, NULL, NULL);
    assert_int_equal(varve_client_id_of_socket(&id, s, NULL), 0);
    assert_true(sees(a, &id, "vda"));
    close(s);
    close(c);
    close(l);
    varve_access_unref(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_rules_everybody_sees_all),
        cmocka_unit_test(empty_file_lets_nobody_see_anything),
        cmocka_unit_test(any_means_everybody_and_only_its_exports),
        cmocka_unit_test(rule_for_a_disk_covers_its_bases_and_delta),
        cmocka_unit_test(pattern_never_matches_by_the_name_of_a_base),
        cmocka_unit_test(name_with_a_nul_or_of_any_length_is_just_refused),
        cmocka_unit_test(dn_matches_exactly),
        cmocka_unit_test(psk_user_is_no_dn),
        cmocka_unit_test(name_that_tls_could_not_prove_is_refused),
        cmocka_unit_test(networks_end_where_their_bits_end),
        cmocka_unit_test(uid_is_of_unix_sockets_only),
        cmocka_unit_test(cid_is_of_vsock_only),
        cmocka_unit_test(rules_add_up_in_any_order),
        cmocka_unit_test(quotes_hide_blanks_and_hashes),
        cmocka_unit_test(errors_name_file_and_line),
        cmocka_unit_test(file_that_is_not_there_is_named),
        cmocka_unit_test(random_bytes_are_rules_or_an_error),
        cmocka_unit_test(peers_are_known_by_their_sockets),
        cmocka_unit_test(ipv4_on_a_dual_listener_is_ipv4),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
