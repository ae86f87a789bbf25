/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Files and names of the machine in memory: what sim-world.c (the calls) and sim-disk.c (what is
 * kept, and what is left of it) share, and nobody else.
 */
#ifndef VARVE_TESTS_LIB_SIM_DISK_H
#define VARVE_TESTS_LIB_SIM_DISK_H

#include "tests/lib/sim-world.h"

#define SIM_PATH_MAX 128u
#define SIM_SECTOR   512u
#define SIM_PAGE     4096u
#define SIM_SECTORS  (SIM_PAGE / SIM_SECTOR)

struct sim_page {
    uint64_t index;
    uint8_t *cur, *dur; /* NULL: zeroes */
    uint8_t dirty;      /* a bit a sector: cur is not durable */
    uint8_t refused;    /* the same, and no sync will write it: one has failed */
    bool data;          /* not a hole */
    bool dur_data;
};

struct sim_inode {
    struct sim_inode *next;
    uint64_t ino;
    bool dir, memory, marked;
    uint64_t size, dur_size;
    uint64_t reserved; /* bytes from 0 on whose blocks are there */
    int64_t mtime_ns;
    uint64_t errors; /* failed write-backs */
    bool error_told;
    struct sim_page *pages; /* sorted; of files on disks */
    size_t npages, page_room;
    uint8_t *bytes; /* of files in memory */
    uint64_t room;
    uint8_t *as_at_death; /* of a map whose process died */
    int locked_by;        /* slot of the open file, -1: nobody */
};

struct sim_name {
    char path[SIM_PATH_MAX];
    struct sim_inode *inode;
};

struct sim_names {
    struct sim_name *names;
    size_t count, room;
};

/* Of names, not durable yet: `path` gets inode (NULL: is removed), and `from` is removed. */
struct sim_change {
    char path[SIM_PATH_MAX], from[SIM_PATH_MAX];
    struct sim_inode *inode;
};

struct sim_file {
    struct sim_inode *inode; /* NULL: not in use */
    enum sim_proc proc;
    bool writable;
    uint64_t errors_told;
    char path[SIM_PATH_MAX]; /* as it was opened */
};

#define SIM_FILES 512u
#define SIM_MAPS  512u

struct sim_map {
    struct sim_inode *inode;
    enum sim_proc proc;
};

struct sim_disk {
    struct sim_inode *inodes;
    struct sim_names now, durable;
    struct sim_change *changes;
    size_t nchanges, change_room;
    struct sim_file files[SIM_FILES];
    struct sim_map maps[SIM_MAPS];
};

struct sim_disk *sim_disk_new(void);
void sim_disk_free(struct sim_disk *d);

bool sim_in_memory(const char *path);
struct sim_inode *sim_find(const struct sim_names *names, const char *path);
struct sim_inode *sim_inode_new(struct sim_disk *d, bool dir, bool memory);
/* `path` gets inode (NULL: none), `from` (may be NULL) loses what it has. */
void sim_rename(struct sim_disk *d, const char *path, const char *from, struct sim_inode *inode);
void sim_sync_names(struct sim_disk *d, const char *dir);
/* Forgets the inodes that nothing refers to. */
void sim_sweep(struct sim_disk *d);

/* buf NULL: zeroes and, of whole pages, holes. */
void sim_store(struct sim *s, struct sim_inode *n, const void *buf, uint64_t off, uint64_t len);
/* Within the file's size. */
void sim_load(const struct sim_inode *n, void *buf, uint64_t off, uint64_t len);
void sim_resize(struct sim *s, struct sim_inode *n, uint64_t size);
/* All that is not durable becomes so; refused: a part, and the rest never. */
void sim_sync_data(struct sim *s, struct sim_inode *n, bool refused);
/* First byte from off on that is data (want) or a hole; size if there is none. */
uint64_t sim_seek(const struct sim_inode *n, uint64_t off, bool want);

/* A part of what is dirty becomes durable. */
void sim_write_back_data(struct sim *s, struct sim_inode *n);
/* What the power left. */
void sim_lose_data(struct sim *s, struct sim_inode *n, unsigned keep_of_4);
void sim_lose_names(struct sim *s, unsigned keep_of_4);

/* The open file in that slot. */
void sim_file_close(struct sim *s, unsigned slot);

/* A test whose tools fail has proved nothing. */
void sim_must(bool ok, const char *what);

#endif
