/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/sim-disk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void sim_must(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "sim-world: %s\n", what);
    abort();
}

static void *grown(void *items, size_t count, size_t *room, size_t item)
{
    if (count < *room)
        return items;
    *room = *room ? 2 * *room : 16;
    items = reallocarray(items, *room, item);
    sim_must(items != NULL, "memory");
    return items;
}

bool sim_in_memory(const char *path)
{
    return strncmp(path, "/run", 4) == 0 && (path[4] == '/' || path[4] == '\0');
}

/* --- names ------------------------------------------------------------------------------------ */

static struct sim_name *name_of(const struct sim_names *names, const char *path)
{
    for (size_t i = 0; i < names->count; i++) {
        if (strcmp(names->names[i].path, path) == 0)
            return &names->names[i];
    }
    return NULL;
}

struct sim_inode *sim_find(const struct sim_names *names, const char *path)
{
    struct sim_name *n = name_of(names, path);

    return n ? n->inode : NULL;
}

static void name_set(struct sim_names *names, const char *path, struct sim_inode *inode)
{
    struct sim_name *n = name_of(names, path);

    if (!inode) {
        if (n)
            *n = names->names[--names->count];
        return;
    }
    if (!n) {
        names->names = grown(names->names, names->count, &names->room, sizeof(*n));
        n = &names->names[names->count++];
        strcpy(n->path, path);
    }
    n->inode = inode;
}

static void change_apply(struct sim_names *names, const struct sim_change *c)
{
    if (c->from[0])
        name_set(names, c->from, NULL);
    name_set(names, c->path, c->inode);
}

void sim_rename(struct sim_disk *d, const char *path, const char *from, struct sim_inode *inode)
{
    struct sim_change c = {.inode = inode};

    sim_must(strlen(path) < SIM_PATH_MAX && (!from || strlen(from) < SIM_PATH_MAX), "a long path");
    strcpy(c.path, path);
    if (from)
        strcpy(c.from, from);
    change_apply(&d->now, &c);
    if (sim_in_memory(path))
        return;
    d->changes = grown(d->changes, d->nchanges, &d->change_room, sizeof(c));
    d->changes[d->nchanges++] = c;
}

static bool lies_in(const char *path, const char *dir)
{
    size_t len = (size_t)(strrchr(path, '/') - path);

    return len == strlen(dir) && strncmp(path, dir, len) == 0;
}

void sim_sync_names(struct sim_disk *d, const char *dir)
{
    size_t kept = 0;

    for (size_t i = 0; i < d->nchanges; i++) {
        if (lies_in(d->changes[i].path, dir))
            change_apply(&d->durable, &d->changes[i]);
        else
            d->changes[kept++] = d->changes[i];
    }
    d->nchanges = kept;
}

static bool names_meet(const struct sim_change *a, const struct sim_change *b)
{
    return strcmp(a->path, b->path) == 0 || (b->from[0] && strcmp(a->path, b->from) == 0) ||
           (a->from[0] && (strcmp(a->from, b->path) == 0 || strcmp(a->from, b->from) == 0));
}

/* A change is lost if an earlier one of the same name was. */
void sim_lose_names(struct sim *s, unsigned keep_of_4)
{
    struct sim_disk *d = s->disk;
    size_t lost = 0;

    for (size_t i = 0; i < d->nchanges; i++) {
        struct sim_change c = d->changes[i];
        bool keep = sim_random(s, 4) < keep_of_4;

        for (size_t k = 0; keep && k < lost; k++)
            keep = !names_meet(&d->changes[k], &c);
        if (keep)
            change_apply(&d->durable, &c);
        else
            d->changes[lost++] = c;
    }
    d->nchanges = 0;
    d->now.count = 0;
    for (size_t i = 0; i < d->durable.count; i++) {
        struct sim_name *n = &d->durable.names[i];
        char dir[SIM_PATH_MAX];

        strcpy(dir, n->path);
        *strrchr(dir, '/') = '\0';
        if (dir[0] == '\0' || sim_find(&d->durable, dir))
            name_set(&d->now, n->path, n->inode);
    }
    d->durable.count = 0;
    for (size_t i = 0; i < d->now.count; i++)
        name_set(&d->durable, d->now.names[i].path, d->now.names[i].inode);
}

/* --- inodes ----------------------------------------------------------------------------------- */

static bool ino_used(const struct sim_disk *d, uint64_t ino)
{
    for (struct sim_inode *n = d->inodes; n; n = n->next) {
        if (n->ino == ino)
            return true;
    }
    return false;
}

/* Numbers are used again as soon as they are free, as file systems do. */
struct sim_inode *sim_inode_new(struct sim_disk *d, bool dir, bool memory)
{
    struct sim_inode *n = calloc(1, sizeof(*n));

    sim_must(n != NULL, "memory");
    n->dir = dir;
    n->memory = memory;
    n->locked_by = -1;
    for (n->ino = 2; ino_used(d, n->ino); n->ino++)
        continue;
    n->next = d->inodes;
    d->inodes = n;
    return n;
}

static void inode_free(struct sim_inode *n)
{
    for (size_t i = 0; i < n->npages; i++) {
        free(n->pages[i].cur);
        free(n->pages[i].dur);
    }
    free(n->pages);
    free(n->bytes);
    free(n->as_at_death);
    free(n);
}

static void names_mark(const struct sim_names *names)
{
    for (size_t i = 0; i < names->count; i++)
        names->names[i].inode->marked = true;
}

void sim_sweep(struct sim_disk *d)
{
    struct sim_inode **at = &d->inodes;

    names_mark(&d->now);
    names_mark(&d->durable);
    for (size_t i = 0; i < d->nchanges; i++) {
        if (d->changes[i].inode)
            d->changes[i].inode->marked = true;
    }
    for (unsigned i = 0; i < SIM_FILES; i++) {
        if (d->files[i].inode)
            d->files[i].inode->marked = true;
    }
    for (unsigned i = 0; i < SIM_MAPS; i++) {
        if (d->maps[i].inode)
            d->maps[i].inode->marked = true;
    }
    while (*at) {
        struct sim_inode *n = *at;

        if (n->marked) {
            n->marked = false;
            at = &n->next;
        } else {
            *at = n->next;
            inode_free(n);
        }
    }
}

struct sim_disk *sim_disk_new(void)
{
    struct sim_disk *d = calloc(1, sizeof(*d));

    sim_must(d != NULL, "memory");
    return d;
}

void sim_disk_free(struct sim_disk *d)
{
    while (d->inodes) {
        struct sim_inode *n = d->inodes;

        d->inodes = n->next;
        inode_free(n);
    }
    free(d->now.names);
    free(d->durable.names);
    free(d->changes);
    free(d);
}

/* --- data ------------------------------------------------------------------------------------- */

/* Where the page is or belongs. */
static size_t page_at(const struct sim_inode *n, uint64_t index)
{
    size_t lo = 0, hi = n->npages;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        if (n->pages[mid].index < index)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static struct sim_page *page_of(const struct sim_inode *n, uint64_t index)
{
    size_t at = page_at(n, index);

    return at < n->npages && n->pages[at].index == index ? &n->pages[at] : NULL;
}

static struct sim_page *page_make(struct sim_inode *n, uint64_t index)
{
    size_t at = page_at(n, index);

    if (at < n->npages && n->pages[at].index == index)
        return &n->pages[at];
    n->pages = grown(n->pages, n->npages, &n->page_room, sizeof(n->pages[0]));
    memmove(&n->pages[at + 1], &n->pages[at], (n->npages - at) * sizeof(n->pages[0]));
    n->npages++;
    n->pages[at] = (struct sim_page){.index = index};
    return &n->pages[at];
}

static uint8_t *page_bytes(uint8_t **bytes)
{
    if (!*bytes)
        *bytes = calloc(1, SIM_PAGE);
    sim_must(*bytes != NULL, "memory");
    return *bytes;
}

static void sector_copy(uint8_t **to, uint8_t *const *from, unsigned sector)
{
    if (*from)
        memcpy(page_bytes(to) + sector * SIM_SECTOR, *from + sector * SIM_SECTOR, SIM_SECTOR);
    else if (*to)
        memset(*to + sector * SIM_SECTOR, 0, SIM_SECTOR);
}

/* Sectors of the mask are durable. */
static void page_harden(struct sim_page *p, uint8_t mask)
{
    for (unsigned i = 0; i < SIM_SECTORS; i++) {
        if (mask >> i & 1)
            sector_copy(&p->dur, &p->cur, i);
    }
    p->dirty &= (uint8_t)~mask;
    if (mask && (p->data || p->dirty == 0))
        p->dur_data = p->data;
}

static void store_in_page(struct sim *s, struct sim_page *p, const uint8_t *buf, unsigned off,
                          unsigned len)
{
    uint8_t mask = 0;

    for (unsigned i = off / SIM_SECTOR; i <= (off + len - 1) / SIM_SECTOR; i++)
        mask |= (uint8_t)(1u << i);
    /* The version before may have been written back, or not. */
    if (p->dirty & mask)
        page_harden(p, p->dirty & mask & (uint8_t)sim_random(s, 256));
    p->dirty |= mask;
    p->refused &= (uint8_t)~mask;
    if (buf) {
        p->data = true;
        memcpy(page_bytes(&p->cur) + off, buf, len);
    } else {
        if (p->cur)
            memset(p->cur + off, 0, len);
        if (len == SIM_PAGE)
            p->data = false;
    }
}

void sim_store(struct sim *s, struct sim_inode *n, const void *buf, uint64_t off, uint64_t len)
{
    const uint8_t *at = buf;

    if (len == 0)
        return;
    n->mtime_ns = (int64_t)s->now_ns;
    if (buf && off + len > n->size)
        sim_resize(s, n, off + len);
    if (n->memory) {
        if (off >= n->size)
            return;
        if (len > n->size - off)
            len = n->size - off;
        if (buf)
            memcpy(n->bytes + off, buf, len);
        else
            memset(n->bytes + off, 0, len);
        return;
    }
    while (len > 0) {
        unsigned in = (unsigned)(off % SIM_PAGE);
        unsigned part = len < SIM_PAGE - in ? (unsigned)len : SIM_PAGE - in;

        if (buf || page_of(n, off / SIM_PAGE))
            store_in_page(s, page_make(n, off / SIM_PAGE), at, in, part);
        off += part;
        len -= part;
        if (at)
            at += part;
    }
}

void sim_load(const struct sim_inode *n, void *buf, uint64_t off, uint64_t len)
{
    uint8_t *to = buf;

    if (len == 0)
        return;
    if (n->memory) {
        memcpy(buf, n->bytes + off, len);
        return;
    }
    while (len > 0) {
        uint64_t in = off % SIM_PAGE, part = len < SIM_PAGE - in ? len : SIM_PAGE - in;
        const struct sim_page *p = page_of(n, off / SIM_PAGE);

        if (p && p->cur)
            memcpy(to, p->cur + in, part);
        else
            memset(to, 0, part);
        off += part;
        len -= part;
        to += part;
    }
}

void sim_resize(struct sim *s, struct sim_inode *n, uint64_t size)
{
    if (n->memory && size > n->room) {
        for (unsigned i = 0; i < SIM_MAPS; i++)
            sim_must(s->disk->maps[i].inode != n, "a mapped file grows");
        n->bytes = realloc(n->bytes, size);
        sim_must(n->bytes != NULL, "memory");
        memset(n->bytes + n->room, 0, size - n->room);
        n->room = size;
    }
    if (size < n->size) {
        if (n->memory) {
            memset(n->bytes + size, 0, n->size - size);
        } else {
            for (size_t i = page_at(n, size / SIM_PAGE); i < n->npages; i++) {
                uint64_t start = n->pages[i].index * SIM_PAGE;
                uint64_t off = start < size ? size : start;

                sim_store(s, n, NULL, off, start + SIM_PAGE - off);
            }
        }
        if (n->reserved > size)
            n->reserved = size;
    }
    n->size = size;
    n->mtime_ns = (int64_t)s->now_ns;
}

void sim_sync_data(struct sim *s, struct sim_inode *n, bool refused)
{
    for (size_t i = 0; i < n->npages; i++) {
        struct sim_page *p = &n->pages[i];

        if (!p->dirty)
            continue;
        if (refused) {
            page_harden(p, p->dirty & (uint8_t)sim_random(s, 256));
            p->refused |= p->dirty;
            p->dirty = 0;
        } else {
            page_harden(p, p->dirty);
        }
    }
    if (!refused)
        n->dur_size = n->size;
}

uint64_t sim_seek(const struct sim_inode *n, uint64_t off, bool want)
{
    if (n->memory)
        return want ? off : n->size;
    while (off < n->size) {
        const struct sim_page *p = page_of(n, off / SIM_PAGE);

        if ((p && p->data) == want)
            return off;
        if (!p && want) { /* on to the next page that there is */
            size_t at = page_at(n, off / SIM_PAGE);

            if (at == n->npages)
                return n->size;
            off = n->pages[at].index * SIM_PAGE;
        } else {
            off = (off / SIM_PAGE + 1) * SIM_PAGE;
        }
    }
    return n->size;
}

/* --- what the power leaves -------------------------------------------------------------------- */

void sim_write_back_data(struct sim *s, struct sim_inode *n)
{
    for (size_t i = 0; i < n->npages; i++) {
        if (n->pages[i].dirty)
            page_harden(&n->pages[i], n->pages[i].dirty & (uint8_t)sim_random(s, 256));
    }
    if (sim_random(s, 2))
        n->dur_size = n->size;
}

static bool page_is_zero(const uint8_t *bytes)
{
    return !bytes || (bytes[0] == 0 && memcmp(bytes, bytes + 1, SIM_PAGE - 1) == 0);
}

void sim_lose_data(struct sim *s, struct sim_inode *n, unsigned keep_of_4)
{
    if (sim_random(s, 4) >= keep_of_4)
        n->size = n->dur_size;
    n->dur_size = n->size;
    for (size_t i = 0; i < n->npages; i++) {
        struct sim_page *p = &n->pages[i];
        uint8_t lost = p->dirty | p->refused;

        for (unsigned k = 0; k < SIM_SECTORS; k++) {
            uint64_t off = p->index * SIM_PAGE + k * SIM_SECTOR;

            if (off >= n->size) {
                if (p->dur)
                    memset(p->dur + k * SIM_SECTOR, 0, SIM_SECTOR);
            } else if (lost >> k & 1 && sim_random(s, 4) < keep_of_4) {
                sector_copy(&p->dur, &p->cur, k);
            }
        }
        if (p->dur && n->size > p->index * SIM_PAGE && n->size < (p->index + 1) * SIM_PAGE)
            memset(p->dur + n->size % SIM_PAGE, 0, SIM_PAGE - n->size % SIM_PAGE);
        for (unsigned k = 0; k < SIM_SECTORS; k++)
            sector_copy(&p->cur, &p->dur, k);
        p->dirty = p->refused = 0;
        p->data = p->dur_data = !page_is_zero(p->cur) || (p->data && p->dur_data);
    }
    n->errors = 0;
    n->error_told = false;
    n->locked_by = -1;
}
