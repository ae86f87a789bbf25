/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Letters from any thread to the loop's: delivered there, in the order in which they were posted.
 * post() may be called from any thread and never waits; everything else belongs to the loop's
 * thread. It owns no letter: whoever posts one keeps it alive until it is delivered.
 */
#ifndef VARVE_SERVER_MAILBOX_H
#define VARVE_SERVER_MAILBOX_H

#include "lib/err.h"

#include <uv.h>

struct varve_letter {
    struct varve_letter *next;
    void (*deliver)(struct varve_letter *letter); /* on the loop; may free the letter */
};

struct varve_mailbox;

int varve_mailbox_new(uv_loop_t *loop, struct varve_mailbox **out, struct varve_err *err);

void varve_mailbox_post(struct varve_mailbox *m, struct varve_letter *letter);

/* Delivers what is there and frees the mailbox.  Nobody may post any more. */
void varve_mailbox_close(struct varve_mailbox *m);

#endif
