/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The link between a plugin and the daemon: one message a datagram on a unix SEQPACKET socket in the
 * disk's runtime folder (or, where it cannot be made there, its state folder), native byte order (both ends are on one host), fds beside messages.
 * The daemon asks, the plugin answers each request once and in order; the plugin never speaks first.
 * This page encodes, checks and moves single messages; it keeps no state.
 *
 *   HELLO    -> arg[0] lowest, arg[1] highest version we speak
 *            <- arg[0] the highest of them that the plugin speaks, too, [1] pid, [2] size,
 *               [3] block shift, [4] live epoch, [5] freeze timeout ms, [6] durability (1 host,
 *               0 process), [7] scratch-max; uuid; text: image path; fds: control page, image
 *   EPOCH    -> arg[0] number               <- arg[0] number, [1] armed; fds: live [, lost, scratch]
 *   PREPARE  -> arg[0] arm                  <- as EPOCH
 *   QUIESCE, ABORT, SEAL -> nothing         <- nothing
 *   SWAP     -> arg[0] epoch, [1] view id   <- nothing
 *   END_VIEW -> arg[0] view id              <- nothing
 * From version 2 on (lib/tracker.h has the meaning):
 *   NARROW   -> arg[0] view id; fds: none, or a map of the disk's blocks, a plain file
 *                                           <- arg[0] view id; fds: its done map
 *   DONE     -> arg[0] view id              <- as NARROW
 *   RELEASE  -> arg[0] view id, [1] off, [2] len, at most VARVE_LINK_RELEASE_MAX
 *                                           <- nothing
 * HELLO is refused with VARVE_LINK_PRIVATE by who serves the disk without a runtime folder: nothing can be
 * read from it, and the text says why.
 * A reply has the request's type and seq; status 0, or -errno with the sentence as text.
 * A connection that is lost while it has quiesced the disk aborts the boundary.
 */
#ifndef VARVE_LIB_LINK_PROTO_H
#define VARVE_LIB_LINK_PROTO_H

#include "lib/err.h"

#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>

#define VARVE_LINK_MAGIC   0x4b4c5656u /* "VVLK" */
#define VARVE_LINK_VERSION 2u
#define VARVE_LINK_VERSION_MIN 1u /* all that came after it can be done without */
#define VARVE_LINK_VERSION_NARROW 2u
#define VARVE_LINK_FDS_MAX 3

/* What one request releases: freeing it should not keep the plugin from a boundary. */
#define VARVE_LINK_RELEASE_MAX (UINT64_C(64) << 20)

#define VARVE_LINK_PRIVATE ENOTRECOVERABLE

enum varve_link_type {
    VARVE_LINK_HELLO = 1,
    VARVE_LINK_EPOCH,
    VARVE_LINK_PREPARE,
    VARVE_LINK_QUIESCE,
    VARVE_LINK_SWAP,
    VARVE_LINK_ABORT,
    VARVE_LINK_SEAL,
    VARVE_LINK_END_VIEW,
    VARVE_LINK_NARROW,
    VARVE_LINK_DONE,
    VARVE_LINK_RELEASE,
    VARVE_LINK_TYPE_END
};

struct varve_link_msg {
    uint32_t magic;
    uint32_t type;
    uint32_t seq;
    int32_t status; /* 0 or -errno; 0 in requests */
    uint64_t arg[8];
    uint8_t uuid[16];
    uint32_t text_len;
    char text[PATH_MAX]; /* text_len bytes are sent; received ones are followed by a NUL */
};

void varve_link_msg_init(struct varve_link_msg *m, enum varve_link_type type, uint32_t seq);
/* Cuts what is too long. */
void varve_link_msg_text(struct varve_link_msg *m, const char *text);

/* Sends without waiting.  fds are borrowed.  -EAGAIN: the socket is full; -errno. */
int varve_link_send(int sock, const struct varve_link_msg *m, const int *fds, unsigned nfds);

/* Receives one message without waiting and checks it: size, magic, type, text.  fds beyond nfds_max
 * are closed and make it an error.  *nfds tells how many came (the caller's to close).
 * 1: got one; 0: the peer has closed; -EAGAIN: nothing there; -EPROTO: not our peer, with err;
 * -EMFILE, with err: got one without its files, for which this process has no descriptors. */
int varve_link_recv(int sock, struct varve_link_msg *m, int *fds, unsigned nfds_max,
                    unsigned *nfds, struct varve_err *err);

/* SO_PEERCRED: the peer runs as us or as root.  -EPERM.  *pid (may be NULL) gets its pid. */
int varve_link_check_peer(int sock, int *pid, struct varve_err *err);

#endif
