/* SPDX-License-Identifier: BSD-3-Clause
 *
 * block-dirty-bitmap-*, each a transaction of one action; query-block, query-named-block-nodes.
 */
#include "server/commands.h"

#include "server/args.h"
#include "server/bitmap.h"
#include "server/disk.h"
#include "server/transaction.h"

json_t *varve_command_bitmap_add(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return varve_transaction_single(d, "block-dirty-bitmap-add", args, err);
}

json_t *varve_command_bitmap_remove(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return varve_transaction_single(d, "block-dirty-bitmap-remove", args, err);
}

json_t *varve_command_bitmap_clear(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return varve_transaction_single(d, "block-dirty-bitmap-clear", args, err);
}

json_t *varve_command_bitmap_enable(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return varve_transaction_single(d, "block-dirty-bitmap-enable", args, err);
}

json_t *varve_command_bitmap_disable(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return varve_transaction_single(d, "block-dirty-bitmap-disable", args, err);
}

json_t *varve_command_bitmap_merge(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return varve_transaction_single(d, "block-dirty-bitmap-merge", args, err);
}

json_t *varve_command_bitmap_copy(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return varve_transaction_single(d, "block-dirty-bitmap-copy", args, err);
}

/* --- queries -------------------------------------------------------------------------------- */

/* QEMU's BlockDeviceInfo, as far as it makes sense here. */
static json_t *node_describe(struct varve_disk *disk, json_t *bitmaps)
{
    return json_pack("{s:s, s:s, s:s, s:b, s:O, s:{s:s, s:s, s:I}}", "node-name", disk->name,
                     "file", disk->identity.image, "drv", "raw", "ro", 0, "dirty-bitmaps", bitmaps,
                     "image", "filename", disk->identity.image, "format", "raw", "virtual-size",
                     (json_int_t)disk->identity.geometry.size);
}

static json_t *query(struct varve_daemon *d, json_t *args, bool blocks, struct varve_err *err)
{
    static const char *const known_blocks[] = {NULL};
    static const char *const known_nodes[] = {"flat", NULL};
    bool flat;
    json_t *list;

    if (varve_args_check(args, blocks ? known_blocks : known_nodes, NULL, err) < 0 ||
        varve_args_bool(args, "flat", false, &flat, err) < 0)
        return NULL;
    varve_disks_refresh(d);
    list = json_array();
    for (struct varve_disk *disk = d->disks; disk; disk = disk->next) {
        json_t *bitmaps, *node;

        if (disk->gone || !disk->known)
            continue;
        bitmaps = varve_bitmaps_describe(disk, err);
        if (!bitmaps) {
            json_decref(list);
            return NULL;
        }
        node = node_describe(disk, bitmaps);
        if (blocks && node) /* "dirty-bitmaps" stood beside "inserted" before QEMU 6 */
            node =
                json_pack("{s:s, s:s, s:b, s:b, s:o, s:O}", "device", disk->name, "type", "unknown",
                          "removable", 0, "locked", 0, "inserted", node, "dirty-bitmaps", bitmaps);
        if (node)
            json_array_append_new(list, node);
        json_decref(bitmaps);
    }
    return list;
}

json_t *varve_command_query_block(struct varve_daemon *d, json_t *args, struct varve_err *err)
{
    return query(d, args, true, err);
}

json_t *varve_command_query_named_block_nodes(struct varve_daemon *d, json_t *args,
                                              struct varve_err *err)
{
    return query(d, args, false, err);
}
