/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Names and limits that plugin, daemon and command line share and that users script against.
 * Anyone may include it.  It declares nothing that does work.
 */
#ifndef VARVE_H
#define VARVE_H

#include <stdint.h>

#define VARVE_DEFAULT_STATE_DIR   "/var/lib/varve"
#define VARVE_DEFAULT_RUNTIME_DIR "/run/varve"

/* Below the runtime directory. */
#define VARVE_CONTROL_SOCKET "control.sock"
#define VARVE_NBD_SOCKET     "nbd.sock"
/* Below the runtime directory's folder of one disk. */
#define VARVE_LINK_SOCKET "link.sock"

/* A disk's, checkpoint's or export's name: [A-Za-z0-9][A-Za-z0-9._-]{0,63}. */
#define VARVE_NAME_MAX 64

/* A bitmap's name, in bytes, any UTF-8 (QEMU's BDRV_BITMAP_MAX_NAME_SIZE). */
#define VARVE_BITMAP_NAME_MAX 1023

/* Block size ("granularity") in bytes: a power of two within these. */
#define VARVE_BLOCK_SIZE_MIN 4096u
#define VARVE_BLOCK_SIZE_MAX (1024u * 1024u)

/* What enters an epoch at once is at most this many bytes. */
#define VARVE_PIECE_MAX (1024u * 1024u)

/* A disk's size in bytes is at most this (what NBD's signed offsets can say). */
#define VARVE_DISK_SIZE_MAX ((uint64_t)INT64_MAX)

/* Meta contexts. */
#define VARVE_CTX_ALLOCATION     "base:allocation"
#define VARVE_CTX_DIRTY_PREFIX   "qemu:dirty-bitmap:"
#define VARVE_CTX_CHANGES_PREFIX "varve:changes:"
#define VARVE_CTX_LOST           "varve:lost"

/* An export's description:
 *
 *     disk NAME at the start of its epoch N, view ID[, changes since BASE] [first half of the
 * disk's uuid]
 *
 * ID is of one disk in one backup and of nothing else, ever: what two connections read of exports
 * with the same ID are the same bytes.  varve pull goes on by it where it was.
 *
 * What stands behind VARVE_DESC_CHANGES, to its end, is the base of its dirty bitmap: equal texts
 * mean the same base of the same disk.  varve pull keeps it in its marker.  Where BASE is the start
 * of an epoch it is VARVE_DESC_INSTANT and the number, and for a bitmap VARVE_DESC_UNITS and its
 * granularity: varve pull --delta tells by them whether one delta begins where another one ends. */
#define VARVE_DESC_EPOCH   " at the start of its epoch "
#define VARVE_DESC_VIEW    ", view "
#define VARVE_DESC_CHANGES ", changes since "
#define VARVE_DESC_INSTANT "the start of epoch "
#define VARVE_DESC_UNITS   ", in units of "

#endif
