/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/core-fixture.h"

#include "tests/lib/tmpdir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void must(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "core-fixture: %s: %s\n", what, strerror(errno));
    abort();
}

static void must_do(int r, const struct varve_err *err, const char *what)
{
    if (r >= 0)
        return;
    fprintf(stderr, "core-fixture: %s: %s\n", what, err->msg);
    abort();
}

/* --- the machine ------------------------------------------------------------------------------ */

static int machine_sync(struct varve_world *w, int fd)
{
    struct core *c = (struct core *)((char *)w - offsetof(struct core, machine));
    struct stat image, st;

    must(fstat(fd, &st) == 0 && fstat(c->image_fd, &image) == 0, "sync");
    return c->image_sync_fails && st.st_ino == image.st_ino ? -EIO : 0;
}

static int machine_sync_dir(struct varve_world *w, const char *path)
{
    (void)w;
    (void)path;
    return 0;
}

static int machine_boot_id(struct varve_world *w, uint8_t id[16])
{
    struct core *c = (struct core *)((char *)w - offsetof(struct core, machine));

    memset(id, 0, 16);
    id[0] = c->boot;
    return 0;
}

uint64_t core_uptime_ns(struct core *c)
{
    struct varve_world *w = varve_world_posix();

    return c->booted_ns ? w->monotonic_ns(w) - c->booted_ns : w->uptime_ns(w);
}

static uint64_t machine_uptime_ns(struct varve_world *w)
{
    return core_uptime_ns((struct core *)((char *)w - offsetof(struct core, machine)));
}

void core_init(struct core *c, uint64_t size, uint64_t block_size)
{
    struct varve_err err = VARVE_ERR_INIT;

    memset(c, 0, sizeof(*c));
    c->top = tmpdir_new();
    snprintf(c->state_dir, sizeof(c->state_dir), "%s/state", c->top);
    snprintf(c->runtime_dir, sizeof(c->runtime_dir), "%s/run", c->top);
    snprintf(c->image, sizeof(c->image), "%s/image", c->top);
    c->image_fd = open(c->image, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    must(c->image_fd >= 0 && ftruncate(c->image_fd, (off_t)size) == 0, "image");

    c->machine = *varve_world_posix();
    c->machine.sync = machine_sync;
    c->machine.sync_all = machine_sync;
    c->machine.sync_dir = machine_sync_dir;
    c->machine.boot_id = machine_boot_id;
    c->machine.uptime_ns = machine_uptime_ns;
    c->boot = 1;
    fault_world_init(&c->fault, &c->machine);
    c->w = &c->fault.world;
    must_do(varve_geometry_init(&c->g, size, block_size, &err), &err, "geometry");
    c->cfg = (struct varve_tracker_config){
        .state_dir = c->state_dir,
        .runtime_dir = c->runtime_dir,
        .name = "vda",
        .image = c->image,
        .image_fd = c->image_fd,
        .size = size,
        .block_size = block_size,
        .freeze_timeout_ms = 10000,
        .role = "nbdkit",
    };
}

void core_fini(struct core *c)
{
    core_close_source(c);
    core_kill(c);
    fault_world_fini(&c->fault);
    close(c->image_fd);
    tmpdir_remove(c->top);
}

/* --- the server's life ------------------------------------------------------------------------ */

int core_try_start(struct core *c, struct varve_err *err)
{
    return varve_tracker_attach(c->w, &c->cfg, &c->t, c->notes, err);
}

void core_start(struct core *c)
{
    struct varve_err err = VARVE_ERR_INIT;

    must_do(core_try_start(c, &err), &err, "attach");
}

void core_stop(struct core *c)
{
    struct varve_err err = VARVE_ERR_INIT;

    must_do(varve_tracker_detach(c->t, &err), &err, "detach");
    c->t = NULL;
}

/* Detaching in a world where nothing is done any more gives all memory and locks back and changes
 * no file; what it stores into the mapped control page is undone. */
void core_kill(struct core *c)
{
    static char page[sizeof(struct varve_ctl)];
    int fd;

    if (!c->t)
        return;
    fault_disarm(&c->fault); /* it may have died already */
    fd = varve_tracker_open_control(c->t, NULL);
    if (fd >= 0)
        must(pread(fd, page, sizeof(page), 0) == (ssize_t)sizeof(page), "control page");
    fault_crash_at(&c->fault, FAULT_ANY, 1);
    varve_tracker_detach(c->t, NULL);
    c->t = NULL;
    fault_disarm(&c->fault);
    if (fd < 0)
        return;
    close(fd);
    core_poke_control(c, 0, page, sizeof(page));
}

void core_reboot(struct core *c)
{
    c->boot++;
    c->booted_ns = c->machine.monotonic_ns(&c->machine);
}

void core_host_crash(struct core *c)
{
    char path[PATH_MAX + 16];

    core_kill(c);
    core_reboot(c);
    snprintf(path, sizeof(path), "%s/vda", c->runtime_dir);
    if (core_exists(path))
        tmpdir_empty(path);
}

/* --- the guest -------------------------------------------------------------------------------- */

void core_write(struct core *c, uint64_t off, const void *buf, uint64_t len)
{
    const char *at = buf;

    while (len > 0) {
        uint32_t piece_len = varve_piece_len(off, len);
        struct varve_piece p;

        varve_piece_begin(c->t, off, piece_len, false, &p);
        must(pwrite(c->image_fd, at, piece_len, (off_t)off) == (ssize_t)piece_len, "image");
        varve_piece_end(c->t, &p);
        at += piece_len;
        off += piece_len;
        len -= piece_len;
    }
}

void core_fill(struct core *c, uint64_t off, uint64_t len, int byte)
{
    char *buf = malloc(len + 1);

    must(buf != NULL, "memory");
    memset(buf, byte, len);
    core_write(c, off, buf, len);
    free(buf);
}

void core_punch(struct core *c, uint64_t off, uint64_t len)
{
    while (len > 0) {
        uint32_t piece_len = varve_piece_len(off, len);
        struct varve_piece p;

        varve_piece_begin(c->t, off, piece_len, true, &p);
        must(fallocate(c->image_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off,
                       (off_t)piece_len) == 0, "punch");
        varve_piece_end(c->t, &p);
        off += piece_len;
        len -= piece_len;
    }
}

void core_read_image(struct core *c, uint64_t off, void *buf, uint64_t len)
{
    must(pread(c->image_fd, buf, len, (off_t)off) == (ssize_t)len, "image");
}

uint64_t core_boundary(struct core *c, uint64_t view_id)
{
    struct varve_err err = VARVE_ERR_INIT;
    uint64_t epoch;

    must_do(varve_tracker_prepare(c->t, view_id != 0, &epoch, &err), &err, "prepare");
    must_do(varve_tracker_quiesce(c->t, &err), &err, "quiesce");
    must_do(varve_tracker_swap(c->t, epoch, view_id, &err), &err, "swap");
    must_do(varve_tracker_seal(c->t, &err), &err, "seal");
    return epoch;
}

/* --- readers ---------------------------------------------------------------------------------- */

void core_open_source(struct core *c)
{
    struct varve_err err = VARVE_ERR_INIT;
    int ctl_fd = varve_tracker_open_control(c->t, &err);
    int image_fd = open(c->image, O_RDONLY | O_CLOEXEC);

    must_do(ctl_fd, &err, "control page");
    must(image_fd >= 0, "image");
    core_close_source(c);
    must_do(varve_source_new(c->w, &c->g, varve_tracker_identity(c->t)->uuid, ctl_fd, image_fd,
                             &c->source, &err), &err, "source");
    core_fetch(c);
}

void core_fetch(struct core *c)
{
    struct varve_ctl_view_copy views[VARVE_CTL_VIEWS];
    struct varve_err err = VARVE_ERR_INIT;
    struct varve_ctl_head head;
    uint64_t from;

    must_do(varve_source_head(c->source, &head, &err), &err, "control page");
    from = head.prepared > VARVE_CTL_EPOCHS ? head.prepared - VARVE_CTL_EPOCHS : 1;
    for (uint64_t epoch = from; epoch <= head.prepared; epoch++) {
        int fds[3];

        if (varve_source_has_epoch(c->source, epoch) ||
            varve_tracker_open_epoch(c->t, epoch, fds, &err) < 0)
            continue;
        must_do(varve_source_add_epoch(c->source, epoch, fds, &err), &err, "epoch");
    }
    must_do(varve_source_views(c->source, views, &err), &err, "views");
    for (unsigned i = 0; i < VARVE_CTL_VIEWS; i++) {
        int fd;

        if (views[i].state != VARVE_VIEW_OPEN || views[i].done_ino == 0 ||
            varve_source_has_done(c->source, views[i].id, views[i].done_ino))
            continue;
        fd = varve_tracker_open_done(c->t, views[i].id, &err);
        must_do(fd, &err, "done map");
        must_do(varve_source_add_done(c->source, views[i].id, fd, &err), &err, "done map");
    }
}

void core_close_source(struct core *c)
{
    if (c->source)
        varve_source_unref(c->source);
    c->source = NULL;
}

/* --- what lies on disk ------------------------------------------------------------------------ */

struct varve_bitmap *core_live_bits(struct core *c, uint64_t epoch)
{
    struct varve_bitmap *m = varve_bitmap_new(c->g.nblks);
    char path[PATH_MAX];
    size_t bytes = varve_bitmap_nwords(m) * 8;
    int fd = open(varve_path_live(varve_tracker_paths(c->t), epoch, path), O_RDONLY | O_CLOEXEC);

    must(m && fd >= 0 && pread(fd, m->words, bytes, 0) == (ssize_t)bytes, path);
    close(fd);
    return m;
}

struct varve_bitmap *core_sealed_bits(struct core *c, uint64_t epoch)
{
    struct varve_bitmap *m = varve_bitmap_new(c->g.nblks);
    struct varve_err err = VARVE_ERR_INIT;

    must(m != NULL, "memory");
    must_do(varve_epoch_file_load(c->w, varve_tracker_paths(c->t),
                                  varve_tracker_identity(c->t)->uuid, &c->g, epoch, epoch, m,
                                  &err), &err, "epoch file");
    return m;
}

bool core_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

void core_poke_control(struct core *c, uint64_t off, const void *buf, uint64_t len)
{
    char path[PATH_MAX + 16];
    int fd;

    snprintf(path, sizeof(path), "%s/vda/control", c->runtime_dir);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return; /* a test has removed it */
    must(fd >= 0 && pwrite(fd, buf, len, (off_t)off) == (ssize_t)len, path);
    close(fd);
}
