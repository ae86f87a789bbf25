/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/tmpdir.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

char *tmpdir_new(void)
{
    const char *top = getenv("TMPDIR");
    char *path;

    if (asprintf(&path, "%s/varve-test-XXXXXX", top && *top ? top : "/tmp") < 0 || !mkdtemp(path)) {
        perror("tmpdir_new");
        abort();
    }
    return path;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)st;
    (void)type;
    return where->level > 0 ? remove(path) : 0;
}

void tmpdir_empty(const char *path)
{
    if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0) {
        perror(path);
        abort();
    }
}

void tmpdir_remove(char *path)
{
    tmpdir_empty(path);
    rmdir(path);
    free(path);
}
