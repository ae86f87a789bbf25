/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tells systemd how we are (sd_notify(3)'s protocol): a datagram to $NOTIFY_SOCKET.  Any thread
 * that may read the environment.  Without that variable it does nothing; it never waits.
 */
#ifndef VARVE_SERVER_SD_NOTIFY_H
#define VARVE_SERVER_SD_NOTIFY_H

/* state: "READY=1", "STOPPING=1", "WATCHDOG=1", … */
void varve_sd_notify(const char *state);

/* How often "WATCHDOG=1" is to be said, in milliseconds: twice within what the manager waits
 * (sd_watchdog_enabled(3)).  0: never.  Main thread, once, before there are others: children see
 * nothing of it. */
unsigned varve_sd_watchdog_ms(void);

#endif
