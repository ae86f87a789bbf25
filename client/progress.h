/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A progress bar on a terminal's standard error, nothing elsewhere.
 * One thread at a time.  It never fails.
 */
#ifndef VARVE_CLIENT_PROGRESS_H
#define VARVE_CLIENT_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct varve_progress {
    const char *what; /* borrowed */
    bool shown;       /* standard error is a terminal */
    int64_t begun_ms, drawn_ms;
};

void varve_progress_begin(struct varve_progress *p, const char *what);
/* done of total bytes of the disk are dealt with, moved bytes went over the wire.  Draws a few
 * times a second at most. */
void varve_progress_draw(struct varve_progress *p, uint64_t done, uint64_t total, uint64_t moved);
/* Takes the bar away. */
void varve_progress_end(struct varve_progress *p);

#endif
