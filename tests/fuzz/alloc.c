/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/fuzz/alloc.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

_Thread_local bool fuzz_alloc_exempt;

static _Atomic unsigned left; /* allocations to come, the failing one included; 0: all succeed */
static _Atomic bool for_ever;

void *__real_malloc(size_t len);
void *__real_calloc(size_t n, size_t len);
void *__real_realloc(void *p, size_t len);
char *__real_strdup(const char *s);
void *__wrap_malloc(size_t len);
void *__wrap_calloc(size_t n, size_t len);
void *__wrap_realloc(void *p, size_t len);
char *__wrap_strdup(const char *s);

void fuzz_alloc_fail(unsigned n, bool on)
{
    atomic_store(&for_ever, on);
    atomic_store(&left, n);
}

void fuzz_alloc_works(void)
{
    atomic_store(&left, 0);
}

static bool fails(void)
{
    unsigned now = atomic_load(&left);

    if (fuzz_alloc_exempt)
        return false;
    while (now > 1 && !atomic_compare_exchange_weak(&left, &now, now - 1))
        continue;
    if (now != 1)
        return false;
    if (!atomic_load(&for_ever) && !atomic_compare_exchange_strong(&left, &now, 0))
        return false;
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t len)
{
    return fails() ? NULL : __real_malloc(len);
}

void *__wrap_calloc(size_t n, size_t len)
{
    return fails() ? NULL : __real_calloc(n, len);
}

void *__wrap_realloc(void *p, size_t len)
{
    return fails() ? NULL : __real_realloc(p, len);
}

char *__wrap_strdup(const char *s)
{
    return fails() ? NULL : __real_strdup(s);
}
