/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/nbd/client-id.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

/* On a listener at [::] IPv4 peers look like IPv6: rules and people mean the address itself. */
static void addr_unmap(struct sockaddr_storage *addr)
{
    struct sockaddr_in6 six;
    struct sockaddr_in four = {.sin_family = AF_INET};

    if (addr->ss_family != AF_INET6)
        return;
    memcpy(&six, addr, sizeof(six));
    if (!IN6_IS_ADDR_V4MAPPED(&six.sin6_addr))
        return;
    four.sin_port = six.sin6_port;
    memcpy(&four.sin_addr, &six.sin6_addr.s6_addr[12], 4);
    memset(addr, 0, sizeof(*addr));
    memcpy(addr, &four, sizeof(four));
}

int varve_client_id_of_socket(struct varve_client_id *id, int fd, struct varve_err *err)
{
    socklen_t len = sizeof(id->addr);
    struct ucred cred;
    socklen_t cred_len = sizeof(cred);

    if (getpeername(fd, (struct sockaddr *)&id->addr, &len)) {
        memset(&id->addr, 0, sizeof(id->addr));
        return varve_err_sys(err, errno, "the peer's address");
    }
    addr_unmap(&id->addr);
    if (id->addr.ss_family != AF_UNIX)
        return 0;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &cred_len))
        return varve_err_sys(err, errno, "the peer's uid");
    id->has_uid = true;
    id->uid = cred.uid;
    id->pid = cred.pid;
    return 0;
}

int varve_client_id_prove(struct varve_client_id *id, enum varve_client_proof proof,
                          const void *name, size_t len, struct varve_err *err)
{
    if (!len || len > VARVE_CLIENT_NAME_MAX)
        return varve_err_set(err, EINVAL, "the client's name has %zu bytes, allowed are 1 to %u",
                             len, VARVE_CLIENT_NAME_MAX);
    if (memchr(name, 0, len))
        return varve_err_set(err, EINVAL, "the client's name holds a NUL byte");
    memcpy(id->name, name, len);
    id->name[len] = 0;
    id->proof = proof;
    return 0;
}

const char *varve_client_id_peer(const struct varve_client_id *id, char *buf, size_t len)
{
    char host[INET6_ADDRSTRLEN] = "?";
    struct sockaddr_in6 six;
    struct sockaddr_in four;
    struct sockaddr_vm vm;

    switch (id->addr.ss_family) {
    case AF_INET:
        memcpy(&four, &id->addr, sizeof(four));
        inet_ntop(AF_INET, &four.sin_addr, host, sizeof(host));
        snprintf(buf, len, "%s:%u", host, ntohs(four.sin_port));
        break;
    case AF_INET6:
        memcpy(&six, &id->addr, sizeof(six));
        inet_ntop(AF_INET6, &six.sin6_addr, host, sizeof(host));
        snprintf(buf, len, "[%s]:%u", host, ntohs(six.sin6_port));
        break;
    case AF_VSOCK:
        memcpy(&vm, &id->addr, sizeof(vm));
        snprintf(buf, len, "vsock:%u:%u", vm.svm_cid, vm.svm_port);
        break;
    default:
        if (id->has_uid)
            snprintf(buf, len, "uid %lu (pid %ld)", (unsigned long)id->uid, (long)id->pid);
        else
            snprintf(buf, len, "unknown");
        break;
    }
    return buf;
}

const char *varve_client_id_identity(const struct varve_client_id *id, char *buf, size_t len)
{
    bool named = id->proof == VARVE_CLIENT_DN || id->proof == VARVE_CLIENT_PSK;

    snprintf(buf, len, "%s%s", named ? (id->proof == VARVE_CLIENT_DN ? "dn:" : "psk:") : "",
             named ? id->name : "");
    return buf;
}

const char *varve_client_id_text(const struct varve_client_id *id, char *buf, size_t len)
{
    char peer[VARVE_CLIENT_PEER_MAX], identity[VARVE_CLIENT_NAME_MAX + 8];

    varve_client_id_peer(id, peer, sizeof(peer));
    varve_client_id_identity(id, identity, sizeof(identity));
    if (id->proof == VARVE_CLIENT_ANONYMOUS)
        snprintf(buf, len, "%s tls", peer);
    else
        snprintf(buf, len, "%s%s%s", peer, *identity ? " " : "", identity);
    return buf;
}
