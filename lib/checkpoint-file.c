/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Written and read in pieces, so that memory is needed for one map of the disk and no more.
 *
 *     stage    PATH.tmp (made, never overwritten): everything, sync
 *     publish  PATH.tmp -- rename that replaces nothing, sync dir -->  PATH
 *
 * A reader believes the head once its digest fits, compares it with the disk, and then knows how
 * long the file may be; the rest is believed once the digest behind it fits.
 */
#include "lib/checkpoint-file.h"

#include "lib/digest.h"
#include "lib/paths.h"
#include "lib/whole-file.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAGIC    "varveckp"
#define NAME_LEN 72u
#define CHUNK    VARVE_CHECKPOINT_FILE_CHUNK
#define PIECE    65536u /* bytes that are read or written at once */

struct head {
    char magic[8];
    uint32_t version;
    uint32_t shift;
    uint8_t uuid[16];
    uint64_t size;
    uint64_t time_ns, exported_ns;
    uint64_t epoch;
    uint8_t epoch_id[VARVE_EPOCH_ID_LEN];
    uint64_t known;
    uint8_t known_id[VARVE_EPOCH_ID_LEN];
    uint64_t nset, nranges, nchunks;
    char name[NAME_LEN];
    char disk[NAME_LEN];
    uint8_t check[VARVE_DIGEST_LEN];
};

static_assert(sizeof(struct head) == VARVE_CHECKPOINT_FILE_HEAD, "the format's head");
static_assert(offsetof(struct head, check) == VARVE_CHECKPOINT_FILE_HEAD_TEXT,
              "what its digest is of");
static_assert(VARVE_NAME_MAX < NAME_LEN, "there is a zero behind each name");

void varve_checkpoint_file_fini(struct varve_checkpoint_file *f)
{
    free(f->ranges);
    free(f->blocks);
    f->ranges = NULL;
    f->nranges = 0;
    f->blocks = NULL;
}

static int head_check(const struct head *head, uint8_t check[VARVE_DIGEST_LEN],
                      struct varve_err *err)
{
    struct varve_digest d;
    int rc = varve_digest_init(&d, err);

    if (rc < 0)
        return rc;
    varve_digest_update(&d, head, VARVE_CHECKPOINT_FILE_HEAD_TEXT);
    return varve_digest_final(&d, check, err);
}

static uint64_t chunks_of(const struct varve_geometry *g)
{
    return (varve_map_bytes(g) + CHUNK - 1) / CHUNK;
}

/* 64 words of the map, zeroes behind its end; false: all of them are zero. */
static bool chunk_get(const struct varve_bitmap *m, uint64_t chunk, uint64_t words[CHUNK / 8])
{
    size_t at = (size_t)chunk * (CHUNK / 8), n = varve_bitmap_nwords(m) - at;
    bool any = false;

    memset(words, 0, CHUNK);
    for (size_t i = 0; i < n && i < CHUNK / 8; i++) {
        words[i] = htole64(m->words[at + i]);
        any = any || words[i] != 0;
    }
    return any;
}

/* --- writing -------------------------------------------------------------------------------- */

struct out {
    struct varve_world *w;
    int fd;
    uint64_t off; /* of buf in the file */
    uint8_t *buf;
    size_t len;
    struct varve_digest digest;
};

static int out_flush(struct out *o)
{
    int rc = o->len > 0 ? o->w->pwrite(o->w, o->fd, o->buf, o->len, o->off) : 0;

    o->off += o->len;
    o->len = 0;
    return rc;
}

static int out_put(struct out *o, const void *data, size_t len)
{
    const uint8_t *from = data;

    varve_digest_update(&o->digest, data, len);
    while (len > 0) {
        size_t part = len < PIECE - o->len ? len : PIECE - o->len;
        int rc;

        memcpy(o->buf + o->len, from, part);
        o->len += part;
        from += part;
        len -= part;
        rc = o->len == PIECE ? out_flush(o) : 0;
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int head_make(const struct varve_checkpoint_file *f, struct head *head,
                     struct varve_err *err)
{
    uint64_t words[CHUNK / 8], nchunks = 0;

    for (uint64_t i = 0; i < chunks_of(&f->geometry); i++)
        nchunks += chunk_get(f->blocks, i, words);
    *head = (struct head){
        .magic = MAGIC,
        .version = htole32(VARVE_CHECKPOINT_FILE_VERSION),
        .shift = htole32(f->geometry.shift),
        .size = htole64(f->geometry.size),
        .time_ns = htole64(f->time_ns),
        .exported_ns = htole64(f->exported_ns),
        .epoch = htole64(f->epoch),
        .known = htole64(f->known),
        .nset = htole64(varve_bitmap_count(f->blocks)),
        .nranges = htole64(f->nranges),
        .nchunks = htole64(nchunks),
    };
    memcpy(head->uuid, f->uuid, sizeof(head->uuid));
    memcpy(head->epoch_id, f->epoch_id, sizeof(head->epoch_id));
    memcpy(head->known_id, f->known_id, sizeof(head->known_id));
    snprintf(head->name, sizeof(head->name), "%s", f->name);
    snprintf(head->disk, sizeof(head->disk), "%s", f->disk);
    return head_check(head, head->check, err);
}

static int out_contents(struct out *o, const struct head *head,
                        const struct varve_checkpoint_file *f)
{
    int rc = out_put(o, head, sizeof(*head));

    for (size_t i = 0; rc == 0 && i < f->nranges; i++) {
        uint64_t range[2] = {htole64(f->ranges[i].off), htole64(f->ranges[i].len)};

        rc = out_put(o, range, sizeof(range));
    }
    for (uint64_t i = 0; rc == 0 && i < chunks_of(&f->geometry); i++) {
        uint64_t words[CHUNK / 8], number = htole64(i);

        if (!chunk_get(f->blocks, i, words))
            continue;
        rc = out_put(o, &number, sizeof(number));
        if (rc == 0)
            rc = out_put(o, words, sizeof(words));
    }
    return rc;
}

static int write_fd(struct varve_world *w, int fd, const char *path, const struct head *head,
                    const struct varve_checkpoint_file *f, struct varve_err *err)
{
    struct out o = {.w = w, .fd = fd, .buf = malloc(PIECE)};
    uint8_t digest[VARVE_DIGEST_LEN];
    int rc, final;

    if (!o.buf)
        return varve_err_set(err, ENOMEM, "no memory to write %.200s", path);
    rc = varve_digest_init(&o.digest, err);
    if (rc < 0) {
        free(o.buf);
        return rc;
    }
    rc = out_contents(&o, head, f);
    if (rc == 0)
        rc = out_flush(&o);
    final = varve_digest_final(&o.digest, digest, err);
    if (rc == 0 && final == 0)
        rc = w->pwrite(w, fd, digest, sizeof(digest), o.off);
    if (rc == 0 && final == 0)
        rc = w->sync(w, fd);
    free(o.buf);
    if (rc < 0)
        return varve_err_sys(err, -rc, "cannot write %.200s", path);
    return final;
}

static int path_tmp(const char *path, char tmp[PATH_MAX], struct varve_err *err)
{
    if (snprintf(tmp, PATH_MAX, "%s.tmp", path) >= PATH_MAX)
        return varve_err_set(err, ENAMETOOLONG, "the file name '%.200s...' is too long", path);
    return 0;
}

static int exists(const char *path, const char *what, struct varve_err *err)
{
    return varve_err_set(err, EEXIST, "%.200s exists already: %s", path, what);
}

#define OTHER_NAME "give another name, or remove it"

/* Only to say so before work is done; publish sees to it. */
static int look_free(struct varve_world *w, const char *path, struct varve_err *err)
{
    int fd = w->open(w, path, O_PATH | O_NOFOLLOW, 0);

    if (fd == -ENOENT)
        return 0;
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot create %.200s", path);
    w->close(w, fd);
    return exists(path, OTHER_NAME, err);
}

int varve_checkpoint_file_stage(struct varve_world *w, const char *path,
                                const struct varve_checkpoint_file *f, struct varve_err *err)
{
    char tmp[PATH_MAX];
    struct head head;
    int rc = path_tmp(path, tmp, err), fd;

    assert(f->blocks->nbits == f->geometry.nblks && f->epoch <= f->known);
    if (rc == 0)
        rc = head_make(f, &head, err);
    if (rc == 0)
        rc = look_free(w, path, err);
    if (rc < 0)
        return rc;
    fd = w->open(w, tmp, O_WRONLY | O_CREAT | O_EXCL, 0644);
    if (fd == -EEXIST)
        return exists(tmp, "an export that died may have left it: remove it", err);
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot create %.200s", tmp);
    rc = write_fd(w, fd, tmp, &head, f, err);
    w->close(w, fd);
    if (rc < 0)
        w->unlink(w, tmp);
    return rc;
}

int varve_checkpoint_file_publish(struct varve_world *w, const char *path, struct varve_err *err)
{
    char tmp[PATH_MAX];
    int rc = path_tmp(path, tmp, err);

    if (rc < 0)
        return rc;
    rc = varve_whole_file_publish(w, tmp, path, err);
    if (rc < 0)
        w->unlink(w, tmp);
    return rc == -EEXIST ? exists(path, OTHER_NAME, err) : rc;
}

void varve_checkpoint_file_discard(struct varve_world *w, const char *path)
{
    char tmp[PATH_MAX];

    if (path_tmp(path, tmp, NULL) == 0)
        w->unlink(w, tmp);
}

/* --- reading -------------------------------------------------------------------------------- */

struct in {
    struct varve_world *w;
    int fd;
    const char *path;
    uint64_t off, size; /* of what is read next, and of the file */
    uint8_t *buf;
    size_t at, len;
    struct varve_digest digest;
    struct varve_geometry then; /* the disk's when it was exported */
};

static int damaged(const char *path, const char *how, struct varve_err *err)
{
    return varve_err_set(err, EUCLEAN, "%.200s is damaged: %s: use another copy of it", path, how);
}

static int in_get(struct in *in, void *data, size_t len, struct varve_err *err)
{
    uint8_t *to = data;
    size_t done = 0;

    while (done < len) {
        size_t part = len - done;

        if (in->at == in->len) {
            ssize_t got = in->w->pread(in->w, in->fd, in->buf, PIECE, in->off);

            if (got < 0)
                return varve_err_sys(err, (int)-got, "cannot read %.200s", in->path);
            if (got == 0)
                return damaged(in->path, "it ends too early", err);
            in->off += (uint64_t)got;
            in->len = (size_t)got;
            in->at = 0;
        }
        if (part > in->len - in->at)
            part = in->len - in->at;
        memcpy(to + done, in->buf + in->at, part);
        in->at += part;
        done += part;
    }
    varve_digest_update(&in->digest, data, len);
    return 0;
}

static bool is_zero(const void *data, size_t len)
{
    const uint8_t *p = data;

    return len == 0 || (p[0] == 0 && memcmp(p, p + 1, len - 1) == 0);
}

static bool name_get(const char from[NAME_LEN], char to[VARVE_NAME_MAX + 1])
{
    size_t len = strnlen(from, NAME_LEN);

    if (len > VARVE_NAME_MAX || !is_zero(from + len, NAME_LEN - len))
        return false;
    memcpy(to, from, len + 1);
    return varve_name_check(to, "name", NULL) == 0;
}

/* Whose it is: a file that is whole but does not fit the disk. */
static int head_fits(const struct head *head, const char *path, const uint8_t uuid[16],
                     const struct varve_geometry *g, struct varve_geometry *then,
                     struct varve_err *err)
{
    uint64_t block = (uint64_t)1 << (le32toh(head->shift) & 63);

    if (memcmp(head->uuid, uuid, sizeof(head->uuid)) != 0)
        return varve_err_set(
            err, EINVAL,
            "%.200s is of another disk, which was called '%.64s' when it was exported "
            "and whose uuid begins with %02x%02x%02x%02x; this one's begins with "
            "%02x%02x%02x%02x",
            path, head->disk, head->uuid[0], head->uuid[1], head->uuid[2], head->uuid[3], uuid[0],
            uuid[1], uuid[2], uuid[3]);
    if (block != varve_block_size(g))
        return varve_err_set(err, EINVAL,
                             "%.200s has blocks of %" PRIu64 " bytes, the disk's have %" PRIu64,
                             path, block, varve_block_size(g));
    if (varve_geometry_init(then, le64toh(head->size), block, NULL) < 0)
        return damaged(path, "it is of no size that a disk can have", err);
    return 0;
}

/* Fields of a head whose digest is right: who made them wrong was no varve. */
static int head_take(const struct head *head, const char *path, const struct varve_geometry *then,
                     struct varve_checkpoint_file *f, struct varve_err *err)
{
    memcpy(f->uuid, head->uuid, sizeof(f->uuid));
    memcpy(f->epoch_id, head->epoch_id, sizeof(f->epoch_id));
    memcpy(f->known_id, head->known_id, sizeof(f->known_id));
    f->time_ns = le64toh(head->time_ns);
    f->exported_ns = le64toh(head->exported_ns);
    f->epoch = le64toh(head->epoch);
    f->known = le64toh(head->known);
    if (!name_get(head->name, f->name) || !name_get(head->disk, f->disk))
        return damaged(path, "a name in it is none", err);
    if (f->time_ns > INT64_MAX || f->exported_ns > INT64_MAX)
        return damaged(path, "a time in it is none", err);
    if (f->epoch < 1 || f->epoch > f->known || f->known >= INT64_MAX ||
        is_zero(f->known_id, sizeof(f->known_id)))
        return damaged(path, "its epochs make no sense", err);
    if (le64toh(head->nranges) > VARVE_RANGES_MAX || le64toh(head->nchunks) > chunks_of(then) ||
        (f->epoch == f->known && head->nchunks != 0))
        return damaged(path, "it says that it holds more than there can be", err);
    return 0;
}

static int head_read(struct in *in, const uint8_t uuid[16], const struct varve_geometry *g,
                     struct head *head, struct varve_checkpoint_file *f, struct varve_err *err)
{
    uint8_t check[VARVE_DIGEST_LEN];
    int rc = in_get(in, head, 12, err);

    if (rc < 0 && rc != -EUCLEAN)
        return rc;
    if (rc < 0 || memcmp(head->magic, MAGIC, sizeof(head->magic)) != 0)
        return varve_err_set(err, EINVAL, "%.200s is no file that checkpoint-export made",
                             in->path);
    if (le32toh(head->version) != VARVE_CHECKPOINT_FILE_VERSION)
        return varve_err_set(err, ENOTSUP,
                             "%.200s has format %" PRIu32
                             ", this varve knows format %u only: use the "
                             "version of varve that wrote it",
                             in->path, le32toh(head->version), VARVE_CHECKPOINT_FILE_VERSION);
    rc = in_get(in, (char *)head + 12, sizeof(*head) - 12, err);
    if (rc == 0)
        rc = head_check(head, check, err);
    if (rc < 0)
        return rc;
    if (memcmp(check, head->check, sizeof(check)) != 0)
        return damaged(in->path, "the checksum of its head does not match", err);
    f->geometry = *g;
    rc = head_fits(head, in->path, uuid, g, &in->then, err);
    return rc < 0 ? rc : head_take(head, in->path, &in->then, f, err);
}

static int ranges_read(struct in *in, size_t n, struct varve_checkpoint_file *f,
                       struct varve_err *err)
{
    uint64_t end = 0;

    f->ranges = calloc(n + 1, sizeof(*f->ranges));
    if (!f->ranges)
        return varve_err_set(err, ENOMEM, "no memory to read %.200s", in->path);
    for (size_t i = 0; i < n; i++) {
        uint64_t range[2], off, len;
        int rc = in_get(in, range, sizeof(range), err);

        if (rc < 0)
            return rc;
        off = le64toh(range[0]);
        len = le64toh(range[1]);
        if (len == 0 || off < end || !varve_range_ok(&in->then, off, len))
            return damaged(in->path, "its ranges make no sense", err);
        f->ranges[f->nranges++] = (struct varve_cat_range){off, len};
        end = off + len;
    }
    return 0;
}

/* The blocks of then that the disk has now; *nset: how many there are in the file. */
static int chunks_read(struct in *in, uint64_t n, struct varve_checkpoint_file *f, uint64_t *nset,
                       struct varve_err *err)
{
    size_t nwords = (size_t)(varve_map_bytes(&in->then) / 8);
    uint64_t next = 0;

    *nset = 0;

    f->blocks = varve_bitmap_new(f->geometry.nblks);
    if (!f->blocks)
        return varve_err_set(err, ENOMEM, "no memory to read %.200s", in->path);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t number, words[CHUNK / 8];
        size_t at, room;
        int rc = in_get(in, &number, sizeof(number), err);

        if (rc == 0)
            rc = in_get(in, words, sizeof(words), err);
        if (rc < 0)
            return rc;
        number = le64toh(number);
        if (number < next || number >= chunks_of(&in->then) || is_zero(words, sizeof(words)))
            return damaged(in->path, "its chunks make no sense", err);
        next = number + 1;
        at = (size_t)number * (CHUNK / 8);
        room = nwords - at;
        for (size_t k = 0; k < CHUNK / 8; k++) {
            uint64_t word = le64toh(words[k]), rest = in->then.nblks % 64;

            if (word == 0)
                continue;
            if (k >= room || (k + 1 == room && rest != 0 && word >> rest != 0))
                return damaged(in->path, "it has blocks behind the disk's end", err);
            varve_bitmap_or_words_cut(f->blocks, at + k, &word, 1);
            *nset += (unsigned)__builtin_popcountll(word);
        }
    }
    return 0;
}

/* All but the last digest. */
static int contents_read(struct in *in, const uint8_t uuid[16], const struct varve_geometry *g,
                         struct varve_checkpoint_file *f, struct varve_err *err)
{
    struct head head;
    uint64_t want, nset;
    int rc = head_read(in, uuid, g, &head, f, err);

    if (rc < 0)
        return rc;
    want = sizeof(head) + le64toh(head.nranges) * 16 + le64toh(head.nchunks) * (8 + CHUNK) +
           VARVE_DIGEST_LEN;
    if (in->size != want)
        return varve_err_set(err, EUCLEAN,
                             "%.200s is damaged: it has %" PRIu64 " bytes, not the %" PRIu64
                             " that it was made with: use another copy of it",
                             in->path, in->size, want);
    rc = ranges_read(in, (size_t)le64toh(head.nranges), f, err);
    if (rc == 0)
        rc = chunks_read(in, le64toh(head.nchunks), f, &nset, err);
    if (rc == 0 && nset != le64toh(head.nset))
        rc = damaged(in->path, "it has not as many blocks as it says", err);
    if (rc == 0 && in->then.size != g->size)
        varve_bitmap_set(f->blocks, varve_resized_from(g, in->then.size, g->size), g->nblks);
    return rc;
}

static int read_fd(struct varve_world *w, int fd, const char *path, const uint8_t uuid[16],
                   const struct varve_geometry *g, struct varve_checkpoint_file *f,
                   struct varve_err *err)
{
    struct in in = {.w = w, .fd = fd, .path = path};
    uint8_t digest[VARVE_DIGEST_LEN], want[VARVE_DIGEST_LEN];
    struct varve_stat st;
    int rc = w->stat(w, fd, &st), final;

    if (rc < 0)
        return varve_err_sys(err, -rc, "cannot look at %.200s", path);
    if (!S_ISREG(st.mode))
        return varve_err_set(err, EINVAL, "%.200s is not a regular file", path);
    in.size = st.size;
    in.buf = malloc(PIECE);
    if (!in.buf)
        return varve_err_set(err, ENOMEM, "no memory to read %.200s", path);
    rc = varve_digest_init(&in.digest, err);
    if (rc < 0) {
        free(in.buf);
        return rc;
    }
    rc = contents_read(&in, uuid, g, f, err);
    final = varve_digest_final(&in.digest, digest, rc < 0 ? NULL : err);
    if (rc == 0)
        rc = final;
    if (rc == 0) {
        ssize_t got = w->pread(w, fd, want, sizeof(want), in.size - sizeof(want));

        if (got < 0)
            rc = varve_err_sys(err, (int)-got, "cannot read %.200s", path);
        else if (got != sizeof(want) || memcmp(digest, want, sizeof(want)) != 0)
            rc = damaged(path, "its checksum does not match", err);
    }
    free(in.buf);
    return rc;
}

int varve_checkpoint_file_read(struct varve_world *w, const char *path, const uint8_t uuid[16],
                               const struct varve_geometry *g, struct varve_checkpoint_file *f,
                               struct varve_err *err)
{
    int fd = w->open(w, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
    int rc;

    memset(f, 0, sizeof(*f));
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot open %.200s", path);
    rc = read_fd(w, fd, path, uuid, g, f, err);
    w->close(w, fd);
    if (rc < 0)
        varve_checkpoint_file_fini(f);
    return rc;
}
