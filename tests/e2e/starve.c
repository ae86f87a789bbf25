/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Lets memory run out in a program that knows nothing of it: preloaded into nbdkit or varved, it counts
 * what our own code asks for (the plugin's and varved's, and jansson's, which has nobody else to ask for),
 * and refuses the one that it was told, or several in a row.  Others' are left alone: nbdkit and libuv
 * end the process where they have none.  Used by starving.py alone, which maps the same file:
 *
 *     STARVE_FILE  uint32_t nth    refuse the nth from now on; 0: none, and nothing is counted
 *                  uint32_t many   so many in a row
 *                  uint32_t calls  counted by us while nth is not 0
 *                  uint32_t hits   those that were refused
 *                  char where[]    whose the first one was: function, or object and offset in it
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/e2e/orders.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct orders {
    uint32_t nth, many, calls, hits;
    char where[256];
};

/* glibc's own, of which malloc and so on are other names. */
extern void *__libc_malloc(size_t len);
extern void *__libc_calloc(size_t n, size_t len);
extern void *__libc_realloc(void *p, size_t len);
extern void *__libc_memalign(size_t align, size_t len);

int vasprintf(char **out, const char *fmt, va_list ap);

static struct orders *orders;

__attribute__((constructor)) static void starve_init(void)
{
    orders = orders_map("STARVE_FILE", sizeof(*orders));
}

static bool is_ours(void *caller, Dl_info *at)
{
    static const char *const ours[] = {"varved", "nbdkit-varve-plugin.so", "libjansson.so.4"};
    const char *name;

    if (!dladdr(caller, at) || !at->dli_fname)
        return false;
    name = strrchr(at->dli_fname, '/');
    name = name ? name + 1 : at->dli_fname;
    for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++) {
        if (strcmp(name, ours[i]) == 0)
            return true;
    }
    return false;
}

static bool starves(void *caller)
{
    uint32_t nth = orders ? __atomic_load_n(&orders->nth, __ATOMIC_SEQ_CST) : 0, call;
    Dl_info at;

    if (nth == 0 || !is_ours(caller, &at))
        return false;
    call = __atomic_add_fetch(&orders->calls, 1, __ATOMIC_SEQ_CST);
    if (call < nth || call - nth >= orders->many)
        return false;
    if (__atomic_add_fetch(&orders->hits, 1, __ATOMIC_SEQ_CST) == 1)
        snprintf(orders->where, sizeof(orders->where), "%s+0x%tx", at.dli_fname,
                 (char *)caller - (char *)at.dli_fbase);
    errno = ENOMEM;
    return true;
}

#define STARVES() starves(__builtin_return_address(0))

/* The next one in the order of libraries. */
#define NEXT(name) ((__typeof__(&(name)))dlsym(RTLD_NEXT, #name))

void *malloc(size_t len)
{
    return STARVES() ? NULL : __libc_malloc(len);
}

void *calloc(size_t n, size_t len)
{
    return STARVES() ? NULL : __libc_calloc(n, len);
}

void *realloc(void *p, size_t len)
{
    return STARVES() ? NULL : __libc_realloc(p, len);
}

void *reallocarray(void *p, size_t n, size_t len)
{
    size_t all;

    if (__builtin_mul_overflow(n, len, &all)) {
        errno = ENOMEM;
        return NULL;
    }
    return STARVES() ? NULL : __libc_realloc(p, all);
}

void *aligned_alloc(size_t align, size_t len)
{
    return STARVES() ? NULL : __libc_memalign(align, len);
}

char *strdup(const char *s)
{
    size_t len = strlen(s) + 1;
    char *copy = STARVES() ? NULL : __libc_malloc(len);

    return copy ? memcpy(copy, s, len) : NULL;
}

char *strndup(const char *s, size_t max)
{
    size_t len = strnlen(s, max);
    char *copy = STARVES() ? NULL : __libc_malloc(len + 1);

    if (!copy)
        return NULL;
    copy[len] = '\0';
    return memcpy(copy, s, len);
}

int asprintf(char **out, const char *fmt, ...)
{
    va_list ap;
    int len;

    if (STARVES())
        return -1;
    va_start(ap, fmt);
    len = vasprintf(out, fmt, ap);
    va_end(ap);
    return len;
}

DIR *opendir(const char *path)
{
    return STARVES() ? NULL : NEXT(opendir)(path);
}

char *realpath(const char *path, char *out)
{
    return !out && STARVES() ? NULL : NEXT(realpath)(path, out);
}

void *mmap(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
    return STARVES() ? MAP_FAILED : NEXT(mmap)(at, len, prot, flags, fd, off);
}
