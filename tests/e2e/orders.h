/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How a preloaded library finds what a test orders: in a file that the test maps too, named by a
 * variable.  For the library's constructor.
 */
#ifndef VARVE_TESTS_E2E_ORDERS_H
#define VARVE_TESTS_E2E_ORDERS_H

#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* NULL: there are none. */
static inline void *orders_map(const char *variable, size_t len)
{
    const char *path = getenv(variable);
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *p;

    if (fd < 0)
        return NULL;
    p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return p == MAP_FAILED ? NULL : p;
}

#endif
