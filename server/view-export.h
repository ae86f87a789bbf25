/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Exports of a backup: a served view with one set of changes, under a name.  What clients can bear
 * is decided here (clients.md).  Made on the clerk's thread; its operations run in pool threads.
 */
#ifndef VARVE_SERVER_VIEW_EXPORT_H
#define VARVE_SERVER_VIEW_EXPORT_H

#include "include/varve.h"
#include "server/changes.h"
#include "server/nbd/export.h"
#include "server/served-view.h"

struct varve_view_export {
    struct varve_export e;          /* first */
    struct varve_view_export *next; /* its backup's list */
    char id[VARVE_NAME_MAX + 1]; /* of an extra export, for its maker; empty: it is none */
    struct varve_served_view *view;
    struct varve_changes *changes;
    bool delta;
    char *dirty_context, *changes_context;
    const char *contexts[4];
};

/* base: since when the changes are, for the description; NULL: everything counts as changed.
 * bitmap: what stands behind "qemu:dirty-bitmap:" and "varve:changes:"; NULL: a delta export, which
 * has base:allocation only, clean blocks being holes.  throttle: NULL for none.  References of
 * view, changes and throttle are added.  NULL: no memory. It is freed by varve_export_unref(&x->e). */
struct varve_view_export *varve_view_export_new(const char *name, const char *bitmap, bool listed,
                                                struct varve_served_view *view,
                                                struct varve_changes *changes, const char *base,
                                                struct varve_throttle *throttle);

#endif
