/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The world the core lives in: files, directories and clocks as a struct of functions.
 * Any thread may call any function.  The core never makes a system call for I/O by another way,
 * so a test's world can fail or crash it at each call.
 *
 * Unless said otherwise a function returns 0 (or a non-negative result) or a negative errno value.
 * Offsets and lengths are bytes.
 */
#ifndef VARVE_LIB_WORLD_H
#define VARVE_LIB_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct varve_stat {
    uint64_t size; /* bytes; of block devices too */
    uint64_t dev, ino;
    uint64_t nlink;
    int64_t mtime_ns; /* since 1970 */
    uint64_t rdev;    /* of block devices: which */
    mode_t mode;
};

/* What the kernel counts of a block device.  0: it does not tell. */
struct varve_device {
    uint64_t diskseq; /* differs for each device that has ever had these numbers in this boot */
    uint64_t sectors; /* written and discarded since then, of 512 bytes */
};

struct varve_world {
    /* A file descriptor.  flags as of open(2), O_CLOEXEC is added. */
    int (*open)(struct varve_world *w, const char *path, int flags, mode_t mode);
    int (*close)(struct varve_world *w, int fd);

    /* Bytes read: len, or fewer only where the file ends. */
    ssize_t (*pread)(struct varve_world *w, int fd, void *buf, size_t len, uint64_t off);
    /* As pread, but never waits for a device: -EAGAIN where it would have to. */
    ssize_t (*pread_now)(struct varve_world *w, int fd, void *buf, size_t len, uint64_t off);
    /* As pread; what was not in the page cache does not stay there, where the kernel lets us. */
    ssize_t (*pread_quiet)(struct varve_world *w, int fd, void *buf, size_t len, uint64_t off);
    /* All of it or an error; what was written before an error is not told. */
    int (*pwrite)(struct varve_world *w, int fd, const void *buf, size_t len, uint64_t off);
    /* Blocks for [off, off+len), which grows the file: later writes there cannot fail for space. */
    int (*allocate)(struct varve_world *w, int fd, uint64_t off, uint64_t len);
    int (*truncate)(struct varve_world *w, int fd, uint64_t len);
    /* Frees [off, off+len), which then reads as zeroes; the size stays. */
    int (*punch)(struct varve_world *w, int fd, uint64_t off, uint64_t len);
    /* Shares or copies inside the kernel.  Bytes copied (maybe fewer than len) or -errno. */
    ssize_t (*copy)(struct varve_world *w, int from, uint64_t from_off, int to, uint64_t to_off,
                    size_t len);
    /* lseek's SEEK_DATA / SEEK_HOLE; -ENXIO: nothing there. */
    int64_t (*seek_data)(struct varve_world *w, int fd, uint64_t off);
    int64_t (*seek_hole)(struct varve_world *w, int fd, uint64_t off);
    /* Data and what is needed to read it back is durable (fdatasync). */
    int (*sync)(struct varve_world *w, int fd);
    /* Whether all that the kernel has written of the file came to the device: 0, or the error that
     * writing it back has had since the file was opened here, told once.  It starts no writing, waits
     * for none, and a description that can only read will do. */
    int (*written_back)(struct varve_world *w, int fd);
    /* Of the file's file system: the bytes that it has, and those that we may still take. */
    int (*room)(struct varve_world *w, int fd, uint64_t *total, uint64_t *free);
    /* That, and its times and everything else that stat tells (fsync). */
    int (*sync_all)(struct varve_world *w, int fd);
    int (*stat)(struct varve_world *w, int fd, struct varve_stat *st);
    /* Of the block device with that rdev.  -ENOENT, -EOPNOTSUPP: the kernel tells nothing. */
    int (*device)(struct varve_world *w, uint64_t rdev, struct varve_device *d);

    /* Shared, writable mapping of the file's first len bytes. */
    int (*map)(struct varve_world *w, int fd, size_t len, void **addr);
    int (*unmap)(struct varve_world *w, void *addr, size_t len);

    /* Open-file-description lock on the whole file, not waiting.  -EAGAIN: another has it. */
    int (*lock)(struct varve_world *w, int fd, bool exclusive);

    int (*mkdir)(struct varve_world *w, const char *path, mode_t mode);
    int (*rename)(struct varve_world *w, const char *from, const char *to);
    /* The same; -EEXIST: there is something called `to`, which stays. */
    int (*rename_new)(struct varve_world *w, const char *from, const char *to);
    int (*unlink)(struct varve_world *w, const char *path);
    /* Names created, renamed or removed in the directory are durable. */
    int (*sync_dir)(struct varve_world *w, const char *path);
    /* Calls each(arg, name) for every entry but . and .. until it returns nonzero; that is returned. */
    int (*list)(struct varve_world *w, const char *path, int (*each)(void *arg, const char *name),
                void *arg);

    uint64_t (*realtime_ns)(struct varve_world *w);
    uint64_t (*monotonic_ns)(struct varve_world *w);
    /* Real time as file systems stamp files with it: behind realtime_ns by a tick at most. */
    uint64_t (*file_clock_ns)(struct varve_world *w);
    /* Lets so much time pass. */
    void (*wait_ns)(struct varve_world *w, uint64_t ns);
    /* Since the machine was started, sleep included. */
    uint64_t (*uptime_ns)(struct varve_world *w);
    int (*random)(struct varve_world *w, void *buf, size_t len);
    /* A value that differs after each boot of the machine. */
    int (*boot_id)(struct varve_world *w, uint8_t id[16]);
};

/* The machine's own.  Has no state: needs no fini, may be shared. */
struct varve_world *varve_world_posix(void);

#endif
