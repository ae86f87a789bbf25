/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Certificates lie where nbdkit and QEMU look for them: DIR/ca-cert.pem, server-cert.pem,
 * server-key.pem, and ca-crl.pem if there is one.
 */
#include "server/nbd/tls.h"

#include "server/nbd/small-file.h"
#include "server/nbd/tls-psk.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/x509.h>

/* The system's policy if it has one, as nbdkit does it; doc/proto.md wants nothing below TLS 1.2.
 */
#define PRIORITY_SYSTEM "@VARVE,SYSTEM"
#define PRIORITY_OURS   "NORMAL"
#define PRIORITY_REST   ":-VERS-TLS1.0:-VERS-TLS1.1"
#define PRIORITY_PSK    ":+ECDHE-PSK:+DHE-PSK:+PSK"

struct varve_tls {
    _Atomic unsigned refs;
    enum varve_tls_mode mode;
    bool verify_peer;
    gnutls_priority_t priority;
    gnutls_certificate_credentials_t x509; /* or NULL */
    gnutls_psk_server_credentials_t psk;   /* or NULL */
    struct varve_psk *users;
};

/* What a client's certificate must be good for, if it says what it is good for. */
static gnutls_typed_vdata_st client_purpose[] = {
    {GNUTLS_DT_KEY_PURPOSE_OID, (unsigned char *)GNUTLS_KP_TLS_WWW_CLIENT, 0},
};

/* Writes GnuTLS's reason behind the sentence. */
static int tls_err(struct varve_err *err, int rc, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static int tls_err(struct varve_err *err, int rc, const char *fmt, ...)
{
    char what[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    return varve_err_set(err, rc == GNUTLS_E_MEMORY_ERROR ? ENOMEM : EINVAL, "%s: %s", what,
                         gnutls_strerror(rc));
}

/* --- certificates --------------------------------------------------------------------------- */

struct pem {
    char *path;
    char *data;
    size_t len;
};

static void pem_fini(struct pem *p)
{
    varve_small_file_wipe(p->data, p->len);
    free(p->path);
}

static int pem_read(struct pem *p, const char *dir, const char *name, struct varve_err *err)
{
    int rc;

    if (asprintf(&p->path, "%s/%s", dir, name) < 0) {
        p->path = NULL;
        return varve_err_set(err, ENOMEM, "%s: no memory", dir);
    }
    rc = varve_small_file_read(p->path, &p->data, &p->len, err);
    return rc;
}

static gnutls_datum_t pem_datum(const struct pem *p)
{
    return (gnutls_datum_t){(unsigned char *)p->data, (unsigned)p->len};
}

static int load_ca(struct varve_tls *t, const char *dir, struct varve_err *err)
{
    struct pem ca = {0};
    gnutls_datum_t d;
    int rc = pem_read(&ca, dir, "ca-cert.pem", err);

    if (rc == 0) {
        d = pem_datum(&ca);
        rc = gnutls_certificate_set_x509_trust_mem(t->x509, &d, GNUTLS_X509_FMT_PEM);
        if (rc < 0)
            rc = tls_err(err, rc, "%s", ca.path);
        else
            rc = rc ? 0 : varve_err_set(err, EINVAL, "%s holds no certificate", ca.path);
    }
    pem_fini(&ca);
    return rc;
}

static int load_crl(struct varve_tls *t, const char *dir, struct varve_err *err)
{
    struct pem crl = {0};
    gnutls_datum_t d;
    int rc = pem_read(&crl, dir, "ca-crl.pem", err);

    if (rc == 0) {
        d = pem_datum(&crl);
        rc = gnutls_certificate_set_x509_crl_mem(t->x509, &d, GNUTLS_X509_FMT_PEM);
        rc = rc < 0 ? tls_err(err, rc, "%s", crl.path) : 0;
    } else if (rc == -ENOENT) {
        rc = 0; /* most have none */
    }
    pem_fini(&crl);
    return rc;
}

/* Parsed here and not by gnutls_certificate_set_x509_key_mem2(), which loses memory when a file is
 * broken, and does not say which. */
static int use_key(struct varve_tls *t, const struct pem *cert, const struct pem *key,
                   struct varve_err *err)
{
    gnutls_datum_t c = pem_datum(cert), k = pem_datum(key);
    gnutls_x509_privkey_t private = NULL;
    gnutls_x509_crt_t *chain = NULL;
    unsigned n = 0;
    int rc;

    rc = gnutls_x509_crt_list_import2(&chain, &n, &c, GNUTLS_X509_FMT_PEM, 0);
    if (rc < 0)
        return tls_err(err, rc, "%s", cert->path);
    rc = gnutls_x509_privkey_init(&private);
    if (rc >= 0)
        rc = gnutls_x509_privkey_import2(private, &k, GNUTLS_X509_FMT_PEM, NULL, 0);
    if (rc < 0)
        rc = tls_err(err, rc, "%s", key->path);
    else if ((rc = gnutls_certificate_set_x509_key(t->x509, chain, (int)n, private)) < 0)
        rc = tls_err(err, rc, "%s and server-key.pem", cert->path);
    gnutls_x509_privkey_deinit(private);
    for (unsigned i = 0; i < n; i++)
        gnutls_x509_crt_deinit(chain[i]);
    gnutls_free(chain);
    return rc < 0 ? rc : 0;
}

static int load_key(struct varve_tls *t, const char *dir, struct varve_err *err)
{
    struct pem cert = {0}, key = {0};
    int rc = pem_read(&cert, dir, "server-cert.pem", err);

    if (rc == 0)
        rc = pem_read(&key, dir, "server-key.pem", err);
    if (rc == 0)
        rc = use_key(t, &cert, &key, err);
    pem_fini(&cert);
    pem_fini(&key);
    return rc;
}

static int load_certificates(struct varve_tls *t, const char *dir, struct varve_err *err)
{
    struct varve_err e = VARVE_ERR_INIT;
    int rc = gnutls_certificate_allocate_credentials(&t->x509);

    if (rc < 0)
        return tls_err(err, rc, "--tls-certificates %s", dir);
    gnutls_certificate_set_known_dh_params(t->x509, GNUTLS_SEC_PARAM_MEDIUM);
    rc = load_ca(t, dir, &e);
    if (rc == 0)
        rc = load_crl(t, dir, &e);
    if (rc == 0)
        rc = load_key(t, dir, &e);
    if (rc)
        varve_err_set(err, e.code,
                      "%s; --tls-certificates wants ca-cert.pem, server-cert.pem and "
                      "server-key.pem in %s",
                      e.msg, dir);
    return rc;
}

/* --- pre-shared keys ------------------------------------------------------------------------ */

/* GnuTLS makes up a key for a user that is not there (1), so that nobody can find out users. */
static int psk_find(gnutls_session_t session, const gnutls_datum_t *user, gnutls_datum_t *key)
{
    const struct varve_tls *t = gnutls_session_get_ptr(session);
    size_t len;
    const uint8_t *found = varve_psk_find(t->users, user->data, user->size, &len);

    if (!found)
        return 1;
    key->data = gnutls_malloc(len);
    if (!key->data)
        return -1;
    memcpy(key->data, found, len);
    key->size = (unsigned)len;
    return 0;
}

static int load_psk(struct varve_tls *t, const char *file, struct varve_err *err)
{
    struct varve_err e = VARVE_ERR_INIT;
    int rc = gnutls_psk_allocate_server_credentials(&t->psk);

    if (rc < 0)
        return tls_err(err, rc, "--tls-psk %s", file);
    gnutls_psk_set_server_known_dh_params(t->psk, GNUTLS_SEC_PARAM_MEDIUM);
    gnutls_psk_set_server_credentials_function2(t->psk, psk_find);
    rc = varve_psk_load(file, &t->users, &e);
    if (rc)
        varve_err_set(err, e.code, "%s; --tls-psk wants a file of psktool(1)", e.msg);
    return rc;
}

/* --- both ----------------------------------------------------------------------------------- */

static int init_priority(struct varve_tls *t, struct varve_err *err)
{
    const char *psk = t->psk ? PRIORITY_PSK : "";
    char text[128];
    int rc;

    snprintf(text, sizeof(text), "%s%s%s", PRIORITY_SYSTEM, PRIORITY_REST, psk);
    rc = gnutls_priority_init(&t->priority, text, NULL);
    if (rc < 0) {
        snprintf(text, sizeof(text), "%s%s%s", PRIORITY_OURS, PRIORITY_REST, psk);
        rc = gnutls_priority_init(&t->priority, text, NULL);
    }
    return rc < 0 ? tls_err(err, rc, "TLS priority %s", text) : 0;
}

int varve_tls_options_check(const struct varve_tls_options *o, struct varve_err *err)
{
    if (o->mode == VARVE_TLS_OFF && (o->certificates || o->psk || o->verify_peer))
        return varve_err_set(err, EINVAL, "%s does nothing without --tls on or --tls require",
                             o->certificates ? "--tls-certificates"
                             : o->psk        ? "--tls-psk"
                                             : "--tls-verify-peer");
    if (o->mode == VARVE_TLS_OFF)
        return 0;
    if (!o->certificates && !o->psk)
        return varve_err_set(err, EINVAL, "--tls %s needs --tls-certificates DIR or --tls-psk FILE",
                             o->mode == VARVE_TLS_REQUIRE ? "require" : "on");
    if (o->verify_peer && !o->certificates)
        return varve_err_set(err, EINVAL, "--tls-verify-peer needs --tls-certificates DIR");
    return 0;
}

int varve_tls_load(const struct varve_tls_options *o, struct varve_tls **out, struct varve_err *err)
{
    struct varve_tls *t;
    int rc;

    *out = NULL;
    rc = varve_tls_options_check(o, err);
    if (rc || o->mode == VARVE_TLS_OFF)
        return rc;
    t = calloc(1, sizeof(*t));
    if (!t)
        return varve_err_set(err, ENOMEM, "TLS: no memory");
    atomic_init(&t->refs, 1);
    t->mode = o->mode;
    t->verify_peer = o->verify_peer;
    if (o->certificates)
        rc = load_certificates(t, o->certificates, err);
    if (rc == 0 && o->psk)
        rc = load_psk(t, o->psk, err);
    if (rc == 0)
        rc = init_priority(t, err);
    if (rc)
        varve_tls_unref(t);
    else
        *out = t;
    return rc;
}

struct varve_tls *varve_tls_ref(struct varve_tls *t)
{
    if (t)
        atomic_fetch_add(&t->refs, 1);
    return t;
}

void varve_tls_unref(struct varve_tls *t)
{
    if (!t || atomic_fetch_sub(&t->refs, 1) != 1)
        return;
    if (t->priority)
        gnutls_priority_deinit(t->priority);
    if (t->x509)
        gnutls_certificate_free_credentials(t->x509);
    if (t->psk)
        gnutls_psk_free_server_credentials(t->psk);
    varve_psk_free(t->users);
    free(t);
}

bool varve_tls_required(const struct varve_tls *t)
{
    return t && t->mode == VARVE_TLS_REQUIRE;
}

int varve_tls_apply(struct varve_tls *t, gnutls_session_t session, struct varve_err *err)
{
    int rc = gnutls_priority_set(session, t->priority);

    gnutls_session_set_ptr(session, t);
    if (rc >= 0 && t->x509)
        rc = gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, t->x509);
    if (rc >= 0 && t->psk)
        rc = gnutls_credentials_set(session, GNUTLS_CRD_PSK, t->psk);
    if (rc < 0)
        return tls_err(err, rc, "TLS session");
    if (t->verify_peer) {
        gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
        gnutls_session_set_verify_cert2(session, client_purpose, 1, 0);
    }
    return 0;
}
