/* A layer's tree in memory, for a format that is written when all of it is known. Nothing is ever freed: what a later entry
 * replaces is garbage until the end, and the whole has a limit (EOVERFLOW: the caller takes a format without one). */
#ifndef WH_TREE_H
#define WH_TREE_H
#include "unpack.h"

/* One extended attribute as erofs names it: an index for the prefix, the rest of the name, the value; both in `data`. */
struct attr { struct attr *next; uint16_t size; uint8_t index, length; char data[]; };

struct inode {
    struct inode *next;   /* in the order of the disk */
    struct inode *parent; /* of a directory */
    struct name *names;   /* of a directory */
    struct attr *attrs;
    const char *target;   /* of a symlink */
    struct stamp mtime;
    uint64_t size;
    uint32_t mode, uid, gid, nlink;
    uint32_t where;       /* first block of the data; a device's number */
    uint32_t nid;         /* place on the disk in units of 32 bytes; 0: none yet */
    bool tail_inline;     /* its last, partial block lies behind the inode */
};

/* A name in a directory. Without an inode it was removed. */
struct name { struct name *next, *chain; struct inode *dir, *inode; uint32_t hash; uint8_t length; char text[]; };

struct inode *wh_tree_begin(struct unpack *u, uint64_t seed, struct stamp now); /* the root; NULL: failed, as below */
void *wh_tree_room(struct unpack *u, size_t size);                              /* zeros */
struct inode *wh_tree_inode(struct unpack *u, uint32_t mode);
/* One that no entry describes: root's, and its group as the kernel gives it below a directory with the set-group-id bit. */
struct inode *wh_tree_implied(struct unpack *u, const struct inode *dir, uint32_t mode);
/* The name in its directory, made without an inode if there is none. */
struct name *wh_tree_name(struct unpack *u, struct inode *dir, const char *text, size_t length);
/* The directory at `path`, through symlinks as in a root directory of its own; with `make`, missing ones are made. */
struct inode *wh_tree_walk(struct unpack *u, const char *path, bool make);
int wh_tree_opaque(struct unpack *u, struct inode *dir);
bool wh_tree_is_whiteout(const struct inode *inode);
/* Names in the order of their bytes. */
struct name *wh_tree_sorted(struct name *list);

/* ---- tree_attr.c ---- */

/* Give an inode the xattrs of the entry, as the kernel would on a file system: what it refuses, what it leaves out. */
int wh_tree_attrs(struct unpack *u, struct inode *inode);
int wh_tree_set_attr(struct unpack *u, struct inode *inode, const char *name, const char *value, size_t size);
/* On the disk, the header included. */
size_t wh_tree_attrs_size(const struct inode *inode);
/* A mode set again changes an access control list that is there (posix_acl_chmod). */
void wh_tree_chmod(struct inode *inode, uint32_t mode);
#endif
