/* The tree of tree.h: inodes and names in one arena, names found by one hash table for all directories. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "tree.h"

enum {
    CHUNK = 1 << 20,
    FIRST_TABLE = 1 << 12,   /* slots */
    TREE_LIMIT = 64 << 20,   /* bytes, garbage included: about 400,000 entries */
};

static struct {
    struct inode *root;
    struct stamp now;
    uint64_t seed; /* names are hostile: nobody can choose them to collide */
    char *room;
    size_t left, taken;
    struct name **table;
    size_t slots, count;
} t;

static void *map_counted(struct unpack *u, size_t size)
{
    void *at = size > TREE_LIMIT - t.taken ? NULL : wh_map_memory(size);
    if (!at) {
        wh_fail(u, EOVERFLOW, "the layer has too many entries for this format");
        return NULL;
    }
    t.taken += size;
    return at;
}

void *wh_tree_room(struct unpack *u, size_t size)
{
    size = (size + 7) & ~(size_t)7;
    if (size > CHUNK / 4)
        return map_counted(u, size);
    if (size > t.left) {
        if (!(t.room = map_counted(u, CHUNK)))
            return NULL;
        t.left = CHUNK;
    }
    void *at = t.room;
    t.room += size;
    t.left -= size;
    return at;
}

struct inode *wh_tree_inode(struct unpack *u, uint32_t mode)
{
    struct inode *made = wh_tree_room(u, sizeof *made);
    if (made) {
        made->mode = mode;
        made->mtime = t.now;
    }
    return made;
}

struct inode *wh_tree_implied(struct unpack *u, const struct inode *dir, uint32_t mode)
{
    struct inode *made = wh_tree_inode(u, mode);
    if (made && dir->mode & S_ISGID) {
        made->gid = dir->gid;
        made->mode |= S_ISDIR(mode) ? S_ISGID : 0;
    }
    return made;
}

struct inode *wh_tree_begin(struct unpack *u, uint64_t seed, struct stamp now)
{
    t.seed = seed;
    t.now = now;
    t.slots = FIRST_TABLE;
    t.table = map_counted(u, t.slots * sizeof *t.table);
    if (t.table && (t.root = wh_tree_inode(u, S_IFDIR | 0755)))
        t.root->parent = t.root;
    return t.root;
}

static uint32_t hash_of(const struct inode *dir, const char *text, size_t length)
{
    uint64_t h = t.seed ^ (uint64_t)(uintptr_t)dir;
    for (size_t i = 0; i < length; i++) {
        h = (h ^ (uint8_t)text[i]) * UINT64_C(0x9e3779b97f4a7c15);
        h ^= h >> 29;
    }
    return (uint32_t)(h >> 32 ^ h);
}

static int grow_table(struct unpack *u)
{
    size_t slots = 2 * t.slots, size = t.slots * sizeof *t.table;
    struct name **table = map_counted(u, 2 * size), *next;
    if (!table)
        return -1;
    for (size_t i = 0; i < t.slots; i++) {
        for (struct name *name = t.table[i]; name; name = next) {
            next = name->chain;
            name->chain = table[name->hash & (slots - 1)];
            table[name->hash & (slots - 1)] = name;
        }
    }
    munmap(t.table, size);
    t.taken -= size;
    t.table = table;
    t.slots = slots;
    return 0;
}

static struct name *find(const struct inode *dir, uint32_t hash, const char *text, size_t length)
{
    struct name *name = t.table[hash & (t.slots - 1)];
    while (name && (name->hash != hash || name->dir != dir || name->length != length || memcmp(name->text, text, length)))
        name = name->chain;
    return name;
}

struct name *wh_tree_name(struct unpack *u, struct inode *dir, const char *text, size_t length)
{
    if (length > NAME_MAX) {
        wh_fail(u, ENAMETOOLONG, "a name is longer than 255 bytes");
        return NULL;
    }
    uint32_t hash = hash_of(dir, text, length);
    struct name *name = find(dir, hash, text, length);
    if (name)
        return name;
    if ((t.count >= t.slots && grow_table(u) < 0) || !(name = wh_tree_room(u, sizeof *name + length)))
        return NULL;
    name->dir = dir;
    name->hash = hash;
    name->length = (uint8_t)length;
    memcpy(name->text, text, length);
    name->chain = t.table[hash & (t.slots - 1)];
    t.table[hash & (t.slots - 1)] = name;
    t.count++;
    name->next = dir->names;
    dir->names = name;
    return name;
}

bool wh_tree_is_whiteout(const struct inode *inode) { return S_ISCHR(inode->mode) && !inode->where; }

int wh_tree_opaque(struct unpack *u, struct inode *dir)
{
    return wh_tree_set_attr(u, dir, "trusted.overlay.opaque", "y", 1);
}

/* What stands at a name on the way: a directory, or a symlink. */
static struct inode *on_the_way(struct unpack *u, struct inode *at, const char *text, size_t length, bool make)
{
    struct name *name = wh_tree_name(u, at, text, length);
    if (!name)
        return NULL;
    struct inode *inode = name->inode;
    bool hidden = inode && wh_tree_is_whiteout(inode);
    if (inode && !hidden && !S_ISDIR(inode->mode) && !S_ISLNK(inode->mode)) {
        wh_fail(u, ENOTDIR, "a parent is not a directory");
        return NULL;
    }
    if (inode && !hidden)
        return inode;
    if (!make) {
        wh_fail(u, hidden ? ENOTDIR : ENOENT, "the target of a hard link is not in this layer");
        return NULL;
    }
    if (!(name->inode = wh_tree_implied(u, at, S_IFDIR | 0755)))
        return NULL;
    name->inode->parent = at;
    return hidden && wh_tree_opaque(u, name->inode) < 0 ? NULL : name->inode;
}

struct inode *wh_tree_walk(struct unpack *u, const char *path, bool make)
{
    const char *todo[LINK_LIMIT + 1] = {path}; /* the path, and of each symlink on the way what is left of its target */
    unsigned depth = 0, links = 0;
    struct inode *at = t.root;
    for (;;) {
        const char *text = todo[depth];
        while (*text == '/')
            text++;
        size_t length = wh_component(text);
        todo[depth] = text + length;
        if (!length) {
            if (!depth)
                return at;
            depth--;
        } else if (length == 2 && text[0] == '.' && text[1] == '.') {
            at = at->parent;
        } else if (length > 1 || text[0] != '.') {
            struct inode *found = on_the_way(u, at, text, length, make);
            if (!found)
                return NULL;
            if (!S_ISLNK(found->mode)) {
                at = found;
                continue;
            }
            if (links++ == LINK_LIMIT) {
                wh_fail(u, ELOOP, "too many symlinks");
                return NULL;
            }
            if (*found->target == '/')
                at = t.root;
            todo[++depth] = found->target;
        }
    }
}

static bool before(const struct name *a, const struct name *b)
{
    size_t shorter = a->length < b->length ? a->length : b->length;
    int order = memcmp(a->text, b->text, shorter);
    return order ? order < 0 : a->length < b->length;
}

static struct name *merged(struct name *a, struct name *b)
{
    struct name *first = NULL, **end = &first;
    while (a && b) {
        struct name **smaller = before(b, a) ? &b : &a;
        *end = *smaller;
        end = &(*end)->next;
        *smaller = *smaller ? (*smaller)->next : NULL;
    }
    *end = a ? a : b;
    return first;
}

/* Merge sort, bottom up: runs[i] holds none or 2^i names. */
struct name *wh_tree_sorted(struct name *list)
{
    struct name *runs[32] = {0}, *one, *all = NULL;
    while ((one = list)) {
        list = list->next;
        one->next = NULL;
        size_t i = 0;
        for (; runs[i]; i++) {
            one = merged(runs[i], one);
            runs[i] = NULL;
        }
        runs[i] = one;
    }
    for (size_t i = 0; i < 32; i++)
        all = merged(runs[i], all);
    return all;
}
