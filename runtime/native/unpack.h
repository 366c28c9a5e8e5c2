/* What the role `unpack` is made of: the parser (tar.c) gives entries to a sink, which is one of the snapshot formats. */
#ifndef WH_UNPACK_H
#define WH_UNPACK_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    BLOCK = 512,
    BUFFER = 1 << 20,
    NAME_LIMIT = 4096,      /* PATH_MAX with its NUL */
    XATTR_LIMIT = 128,      /* xattrs of one entry */
    LINK_LIMIT = 40,        /* as the kernel: MAXSYMLINKS */
};

struct piece { uint64_t offset, size; };
struct xattr { const char *name, *value; size_t size; };
struct stamp { int64_t sec; long nsec; };

/* What extended headers say of the entry that follows. Text points into u->bodies, which lives as long as the entry. */
struct pax {
    const char *path, *link, *sparse_name;
    bool has_size, has_uid, has_gid, has_mtime, sparse, sparse_1_0, has_real;
    uint64_t size, uid, gid, real;
    struct stamp mtime;
    struct xattr xattr[XATTR_LIMIT];
    unsigned xattrs;
};

struct entry {
    char type;
    char path[NAME_LIMIT]; /* clean: no empty, "." or ".." component, no leading slash; "" is the root */
    char link[NAME_LIMIT];
    char *base;            /* last component, inside `path` */
    char parent[NAME_LIMIT];
    mode_t mode;
    uid_t uid;
    gid_t gid;
    dev_t device;
    struct stamp mtime;
    uint64_t size, real; /* bytes in the archive, bytes of the file */
    bool sparse;
};

struct unpack;

/* A snapshot format: entries in the order of the archive, the directory of each named first. 0, or -1 after wh_fail. */
struct sink {
    const char *name;
    const int *calls; /* system calls that it needs, with what all need: see unpack.c */
    size_t call_count;
    uint64_t caps;    /* capabilities that it keeps */
    int (*begin)(struct unpack *u); /* confined but for the filter and the capabilities: the last chance to open anything */
    int (*raw)(struct unpack *u, const uint8_t *data, size_t size); /* the archive as it comes; NULL: not wanted */
    int (*parent)(struct unpack *u, const char *path); /* the directory of what follows, made when missing */
    int (*file)(struct unpack *u);
    int (*dir)(struct unpack *u);
    int (*symlink)(struct unpack *u);
    int (*node)(struct unpack *u);
    int (*link)(struct unpack *u);
    int (*whiteout)(struct unpack *u, const char *name);
    int (*opaque)(struct unpack *u); /* the directory itself */
    int (*end)(struct unpack *u);    /* all is there: make it last */
};

struct unpack {
    const struct sink *sink;
    int root; /* the target directory, which is our "/" */
    bool userxattr, sync, ended;
    uint64_t max_bytes, max_entries, consumed, entries, written;
    uint8_t *buffer;
    size_t start, end;
    struct pax pax;
    struct entry entry;
    bool entered; /* sink->parent was called for parent_path */
    char parent_path[NAME_LIMIT];
    struct piece *map;
    size_t pieces;
    char *bodies; /* the extended headers of the entry, one after another */
    size_t bodies_used;
    int err;
    const char *what;
};

extern const struct sink wh_directory_sink, wh_erofs_sink;

int wh_fail(struct unpack *u, int err, const char *what);
void *wh_map_memory(size_t size);
/* All of it, or the failure told. */
int wh_write_at(struct unpack *u, int fd, const uint8_t *data, size_t size, uint64_t at);

/* ---- tar.c ---- */

/* Read the archive to its end, and what follows it. */
int wh_tar(struct unpack *u);
typedef int (*taker)(struct unpack *u, void *to, const uint8_t *data, size_t size);
/* Hand `size` bytes of the member to `take`; take NULL: skip. */
int wh_stream(struct unpack *u, uint64_t size, taker take, void *to);
/* The map of a sparse entry, complete and checked, before its data is streamed. */
int wh_sparse_map(struct unpack *u);
/* Where in the archive the next byte lies. */
static inline uint64_t wh_position(const struct unpack *u) { return u->consumed - (u->end - u->start); }
/* Clean `raw` lexically, as docker does, into `to`; a name that climbs above the root is refused. */
int wh_clean_path(struct unpack *u, const char *raw, char *to);
size_t wh_component(const char *path);
const char *wh_parse_decimal(const char *text, const char *end, uint64_t *value);
#endif
