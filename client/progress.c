/* SPDX-License-Identifier: BSD-3-Clause */
#include "client/progress.h"
#include "client/out.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DRAW_EVERY_MS 200
#define BAR_WIDTH     30

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

void varve_progress_begin(struct varve_progress *p, const char *what)
{
    *p = (struct varve_progress){.what = what, .shown = isatty(STDERR_FILENO)};
    p->begun_ms = now_ms();
}

void varve_progress_draw(struct varve_progress *p, uint64_t done, uint64_t total, uint64_t moved)
{
    char size[2][VARVE_OUT_SIZE_LEN];
    char bar[BAR_WIDTH + 1];
    int64_t now, spent_ms;
    double part;

    if (!p->shown)
        return;
    now = now_ms();
    if (now - p->drawn_ms < DRAW_EVERY_MS)
        return;
    p->drawn_ms = now;
    spent_ms = now - p->begun_ms + 1;
    part = done < total ? (double)done / (double)total : 1; /* both are told by others */
    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', (size_t)(part * BAR_WIDTH));
    bar[BAR_WIDTH] = '\0';
    fprintf(stderr, "\r%s [%s] %3d%%  %s moved, %s/s", p->what, bar, (int)(part * 100),
            varve_out_size(size[0], moved),
            varve_out_size(size[1], (uint64_t)((double)moved * 1000 / (double)spent_ms)));
    if (part > 0.01 && spent_ms > 2000) {
        uint64_t left_s = (uint64_t)((double)spent_ms / part * (1 - part) / 1000);
        char span[VARVE_OUT_SPAN_LEN];

        fprintf(stderr, ", %s left", varve_out_span(span, left_s));
    }
    fprintf(stderr, "\033[K");
}

void varve_progress_end(struct varve_progress *p)
{
    if (p->drawn_ms)
        fprintf(stderr, "\r\033[K");
}
