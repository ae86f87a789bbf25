/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading much of a file that others use, without an effect on what they have in the page cache:
 * what was cached stays, what was not does not stay.  Any thread that may wait for a disk.  It
 * needs an open file description of its own, and never changes the file.
 */
#ifndef VARVE_LIB_QUIET_IO_H
#define VARVE_LIB_QUIET_IO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The most that one read may ask for. */
#define VARVE_QUIET_MAX (4u * 1024u * 1024u)

/* Once, before the first read: the kernel does not read ahead for this description any more.
 * Whoever reads keeps several reads under way instead. */
void varve_quiet_prepare(int fd);

/* Fills buf with [off, off+len), quiet or not: flags as of preadv2(2), 0 for none.  Bytes read,
 * fewer than len only where the file ends, or -errno. */
ssize_t varve_pread_all(int fd, void *buf, size_t len, uint64_t off, int flags);

/* Fills buf with [off, off+len), len at most VARVE_QUIET_MAX.  Bytes read, fewer than len only
 * where the file ends, or -errno. */
ssize_t varve_quiet_pread(int fd, void *buf, size_t len, uint64_t off);

/* What memory has of it from `off` on, never waiting; -EAGAIN: nothing, -EOPNOTSUPP: the file
 * system does not know.  The kernel may begin to read the rest; that stays only where it does not
 * know how to drop it (before Linux 6.14). */
ssize_t varve_quiet_pread_now(int fd, void *buf, size_t len, uint64_t off);

#endif
