/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Who gives the terminal back:
 *
 *     q, an error, the last picture    varve_screen_close
 *     exit() from anywhere             the same, by atexit
 *     a signal that ends a program     its handler, which only writes and sets modes; SIGINT is how
 *                                      one leaves, so its status is 0, the others end us as ever
 *     Ctrl-Z                           varve_screen_wait, which takes it again afterwards
 *
 * Signals that only change the picture are let in nowhere but in the wait.
 */
#include "client/screen.h"
#include "client/out.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

/* The second page, without a cursor; and back, whatever colour was on. */
static const char enter_page[] = "\033[?1049h\033[?25l\033[2J";
static const char leave_page[] = "\033[0m\033[?25h\033[?1049l";

/* Handlers have no argument.  live and before are set before any handler is, for good. */
static volatile sig_atomic_t taken, stopped, continued;
static bool live;
static bool has_modes; /* before is what the standard input's terminal was like */
static bool listens;   /* somebody may type */
static struct termios before;
static sigset_t wait_mask; /* with which we wait */

static void put(const char *text, size_t len)
{
    while (len > 0) {
        ssize_t n = write(STDOUT_FILENO, text, len);

        if (n < 0 && errno != EINTR)
            return; /* the terminal is gone: SIGHUP follows */
        if (n > 0) {
            text += n;
            len -= (size_t)n;
        }
    }
}

/* --- taking it and giving it back ----------------------------------------------------------- */

static void take(void)
{
    struct termios mine = before;

    mine.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    mine.c_cc[VMIN] = 1;
    mine.c_cc[VTIME] = 0;
    if (has_modes)
        tcsetattr(STDIN_FILENO, TCSANOW, &mine);
    if (taken)
        return;
    taken = 1;
    put(enter_page, sizeof(enter_page) - 1);
}

/* Safe in handlers. */
static void give_back(void)
{
    if (!taken)
        return;
    taken = 0;
    put(leave_page, sizeof(leave_page) - 1);
    if (has_modes)
        tcsetattr(STDIN_FILENO, TCSANOW, &before);
}

static void on_end(int number)
{
    give_back();
    if (number == SIGINT)
        _exit(0);
    signal(number, SIG_DFL);
    raise(number);
}

static void on_change(int number)
{
    if (number == SIGTSTP)
        stopped = 1;
    else if (number == SIGCONT)
        continued = 1;
}

/* What is ignored, as under nohup, or is somebody else's, as a sanitizer's, stays so. */
static void handle(int number, void (*handler)(int))
{
    struct sigaction mine = {.sa_handler = handler}, old;

    if (sigaction(number, NULL, &old) == 0 && old.sa_handler == SIG_DFL)
        sigaction(number, &mine, NULL);
}

void varve_screen_open(void)
{
    static const int ends[] = {SIGINT,  SIGTERM, SIGHUP, SIGQUIT, SIGPIPE,
                               SIGABRT, SIGSEGV, SIGBUS, SIGFPE,  SIGILL};
    static const int changes[] = {SIGTSTP, SIGCONT, SIGWINCH};
    const char *term = getenv("TERM");
    sigset_t blocked;

    if (!isatty(STDOUT_FILENO) || !term || !term[0] || strcmp(term, "dumb") == 0)
        return;
    live = true;
    has_modes = listens = tcgetattr(STDIN_FILENO, &before) == 0;
    sigemptyset(&blocked);
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++)
        sigaddset(&blocked, changes[i]);
    sigprocmask(SIG_BLOCK, &blocked, &wait_mask);
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        sigdelset(&wait_mask, changes[i]);
        handle(changes[i], on_change);
    }
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
        handle(ends[i], on_end);
    atexit(varve_screen_close);
    take();
}

void varve_screen_close(void)
{
    give_back();
}

/* Stops as the shell expects it, and goes on when it says so. */
static void stop_here(void)
{
    struct sigaction ours, none = {.sa_handler = SIG_DFL};
    sigset_t only, mask;

    give_back();
    sigaction(SIGTSTP, &none, &ours);
    raise(SIGTSTP); /* it is blocked */
    sigemptyset(&only);
    sigaddset(&only, SIGTSTP);
    sigprocmask(SIG_UNBLOCK, &only, &mask); /* here */
    sigprocmask(SIG_SETMASK, &mask, NULL);
    sigaction(SIGTSTP, &ours, NULL);
    take();
}

/* --- drawing -------------------------------------------------------------------------------- */

/* Writes of one line what fits into `room` columns; a colour sequence takes none. */
static void put_clipped(FILE *f, const char *line, size_t len, int room)
{
    const char *end = line + len;
    mbstate_t state = {0};

    while (line < end) {
        wchar_t wide;
        size_t n = mbrtowc(&wide, line, (size_t)(end - line), &state);
        int width;

        if (*line == '\033') {
            n = strcspn(line, "m") + 1;
            width = 0;
        } else if (n == 0 || n > (size_t)(end - line)) {
            n = 1;
            width = 1;
            memset(&state, 0, sizeof(state));
        } else {
            width = wcwidth(wide);
        }
        if (width > room)
            break;
        room -= width > 0 ? width : 0;
        fwrite(line, 1, n, f);
        line += n;
    }
}

static void put_picture(FILE *f, const char *picture, int rows, int columns)
{
    int row = 0;

    fputs("\033[H", f);
    for (const char *line = picture; *line && row < rows; row++) {
        size_t len = strcspn(line, "\n");

        /* The last column stays free: what is written there may wrap. */
        fputs(row ? "\r\n" : "", f);
        put_clipped(f, line, len, columns - 1);
        fputs("\033[0m\033[K", f);
        line += len + (line[len] == '\n');
    }
    fputs("\033[J", f);
}

void varve_screen_show(const char *picture)
{
    struct winsize ws = {0};
    char *text = NULL;
    size_t len = 0;
    FILE *f;

    if (!live) {
        printf("%s\n", picture);
        fflush(stdout);
        return;
    }
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &ws) != 0 || ws.ws_row == 0 || ws.ws_col == 0) {
        ws.ws_row = 24;
        ws.ws_col = 80;
    }
    f = open_memstream(&text, &len);
    if (f)
        put_picture(f, picture, ws.ws_row, ws.ws_col);
    if (f && fclose(f) == 0)
        put(text, len);
    free(text);
}

/* --- waiting -------------------------------------------------------------------------------- */

static enum varve_screen_news key_pressed(void)
{
    char key;
    ssize_t n = read(STDIN_FILENO, &key, 1);

    if (n <= 0) {
        listens = n < 0 && errno == EINTR; /* its other end is gone: nobody types */
        return VARVE_SCREEN_REDRAW;
    }
    return key == 'q' || key == 'Q' ? VARVE_SCREEN_QUIT : VARVE_SCREEN_REFRESH;
}

enum varve_screen_news varve_screen_wait(int timeout_ms, int fd)
{
    struct timespec timeout = {.tv_sec = timeout_ms / 1000,
                               .tv_nsec = (long)(timeout_ms % 1000) * 1000000};
    struct pollfd fds[2] = {{.fd = fd, .events = POLLIN},
                            {.fd = listens ? STDIN_FILENO : -1, .events = POLLIN}};
    int n = ppoll(fds, 2, &timeout, live ? &wait_mask : NULL);

    if (stopped)
        stop_here();
    else if (continued)
        take(); /* who had it meanwhile may have changed it */
    stopped = continued = 0;
    if (n < 0)
        return live ? VARVE_SCREEN_REDRAW : VARVE_SCREEN_TIME;
    if (fds[1].revents)
        return key_pressed();
    return fds[0].revents ? VARVE_SCREEN_READABLE : VARVE_SCREEN_TIME;
}
