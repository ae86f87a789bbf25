/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the intent log says to whoever comes next.
 *
 * 1. Each sector is believed or not by itself: a disk writes a sector whole, but a page by halves.
 *    What does not pass its check says that its regions are hot (I7).
 * 2. The head says whether the log was kept.  Its server takes that away, durably, when it cannot keep
 *    the log or need not, and removes the file if that fails too.  Should even that be lost, the image
 *    tells: the head is written every few seconds while something is written, so an image that was
 *    changed long after it has been changed by somebody who kept no log.  So have images whose state
 *    directory came back from an older copy.
 * 3. Reading is behind a sync: after kill -9 the page cache may show what is not durable.
 */
#include "lib/intent.h"

#include "include/varve.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#define MAGIC        "varvelog"
#define VERSION      1u
#define SECTOR_MAGIC 0x676c6976u /* "vilg" */

struct intent_head {
    char magic[8];
    uint32_t version;
    uint32_t shift;
    uint8_t uuid[16];
    uint64_t size;
    uint64_t kept;
    uint64_t written_ns;
    uint8_t zero[448];
    uint64_t check;
};

struct intent_sector {
    uint32_t magic;
    uint32_t number;
    uint8_t uuid[16];
    uint64_t bits[VARVE_INTENT_SECTOR_REGIONS / 64];
    uint64_t check;
};

static_assert(sizeof(struct intent_head) == VARVE_INTENT_SECTOR &&
                  sizeof(struct intent_sector) == VARVE_INTENT_SECTOR,
              "the format's sectors");

#define SECTOR_WORDS (VARVE_INTENT_SECTOR_REGIONS / 64)

uint32_t varve_intent_shift(const struct varve_geometry *g)
{
    uint32_t shift = 20;

    static_assert(VARVE_PIECE_MAX == 1u << 20, "a piece lies in one region");
    while (g->size > 0 && ((g->size - 1) >> shift) >= VARVE_INTENT_REGIONS)
        shift++;
    return shift;
}

uint64_t varve_intent_nregions(const struct varve_geometry *g)
{
    return g->size == 0 ? 0 : ((g->size - 1) >> varve_intent_shift(g)) + 1;
}

/* Against tears and foreign bytes, not against malice. */
static uint64_t sector_check(const void *sector)
{
    const uint8_t *p = sector;
    uint64_t h = UINT64_C(0xcbf29ce484222325);

    for (size_t i = 0; i < VARVE_INTENT_SECTOR - 8; i++)
        h = (h ^ p[i]) * UINT64_C(0x100000001b3);
    return htole64(h);
}

void varve_intent_encode(uint8_t page[VARVE_INTENT_BYTES], const uint8_t uuid[16],
                         const struct varve_geometry *g, const uint64_t *bits, bool kept,
                         uint64_t now_ns)
{
    struct intent_head head = {
        .version = htole32(VERSION),
        .shift = htole32(varve_intent_shift(g)),
        .size = htole64(g->size),
        .kept = htole64(kept),
        .written_ns = htole64(now_ns),
    };

    memcpy(head.magic, MAGIC, sizeof(head.magic));
    memcpy(head.uuid, uuid, sizeof(head.uuid));
    head.check = sector_check(&head);
    memcpy(page, &head, sizeof(head));
    for (unsigned n = 1; n < VARVE_INTENT_SECTORS; n++) {
        struct intent_sector s = {.magic = htole32(SECTOR_MAGIC), .number = htole32(n)};

        memcpy(s.uuid, uuid, sizeof(s.uuid));
        for (unsigned i = 0; i < SECTOR_WORDS; i++)
            s.bits[i] = htole64(bits[(n - 1) * SECTOR_WORDS + i]);
        s.check = sector_check(&s);
        memcpy(page + n * VARVE_INTENT_SECTOR, &s, sizeof(s));
    }
}

static bool sector_decode(const struct intent_sector *s, unsigned n, const uint8_t uuid[16],
                          uint64_t *bits)
{
    if (s->check != sector_check(s) || le32toh(s->magic) != SECTOR_MAGIC ||
        le32toh(s->number) != n || memcmp(s->uuid, uuid, sizeof(s->uuid)) != 0)
        return false;
    for (unsigned i = 0; i < SECTOR_WORDS; i++)
        bits[i] = le64toh(s->bits[i]);
    return true;
}

static const char *head_doubt(const struct intent_head *head, const uint8_t uuid[16],
                              const struct varve_geometry *g, int64_t image_mtime_ns)
{
    uint64_t written_ns = le64toh(head->written_ns);

    if (memcmp(head->uuid, uuid, sizeof(head->uuid)) != 0)
        return "the intent log belongs to another disk";
    if (le64toh(head->size) != g->size || le32toh(head->shift) != varve_intent_shift(g))
        return "the intent log is of a disk of another size";
    if (le64toh(head->kept) != 1)
        return "the intent log was not kept";
    if (image_mtime_ns > 0 && (uint64_t)image_mtime_ns > written_ns &&
        (uint64_t)image_mtime_ns - written_ns > VARVE_INTENT_DOUBT_NS)
        return "the intent log is older than the image";
    return NULL;
}

static int page_decode(const uint8_t page[VARVE_INTENT_BYTES], const char *path,
                       const uint8_t uuid[16], const struct varve_geometry *g,
                       int64_t image_mtime_ns, struct varve_intent_found *f, struct varve_err *err)
{
    uint64_t nregions = varve_intent_nregions(g);
    struct intent_head head;

    memcpy(&head, page, sizeof(head));
    if (head.check != sector_check(&head) || memcmp(head.magic, MAGIC, sizeof(head.magic)) != 0) {
        f->why = "the intent log is damaged";
        return 0;
    }
    if (le32toh(head.version) != VERSION)
        return varve_err_set(err, ENOTSUP,
                             "%s has format %" PRIu32 ", this varve knows format %u only: use the "
                             "version of varve that wrote it",
                             path, le32toh(head.version), VERSION);
    f->why = head_doubt(&head, uuid, g, image_mtime_ns);
    f->trusted = !f->why;
    for (unsigned n = 1; n < VARVE_INTENT_SECTORS; n++) {
        uint64_t *bits = f->bits + (n - 1) * SECTOR_WORDS;
        struct intent_sector s;

        memcpy(&s, page + n * VARVE_INTENT_SECTOR, sizeof(s));
        if (!sector_decode(&s, n, uuid, bits))
            memset(bits, 0xff, SECTOR_WORDS * sizeof(*bits));
    }
    for (uint64_t i = nregions; i < VARVE_INTENT_REGIONS; i++)
        f->bits[i / 64] &= ~((uint64_t)1 << (i % 64));
    for (unsigned i = 0; i < VARVE_INTENT_WORDS; i++)
        f->regions += (unsigned)__builtin_popcountll(f->bits[i]);
    return 0;
}

int varve_intent_read(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                      const struct varve_geometry *g, int64_t image_mtime_ns,
                      struct varve_intent_found *found, struct varve_err *err)
{
    uint8_t page[VARVE_INTENT_BYTES];
    char path[PATH_MAX];
    ssize_t got;
    int fd;

    memset(found, 0, sizeof(*found));
    fd = w->open(w, varve_path_intent(p, path), O_RDONLY, 0);
    if (fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM) /* says nothing of the log */
        return varve_err_sys(err, -fd, "cannot open %s", path);
    found->why = fd == -ENOENT ? "there is no intent log" : "the intent log cannot be read";
    if (fd < 0)
        return 0;
    got = w->sync(w, fd); /* rule 3 */
    if (got == 0)
        got = w->sync_dir(w, p->state); /* also of the name: another file may have had it */
    if (got == 0)
        got = w->pread(w, fd, page, sizeof(page), 0);
    w->close(w, fd);
    if (got < 0)
        return 0;
    if ((size_t)got < sizeof(page)) {
        found->why = "the intent log is damaged";
        return 0;
    }
    return page_decode(page, path, uuid, g, image_mtime_ns, found, err);
}

uint64_t varve_intent_served_ns(struct varve_world *w, const struct varve_paths *p,
                                const uint8_t uuid[16])
{
    struct intent_head head;
    char path[PATH_MAX];
    ssize_t got;
    int fd = w->open(w, varve_path_intent(p, path), O_RDONLY, 0);

    if (fd < 0)
        return 0;
    got = w->pread(w, fd, &head, sizeof(head), 0);
    w->close(w, fd);
    if (got != (ssize_t)sizeof(head) || head.check != sector_check(&head) ||
        memcmp(head.magic, MAGIC, sizeof(head.magic)) != 0 || le32toh(head.version) != VERSION ||
        memcmp(head.uuid, uuid, sizeof(head.uuid)) != 0 || le64toh(head.kept) != 1)
        return 0;
    return le64toh(head.written_ns);
}

int varve_intent_drop(struct varve_world *w, const struct varve_paths *p, struct varve_err *err)
{
    char path[PATH_MAX];
    int r = w->unlink(w, varve_path_intent(p, path));

    if (r == 0 || r == -ENOENT)
        r = w->sync_dir(w, p->state); /* of a former unlink, too */
    return r < 0 ? varve_err_sys(err, -r, "cannot remove %s", path) : 0;
}
