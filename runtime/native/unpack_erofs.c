/* The snapshot format `erofs`: one file, "layer.erofs", that holds the archive as it came and is a file system over it.
 *
 *     [4 KiB: how long the archive is, as text; the superblock] [the archive] [inodes, extended attributes, short tails] [directories] [sparse files]
 *
 * A block is 512 bytes, the block of tar: the data of a file lies where the archive has it (linux/fs/erofs/erofs_fs.h: an
 * extended inode, FLAT_PLAIN). So nothing is extracted; what must be known of an entry waits in memory (tree.h) until the
 * archive ends. Sparse files, which the archive holds in pieces, are put together behind it, with holes.
 *
 * The file is opened before any byte is read. From then on this process may read, write to what it has open, and end.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "exec.h"
#include "tree.h"

enum {
    HEAD = 4096,             /* bytes before the archive; also what the later parts are aligned to */
    SUPERBLOCK = 1024,       /* EROFS_SUPER_OFFSET */
    MAGIC = 0xE0F5E1E2,
    BLOCK_BITS = 9,
    SLOT = 32,               /* a nid counts these from the start of the inodes */
    INODE = 64,
    DIRENT = 12,
    EXTENDED = 1, INLINE = 2 << 1, /* i_format: layout, and data layout FLAT_INLINE */
    ATTR_MOST = 4 * 65535,   /* i_xattr_icount counts words in 16 bits */
    WRITEBACK = 16 << 20,    /* bytes after which the disk is told to begin */
};
#define BLOCKS_MOST UINT32_MAX

struct sparse { struct sparse *next; struct inode *inode; uint64_t data; size_t pieces; struct piece piece[]; };

static struct {
    int fd;
    struct inode *root, *parent; /* parent: where the entry goes */
    struct sparse *sparse;
    uint64_t begun;              /* writeback */
    uint64_t meta;               /* where the inodes begin */
    uint64_t at;                 /* of what is in the buffer to be written */
    size_t used;
    uint64_t inodes;
} e;

/* ---- what the archive says ---- */

static int begin(struct unpack *u)
{
    struct timespec now = {0};
    uint64_t seed = 0;
    if (u->userxattr)
        return wh_fail(u, EINVAL, "erofs cannot be mounted in a user namespace");
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed || clock_gettime(CLOCK_REALTIME, &now) < 0)
        return wh_fail(u, errno, "no random number, or no time");
    e.fd = openat(u->root, "layer.erofs", O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (e.fd < 0)
        return wh_fail(u, errno, "cannot make the file of the layer");
    e.parent = e.root = wh_tree_begin(u, seed, (struct stamp){now.tv_sec, now.tv_nsec});
    return e.root ? 0 : -1;
}

/* The disk works while the archive still comes: the one sync at the end finds little to do. */
static int raw(struct unpack *u, const uint8_t *data, size_t size)
{
    uint64_t end = HEAD + u->consumed;
    if (wh_write_at(u, e.fd, data, size, end - size) < 0)
        return -1;
    if (u->sync && end - e.begun >= WRITEBACK) {
        (void)syscall(SYS_sync_file_range, e.fd, (off_t)e.begun, (off_t)(end - e.begun), SYNC_FILE_RANGE_WRITE);
        e.begun = end;
    }
    return 0;
}

static int parent(struct unpack *u, const char *path)
{
    e.parent = wh_tree_walk(u, path, true);
    return e.parent ? 0 : -1;
}

/* A new inode under the name of the entry, in the place of what an earlier one put there. */
static struct inode *fresh(struct unpack *u, uint32_t kind)
{
    const struct entry *entry = &u->entry;
    struct name *name = wh_tree_name(u, e.parent, entry->base, strlen(entry->base));
    struct inode *made = name ? wh_tree_inode(u, kind | entry->mode) : NULL;
    if (made) {
        made->uid = entry->uid;
        made->gid = entry->gid;
        made->mtime = entry->mtime;
        name->inode = made;
    }
    return made;
}

/* The block at which the next byte of the archive lies; members begin at blocks. */
static int here(struct unpack *u, uint32_t *block)
{
    uint64_t at = (HEAD + wh_position(u)) >> BLOCK_BITS;
    *block = (uint32_t)at;
    return at >= BLOCKS_MOST ? wh_fail(u, EOVERFLOW, "the layer is too large for this format") : 0;
}

static int put_sparse(struct unpack *u, struct inode *made)
{
    if (wh_sparse_map(u) < 0)
        return -1;
    struct sparse *s = wh_tree_room(u, sizeof *s + u->pieces * sizeof *s->piece);
    if (!s)
        return -1;
    s->inode = made;
    s->data = HEAD + wh_position(u);
    s->pieces = u->pieces;
    if (u->pieces) /* else there may be no map */
        memcpy(s->piece, u->map, u->pieces * sizeof *s->piece);
    s->next = e.sparse;
    e.sparse = s;
    return 0;
}

static int put_file(struct unpack *u)
{
    struct entry *entry = &u->entry;
    struct inode *made = fresh(u, S_IFREG);
    if (!made || (entry->sparse ? put_sparse(u, made) : here(u, &made->where)) < 0)
        return -1;
    made->size = entry->sparse ? entry->real : entry->size;
    u->written += entry->size;
    return wh_stream(u, entry->size, NULL, NULL) < 0 ? -1 : wh_tree_attrs(u, made);
}

static int put_dir(struct unpack *u)
{
    struct entry *entry = &u->entry;
    struct name *name = *entry->path ? wh_tree_name(u, e.parent, entry->base, strlen(entry->base)) : NULL;
    if (*entry->path && !name)
        return -1;
    struct inode *dir = name ? name->inode : e.root;
    if (!dir || !S_ISDIR(dir->mode)) { /* else what is in it stays */
        bool hidden = dir && wh_tree_is_whiteout(dir);
        if (!(dir = fresh(u, S_IFDIR)))
            return -1;
        dir->parent = e.parent;
        if (hidden && wh_tree_opaque(u, dir) < 0)
            return -1;
    }
    dir->uid = entry->uid;
    dir->gid = entry->gid;
    dir->mtime = entry->mtime;
    wh_tree_chmod(dir, entry->mode);
    return wh_tree_attrs(u, dir);
}

static int put_symlink(struct unpack *u)
{
    size_t length = strlen(u->entry.link);
    char *target = wh_tree_room(u, length + 1);
    if (!length)
        return wh_fail(u, ENOENT, "cannot make a symlink");
    u->entry.mode = 0777;
    struct inode *made = target ? fresh(u, S_IFLNK) : NULL;
    if (!made)
        return -1;
    memcpy(target, u->entry.link, length);
    made->target = target;
    made->size = length;
    return wh_tree_attrs(u, made);
}

static int put_node(struct unpack *u)
{
    char type = u->entry.type;
    struct inode *made = fresh(u, type == '3' ? S_IFCHR : type == '4' ? S_IFBLK : S_IFIFO);
    if (!made)
        return -1;
    made->where = (uint32_t)u->entry.device;
    return wh_tree_attrs(u, made);
}

static int put_link(struct unpack *u)
{
    char target[NAME_LIMIT];
    if (wh_clean_path(u, u->entry.link, target) < 0)
        return -1;
    char *slash = strrchr(target, '/');
    const char *base = slash ? slash + 1 : target;
    if (slash)
        *slash = 0;
    if (!*base)
        return wh_fail(u, EPERM, "a hard link to the root directory");
    struct inode *dir = wh_tree_walk(u, slash ? target : "", false);
    struct name *from = dir ? wh_tree_name(u, dir, base, strlen(base)) : NULL;
    struct name *to = from ? wh_tree_name(u, e.parent, u->entry.base, strlen(u->entry.base)) : NULL;
    if (!to)
        return -1;
    if (!from->inode)
        return wh_fail(u, ENOENT, "cannot make a hard link");
    if (to->inode && to->inode == from->inode)
        return 0;
    for (struct inode *up = dir; up != e.root; up = up->parent)
        if (up == to->inode) /* it would go with the directory that the link replaces */
            return wh_fail(u, ENOENT, "cannot make a hard link");
    if (S_ISDIR(from->inode->mode))
        return wh_fail(u, EPERM, "cannot make a hard link");
    to->inode = from->inode;
    return 0;
}

static int put_whiteout(struct unpack *u, const char *text)
{
    struct name *name = wh_tree_name(u, e.parent, text, strlen(text));
    if (!name)
        return -1;
    if (name->inode) /* what is here already hides what is below */
        return S_ISDIR(name->inode->mode) ? wh_tree_opaque(u, name->inode) : 0;
    name->inode = wh_tree_implied(u, e.parent, S_IFCHR);
    return name->inode ? 0 : -1;
}

static int put_opaque(struct unpack *u) { return wh_tree_opaque(u, e.parent); }

/* ---- where everything goes ---- */

static uint64_t aligned(uint64_t at, uint64_t to) { return (at + to - 1) / to * to; }

static uint64_t offset_of(const struct inode *inode) { return e.meta + (uint64_t)inode->nid * SLOT; }

/* "." and ".." are names like others; then all of them in the order that the kernel's binary search wants. */
static int order_names(struct unpack *u, struct inode *dir)
{
    struct name *self = wh_tree_name(u, dir, ".", 1), *up = self ? wh_tree_name(u, dir, "..", 2) : NULL;
    if (!up)
        return -1;
    self->inode = dir;
    up->inode = dir->parent;
    dir->names = wh_tree_sorted(dir->names);
    return 0;
}

/* Fill a block with names from `name` on: entries from its start, the texts behind them. The first that has no room. */
static const struct name *fill(const struct name *name, uint8_t *block, size_t *used)
{
    static const uint8_t TYPES[16] = {[S_IFREG >> 12] = 1, [S_IFDIR >> 12] = 2, [S_IFCHR >> 12] = 3, [S_IFBLK >> 12] = 4,
                                      [S_IFIFO >> 12] = 5, [S_IFLNK >> 12] = 7};
    const struct name *end = name;
    size_t room = 0, count = 0;
    for (; end; end = end->next) {
        if (!end->inode)
            continue;
        if (room + DIRENT + end->length > BLOCK)
            break;
        room += DIRENT + end->length;
        count++;
    }
    *used = room;
    if (!block)
        return end;
    uint8_t *entry = block;
    size_t text = count * DIRENT;
    memset(block, 0, BLOCK);
    for (; name != end; name = name->next) {
        if (!name->inode)
            continue;
        uint64_t nid = name->inode->nid;
        uint16_t at = (uint16_t)text;
        memcpy(entry, &nid, 8);
        memcpy(entry + 8, &at, 2);
        entry[10] = TYPES[name->inode->mode >> 12];
        memcpy(block + text, name->text, name->length);
        text += name->length;
        entry += DIRENT;
    }
    return end;
}

static uint64_t names_size(const struct inode *dir)
{
    uint64_t blocks = 0;
    size_t used = 0;
    for (const struct name *name = dir->names; name; blocks++)
        name = fill(name, NULL, &used);
    return (blocks - 1) * BLOCK + used;
}

/* Number the inodes, directory by directory: those of one lie beside each other. Links are counted on the way. */
static int number(struct unpack *u, struct inode **last, struct inode *dir)
{
    if (order_names(u, dir) < 0)
        return -1;
    dir->nlink = 2;
    for (struct name *name = dir->names; name; name = name->next) {
        struct inode *inode = name->inode;
        if (!inode || inode == dir || (name->length == 2 && !memcmp(name->text, "..", 2)))
            continue;
        if (S_ISDIR(inode->mode))
            dir->nlink++;
        else
            inode->nlink++;
        if (S_ISDIR(inode->mode) || inode->nlink == 1) {
            *last = (*last)->next = inode;
            e.inodes++;
        }
    }
    dir->size = names_size(dir);
    return 0;
}

/* Place an inode with its attributes, and behind them a tail if that stays within a block (the kernel wants it so). */
static uint64_t place(struct inode *inode, uint64_t at, size_t head, size_t tail)
{
    at = aligned(at, SLOT);
    if (at % BLOCK + INODE > BLOCK)
        at = aligned(at, BLOCK);
    if (tail && (at + head) % BLOCK + tail > BLOCK && head % BLOCK + tail <= BLOCK)
        at = aligned(at, BLOCK);
    inode->tail_inline = tail && (at + head) % BLOCK + tail <= BLOCK;
    inode->nid = (uint32_t)((at - e.meta) / SLOT);
    return at + head + (inode->tail_inline ? tail : 0);
}

/* Every inode gets its place, then every directory and long symlink its blocks, then the sparse files. The end of all. */
static int lay_out(struct unpack *u, uint64_t *end)
{
    struct inode *last = e.root;
    uint64_t at = e.meta + BLOCK; /* a nid is never 0 */
    e.inodes = 1;
    for (struct inode *inode = e.root; inode; inode = inode->next) {
        if (S_ISDIR(inode->mode) && number(u, &last, inode) < 0)
            return -1;
        size_t attrs = wh_tree_attrs_size(inode);
        if (attrs > ATTR_MOST)
            return wh_fail(u, EOVERFLOW, "extended attributes are too large for this format");
        bool packed = S_ISDIR(inode->mode) || S_ISLNK(inode->mode);
        at = place(inode, at, INODE + attrs, packed ? inode->size % BLOCK : 0);
    }
    at = aligned(at, HEAD) >> BLOCK_BITS;
    for (struct inode *inode = e.root; inode; inode = inode->next) {
        if (!S_ISDIR(inode->mode) && !S_ISLNK(inode->mode))
            continue;
        inode->where = (uint32_t)at;
        at += inode->size / BLOCK + (inode->size % BLOCK && !inode->tail_inline);
    }
    for (struct sparse *s = e.sparse; s; s = s->next) {
        if (!s->inode->nlink)
            continue;
        at = aligned(at, HEAD / BLOCK);
        s->inode->where = (uint32_t)at;
        at += s->inode->size / BLOCK + 1;
        if (at >= BLOCKS_MOST)
            break;
    }
    *end = aligned(at << BLOCK_BITS, HEAD);
    return at >= BLOCKS_MOST ? wh_fail(u, EOVERFLOW, "the layer is too large for this format") : 0;
}

/* ---- writing it ---- */

static int flush(struct unpack *u)
{
    if (wh_write_at(u, e.fd, u->buffer, e.used, e.at) < 0)
        return -1;
    e.at += e.used;
    e.used = 0;
    return 0;
}

static int out(struct unpack *u, const void *data, size_t size)
{
    if (e.used + size > BUFFER && flush(u) < 0)
        return -1;
    memcpy(u->buffer + e.used, data, size);
    e.used += size;
    return 0;
}

/* Zeros up to an offset, less than a page away. */
static int out_until(struct unpack *u, uint64_t at)
{
    static const uint8_t ZEROS[HEAD];
    return out(u, ZEROS, (size_t)(at - e.at - e.used));
}

static int out_attrs(struct unpack *u, const struct inode *inode)
{
    static const uint8_t HEADER[12];
    if (inode->attrs && out(u, HEADER, sizeof HEADER) < 0)
        return -1;
    for (const struct attr *a = inode->attrs; a; a = a->next) {
        uint8_t head[4] = {a->length, a->index};
        size_t size = (size_t)a->length + a->size;
        memcpy(head + 2, &a->size, 2);
        if (out(u, head, sizeof head) < 0 || out(u, a->data, size) < 0 || out(u, HEADER, -size & 3) < 0)
            return -1;
    }
    return 0;
}

/* Blocks of a directory's names or of a symlink's target: those that are whole (and the rest, where it is not inline), or
 * the inline tail alone. */
static int out_content(struct unpack *u, const struct inode *inode, bool tail)
{
    const struct name *name = inode->names;
    uint64_t left = inode->size, at = 0;
    uint8_t block[BLOCK];
    while (left) {
        size_t part = left < BLOCK ? (size_t)left : BLOCK;
        bool is_tail = part < BLOCK && inode->tail_inline;
        if (S_ISDIR(inode->mode)) {
            size_t used;
            name = fill(name, block, &used);
        } else {
            memset(block, 0, BLOCK);
            memcpy(block, inode->target + at, part);
        }
        if (is_tail == tail && out(u, block, tail ? part : BLOCK) < 0)
            return -1;
        at += part;
        left -= part;
    }
    return 0;
}

struct disk_inode {
    uint16_t format, attr_words, mode, reserved;
    uint64_t size;
    uint32_t where, ino, uid, gid;
    int64_t mtime;
    uint32_t mtime_nsec, nlink;
    uint8_t reserved2[16];
};
_Static_assert(sizeof(struct disk_inode) == INODE, "erofs_inode_extended");

static int out_inode(struct unpack *u, const struct inode *inode)
{
    size_t attrs = wh_tree_attrs_size(inode);
    struct disk_inode disk = {
        .format = EXTENDED | (inode->tail_inline ? INLINE : 0),
        .attr_words = (uint16_t)(attrs ? (attrs - 12) / 4 + 1 : 0),
        .mode = (uint16_t)inode->mode,
        .size = inode->size,
        .where = inode->where,
        .ino = inode->nid,
        .uid = inode->uid,
        .gid = inode->gid,
        .mtime = inode->mtime.sec,
        .mtime_nsec = (uint32_t)inode->mtime.nsec,
        .nlink = inode->nlink,
    };
    if (out_until(u, offset_of(inode)) < 0 || out(u, &disk, sizeof disk) < 0 || out_attrs(u, inode) < 0)
        return -1;
    return inode->tail_inline ? out_content(u, inode, true) : 0;
}

/* Pieces of a sparse file, from the archive to where they are read. */
static int copy_pieces(struct unpack *u, const struct sparse *s)
{
    off_t from = (off_t)s->data;
    for (size_t i = 0; i < s->pieces; i++) {
        off_t to = ((off_t)s->inode->where << BLOCK_BITS) + (off_t)s->piece[i].offset;
        uint64_t left = s->piece[i].size;
        while (left) {
            ssize_t done = copy_file_range(e.fd, &from, e.fd, &to, left < INT32_MAX ? (size_t)left : INT32_MAX, 0);
            if (done <= 0)
                return wh_fail(u, done < 0 ? errno : EIO, "cannot write a sparse file");
            left -= (uint64_t)done;
        }
    }
    return 0;
}

struct superblock {
    uint32_t magic, checksum, compat;
    uint8_t block_bits, extslots;
    uint16_t root_nid;
    uint64_t inodes, build_time;
    uint32_t build_time_nsec, blocks, meta_block, xattr_block;
    uint8_t uuid[16], volume[16];
    uint32_t incompat;
    uint8_t rest[44];
};
_Static_assert(sizeof(struct superblock) == 128, "erofs_super_block");

/* Where the archive lies, for who wants to hash it again (image/formats.py); the kernel does not look there. */
static int put_text(struct unpack *u)
{
    char room[128];
    struct wh_buf text = wh_buf(room, sizeof room);
    wh_put(&text, "wherry layer\ntar ");
    wh_put_u(&text, HEAD);
    wh_put(&text, " ");
    wh_put_u(&text, u->consumed);
    wh_put(&text, "\n");
    return wh_write_at(u, e.fd, (const uint8_t *)room, text.used, 0);
}

static int put_superblock(struct unpack *u, uint64_t size)
{
    struct superblock super = {
        .magic = MAGIC,
        .block_bits = BLOCK_BITS,
        .root_nid = (uint16_t)e.root->nid,
        .inodes = e.inodes,
        .blocks = (uint32_t)(size >> BLOCK_BITS),
        .meta_block = (uint32_t)(e.meta >> BLOCK_BITS),
    };
    return wh_write_at(u, e.fd, (const uint8_t *)&super, sizeof super, SUPERBLOCK);
}

static int end(struct unpack *u)
{
    uint64_t size = 0;
    e.at = e.meta = aligned(HEAD + u->consumed, HEAD);
    if (lay_out(u, &size) < 0)
        return -1;
    if (ftruncate(e.fd, (off_t)size) < 0)
        return wh_fail(u, errno, "cannot set the size of the layer");
    for (struct inode *inode = e.root; inode; inode = inode->next)
        if (out_inode(u, inode) < 0)
            return -1;
    if (out_until(u, aligned(e.at + e.used, HEAD)) < 0)
        return -1;
    for (struct inode *inode = e.root; inode; inode = inode->next)
        if ((S_ISDIR(inode->mode) || S_ISLNK(inode->mode)) && out_content(u, inode, false) < 0)
            return -1;
    if (flush(u) < 0)
        return -1;
    for (const struct sparse *s = e.sparse; s; s = s->next)
        if (s->inode->nlink && copy_pieces(u, s) < 0)
            return -1;
    if (put_text(u) < 0 || put_superblock(u, size) < 0)
        return -1;
    return u->sync && fdatasync(e.fd) < 0 ? wh_fail(u, errno, "cannot write to disk") : 0;
}

static const int CALLS[] = {SYS_pwrite64, SYS_ftruncate, SYS_copy_file_range, SYS_sync_file_range, SYS_fdatasync};

const struct sink wh_erofs_sink = {
    .name = "erofs",
    .calls = CALLS,
    .call_count = sizeof CALLS / sizeof CALLS[0],
    .begin = begin,
    .raw = raw,
    .parent = parent,
    .file = put_file,
    .dir = put_dir,
    .symlink = put_symlink,
    .node = put_node,
    .link = put_link,
    .whiteout = put_whiteout,
    .opaque = put_opaque,
    .end = end,
};
