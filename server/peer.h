/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The daemon's end of a link (lib/link-proto.h): the plugin that serves a disk, asked with a time
 * limit.  For the clerk's thread.  It believes nothing of what the peer says before it is checked,
 * and never waits longer than it was told.
 *
 * One request is under way at a time: ask, then answer.  After any error but one that the peer
 * itself answered, the peer is lost: varve_peer_lost() is true and all that is left is to free it.
 */
#ifndef VARVE_SERVER_PEER_H
#define VARVE_SERVER_PEER_H

#include "lib/block.h"
#include "lib/err.h"
#include "lib/identity.h"
#include "lib/link-proto.h"
#include "lib/paths.h"

#include <stdbool.h>
#include <stdint.h>

struct varve_peer;

/* Whether it knows views that do not need every block: NARROW, DONE and RELEASE. */
bool varve_peer_can_narrow(const struct varve_peer *peer);

struct varve_peer_hello {
    int pid;
    uint64_t live_epoch;
    unsigned freeze_timeout_ms;
    bool durable;         /* durability=host */
    uint64_t scratch_max; /* bytes; 0: no limit */
    int ctl_fd, image_fd; /* the caller's to close */
};

/* Connects to the disk's plugin and exchanges HELLO, within timeout_ms.  stop_fd: a descriptor that
 * cuts every wait short once it is readable.  -ENOENT, -ECONNREFUSED: nobody serves the disk;
 * -EPERM, -EPROTO: somebody does whom we do not believe; -VARVE_LINK_PRIVATE: somebody does who has
 * nothing to be read; -ETIMEDOUT. */
int varve_peer_open(const char *disk, const struct varve_paths *p, const struct varve_identity *id,
                    int stop_fd, unsigned timeout_ms, struct varve_peer **out,
                    struct varve_peer_hello *hello, struct varve_err *err);
void varve_peer_free(struct varve_peer *peer);

/* The peer has closed, or broke the rules. */
bool varve_peer_lost(struct varve_peer *peer);

/* Sends a request. */
int varve_peer_ask(struct varve_peer *peer, enum varve_link_type type, uint64_t arg0, uint64_t arg1,
                   struct varve_err *err);

/* The same for NARROW and RELEASE.  fd is borrowed; -1: none. */
int varve_peer_ask_with(struct varve_peer *peer, enum varve_link_type type, const uint64_t arg[3],
                        int fd, struct varve_err *err);

/* Waits for its answer.  For EPOCH and PREPARE fds gets three descriptors (-1: none), the caller's
 * to close, and *epoch the number; for NARROW and DONE fds[0] the done map, and *epoch the view's
 * id; else both may be NULL.  The peer's own error: its -errno and sentence. */
int varve_peer_answer(struct varve_peer *peer, unsigned timeout_ms, uint64_t *epoch, int fds[3],
                      struct varve_err *err);

#endif
