/* SPDX-License-Identifier: BSD-3-Clause */
#include "lib/control.h"

#include <errno.h>
#include <stddef.h>

static_assert(offsetof(struct varve_ctl, now) == offsetof(struct varve_ctl_head, now) &&
                  offsetof(struct varve_ctl, intent) == offsetof(struct varve_ctl_head, intent),
              "the head is the start of the page");
static_assert(offsetof(struct varve_ctl, views) == 168, "pages are adopted as they were left");
static_assert(sizeof(struct varve_ctl_epoch) == sizeof(struct varve_ctl_epoch_copy), "a copy");
static_assert(sizeof(struct varve_ctl_view) == sizeof(struct varve_ctl_view_copy), "a copy");

/* A copy is a system call: the compiler cannot move loads over it, but the processor may. */
static int ctl_copy(struct varve_world *w, int fd, void *out, size_t len, uint64_t off,
                    struct varve_err *err)
{
    ssize_t n;

    atomic_thread_fence(memory_order_seq_cst);
    n = w->pread(w, fd, out, len, off);
    atomic_thread_fence(memory_order_seq_cst);
    if (n < 0)
        return varve_err_sys(err, (int)-n, "cannot read the control page");
    if ((size_t)n != len)
        return varve_err_set(err, EIO, "the control page has been cut short");
    return 0;
}

int varve_ctl_read_head(struct varve_world *w, int fd, struct varve_ctl_head *head,
                        struct varve_err *err)
{
    struct varve_stat st;
    int r = ctl_copy(w, fd, head, sizeof(*head), 0, err);

    if (r < 0)
        return r;
    if (head->magic != VARVE_CTL_MAGIC)
        return varve_err_set(err, EIO, "the control page has no magic number");
    if (head->layout != VARVE_CTL_LAYOUT && head->layout != VARVE_CTL_LAYOUT_DONE)
        return varve_err_set(err, ENOTSUP, "the control page has layout %u, this program knows %u",
                             head->layout, VARVE_CTL_LAYOUT_DONE);
    r = w->stat(w, fd, &st);
    if (r < 0)
        return varve_err_sys(err, -r, "cannot stat the control page");
    if (st.nlink == 0)
        return varve_err_set(err, ESTALE, "the disk's runtime folder was removed");
    return 0;
}

int varve_ctl_read_epochs(struct varve_world *w, int fd, uint64_t first, uint64_t last,
                          struct varve_ctl_epoch_copy *out, struct varve_err *err)
{
    while (first <= last) {
        uint64_t slot = first % VARVE_CTL_EPOCHS;
        uint64_t count = VARVE_CTL_EPOCHS - slot;
        int r;

        if (count > last - first + 1)
            count = last - first + 1;
        r = ctl_copy(w, fd, out, count * sizeof(*out),
                     offsetof(struct varve_ctl, epochs) + slot * sizeof(*out), err);
        if (r < 0)
            return r;
        out += count;
        first += count;
    }
    return 0;
}

int varve_ctl_read_views(struct varve_world *w, int fd,
                         struct varve_ctl_view_copy out[VARVE_CTL_VIEWS], struct varve_err *err)
{
    return ctl_copy(w, fd, out, VARVE_CTL_VIEWS * sizeof(out[0]),
                    offsetof(struct varve_ctl, views), err);
}
