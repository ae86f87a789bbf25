/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One TLS session, server's side, between two queues of memory: records from the peer go in,
 * records for the peer come out.  One thread at a time.  It touches no socket, never waits, and
 * what a peer sends or withholds makes neither queue longer than its bound.
 *
 *     socket ──▶ room/filled ──▶ [ handshake, recv ] ──▶ plain bytes
 *     socket ◀── take_output ◀── [ handshake, send, bye ] ◀── plain bytes
 */
#ifndef VARVE_SERVER_TLS_SESSION_H
#define VARVE_SERVER_TLS_SESSION_H

#include "lib/err.h"
#include "server/nbd/client-id.h"
#include "server/nbd/tls.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Records that wait to be looked at. */
#define VARVE_TLS_INPUT_LEN (16u * 1024u)

/* Plain bytes of one record at most. */
#define VARVE_TLS_RECORD_MAX 16384u

/* Records that wait to be sent; when there are more, send and handshake fail. */
#define VARVE_TLS_OUTPUT_MAX (1024u * 1024u)

struct varve_tls_session;

/* Takes a reference of its own to t. */
int varve_tls_session_new(struct varve_tls *t, struct varve_tls_session **out,
                          struct varve_err *err);
void varve_tls_session_free(struct varve_tls_session *s); /* s may be NULL */

/* Where bytes from the peer go, *len of them (0: not before some were looked at); then how many it
 * were. */
uint8_t *varve_tls_session_room(struct varve_tls_session *s, size_t *len);
void varve_tls_session_filled(struct varve_tls_session *s, size_t len);
/* Throws away what was not looked at. */
void varve_tls_session_ignore(struct varve_tls_session *s);

/* 0: done; -EAGAIN: more input is needed; else it failed, and the output ends with the alert that
 * tells the peer why.  In each case there may be output. */
int varve_tls_session_handshake(struct varve_tls_session *s, struct varve_err *err);

/* After the handshake: what the peer proved, into id.  -EINVAL: it has a name that we cannot use.
 */
int varve_tls_session_identify(const struct varve_tls_session *s, struct varve_client_id *id,
                               struct varve_err *err);

/* Plain bytes: how many came; 0: the peer ended the session in order; -EAGAIN: more input is
 * needed; else the session is broken (the peer wanting a new handshake is so, too). */
ssize_t varve_tls_session_recv(struct varve_tls_session *s, void *buf, size_t len,
                               struct varve_err *err);

/* Room for the records of len bytes, so that they are not moved while they are made; a hint. */
void varve_tls_session_reserve(struct varve_tls_session *s, size_t len);

/* Makes records of all the bytes.  After an error the session is of no use. */
int varve_tls_session_send(struct varve_tls_session *s, const void *buf, size_t len,
                           struct varve_err *err);

/* Adds our close_notify to the output. */
void varve_tls_session_bye(struct varve_tls_session *s);

/* Records that wait to be sent. */
size_t varve_tls_session_output_len(const struct varve_tls_session *s);

/* Hands them over: *data is the caller's to free.  False: there are none. */
bool varve_tls_session_take_output(struct varve_tls_session *s, uint8_t **data, size_t *len);

#endif
