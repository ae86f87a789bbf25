/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/image-beat.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MODE 0600

struct varve_beat *varve_beat_open(struct varve_world *w, const struct varve_paths *p)
{
    char path[PATH_MAX];
    struct varve_stat st;
    void *addr = NULL;
    int fd = w->open(w, varve_path_beat(p, path), O_RDWR | O_CREAT, FILE_MODE);

    if (fd < 0) {
        w->unlink(w, path);
        return NULL;
    }
    if (w->allocate(w, fd, 0, sizeof(struct varve_beat)) < 0 || w->stat(w, fd, &st) < 0 ||
        st.size < sizeof(struct varve_beat) || w->map(w, fd, sizeof(struct varve_beat), &addr) < 0)
        addr = NULL;
    w->close(w, fd);
    if (!addr) /* nor shall that of the server before us speak for us */
        w->unlink(w, path);
    return addr;
}

void varve_beat_close(struct varve_world *w, struct varve_beat *b)
{
    w->unmap(w, b, sizeof(*b));
}

void varve_beat_begin(struct varve_world *w, struct varve_beat *b, const uint8_t boot_id[16],
                      const uint8_t uuid[16], uint64_t dev, uint64_t ino, int64_t mtime_ns)
{
    bool same = b->magic == VARVE_BEAT_MAGIC && memcmp(b->boot_id, boot_id, 16) == 0 &&
                memcmp(b->disk_uuid, uuid, 16) == 0;

    /* First what allows the image to look as it does now, then the rest may go. */
    if (!same)
        b->magic = 0;
    atomic_store(&b->dev, dev);
    atomic_store(&b->ino, ino);
    atomic_store(&b->mtime_ns, mtime_ns);
    for (unsigned i = 0; i < VARVE_GATE_SHARDS; i++) {
        atomic_store(&b->shards[i].inside[0], 0);
        atomic_store(&b->shards[i].inside[1], 0);
        atomic_store(&b->shards[i].left_ns, 0);
    }
    varve_beat_tick(w, b);
    memcpy(b->boot_id, boot_id, 16);
    memcpy(b->disk_uuid, uuid, 16);
    atomic_thread_fence(memory_order_seq_cst);
    b->magic = VARVE_BEAT_MAGIC;
}

void varve_beat_tick(struct varve_world *w, struct varve_beat *b)
{
    atomic_store(&b->beat_ns, w->realtime_ns(w));
}

bool varve_beat_read(struct varve_world *w, const struct varve_paths *p, const uint8_t boot_id[16],
                     const uint8_t uuid[16], struct varve_beat_copy *out)
{
    struct varve_beat *b = aligned_alloc(64, sizeof(*b));
    char path[PATH_MAX];
    bool good = false;
    int fd;

    if (!b)
        return false;
    fd = w->open(w, varve_path_beat(p, path), O_RDONLY, 0);
    if (fd >= 0) {
        good = w->pread(w, fd, b, sizeof(*b), 0) == (ssize_t)sizeof(*b) &&
               b->magic == VARVE_BEAT_MAGIC && memcmp(b->boot_id, boot_id, 16) == 0 &&
               memcmp(b->disk_uuid, uuid, 16) == 0;
        w->close(w, fd);
    }
    if (good) {
        *out = (struct varve_beat_copy){
            .dev = b->dev, .ino = b->ino, .mtime_ns = b->mtime_ns, .beat_ns = b->beat_ns};
        for (unsigned i = 0; i < VARVE_GATE_SHARDS; i++) {
            uint64_t a = b->shards[i].inside[0], c = b->shards[i].inside[1];
            uint64_t left = b->shards[i].left_ns;

            out->entered = out->entered || a != 0 || c != 0;
            out->inside = out->inside || (uint32_t)a != 0 || (uint32_t)c != 0;
            if (left > out->left_ns)
                out->left_ns = left;
        }
    }
    free(b);
    return good;
}
