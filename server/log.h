/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The daemon's log: lines on standard error, "varved: …".  Any thread.  It never waits for anything
 * but that one write, and never breaks a line in two.
 */
#ifndef VARVE_SERVER_LOG_H
#define VARVE_SERVER_LOG_H

/* One line; what could end it or drive a terminal is replaced. */
void varve_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
