/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The standard output as one picture that is drawn again and again: on a terminal in place, clipped
 * to it, on its second page; elsewhere, and on a dumb terminal, one picture behind the other.  One
 * in a program, one thread.  However the program ends, but by SIGKILL, the terminal is as it was.
 */
#ifndef VARVE_CLIENT_SCREEN_H
#define VARVE_CLIENT_SCREEN_H

/* Takes the terminal, if there is one to draw on.  SIGINT ends the program with status 0 then. */
void varve_screen_open(void);
/* Gives it back.  Twice, or without an open, does no harm. */
void varve_screen_close(void);

/* Lines, whose only control sequences are colours. */
void varve_screen_show(const char *picture);

enum varve_screen_news {
    VARVE_SCREEN_TIME,     /* timeout_ms have passed */
    VARVE_SCREEN_READABLE, /* fd has input, or has ended */
    VARVE_SCREEN_REDRAW,   /* the terminal has another size, or is ours again */
    VARVE_SCREEN_REFRESH,  /* a key that asks for news was pressed */
    VARVE_SCREEN_QUIT      /* q was pressed */
};

/* fd -1: none. */
enum varve_screen_news varve_screen_wait(int timeout_ms, int fd);

#endif
