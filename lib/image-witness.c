/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What makes the judgement right:
 *
 *  1. A clean stop waits until the clock that stamps files has left the tick of the last write,
 * then looks: any later write, by whatever way, gives the file another time than the one noted.
 *  2. "Clean" is taken off durably before the first write of ours (tracker-doubt.c), so a look that
 *     differs from a clean one was not ours.
 *  3. A killed server leaves when its last write ended by the same clock, before it counts the
 * write out: with nothing under way a later time is not ours.  Writes that were under way may be
 * later, but not much later than the last beat.
 *  4. After a crash of the host nothing of ours is later than the start of the machine, nor much
 * later than the last heartbeat in the state folder.  That is the intent log's time, which is durable
 * before the first write after a pause and goes on while anything is hot, so that a disk that is idle
 * has none; where no log is kept it is the witness's, for as long as the disk is served.
 *
 * Other clocks than this host's (NFS) shift 3 and 4 by the difference.  The change time is no
 * criterion: managers change owners and modes.
 */
#include "lib/image-witness.h"

#include "lib/digest.h"
#include "lib/intent.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define FILE_MODE 0600
#define SLOT      4096u
#define MAGIC     "varvewit"
#define VERSION   1u

#define NS           UINT64_C(1000000000)
#define TICK_NS      UINT64_C(20000000) /* the longest tick of a kernel, twice */
#define SECOND_NS    (2 * NS + TICK_NS) /* FAT has every other second */
#define SETTLE_TRIES 3
/* Heartbeats in the state folder come every few seconds, and may have to wait for a slow disk. */
#define HEARTBEAT_LATE_NS (20 * NS)

struct record {
    char magic[8];
    uint32_t version, kind;
    uint64_t seq;
    uint8_t uuid[16], boot_id[16];
    uint64_t block, dev, ino, size, mtime_ns, diskseq, sectors, time_ns;
    uint64_t doubt_epoch, doubt_from, doubt_ns, unproved_ns, found_ns;
    char doubt[VARVE_WITNESS_TEXT], unproved[VARVE_WITNESS_TEXT], found[VARVE_WITNESS_TEXT];
    uint8_t digest[VARVE_DIGEST_LEN];
};

static_assert(sizeof(struct record) <= SLOT, "a slot holds a record");

char *varve_time_text(uint64_t ns, char buf[VARVE_TIME_TEXT])
{
    time_t t = (time_t)(ns / NS);
    char seconds[sizeof("YYYY-mm-dd HH:MM:SS")];
    struct tm tm;

    if (!gmtime_r(&t, &tm) || strftime(seconds, sizeof(seconds), "%Y-%m-%d %H:%M:%S", &tm) == 0)
        strcpy(buf, "an unknown time");
    else
        snprintf(buf, VARVE_TIME_TEXT, "%s.%03u UTC", seconds, (unsigned)(ns % NS / 1000000));
    return buf;
}

/* --- looking
 * --------------------------------------------------------------------------------------- */

int varve_image_look(struct varve_world *w, int fd, struct varve_image_look *look,
                     struct varve_err *err)
{
    struct varve_device dev = {0, 0};
    struct varve_stat st;
    int r = w->stat(w, fd, &st);

    if (r < 0)
        return varve_err_sys(err, -r, "cannot look at the image");
    memset(look, 0, sizeof(*look));
    look->block = S_ISBLK(st.mode);
    look->size = st.size;
    if (!look->block) {
        look->dev = st.dev;
        look->ino = st.ino;
        look->mtime_ns = st.mtime_ns;
        return 0;
    }
    look->dev = st.rdev;
    r = w->sync_all(w, fd);
    if (r < 0)
        return varve_err_sys(err, -r, "cannot make the image durable");
    if (w->device(w, st.rdev, &dev) == 0) {
        look->diskseq = dev.diskseq;
        look->sectors = dev.sectors;
    }
    return 0;
}

int varve_image_look_settled(struct varve_world *w, int fd, struct varve_image_look *look,
                             struct varve_err *err)
{
    for (int i = 0;; i++) {
        uint64_t now = w->realtime_ns(w), grain;
        int r = varve_image_look(w, fd, look, err);

        if (r < 0 || look->block || look->mtime_ns < 0)
            return r;
        grain = (uint64_t)look->mtime_ns % NS == 0 ? SECOND_NS : TICK_NS;
        /* Far in the future nothing is gained by waiting. */
        if (now >= (uint64_t)look->mtime_ns + grain || (uint64_t)look->mtime_ns > now + SECOND_NS)
            return 0;
        if (i == SETTLE_TRIES)
            return varve_err_set(err, EBUSY, "somebody keeps writing to the image");
        w->wait_ns(w, (uint64_t)look->mtime_ns + grain - now);
    }
}

/* --- the file
 * -------------------------------------------------------------------------------------- */

static int record_digest(const struct record *rec, uint8_t digest[VARVE_DIGEST_LEN],
                         struct varve_err *err)
{
    struct varve_digest d;
    int r = varve_digest_init(&d, err);

    if (r < 0)
        return r;
    varve_digest_update(&d, rec, offsetof(struct record, digest));
    return varve_digest_final(&d, digest, err);
}

static void text_copy(char to[VARVE_WITNESS_TEXT], const char from[VARVE_WITNESS_TEXT])
{
    memcpy(to, from, VARVE_WITNESS_TEXT);
    to[VARVE_WITNESS_TEXT - 1] = '\0';
}

static void record_decode(const struct record *rec, struct varve_witness *wit)
{
    memset(wit, 0, sizeof(*wit));
    wit->kind = (enum varve_witness_kind)le32toh(rec->kind);
    wit->seq = le64toh(rec->seq);
    memcpy(wit->boot_id, rec->boot_id, 16);
    wit->look = (struct varve_image_look){.block = rec->block != 0,
                                          .dev = le64toh(rec->dev),
                                          .ino = le64toh(rec->ino),
                                          .size = le64toh(rec->size),
                                          .mtime_ns = (int64_t)le64toh(rec->mtime_ns),
                                          .diskseq = le64toh(rec->diskseq),
                                          .sectors = le64toh(rec->sectors)};
    wit->time_ns = le64toh(rec->time_ns);
    wit->doubt_epoch = le64toh(rec->doubt_epoch);
    wit->doubt_from = le64toh(rec->doubt_from);
    wit->doubt_ns = le64toh(rec->doubt_ns);
    wit->unproved_ns = le64toh(rec->unproved_ns);
    wit->found_ns = le64toh(rec->found_ns);
    text_copy(wit->doubt, rec->doubt);
    text_copy(wit->unproved, rec->unproved);
    text_copy(wit->found, rec->found);
}

static void record_encode(const struct varve_witness *wit, const uint8_t uuid[16],
                          struct record *rec)
{
    const struct varve_image_look *l = &wit->look;

    memset(rec, 0, sizeof(*rec));
    memcpy(rec->magic, MAGIC, sizeof(rec->magic));
    rec->version = htole32(VERSION);
    rec->kind = htole32((uint32_t)wit->kind);
    rec->seq = htole64(wit->seq);
    memcpy(rec->uuid, uuid, 16);
    memcpy(rec->boot_id, wit->boot_id, 16);
    rec->block = htole64(l->block);
    rec->dev = htole64(l->dev);
    rec->ino = htole64(l->ino);
    rec->size = htole64(l->size);
    rec->mtime_ns = htole64((uint64_t)l->mtime_ns);
    rec->diskseq = htole64(l->diskseq);
    rec->sectors = htole64(l->sectors);
    rec->time_ns = htole64(wit->time_ns);
    rec->doubt_epoch = htole64(wit->doubt_epoch);
    rec->doubt_from = htole64(wit->doubt_from);
    rec->doubt_ns = htole64(wit->doubt_ns);
    rec->unproved_ns = htole64(wit->unproved_ns);
    rec->found_ns = htole64(wit->found_ns);
    text_copy(rec->doubt, wit->doubt);
    text_copy(rec->unproved, wit->unproved);
    text_copy(rec->found, wit->found);
}

/* 1: a record of this disk; 0: none, or damaged. */
static int slot_read(struct varve_world *w, int fd, unsigned slot, const uint8_t uuid[16],
                     struct varve_witness *out, struct varve_err *err)
{
    struct record rec;
    uint8_t digest[VARVE_DIGEST_LEN];
    ssize_t got = w->pread(w, fd, &rec, sizeof(rec), (uint64_t)slot * SLOT);
    int r;

    if (got < 0)
        return varve_err_sys(err, (int)-got, "cannot read the image's witness");
    if ((size_t)got < sizeof(rec) || memcmp(rec.magic, MAGIC, sizeof(rec.magic)) != 0)
        return 0;
    if (le32toh(rec.version) > VERSION)
        return varve_err_set(err, ENOTSUP,
                             "the image's witness has format %u, this varve knows format %u only: "
                             "use the version of varve that wrote it",
                             le32toh(rec.version), VERSION);
    r = record_digest(&rec, digest, err);
    if (r < 0)
        return r;
    if (memcmp(digest, rec.digest, sizeof(digest)) != 0 || memcmp(rec.uuid, uuid, 16) != 0 ||
        (le32toh(rec.kind) != VARVE_WITNESS_CLEAN && le32toh(rec.kind) != VARVE_WITNESS_SERVED))
        return 0;
    record_decode(&rec, out);
    return 1;
}

int varve_witness_read(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                       struct varve_witness *out, struct varve_err *err)
{
    struct varve_witness other;
    char path[PATH_MAX];
    int fd, r;

    memset(out, 0, sizeof(*out));
    fd = w->open(w, varve_path_witness(p, path), O_RDONLY, 0);
    if (fd == -ENOENT)
        return 0;
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot open %s", path);
    for (unsigned slot = 0; slot < 2; slot++) {
        r = slot_read(w, fd, slot, uuid, &other, err);
        if (r < 0)
            break;
        if (r == 1 && other.seq > out->seq)
            *out = other;
    }
    w->close(w, fd);
    return r < 0 ? r : 0;
}

int varve_witness_write(struct varve_world *w, const struct varve_paths *p, const uint8_t uuid[16],
                        struct varve_witness *wit, struct varve_err *err)
{
    struct varve_stat st;
    char path[PATH_MAX];
    struct record rec;
    int fd, r;

    fd = w->open(w, varve_path_witness(p, path), O_RDWR | O_CREAT, FILE_MODE);
    if (fd < 0)
        return varve_err_sys(err, -fd, "cannot open %s", path);
    wit->seq++;
    wit->time_ns = w->realtime_ns(w);
    record_encode(wit, uuid, &rec);
    r = record_digest(&rec, rec.digest, err);
    if (r < 0)
        goto out;
    r = w->stat(w, fd, &st);
    /* Later writes need no space and drag no journal along. */
    if (r == 0 && st.size < (uint64_t)2 * SLOT) {
        r = w->allocate(w, fd, 0, (uint64_t)2 * SLOT);
        if (r == 0)
            r = w->sync_dir(w, p->state);
    }
    if (r == 0)
        r = w->pwrite(w, fd, &rec, sizeof(rec), wit->seq % 2 * SLOT);
    if (r == 0)
        r = w->sync(w, fd);
    if (r < 0) {
        varve_err_sys(err, -r, "cannot write %s", path);
        wit->seq--; /* the same slot again: the other one is known to be good */
    }
out:
    w->close(w, fd);
    return r;
}

/* --- judging
 * --------------------------------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static enum varve_verdict
changed(char why[VARVE_WITNESS_TEXT], const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(why, VARVE_WITNESS_TEXT, fmt, ap);
    va_end(ap);
    return VARVE_IMAGE_CHANGED;
}

static enum varve_verdict unproved(char why[VARVE_WITNESS_TEXT], const char *text)
{
    snprintf(why, VARVE_WITNESS_TEXT, "%s", text);
    return VARVE_IMAGE_UNPROVED;
}

static enum varve_verdict judge_killed(const struct varve_judge *j, char why[VARVE_WITNESS_TEXT])
{
    const struct varve_beat_copy *b = j->beat;
    char when[VARVE_TIME_TEXT], then[VARVE_TIME_TEXT];
    int64_t mtime = j->look.mtime_ns, latest = b->mtime_ns;
    uint64_t last = b->beat_ns > b->left_ns ? b->beat_ns : b->left_ns;

    if (!b->entered && mtime == b->mtime_ns)
        return VARVE_IMAGE_PROVED;
    if (b->entered && (int64_t)(b->left_ns + TICK_NS) > latest)
        latest = (int64_t)(b->left_ns + TICK_NS);
    if (b->inside && (int64_t)(last + 2 * VARVE_BEAT_PERIOD_NS) > latest)
        latest = (int64_t)(last + 2 * VARVE_BEAT_PERIOD_NS);
    if (b->entered && mtime >= b->mtime_ns && mtime <= latest)
        return VARVE_IMAGE_PROVED;
    return changed(why,
                   "somebody else wrote to it: its time is %s, but the server that was killed "
                   "last wrote before %s",
                   varve_time_text((uint64_t)mtime, when), varve_time_text((uint64_t)latest, then));
}

/* Its server did not stop cleanly, and left no beat. */
static enum varve_verdict judge_crashed(const struct varve_judge *j, bool same_boot,
                                        char why[VARVE_WITNESS_TEXT])
{
    char when[VARVE_TIME_TEXT], then[VARVE_TIME_TEXT];
    uint64_t mtime = (uint64_t)j->look.mtime_ns;
    uint64_t served_ns = j->wit->time_ns > j->served_ns ? j->wit->time_ns : j->served_ns;

    if (!same_boot && mtime > j->boot_ns)
        return changed(why,
                       "somebody else wrote to it: its time is %s, but the machine was started "
                       "at %s, and it was not served since",
                       varve_time_text(mtime, when), varve_time_text(j->boot_ns, then));
    if (mtime > served_ns + HEARTBEAT_LATE_NS)
        return changed(why,
                       "somebody else wrote to it: its time is %s, but it was last known to be "
                       "served at %s",
                       varve_time_text(mtime, when), varve_time_text(served_ns, then));
    /* What was not durable may have taken the time back along with it, if the machine went down. */
    if (same_boot && j->look.mtime_ns < j->wit->look.mtime_ns)
        return changed(why, "it is older than before: its time is %s, but was %s",
                       varve_time_text(mtime, when),
                       varve_time_text((uint64_t)j->wit->look.mtime_ns, then));
    return VARVE_IMAGE_PROVED;
}

/* Whether the image has the size that we were giving it. */
static bool is_resized(const struct varve_judge *j)
{
    return j->resize.time_ns != 0 && j->look.size == j->resize.size &&
           j->look.size != j->wit->look.size;
}

/* What there was to be judged before that was judged when it was begun. */
static enum varve_verdict judge_resized(const struct varve_judge *j, char why[VARVE_WITNESS_TEXT])
{
    char when[VARVE_TIME_TEXT], then[VARVE_TIME_TEXT];
    int64_t mtime = j->look.mtime_ns, begun = (int64_t)j->resize.time_ns;

    if (mtime >= begun - (int64_t)TICK_NS &&
        (mtime <= begun || mtime - begun <= (int64_t)HEARTBEAT_LATE_NS))
        return VARVE_IMAGE_PROVED;
    return changed(why, "somebody else wrote to it: its time is %s, but it was resized at %s",
                   varve_time_text((uint64_t)mtime, when), varve_time_text((uint64_t)begun, then));
}

static enum varve_verdict judge_file(const struct varve_judge *j, bool same_boot,
                                     char why[VARVE_WITNESS_TEXT])
{
    const struct varve_image_look *was = &j->wit->look, *is = &j->look;
    char when[VARVE_TIME_TEXT], then[VARVE_TIME_TEXT];

    /* Some file systems have other device numbers after each start of the machine. */
    if (is->ino != was->ino || (same_boot && is->dev != was->dev))
        return changed(why, "it is another file than the one that was served last");
    if (is_resized(j))
        return judge_resized(j, why);
    if (is->size != was->size)
        return changed(why, "it has %llu bytes, but had %llu when it was served last",
                       (unsigned long long)is->size, (unsigned long long)was->size);
    /* A beat that is newer is of a server that could not write the witness. */
    if (j->beat && j->beat->ino == is->ino && j->beat->dev == is->dev &&
        (j->beat->beat_ns > j->wit->time_ns || (same_boot && j->wit->kind == VARVE_WITNESS_SERVED)))
        return judge_killed(j, why);
    if (j->wit->kind == VARVE_WITNESS_CLEAN) {
        if (is->mtime_ns == was->mtime_ns)
            return VARVE_IMAGE_PROVED;
        return changed(why,
                       "somebody else wrote to it: its time is %s, but was %s when its server "
                       "stopped",
                       varve_time_text((uint64_t)is->mtime_ns, when),
                       varve_time_text((uint64_t)was->mtime_ns, then));
    }
    return judge_crashed(j, same_boot, why);
}

static enum varve_verdict judge_device(const struct varve_judge *j, bool same_boot,
                                       char why[VARVE_WITNESS_TEXT])
{
    const struct varve_image_look *was = &j->wit->look, *is = &j->look;

    if (is->size != was->size && !is_resized(j))
        return changed(why, "it has %llu bytes, but had %llu when it was served last",
                       (unsigned long long)is->size, (unsigned long long)was->size);
    if (!same_boot)
        return unproved(why,
                        "of a block device nobody can tell what was written before the machine "
                        "was started");
    if (is->diskseq == 0 || is->diskseq != was->diskseq || is->dev != was->dev)
        return unproved(why, "the block device was made anew since it was served last");
    if (j->wit->kind == VARVE_WITNESS_SERVED && (!j->beat || j->beat->entered))
        return unproved(why,
                        "its server was killed, and of a block device nobody can tell who wrote "
                        "since");
    if (is->sectors != was->sectors)
        return changed(why, "somebody else wrote to it: %llu sectors since it was served last",
                       (unsigned long long)(is->sectors - was->sectors));
    return VARVE_IMAGE_PROVED;
}

enum varve_verdict varve_judge_image(const struct varve_judge *j, char why[VARVE_WITNESS_TEXT])
{
    bool same_boot = memcmp(j->boot_id, j->wit->boot_id, 16) == 0;

    why[0] = '\0';
    if (j->wit->kind == VARVE_WITNESS_NONE)
        return unproved(why, "it was not noted how it looked when it was served last");
    if (j->look.block != j->wit->look.block)
        return changed(why, "it is a %s now", j->look.block ? "block device" : "file");
    return j->look.block ? judge_device(j, same_boot, why) : judge_file(j, same_boot, why);
}

int varve_judge_init(struct varve_world *w, struct varve_judge *j, struct varve_err *err)
{
    uint64_t up = w->uptime_ns(w);
    int r = w->boot_id(w, j->boot_id);

    if (r < 0)
        return varve_err_sys(err, -r, "cannot tell this boot of the machine from others");
    j->now_ns = w->realtime_ns(w);
    j->boot_ns = j->now_ns > up ? j->now_ns - up : 0;
    return 0;
}

int varve_witness_check(struct varve_world *w, const struct varve_paths *p,
                        const struct varve_identity *id, int fd, struct varve_witness *wit, enum varve_verdict *verdict,
                        char why[VARVE_WITNESS_TEXT], struct varve_err *err)
{
    struct varve_judge j = {.wit = wit, .resize = id->resize};
    struct varve_beat_copy beat;
    int r = varve_witness_read(w, p, id->uuid, wit, err);

    if (r == -EIO) { /* that it cannot be read is all that is known */
        memset(wit, 0, sizeof(*wit));
        r = 0;
    }
    if (r == 0)
        r = varve_judge_init(w, &j, err);
    if (r == 0)
        r = varve_image_look(w, fd, &j.look, err);
    if (r < 0)
        return r;
    if (varve_beat_read(w, p, j.boot_id, id->uuid, &beat))
        j.beat = &beat;
    j.served_ns = varve_intent_served_ns(w, p, id->uuid);
    *verdict = varve_judge_image(&j, why);
    return 0;
}
