/* The snapshot format `directory`: entries become files below the target directory.
 *
 * Paths are resolved by openat2(RESOLVE_IN_ROOT) below our root, and used as descriptors. Whiteouts become overlayfs'
 * (image-spec 1.1, layer.md): a device 0:0, an opaque mark.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "exec.h"
#include "unpack.h"

enum {
    LATE_LIMIT = 512 << 20, /* memory for what directories get late */
    RACES = 1 << 12,        /* that a lookup may lose */
};
#define DEFAULT_ACL "system.posix_acl_default"

/* Of a directory: its time, and the list that what is made in it would inherit. Set when nothing is made in it any more. */
struct late { struct stamp mtime; uint32_t length, acl_size; char path[]; /* and behind its NUL the list */ };

static struct {
    int parent; /* descriptor of u->parent_path; -1 */
    char *late; /* struct late, one after another */
    size_t late_used, late_room;
} d = {.parent = -1};

/* ---- paths ---- */

static int open_in(struct unpack *u, const char *path, int flags, uint64_t resolve)
{
    struct open_how how = {
        .flags = (uint64_t)(unsigned)(flags | O_CLOEXEC),
        .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV | resolve,
    };
    int fd, tries = 0;
    do /* EAGAIN: any rename on this machine, or a mount, raced with ".." (openat2(2)) */
        fd = (int)syscall(SYS_openat2, u->root, *path ? path : ".", &how, sizeof how);
    while (fd < 0 && errno == EAGAIN && ++tries < RACES);
    return fd;
}

static const char *opaque_name(const struct unpack *u)
{
    return u->userxattr ? "user.overlay.opaque" : "trusted.overlay.opaque";
}

static int make_opaque(struct unpack *u, int fd)
{
    if (fsetxattr(fd, opaque_name(u), "y", 1, 0) < 0)
        return wh_fail(u, errno, "cannot mark a directory opaque");
    return 0;
}

static bool is_whiteout(const struct stat *st)
{
    return S_ISCHR(st->st_mode) && st->st_rdev == 0;
}

/* A directory where a whiteout of this layer stood: what lies below in other layers stays hidden. */
static int whiteout_to_dir(struct unpack *u, int at, const char *name, mode_t mode)
{
    if (unlinkat(at, name, 0) < 0 || mkdirat(at, name, mode) < 0)
        return wh_fail(u, errno, "cannot make a directory");
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return wh_fail(u, errno, "cannot open a directory");
    int result = make_opaque(u, fd);
    close(fd);
    return result;
}

/* One component below `real`, made when missing: 1 a directory, 0 a symlink (its target is in `target`), -1. */
static int step_into(struct unpack *u, const char *real, const char *name, char *target)
{
    struct stat st;
    int at = open_in(u, real, O_PATH | O_DIRECTORY, RESOLVE_NO_SYMLINKS), result = 1;
    if (at < 0)
        return wh_fail(u, errno, "cannot open a parent directory");
    if (fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        if (errno != ENOENT || mkdirat(at, name, 0755) < 0)
            result = wh_fail(u, errno, "cannot make a parent directory");
    } else if (S_ISLNK(st.st_mode)) {
        ssize_t length = readlinkat(at, name, target, NAME_LIMIT - 1);
        target[length < 0 ? 0 : length] = 0;
        result = length < 0 ? wh_fail(u, errno, "cannot read a symlink") : 0;
    } else if (is_whiteout(&st)) {
        result = whiteout_to_dir(u, at, name, 0755) < 0 ? -1 : 1;
    } else if (!S_ISDIR(st.st_mode)) {
        result = wh_fail(u, ENOTDIR, "a parent is not a directory");
    }
    close(at);
    return result;
}

/* "a/b" into `to`, which may be one of them. */
static int join(const char *a, const char *b, char to[NAME_LIMIT])
{
    char joined[NAME_LIMIT];
    struct wh_buf text = wh_buf(joined, sizeof joined);
    wh_put(&text, a);
    wh_put(&text, *a && *b ? "/" : "");
    wh_put(&text, b);
    if (text.used == sizeof joined - 1)
        return -1;
    memcpy(to, joined, text.used + 1);
    return 0;
}

/* Make the directories of `path`, through symlinks of this layer as a root directory would resolve them; `real` is where
 * they lead. Only the slow way: taken when openat2 found nothing. */
static int make_parents(struct unpack *u, const char *path, char *real)
{
    char rest[NAME_LIMIT], target[NAME_LIMIT];
    int links = 0;
    memcpy(rest, path, strlen(path) + 1);
    real[0] = 0;
    while (*rest) {
        size_t part = wh_component(rest);
        char name[NAME_LIMIT];
        memcpy(name, rest, part);
        name[part] = 0;
        memmove(rest, rest + part + (rest[part] == '/'), strlen(rest + part + (rest[part] == '/')) + 1);
        if (!part || !strcmp(name, "."))
            continue;
        if (!strcmp(name, "..")) {
            char *slash = strrchr(real, '/');
            *(slash ? slash : real) = 0;
            continue;
        }
        int kind = step_into(u, real, name, target);
        if (kind < 0)
            return -1;
        if (kind == 0) {
            if (++links > LINK_LIMIT)
                return wh_fail(u, ELOOP, "too many symlinks");
            if (*target == '/')
                real[0] = 0;
            if (join(target, rest, rest) < 0)
                return wh_fail(u, ENAMETOOLONG, "a symlink leads to a name longer than 4095 bytes");
        } else if (join(real, name, real) < 0) {
            return wh_fail(u, ENAMETOOLONG, "a name is longer than 4095 bytes");
        }
    }
    return 0;
}

/* Open the directory `path`; missing ones are made. */
static int open_parent(struct unpack *u, const char *path)
{
    if (d.parent >= 0)
        close(d.parent);
    d.parent = open_in(u, path, O_RDONLY | O_DIRECTORY, 0);
    if (d.parent < 0 && (errno == ENOENT || errno == ENOTDIR)) {
        char real[NAME_LIMIT];
        if (make_parents(u, path, real) < 0)
            return -1;
        d.parent = open_in(u, real, O_RDONLY | O_DIRECTORY, RESOLVE_NO_SYMLINKS);
    }
    return d.parent < 0 ? wh_fail(u, errno, "cannot open the parent directory") : 0;
}

/* ---- removal ---- */

struct linux_dirent64 { uint64_t ino; int64_t off; unsigned short length; unsigned char type; char name[]; };

/* Unlink what is in `fd`; the name of a directory that is not empty goes to `next`. 1: there is one, 0: empty, -1. */
static int empty_once(struct unpack *u, int fd, char *next)
{
    _Alignas(struct linux_dirent64) char room[4096];
    long got;
    int found = 0;
    if (lseek(fd, 0, SEEK_SET) < 0)
        return wh_fail(u, errno, "cannot list a directory");
    while (!found && (got = getdents64(fd, room, sizeof room)) != 0) {
        if (got < 0)
            return wh_fail(u, errno, "cannot list a directory");
        for (long at = 0; at < got && !found;) {
            struct linux_dirent64 *d = (struct linux_dirent64 *)(room + at);
            at += d->length;
            if (!strcmp(d->name, ".") || !strcmp(d->name, ".."))
                continue;
            if (unlinkat(fd, d->name, 0) == 0 || unlinkat(fd, d->name, AT_REMOVEDIR) == 0)
                continue;
            if (errno != ENOTEMPTY && errno != EEXIST)
                return wh_fail(u, errno, "cannot remove an earlier entry");
            memcpy(next, d->name, strlen(d->name) + 1); /* NAME_MAX */
            found = 1;
        }
    }
    return found;
}

/* rm -r of a directory of this layer, however deep: one descriptor, the way back is "..". */
static int remove_dir(struct unpack *u, int parent, const char *name)
{
    char next[256];
    size_t depth = 0;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return wh_fail(u, errno, "cannot remove an earlier entry");
    for (;;) {
        int found = empty_once(u, fd, next);
        if (found < 0 || (!found && !depth)) {
            close(fd);
            break;
        }
        int other = openat(fd, found ? next : "..", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        close(fd);
        if (other < 0)
            return wh_fail(u, errno, "cannot remove an earlier entry");
        fd = other;
        depth += found ? 1 : (size_t)-1;
    }
    if (u->err || unlinkat(parent, name, AT_REMOVEDIR) < 0)
        return wh_fail(u, errno, "cannot remove an earlier entry");
    return 0;
}

/* A later entry replaces an earlier one of the same name, whatever it was. */
static int clear_way(struct unpack *u, int parent, const char *name)
{
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return wh_fail(u, errno, "cannot replace an earlier entry");
    if (unlinkat(parent, name, AT_REMOVEDIR) == 0)
        return 0;
    return remove_dir(u, parent, name);
}

/* ---- entries ---- */

static int set_xattrs(struct unpack *u, int fd, int parent, const char *base)
{
    if (u->pax.xattrs && fd < 0 && fchdir(parent) < 0)
        return wh_fail(u, errno, "cannot enter a directory");
    for (unsigned i = 0; i < u->pax.xattrs; i++) {
        const struct xattr *x = &u->pax.xattr[i];
        if (u->entry.type == '5' && !strcmp(x->name, DEFAULT_ACL))
            continue;
        int result = fd >= 0 ? fsetxattr(fd, x->name, x->value, x->size, 0) : lsetxattr(base, x->name, x->value, x->size, 0);
        bool vital = !strcmp(x->name, "security.capability");
        /* user.* is refused on all but files and directories, trusted.* in user namespaces, others by file systems without them. */
        if (result < 0 && (vital || (errno != EOPNOTSUPP && errno != EPERM)))
            return wh_fail(u, errno, vital ? "cannot set file capabilities" : "cannot set an extended attribute");
    }
    return 0;
}

static struct timespec *times_of(const struct entry *e, struct timespec times[2])
{
    times[0] = times[1] = (struct timespec){e->mtime.sec, e->mtime.nsec};
    return times;
}

struct writer { int fd; uint64_t at; size_t piece; uint64_t done; };

static int to_file(struct unpack *u, void *to, const uint8_t *data, size_t size)
{
    struct writer *w = to;
    if (wh_write_at(u, w->fd, data, size, w->at) < 0)
        return -1;
    w->at += size;
    return 0;
}

static int to_pieces(struct unpack *u, void *to, const uint8_t *data, size_t size)
{
    struct writer *w = to;
    while (size) {
        while (w->piece < u->pieces && w->done == u->map[w->piece].size) {
            w->piece++;
            w->done = 0;
        }
        if (w->piece == u->pieces)
            return wh_fail(u, EPROTO, "a sparse file holds more than its map says");
        struct piece *p = &u->map[w->piece];
        size_t part = p->size - w->done < size ? (size_t)(p->size - w->done) : size;
        if (wh_write_at(u, w->fd, data, part, p->offset + w->done) < 0)
            return -1;
        w->done += part;
        data += part;
        size -= part;
    }
    return 0;
}

static int put_content(struct unpack *u, int fd)
{
    struct entry *e = &u->entry;
    struct writer w = {fd, 0, 0, 0};
    if (!e->sparse) {
        u->written += e->size;
        return wh_stream(u, e->size, to_file, &w);
    }
    if (wh_sparse_map(u) < 0)
        return -1;
    u->written += e->size;
    if (wh_stream(u, e->size, to_pieces, &w) < 0)
        return -1;
    return ftruncate(fd, (off_t)e->real) < 0 ? wh_fail(u, errno, "cannot set the size of a sparse file") : 0;
}

static int put_file(struct unpack *u)
{
    struct entry *e = &u->entry;
    int parent = d.parent;
    struct timespec times[2];
    const int flags = O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC;
    int fd = openat(parent, e->base, flags, 0600);
    if (fd < 0 && errno == EEXIST && clear_way(u, parent, e->base) == 0)
        fd = openat(parent, e->base, flags, 0600);
    if (fd < 0)
        return wh_fail(u, errno, "cannot make a file");
    int result = put_content(u, fd);
    /* chown clears set-id bits and capabilities, so it comes first */
    if (!result && (fchown(fd, e->uid, e->gid) < 0 || fchmod(fd, e->mode) < 0))
        result = wh_fail(u, errno, "cannot set owner or mode");
    if (!result)
        result = set_xattrs(u, fd, parent, e->base);
    if (!result && futimens(fd, times_of(e, times)) < 0)
        result = wh_fail(u, errno, "cannot set the time");
    if (close(fd) < 0 && !result)
        result = wh_fail(u, errno, "cannot write");
    return result;
}

static int grow_late(struct unpack *u)
{
    size_t room = d.late_room ? 2 * d.late_room : 256 << 10;
    void *grown = d.late ? (void *)syscall(SYS_mremap, d.late, d.late_room, room, MREMAP_MAYMOVE, 0) : wh_map_memory(room);
    if (room > LATE_LIMIT || !grown || grown == MAP_FAILED)
        return wh_fail(u, ENOMEM, "no memory for what directories get late");
    d.late = grown;
    d.late_room = room;
    return 0;
}

static int remember(struct unpack *u, const struct entry *e)
{
    const struct xattr *acl = NULL;
    for (unsigned i = 0; i < u->pax.xattrs; i++)
        if (!strcmp(u->pax.xattr[i].name, DEFAULT_ACL))
            acl = &u->pax.xattr[i];
    size_t length = strlen(e->path) + 1, whole = (sizeof(struct late) + length + (acl ? acl->size : 0) + 7) & ~(size_t)7;
    if (d.late_used + whole > d.late_room && grow_late(u) < 0)
        return -1;
    struct late *late = (struct late *)(d.late + d.late_used);
    late->mtime = e->mtime;
    late->length = (uint32_t)whole;
    memcpy(late->path, e->path, length);
    late->acl_size = acl ? (uint32_t)acl->size : 0;
    if (acl)
        memcpy(late->path + length, acl->value, acl->size);
    d.late_used += whole;
    return 0;
}

static int make_dir(struct unpack *u, int parent, const char *base)
{
    struct stat st;
    if (mkdirat(parent, base, 0700) == 0)
        return 0;
    if (errno != EEXIST || fstatat(parent, base, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return wh_fail(u, errno, "cannot make a directory");
    if (S_ISDIR(st.st_mode))
        return 0;
    if (is_whiteout(&st))
        return whiteout_to_dir(u, parent, base, 0700);
    if (clear_way(u, parent, base) < 0)
        return -1;
    return mkdirat(parent, base, 0700) < 0 ? wh_fail(u, errno, "cannot make a directory") : 0;
}

static int put_dir(struct unpack *u)
{
    struct entry *e = &u->entry;
    int parent = d.parent;
    if (*e->path && make_dir(u, parent, e->base) < 0)
        return -1;
    int fd = openat(parent, *e->path ? e->base : ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return wh_fail(u, errno, "cannot open a directory");
    int result = 0;
    if (fchown(fd, e->uid, e->gid) < 0 || fchmod(fd, e->mode) < 0)
        result = wh_fail(u, errno, "cannot set owner or mode");
    if (!result)
        result = set_xattrs(u, fd, parent, e->base);
    close(fd);
    return result ? result : remember(u, e);
}

/* Owner, mode, xattrs and time of what has no descriptor: symlinks, devices, fifos. */
static int finish_name(struct unpack *u, int parent)
{
    struct entry *e = &u->entry;
    struct timespec times[2];
    if (fchownat(parent, e->base, e->uid, e->gid, AT_SYMLINK_NOFOLLOW) < 0)
        return wh_fail(u, errno, "cannot set the owner");
    if (e->type != '2' && fchmodat(parent, e->base, e->mode, 0) < 0)
        return wh_fail(u, errno, "cannot set the mode");
    if (set_xattrs(u, -1, parent, e->base) < 0)
        return -1;
    if (utimensat(parent, e->base, times_of(e, times), AT_SYMLINK_NOFOLLOW) < 0)
        return wh_fail(u, errno, "cannot set the time");
    return 0;
}

static int put_symlink(struct unpack *u)
{
    struct entry *e = &u->entry;
    int parent = d.parent;
    int made = symlinkat(e->link, parent, e->base);
    if (made < 0 && errno == EEXIST && clear_way(u, parent, e->base) == 0)
        made = symlinkat(e->link, parent, e->base);
    if (made < 0)
        return wh_fail(u, errno, "cannot make a symlink");
    return finish_name(u, parent);
}

static int put_node(struct unpack *u)
{
    struct entry *e = &u->entry;
    int parent = d.parent;
    mode_t kind = e->type == '3' ? S_IFCHR : e->type == '4' ? S_IFBLK : S_IFIFO;
    int made = mknodat(parent, e->base, kind | e->mode, e->device);
    if (made < 0 && errno == EEXIST && clear_way(u, parent, e->base) == 0)
        made = mknodat(parent, e->base, kind | e->mode, e->device);
    if (made < 0 && errno == EPERM && u->userxattr && kind != S_IFIFO)
        return 0; /* a user namespace has no devices; docker leaves them out too */
    if (made < 0)
        return wh_fail(u, errno, "cannot make a device or fifo");
    return finish_name(u, parent);
}

/* Two names of one file already: linking it onto itself must not remove it. */
static bool same_file(int a, const char *name_a, int b, const char *name_b)
{
    struct stat one, two;
    return fstatat(a, name_a, &one, AT_SYMLINK_NOFOLLOW) == 0 && fstatat(b, name_b, &two, AT_SYMLINK_NOFOLLOW) == 0 &&
           one.st_ino == two.st_ino && one.st_dev == two.st_dev;
}

static int put_link(struct unpack *u)
{
    struct entry *e = &u->entry;
    int parent = d.parent;
    char target[NAME_LIMIT];
    if (wh_clean_path(u, e->link, target) < 0)
        return -1;
    char *slash = strrchr(target, '/');
    const char *name = slash ? slash + 1 : target, *dir = slash ? target : "";
    if (slash)
        *slash = 0;
    if (!*name)
        return wh_fail(u, EPERM, "a hard link to the root directory");
    int from = open_in(u, dir, O_PATH | O_DIRECTORY, 0);
    if (from < 0)
        return wh_fail(u, errno, "the target of a hard link is not in this layer");
    int result = linkat(from, name, parent, e->base, 0);
    if (result < 0 && errno == EEXIST) {
        if (same_file(from, name, parent, e->base))
            result = 0;
        else if (clear_way(u, parent, e->base) == 0)
            result = linkat(from, name, parent, e->base, 0);
    }
    if (result < 0)
        wh_fail(u, errno, "cannot make a hard link");
    close(from);
    return result;
}

static int put_whiteout(struct unpack *u, const char *name)
{
    struct stat st;
    if (mknodat(d.parent, name, S_IFCHR, 0) == 0)
        return 0;
    if (errno != EEXIST || fstatat(d.parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return wh_fail(u, errno, "cannot make a whiteout");
    if (!S_ISDIR(st.st_mode))
        return 0; /* what is here already hides what is below */
    int fd = openat(d.parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return wh_fail(u, errno, "cannot open a directory");
    int result = make_opaque(u, fd);
    close(fd);
    return result;
}

static int put_opaque(struct unpack *u) { return make_opaque(u, d.parent); }

static int set_late(struct unpack *u)
{
    struct late *late;
    for (size_t at = 0; at < d.late_used; at += late->length) {
        late = (struct late *)(d.late + at);
        int fd = open_in(u, late->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
        if (fd < 0)
            continue; /* a later entry replaced it */
        struct timespec time = {late->mtime.sec, late->mtime.nsec}, times[2] = {time, time};
        int result = late->acl_size ? fsetxattr(fd, DEFAULT_ACL, late->path + strlen(late->path) + 1, late->acl_size, 0) : 0;
        if (result < 0 && errno != EOPNOTSUPP && errno != EPERM)
            wh_fail(u, errno, "cannot set an extended attribute");
        if (futimens(fd, times) < 0)
            wh_fail(u, errno, "cannot set the time of a directory");
        close(fd);
        if (u->err)
            return -1;
    }
    return 0;
}

static int begin(struct unpack *u)
{
    (void)u;
    return 0;
}

static int end(struct unpack *u)
{
    if (set_late(u) < 0)
        return -1;
    return u->sync && syncfs(u->root) < 0 ? wh_fail(u, errno, "cannot write to disk") : 0;
}

static const int CALLS[] = {
    SYS_pwrite64, SYS_close, SYS_openat, SYS_openat2, SYS_fstat, SYS_newfstatat, SYS_statx, SYS_lseek, SYS_mkdirat, SYS_mknodat,
    SYS_linkat, SYS_symlinkat, SYS_unlinkat, SYS_readlinkat, SYS_fchown, SYS_fchownat, SYS_fchmod, SYS_fchmodat, SYS_utimensat,
    SYS_fsetxattr, SYS_lsetxattr, SYS_fchdir, SYS_ftruncate, SYS_getdents64, SYS_syncfs,
};
#define CAP(name) (UINT64_C(1) << (name))

const struct sink wh_directory_sink = {
    .name = "directory",
    .calls = CALLS,
    .call_count = sizeof CALLS / sizeof CALLS[0],
    /* SYS_ADMIN: trusted.overlay.opaque. Mounting needs a call that the filter does not let through. */
    .caps = CAP(CAP_CHOWN) | CAP(CAP_DAC_OVERRIDE) | CAP(CAP_FOWNER) | CAP(CAP_FSETID) | CAP(CAP_MKNOD) | CAP(CAP_SETFCAP) |
            CAP(CAP_SYS_ADMIN),
    .begin = begin,
    .parent = open_parent,
    .file = put_file,
    .dir = put_dir,
    .symlink = put_symlink,
    .node = put_node,
    .link = put_link,
    .whiteout = put_whiteout,
    .opaque = put_opaque,
    .end = end,
};
