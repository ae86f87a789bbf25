/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/sd-notify.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "server/log.h"

void varve_sd_notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    socklen_t len;
    int fd;

    if (!path || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof(to.sun_path))
        return;
    memcpy(to.sun_path, path, strlen(path));
    if (path[0] == '@')
        to.sun_path[0] = '\0'; /* the abstract name space */
    len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return;
    if (sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&to, len) < 0)
        varve_log_about(VARVE_ABOUT(.level = VARVE_LOG_WARNING),
                        "cannot notify the service manager at %s: %s", path, strerror(errno));
    close(fd);
}

/* A decimal number; 0: it is none, or too large. */
static unsigned long long env_number(const char *text)
{
    unsigned long long n;
    char *end;

    if (!text || text[0] < '0' || text[0] > '9')
        return 0;
    errno = 0;
    n = strtoull(text, &end, 10);
    return *end || errno ? 0 : n;
}

unsigned varve_sd_watchdog_ms(void)
{
    const char *pid = getenv("WATCHDOG_PID");
    unsigned long long usec = env_number(getenv("WATCHDOG_USEC"));
    bool ours = !pid || env_number(pid) == (unsigned long long)getpid();

    unsetenv("WATCHDOG_PID");
    unsetenv("WATCHDOG_USEC");
    if (!ours || !usec)
        return 0;
    usec /= 2000;
    return usec > UINT_MAX ? UINT_MAX : usec ? (unsigned)usec : 1;
}
