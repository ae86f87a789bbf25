/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A fuzz target's main without a fuzzer: gives it each file named in the arguments, and each file
 * of directories among them; without arguments, the target's corpus in the source tree
 * ($abs_top_srcdir).  Speaks TAP: an input that breaks something ends the program.
 */
#include "tests/fuzz/fuzz.h"

#include <dirent.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

static unsigned done;

static void replay_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    uint8_t *data;
    size_t len;

    if (!f || fstat(fileno(f), &st)) {
        perror(path);
        exit(1);
    }
    len = (size_t)st.st_size;
    data = malloc(len ? len : 1); /* not a byte more: a sanitizer is to see what is read beyond */
    if (!data || fread(data, 1, len, f) != len) {
        perror(path);
        exit(1);
    }
    fclose(f);
    printf("# %s\n", path);
    fflush(stdout);
    LLVMFuzzerTestOneInput(data, len);
    free(data);
    printf("ok %u - %s\n", ++done, strrchr(path, '/') ? strrchr(path, '/') + 1 : path);
}

static int not_hidden(const struct dirent *e)
{
    return e->d_name[0] != '.';
}

static void replay(const char *path)
{
    struct dirent **entries;
    struct stat st;
    int n;

    if (stat(path, &st)) {
        perror(path);
        exit(1);
    }
    if (!S_ISDIR(st.st_mode)) {
        replay_file(path);
        return;
    }
    n = scandir(path, &entries, not_hidden, alphasort);
    if (n < 0) {
        perror(path);
        exit(1);
    }
    for (int i = 0; i < n; i++) {
        char below[PATH_MAX];

        snprintf(below, sizeof(below), "%s/%s", path, entries[i]->d_name);
        replay(below);
        free(entries[i]);
    }
    free(entries);
}

int main(int argc, char **argv)
{
    const char *top = getenv("abs_top_srcdir");
    char corpus[PATH_MAX];

    if (argc < 2) {
        if (!top) {
            fprintf(stderr, "neither arguments nor $abs_top_srcdir\n");
            return 2;
        }
        snprintf(corpus, sizeof(corpus), "%s/tests/fuzz/corpus/%s", top, FUZZ_TARGET);
        replay(corpus);
    }
    for (int i = 1; i < argc; i++)
        replay(argv[i]);
    printf("1..%u\n", done);
    if (done == 0) {
        fprintf(stderr, "no input\n");
        return 1;
    }
    return 0;
}
