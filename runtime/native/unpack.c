/* Role `unpack`: one tar stream from standard input into the directory of descriptor 3, confined.
 *
 * The archive is hostile. Before its first byte is read this process has its own mount and network namespace, the target
 * directory as its only root (pivot_root), no_new_privs, few capabilities and a seccomp allow-list. Paths are resolved by
 * openat2(RESOLVE_IN_ROOT) below that root besides.
 *
 *   wherry-helper unpack [--userxattr] [--max-bytes=N] [--max-entries=N] [--no-sync]
 *
 * One report on standard output: "ok ENTRIES BYTES\n", or "fail ERRNO ENTRY\nWHAT\nPATH".
 *
 * Forms read: v7, ustar, pax (also GNU.sparse 0.0, 0.1, 1.0), GNU (long names, old sparse, base-256). A missing trailer is
 * tolerated, a truncated member is not. Global pax headers are skipped, as all container tools do (Go's archive/tar gives
 * them to its caller, moby's pkg/archive ignores them). Whiteouts become overlayfs' (image-spec 1.1, layer.md).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "exec.h"

enum {
    BLOCK = 512,
    BUFFER = 1 << 20,
    NAME_LIMIT = 4096,      /* PATH_MAX with its NUL */
    PAX_LIMIT = 8 << 20,    /* one extended header: xattrs of 64 KiB, sparse maps */
    BODIES = PAX_LIMIT + 4 * NAME_LIMIT, /* all of one entry */
    LATE_LIMIT = 512 << 20, /* memory for the times of directories */
    SPARSE_LIMIT = 1 << 18, /* pieces of one sparse file */
    XATTR_LIMIT = 128,      /* xattrs of one entry */
    LINK_LIMIT = 40,        /* as the kernel: MAXSYMLINKS */
};

struct piece { uint64_t offset, size; };
struct xattr { const char *name, *value; size_t size; };
struct stamp { int64_t sec; long nsec; };
struct late { struct stamp mtime; uint32_t length; char path[]; };

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

struct unpack {
    int root, parent; /* descriptors; parent is that of `parent_path`, -1: none cached */
    char parent_path[NAME_LIMIT];
    bool userxattr, sync, ended;
    uint64_t max_bytes, max_entries, consumed, entries, written;
    uint8_t *buffer;
    size_t start, end;
    struct pax pax;
    struct entry entry;
    struct piece *map;
    size_t pieces;
    char *bodies; /* the extended headers of the entry, one after another */
    size_t bodies_used;
    char *late; /* struct late, one after another */
    size_t late_used, late_room;
    int err;
    const char *what;
};

static void *map_memory(size_t size)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static int fail(struct unpack *u, int err, const char *what)
{
    if (!u->err) {
        u->err = err ? err : EIO;
        u->what = what;
    }
    return -1;
}

/* ---- confinement ---- */

static const int ALLOWED[] = {
    SYS_read, SYS_write, SYS_pwrite64, SYS_close, SYS_openat, SYS_openat2, SYS_fstat, SYS_newfstatat, SYS_statx, SYS_lseek,
    SYS_mkdirat, SYS_mknodat, SYS_linkat, SYS_symlinkat, SYS_unlinkat, SYS_readlinkat, SYS_fchown, SYS_fchownat, SYS_fchmod,
    SYS_fchmodat, SYS_utimensat, SYS_fsetxattr, SYS_lsetxattr, SYS_fchdir, SYS_ftruncate, SYS_getdents64, SYS_syncfs,
    SYS_brk, SYS_mmap, SYS_munmap, SYS_mremap, SYS_exit, SYS_exit_group, SYS_rt_sigreturn,
};
enum { ALLOWED_COUNT = sizeof ALLOWED / sizeof ALLOWED[0] };

#if defined(__x86_64__)
#define THIS_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define THIS_ARCH AUDIT_ARCH_AARCH64
#else
#error "add the audit architecture of this machine"
#endif

static int filter_calls(struct unpack *u)
{
    struct sock_filter code[ALLOWED_COUNT + 6];
    unsigned n = 0;
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, THIS_ARCH, 1, 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < ALLOWED_COUNT; i++)
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)ALLOWED[i], (uint8_t)(ALLOWED_COUNT - i), 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {(unsigned short)n, code};
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        return fail(u, errno, "cannot install the seccomp filter");
    return 0;
}

static int drop_caps(struct unpack *u)
{
    /* SYS_ADMIN: trusted.overlay.opaque. Mounting needs a call that the filter does not let through. */
    static const int KEEP[] = {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_MKNOD, CAP_SETFCAP, CAP_SYS_ADMIN};
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {0};
    if (syscall(SYS_capget, &header, data) < 0)
        return fail(u, errno, "cannot read the capabilities");
    uint64_t keep = 0;
    for (size_t i = 0; i < sizeof KEEP / sizeof KEEP[0]; i++)
        keep |= UINT64_C(1) << KEEP[i];
    for (int i = 0; i < 2; i++) {
        data[i].permitted &= (uint32_t)(keep >> (32 * i));
        data[i].effective = data[i].permitted;
        data[i].inheritable = 0;
    }
    if (syscall(SYS_capset, &header, data) < 0)
        return fail(u, errno, "cannot drop capabilities");
    return 0;
}

static int set_limits(struct unpack *u)
{
    static const struct { int resource; rlim_t most; } LIMITS[] = {
        {RLIMIT_NOFILE, 64}, {RLIMIT_CORE, 0}, {RLIMIT_AS, (rlim_t)1 << 30}, {RLIMIT_MEMLOCK, 0}, {RLIMIT_MSGQUEUE, 0},
    };
    for (size_t i = 0; i < sizeof LIMITS / sizeof LIMITS[0]; i++) {
        struct rlimit limit;
        if (getrlimit((__rlimit_resource_t)LIMITS[i].resource, &limit) < 0)
            return fail(u, errno, "cannot read a resource limit");
        limit.rlim_max = limit.rlim_max < LIMITS[i].most ? limit.rlim_max : LIMITS[i].most;
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit((__rlimit_resource_t)LIMITS[i].resource, &limit) < 0)
            return fail(u, errno, "cannot set a resource limit");
    }
    return 0;
}

/* The target directory becomes "/", and nothing else is left in this mount namespace. */
static int change_root(struct unpack *u)
{
    /* unshare moves the working directory into the new namespace, but no descriptor */
    if (fchdir(3) < 0 || unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) < 0)
        return fail(u, errno, "cannot unshare the mount and network namespaces");
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return fail(u, errno, "cannot make the mounts private");
    int tree = (int)syscall(SYS_open_tree, AT_FDCWD, ".", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree < 0)
        return fail(u, errno, "cannot clone the target's mount");
    if (syscall(SYS_move_mount, tree, "", AT_FDCWD, ".", MOVE_MOUNT_F_EMPTY_PATH) < 0 || fchdir(tree) < 0)
        return fail(u, errno, "cannot mount the target directory");
    close(tree);
    if (syscall(SYS_pivot_root, ".", ".") == 0) {
        if (umount2(".", MNT_DETACH) < 0)
            return fail(u, errno, "cannot leave the old root");
    } else if (errno != EINVAL || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0) { /* an initramfs root */
        return fail(u, errno, "cannot change the root");
    }
    close(3);
    if (chdir("/") < 0 || (u->root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        return fail(u, errno, "cannot open the new root");
    return 0;
}

static int confine(struct unpack *u)
{
    umask(0);
    syscall(SYS_close_range, 4, ~0U, 0);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, 0) < 0)
        return fail(u, errno, "prctl");
    if (change_root(u) < 0 || set_limits(u) < 0 || drop_caps(u) < 0)
        return -1;
    return filter_calls(u);
}

/* ---- the stream ---- */

/* Make at least one byte available; 0 at the end of the stream. */
static ssize_t more(struct unpack *u)
{
    if (u->start == u->end)
        u->start = u->end = 0;
    if (u->end == BUFFER) {
        memmove(u->buffer, u->buffer + u->start, u->end - u->start);
        u->end -= u->start;
        u->start = 0;
    }
    ssize_t got;
    do
        got = read(0, u->buffer + u->end, BUFFER - u->end);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return fail(u, errno, "cannot read the stream");
    u->end += (size_t)got;
    u->consumed += (uint64_t)got;
    if (u->consumed > u->max_bytes)
        return fail(u, EFBIG, "the layer is larger than the limit");
    return got;
}

/* The next block: 1, or 0 at a clean end, or -1. */
static int next_block(struct unpack *u, const uint8_t **block)
{
    while (u->end - u->start < BLOCK) {
        ssize_t got = more(u);
        if (got < 0)
            return -1;
        if (got == 0) {
            if (u->end != u->start)
                return fail(u, EPROTO, "the archive ends inside a header");
            return 0;
        }
    }
    *block = u->buffer + u->start;
    u->start += BLOCK;
    return 1;
}

typedef int (*sink)(struct unpack *u, void *to, const uint8_t *data, size_t size);

/* Hand `size` bytes of the member to `take`; take NULL: skip. */
static int stream(struct unpack *u, uint64_t size, sink take, void *to)
{
    while (size) {
        if (u->start == u->end) {
            ssize_t got = more(u);
            if (got < 0)
                return -1;
            if (got == 0)
                return fail(u, EPROTO, "the archive ends inside a member");
        }
        size_t part = u->end - u->start < size ? u->end - u->start : (size_t)size;
        if (take && take(u, to, u->buffer + u->start, part) < 0)
            return -1;
        u->start += part;
        size -= part;
    }
    return 0;
}

/* Padding to the next block; the last one may be missing. */
static int skip_padding(struct unpack *u, uint64_t size)
{
    size_t left = (size_t)(-size & (BLOCK - 1));
    while (left) {
        if (u->start == u->end) {
            ssize_t got = more(u);
            if (got <= 0)
                return (int)got;
        }
        size_t part = u->end - u->start < left ? u->end - u->start : left;
        u->start += part;
        left -= part;
    }
    return 0;
}

static int to_memory(struct unpack *u, void *to, const uint8_t *data, size_t size)
{
    (void)u;
    char **at = to;
    memcpy(*at, data, size);
    *at += size;
    return 0;
}

/* The body of an extended header, NUL-terminated, in u->bodies. */
static char *read_body(struct unpack *u, uint64_t size, uint64_t limit)
{
    if (size > limit || size + 1 > BODIES - u->bodies_used) {
        fail(u, E2BIG, "an extended header is too large, or there are too many of them");
        return NULL;
    }
    char *body = u->bodies + u->bodies_used, *at = body;
    u->bodies_used += (size_t)size + 1;
    if (stream(u, size, to_memory, &at) < 0 || skip_padding(u, size) < 0)
        return NULL;
    *at = 0;
    return body;
}

static void forget_pax(struct unpack *u)
{
    u->bodies_used = 0;
    u->pax.xattrs = 0;
    u->pax.path = u->pax.link = u->pax.sparse_name = NULL;
    u->pax.has_size = u->pax.has_uid = u->pax.has_gid = u->pax.has_mtime = false;
    u->pax.sparse = u->pax.sparse_1_0 = u->pax.has_real = false;
    u->pieces = 0;
}

/* ---- numbers ---- */

static int parse_binary(const uint8_t *field, size_t size, int64_t *value)
{
    bool negative = field[0] & 0x40;
    uint64_t bits = negative ? ~UINT64_C(0) : 0;
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = i ? field[i] : (uint8_t)(negative ? field[0] : field[0] & 0x7f);
        if (i + 8 < size && byte != (negative ? 0xff : 0))
            return -1;
        bits = bits << 8 | byte;
    }
    *value = (int64_t)bits;
    return (*value < 0) == negative ? 0 : -1;
}

/* A number of a header: octal in text, or base-256 (GNU). Empty is 0. */
static int parse_number(const void *from, size_t size, int64_t *value)
{
    const uint8_t *field = from;
    if (field[0] & 0x80)
        return parse_binary(field, size, value);
    size_t i = 0;
    uint64_t number = 0;
    while (i < size && field[i] == ' ')
        i++;
    for (; i < size && field[i] >= '0' && field[i] <= '7'; i++) {
        if (number >> 60)
            return -1;
        number = number << 3 | (uint64_t)(field[i] - '0');
    }
    if (i < size && field[i] != 0 && field[i] != ' ')
        return -1;
    *value = (int64_t)number;
    return 0;
}

/* Decimal digits of [text, end); the end of the digits, NULL when there are none or too many. */
static const char *parse_decimal(const char *text, const char *end, uint64_t *value)
{
    const char *at = text;
    uint64_t number = 0;
    for (; at < end && *at >= '0' && *at <= '9'; at++) {
        if (number > (INT64_MAX - 9) / 10)
            return NULL;
        number = number * 10 + (uint64_t)(*at - '0');
    }
    *value = number;
    return at == text ? NULL : at;
}

/* pax: seconds since the epoch, perhaps negative, perhaps with a fraction (POSIX.1-2017 pax, 4.b "mtime"). */
static int parse_time(const char *text, const char *end, struct stamp *stamp)
{
    bool negative = text < end && *text == '-';
    uint64_t whole = 0;
    const char *at = parse_decimal(text + negative, end, &whole);
    if (!at)
        return -1;
    long nsec = 0;
    if (at < end && *at == '.') {
        long unit = 100000000;
        for (at++; at < end && *at >= '0' && *at <= '9'; at++, unit /= 10)
            nsec += unit * (*at - '0');
    }
    if (at != end)
        return -1;
    stamp->sec = negative ? -(int64_t)whole : (int64_t)whole;
    stamp->nsec = nsec;
    if (negative && nsec) {
        stamp->sec--;
        stamp->nsec = 1000000000 - nsec;
    }
    return 0;
}

/* ---- extended headers ---- */

static int add_piece(struct unpack *u, uint64_t offset, uint64_t size)
{
    if (!u->map && !(u->map = map_memory(SPARSE_LIMIT * sizeof *u->map)))
        return fail(u, ENOMEM, "no memory for a sparse map");
    if (u->pieces == SPARSE_LIMIT)
        return fail(u, E2BIG, "a sparse file has too many pieces");
    u->map[u->pieces++] = (struct piece){offset, size};
    return 0;
}

/* GNU.sparse.map (0.1): "offset,size,offset,size..." */
static int parse_map(struct unpack *u, const char *at, const char *end)
{
    uint64_t pair[2];
    u->pieces = 0;
    while (at < end) {
        for (int i = 0; i < 2; i++) {
            if (!(at = parse_decimal(at, end, &pair[i])) || (at < end && *at != ','))
                return fail(u, EPROTO, "a sparse map is malformed");
            at += at < end;
        }
        if (add_piece(u, pair[0], pair[1]) < 0)
            return -1;
    }
    return 0;
}

static int from_hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* LIBARCHIVE.xattr.<name, percent-encoded>=<value, base64>: both decoded in place. */
static int decode_libarchive(char *name, char *value, size_t *size)
{
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *to = name;
    for (char *from = name; *from; from++) {
        if (*from == '%' && from[1] && from_hex(from[1]) >= 0 && from_hex(from[2]) >= 0) {
            *to++ = (char)(from_hex(from[1]) << 4 | from_hex(from[2]));
            from += 2;
        } else {
            *to++ = *from;
        }
    }
    *to = 0;
    uint32_t bits = 0;
    unsigned held = 0;
    size_t out = 0;
    for (size_t i = 0; i < *size && value[i] != '='; i++) {
        const char *digit = value[i] ? strchr(DIGITS, value[i]) : NULL;
        if (!digit)
            return -1;
        bits = bits << 6 | (uint32_t)(digit - DIGITS);
        if ((held += 6) >= 8)
            value[out++] = (char)(bits >> (held -= 8));
    }
    *size = out;
    return 0;
}

/* Names of the host's own concern (security.selinux, .ima) and of overlayfs (redirect, metacopy, origin) are not an image's to set. */
static bool xattr_allowed(const char *name)
{
    if (!strncmp(name, "trusted.overlay.", 16) || !strncmp(name, "user.overlay.", 13))
        return false;
    return !strncmp(name, "user.", 5) || !strncmp(name, "trusted.", 8) || !strcmp(name, "security.capability") ||
           !strcmp(name, "system.posix_acl_access") || !strcmp(name, "system.posix_acl_default");
}

static int add_xattr(struct unpack *u, char *name, char *value, size_t size, bool encoded)
{
    if (encoded && decode_libarchive(name, value, &size) < 0)
        return fail(u, EPROTO, "an extended attribute is not base64");
    if (!xattr_allowed(name))
        return 0;
    if (strlen(name) > 255 || size > 65536)
        return fail(u, E2BIG, "an extended attribute is too large");
    unsigned i = 0;
    while (i < u->pax.xattrs && strcmp(u->pax.xattr[i].name, name))
        i++;
    if (i == XATTR_LIMIT)
        return fail(u, E2BIG, "an entry has too many extended attributes");
    u->pax.xattr[i] = (struct xattr){name, value, size};
    u->pax.xattrs += i == u->pax.xattrs;
    return 0;
}

static int pax_number(struct unpack *u, const char *value, const char *end, bool *has, uint64_t *to)
{
    *has = value != end; /* an empty value deletes an earlier one */
    if (*has && parse_decimal(value, end, to) != end)
        return fail(u, EPROTO, "a number of a pax header is malformed");
    return 0;
}

static int pax_text(struct unpack *u, const char *value, const char *end, const char **to)
{
    if (memchr(value, 0, (size_t)(end - value)))
        return fail(u, EPROTO, "a name of a pax header holds a NUL byte");
    if (end - value >= NAME_LIMIT)
        return fail(u, ENAMETOOLONG, "a name is longer than 4095 bytes");
    *to = value == end ? NULL : value;
    return 0;
}

static int pax_sparse(struct unpack *u, const char *key, const char *value, const char *end)
{
    struct pax *p = &u->pax;
    uint64_t number = 0;
    p->sparse = true;
    if (!strcmp(key, "name"))
        return pax_text(u, value, end, &p->sparse_name);
    if (!strcmp(key, "map"))
        return parse_map(u, value, end);
    if (parse_decimal(value, end, &number) != end)
        return fail(u, EPROTO, "a sparse header is malformed");
    if (!strcmp(key, "size") || !strcmp(key, "realsize")) {
        p->has_real = true;
        p->real = number;
    } else if (!strcmp(key, "major")) {
        p->sparse_1_0 = number == 1;
    } else if (!strcmp(key, "offset")) {
        return add_piece(u, number, 0);
    } else if (!strcmp(key, "numbytes")) {
        if (!u->pieces)
            return fail(u, EPROTO, "a sparse header is malformed");
        u->map[u->pieces - 1].size = number;
    }
    return 0;
}

static int pax_record(struct unpack *u, char *key, char *value, char *end)
{
    struct pax *p = &u->pax;
    if (!strcmp(key, "path"))
        return pax_text(u, value, end, &p->path);
    if (!strcmp(key, "linkpath"))
        return pax_text(u, value, end, &p->link);
    if (!strcmp(key, "size"))
        return pax_number(u, value, end, &p->has_size, &p->size);
    if (!strcmp(key, "uid"))
        return pax_number(u, value, end, &p->has_uid, &p->uid);
    if (!strcmp(key, "gid"))
        return pax_number(u, value, end, &p->has_gid, &p->gid);
    if (!strncmp(key, "SCHILY.xattr.", 13))
        return add_xattr(u, key + 13, value, (size_t)(end - value), false);
    if (!strncmp(key, "LIBARCHIVE.xattr.", 17))
        return add_xattr(u, key + 17, value, (size_t)(end - value), true);
    if (!strncmp(key, "GNU.sparse.", 11))
        return pax_sparse(u, key + 11, value, end);
    if (!strcmp(key, "mtime")) {
        p->has_mtime = value != end;
        if (p->has_mtime && parse_time(value, end, &p->mtime) < 0)
            return fail(u, EPROTO, "a time of a pax header is malformed");
    }
    return 0;
}

/* "LENGTH KEY=VALUE\n" repeated. `apply` false: only checked. */
static int parse_pax(struct unpack *u, char *body, uint64_t size, bool apply)
{
    char *at = body, *stop = body + size;
    while (at < stop) {
        uint64_t length = 0;
        const char *space = parse_decimal(at, stop, &length);
        if (!space || space == stop || *space != ' ' || length > (uint64_t)(stop - at) || length < (uint64_t)(space - at) + 3)
            return fail(u, EPROTO, "a pax record is malformed");
        char *end = at + length - 1, *key = at + (space - at) + 1;
        char *equals = memchr(key, '=', (size_t)(end - key));
        if (*end != '\n' || !equals || memchr(key, 0, (size_t)(equals - key)))
            return fail(u, EPROTO, "a pax record is malformed");
        *equals = *end = 0;
        if (apply && pax_record(u, key, equals + 1, end) < 0)
            return -1;
        at = end + 1;
    }
    return 0;
}

/* ---- headers ---- */

static bool checksum_right(const uint8_t *block)
{
    int64_t stored;
    if (parse_number(block + 148, 8, &stored) < 0)
        return false;
    int64_t sum = 8 * ' ', signed_sum = 8 * ' '; /* the field itself counts as spaces; old tars summed signed chars */
    for (int i = 0; i < BLOCK; i++) {
        if (i < 148 || i >= 156) {
            sum += block[i];
            signed_sum += (int8_t)block[i];
        }
    }
    return stored == sum || stored == signed_sum;
}

static bool all_zero(const uint8_t *block)
{
    for (int i = 0; i < BLOCK; i++)
        if (block[i])
            return false;
    return true;
}

static size_t component(const char *path)
{
    size_t length = 0;
    while (path[length] && path[length] != '/')
        length++;
    return length;
}

/* Clean `raw` lexically, as docker does, into `to`; a name that climbs above the root is refused. */
static int clean_path(struct unpack *u, const char *raw, char *to)
{
    size_t length = 0;
    for (const char *at = raw; *at;) {
        size_t part = component(at);
        if (part == 2 && at[0] == '.' && at[1] == '.') {
            if (!length)
                return fail(u, EXDEV, "the name leaves the layer");
            while (length && to[--length] != '/')
                ;
        } else if (part && !(part == 1 && at[0] == '.')) {
            if (length + part + 2 > NAME_LIMIT)
                return fail(u, ENAMETOOLONG, "a name is longer than 4095 bytes");
            if (length)
                to[length++] = '/';
            memcpy(to + length, at, part);
            length += part;
        }
        at += part;
        at += *at == '/';
    }
    to[length] = 0;
    return 0;
}

static void split_path(struct entry *e)
{
    char *slash = strrchr(e->path, '/');
    e->base = slash ? slash + 1 : e->path;
    size_t length = slash ? (size_t)(slash - e->path) : 0;
    memcpy(e->parent, e->path, length);
    e->parent[length] = 0;
}

static int entry_names(struct unpack *u, const uint8_t *block)
{
    struct entry *e = &u->entry;
    char name[NAME_LIMIT];
    const char *raw = u->pax.sparse_name ? u->pax.sparse_name : u->pax.path;
    if (!raw) {
        size_t at = 0;
        if (!memcmp(block + 257, "ustar\0", 6) && block[345]) { /* GNU's magic is "ustar " and has no prefix */
            at = strnlen((const char *)block + 345, 155);
            memcpy(name, block + 345, at);
            name[at++] = '/';
        }
        size_t length = strnlen((const char *)block, 100);
        memcpy(name + at, block, length);
        name[at + length] = 0;
        raw = name;
    }
    if (!*raw)
        return fail(u, EPROTO, "an entry has no name");
    if (e->type == 0)
        e->type = raw[strlen(raw) - 1] == '/' ? '5' : '0'; /* v7 has no type for directories */
    if (clean_path(u, raw, e->path) < 0)
        return -1;
    if (u->pax.link) {
        memcpy(e->link, u->pax.link, strlen(u->pax.link) + 1); /* its length was checked */
    } else {
        size_t length = strnlen((const char *)block + 157, 100);
        memcpy(e->link, block + 157, length);
        e->link[length] = 0;
    }
    split_path(e);
    return 0;
}

static int entry_numbers(struct unpack *u, const uint8_t *block)
{
    struct entry *e = &u->entry;
    struct pax *p = &u->pax;
    int64_t mode, uid, gid, size, mtime, major = 0, minor = 0;
    if (parse_number(block + 100, 8, &mode) < 0 || parse_number(block + 108, 8, &uid) < 0 ||
        parse_number(block + 116, 8, &gid) < 0 || parse_number(block + 124, 12, &size) < 0 ||
        parse_number(block + 136, 12, &mtime) < 0)
        return fail(u, EPROTO, "a number of a header is malformed");
    if ((e->type == '3' || e->type == '4') &&
        (parse_number(block + 329, 8, &major) < 0 || parse_number(block + 337, 8, &minor) < 0))
        return fail(u, EPROTO, "a device number is malformed");
    uid = p->has_uid ? (int64_t)p->uid : uid;
    gid = p->has_gid ? (int64_t)p->gid : gid;
    size = p->has_size ? (int64_t)p->size : size;
    if (uid < 0 || uid >= UINT32_MAX || gid < 0 || gid >= UINT32_MAX || size < 0 || major < 0 || major >= 1 << 12 ||
        minor < 0 || minor >= 1 << 20)
        return fail(u, ERANGE, "an owner, size or device number is out of range");
    e->mode = (mode_t)mode & 07777;
    e->uid = (uid_t)uid;
    e->gid = (gid_t)gid;
    e->size = e->real = (uint64_t)size;
    e->device = (dev_t)((minor & 0xff) | major << 8 | (minor & ~0xff) << 12); /* new_encode_dev, linux/kdev_t.h */
    e->mtime = p->has_mtime ? p->mtime : (struct stamp){mtime, 0};
    return 0;
}

/* Old GNU sparse: four pieces in the header, 21 more in each block that follows. */
static int old_sparse(struct unpack *u, const uint8_t *block)
{
    struct entry *e = &u->entry;
    int64_t real, offset, size;
    const uint8_t *at = block + 386;
    int count = 4;
    bool more_blocks = block[482];
    if (parse_number(block + 483, 12, &real) < 0 || real < 0)
        return fail(u, EPROTO, "a sparse header is malformed");
    e->real = (uint64_t)real;
    e->sparse = true;
    for (;;) {
        for (int i = 0; i < count && at[24 * i]; i++) {
            if (parse_number(at + 24 * i, 12, &offset) < 0 || parse_number(at + 24 * i + 12, 12, &size) < 0 || offset < 0 || size < 0)
                return fail(u, EPROTO, "a sparse header is malformed");
            if (add_piece(u, (uint64_t)offset, (uint64_t)size) < 0)
                return -1;
        }
        if (!more_blocks)
            return 0;
        if (next_block(u, &at) != 1)
            return fail(u, EPROTO, "the archive ends inside a sparse header");
        count = 21;
        more_blocks = at[504];
    }
}

/* pax sparse 1.0: the map stands in front of the data, one decimal number a line, padded to a block. */
static int sparse_1_0(struct unpack *u)
{
    struct entry *e = &u->entry;
    uint64_t expected = 1, seen = 0, value = 0, pair[2];
    const uint8_t *block;
    bool digits = false;
    u->pieces = 0;
    while (seen < expected) {
        if (e->size < BLOCK || next_block(u, &block) != 1)
            return fail(u, EPROTO, "the archive ends inside a sparse map");
        e->size -= BLOCK;
        for (int i = 0; i < BLOCK && seen < expected; i++) {
            if (block[i] >= '0' && block[i] <= '9' && value < INT64_MAX / 10 - 1) {
                value = value * 10 + (uint64_t)(block[i] - '0');
                digits = true;
                continue;
            }
            if (block[i] != '\n' || !digits || (!seen && value > SPARSE_LIMIT))
                return fail(u, EPROTO, "a sparse map is malformed");
            if (!seen)
                expected += 2 * value;
            else
                pair[(seen - 1) & 1] = value;
            if (seen && !(seen & 1) && add_piece(u, pair[0], pair[1]) < 0)
                return -1;
            seen++;
            value = 0;
            digits = false;
        }
    }
    return 0;
}

/* ---- paths ---- */

static int open_in(struct unpack *u, const char *path, int flags, uint64_t resolve)
{
    struct open_how how = {
        .flags = (uint64_t)(unsigned)(flags | O_CLOEXEC),
        .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV | resolve,
    };
    return (int)syscall(SYS_openat2, u->root, *path ? path : ".", &how, sizeof how);
}

static void forget_parent(struct unpack *u)
{
    if (u->parent >= 0)
        close(u->parent);
    u->parent = -1;
}

static const char *opaque_name(const struct unpack *u)
{
    return u->userxattr ? "user.overlay.opaque" : "trusted.overlay.opaque";
}

static int make_opaque(struct unpack *u, int fd)
{
    if (fsetxattr(fd, opaque_name(u), "y", 1, 0) < 0)
        return fail(u, errno, "cannot mark a directory opaque");
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
        return fail(u, errno, "cannot make a directory");
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return fail(u, errno, "cannot open a directory");
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
        return fail(u, errno, "cannot open a parent directory");
    if (fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        if (errno != ENOENT || mkdirat(at, name, 0755) < 0)
            result = fail(u, errno, "cannot make a parent directory");
    } else if (S_ISLNK(st.st_mode)) {
        ssize_t length = readlinkat(at, name, target, NAME_LIMIT - 1);
        target[length < 0 ? 0 : length] = 0;
        result = length < 0 ? fail(u, errno, "cannot read a symlink") : 0;
    } else if (is_whiteout(&st)) {
        result = whiteout_to_dir(u, at, name, 0755) < 0 ? -1 : 1;
    } else if (!S_ISDIR(st.st_mode)) {
        result = fail(u, ENOTDIR, "a parent is not a directory");
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
        size_t part = component(rest);
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
                return fail(u, ELOOP, "too many symlinks");
            if (*target == '/')
                real[0] = 0;
            if (join(target, rest, rest) < 0)
                return fail(u, ENAMETOOLONG, "a symlink leads to a name longer than 4095 bytes");
        } else if (join(real, name, real) < 0) {
            return fail(u, ENAMETOOLONG, "a name is longer than 4095 bytes");
        }
    }
    return 0;
}

/* Open the directory `path`; it stays open as u->parent. With `make`, missing ones are made. */
static int open_parent(struct unpack *u, const char *path, bool make)
{
    if (u->parent >= 0 && !strcmp(u->parent_path, path))
        return u->parent;
    forget_parent(u);
    u->parent = open_in(u, path, O_RDONLY | O_DIRECTORY, 0);
    if (u->parent < 0 && make && (errno == ENOENT || errno == ENOTDIR)) {
        char real[NAME_LIMIT];
        if (make_parents(u, path, real) < 0)
            return -1;
        u->parent = open_in(u, real, O_RDONLY | O_DIRECTORY, RESOLVE_NO_SYMLINKS);
    }
    if (u->parent < 0)
        return fail(u, errno, "cannot open the parent directory");
    memcpy(u->parent_path, path, strlen(path) + 1);
    return u->parent;
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
        return fail(u, errno, "cannot list a directory");
    while (!found && (got = getdents64(fd, room, sizeof room)) != 0) {
        if (got < 0)
            return fail(u, errno, "cannot list a directory");
        for (long at = 0; at < got && !found;) {
            struct linux_dirent64 *d = (struct linux_dirent64 *)(room + at);
            at += d->length;
            if (!strcmp(d->name, ".") || !strcmp(d->name, ".."))
                continue;
            if (unlinkat(fd, d->name, 0) == 0 || unlinkat(fd, d->name, AT_REMOVEDIR) == 0)
                continue;
            if (errno != ENOTEMPTY && errno != EEXIST)
                return fail(u, errno, "cannot remove an earlier entry");
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
        return fail(u, errno, "cannot remove an earlier entry");
    for (;;) {
        int found = empty_once(u, fd, next);
        if (found < 0 || (!found && !depth)) {
            close(fd);
            break;
        }
        int other = openat(fd, found ? next : "..", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        close(fd);
        if (other < 0)
            return fail(u, errno, "cannot remove an earlier entry");
        fd = other;
        depth += found ? 1 : (size_t)-1;
    }
    if (u->err || unlinkat(parent, name, AT_REMOVEDIR) < 0)
        return fail(u, errno, "cannot remove an earlier entry");
    return 0;
}

/* A later entry replaces an earlier one of the same name, whatever it was. */
static int clear_way(struct unpack *u, int parent, const char *name)
{
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return fail(u, errno, "cannot replace an earlier entry");
    if (unlinkat(parent, name, AT_REMOVEDIR) == 0)
        return 0;
    return remove_dir(u, parent, name);
}

/* ---- entries ---- */

static int set_xattrs(struct unpack *u, int fd, int parent, const char *base)
{
    if (u->pax.xattrs && fd < 0 && fchdir(parent) < 0)
        return fail(u, errno, "cannot enter a directory");
    for (unsigned i = 0; i < u->pax.xattrs; i++) {
        const struct xattr *x = &u->pax.xattr[i];
        int result = fd >= 0 ? fsetxattr(fd, x->name, x->value, x->size, 0) : lsetxattr(base, x->name, x->value, x->size, 0);
        bool vital = !strcmp(x->name, "security.capability");
        /* user.* is refused on all but files and directories, trusted.* in user namespaces, others by file systems without them. */
        if (result < 0 && (vital || (errno != EOPNOTSUPP && errno != EPERM)))
            return fail(u, errno, vital ? "cannot set file capabilities" : "cannot set an extended attribute");
    }
    return 0;
}

static struct timespec *times_of(const struct entry *e, struct timespec times[2])
{
    times[0] = times[1] = (struct timespec){e->mtime.sec, e->mtime.nsec};
    return times;
}

struct writer { int fd; uint64_t at; size_t piece; uint64_t done; };

static int write_all(struct unpack *u, int fd, const uint8_t *data, size_t size, uint64_t at)
{
    while (size) {
        ssize_t put = pwrite(fd, data, size, (off_t)at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return fail(u, put < 0 ? errno : ENOSPC, "cannot write");
        data += put;
        at += (uint64_t)put;
        size -= (size_t)put;
    }
    return 0;
}

static int to_file(struct unpack *u, void *to, const uint8_t *data, size_t size)
{
    struct writer *w = to;
    if (write_all(u, w->fd, data, size, w->at) < 0)
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
            return fail(u, EPROTO, "a sparse file holds more than its map says");
        struct piece *p = &u->map[w->piece];
        size_t part = p->size - w->done < size ? (size_t)(p->size - w->done) : size;
        if (write_all(u, w->fd, data, part, p->offset + w->done) < 0)
            return -1;
        w->done += part;
        data += part;
        size -= part;
    }
    return 0;
}

static int check_map(struct unpack *u)
{
    uint64_t total = 0, real = u->entry.real;
    for (size_t i = 0; i < u->pieces; i++) {
        struct piece *p = &u->map[i];
        if (p->offset > real || p->size > real - p->offset)
            return fail(u, EPROTO, "a piece of a sparse file lies outside of it");
        total += p->size;
    }
    return total == u->entry.size ? 0 : fail(u, EPROTO, "a sparse map does not fit its data");
}

static int put_content(struct unpack *u, int fd)
{
    struct entry *e = &u->entry;
    struct writer w = {fd, 0, 0, 0};
    if (!e->sparse) {
        u->written += e->size;
        return stream(u, e->size, to_file, &w);
    }
    if (u->pax.sparse_1_0 && sparse_1_0(u) < 0)
        return -1;
    u->written += e->size;
    if (check_map(u) < 0 || stream(u, e->size, to_pieces, &w) < 0)
        return -1;
    return ftruncate(fd, (off_t)e->real) < 0 ? fail(u, errno, "cannot set the size of a sparse file") : 0;
}

static int put_file(struct unpack *u, int parent)
{
    struct entry *e = &u->entry;
    struct timespec times[2];
    const int flags = O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC;
    int fd = openat(parent, e->base, flags, 0600);
    if (fd < 0 && errno == EEXIST && clear_way(u, parent, e->base) == 0)
        fd = openat(parent, e->base, flags, 0600);
    if (fd < 0)
        return fail(u, errno, "cannot make a file");
    int result = put_content(u, fd);
    /* chown clears set-id bits and capabilities, so it comes first */
    if (!result && (fchown(fd, e->uid, e->gid) < 0 || fchmod(fd, e->mode) < 0))
        result = fail(u, errno, "cannot set owner or mode");
    if (!result)
        result = set_xattrs(u, fd, parent, e->base);
    if (!result && futimens(fd, times_of(e, times)) < 0)
        result = fail(u, errno, "cannot set the time");
    if (close(fd) < 0 && !result)
        result = fail(u, errno, "cannot write");
    return result;
}

static int grow_late(struct unpack *u)
{
    size_t room = u->late_room ? 2 * u->late_room : 256 << 10;
    void *grown = u->late ? (void *)syscall(SYS_mremap, u->late, u->late_room, room, MREMAP_MAYMOVE, 0) : map_memory(room);
    if (room > LATE_LIMIT || !grown || grown == MAP_FAILED)
        return fail(u, ENOMEM, "no memory for the times of directories");
    u->late = grown;
    u->late_room = room;
    return 0;
}

/* The time of a directory is set when nothing is put into it any more. */
static int remember_time(struct unpack *u, const struct entry *e)
{
    size_t length = strlen(e->path) + 1, whole = (sizeof(struct late) + length + 7) & ~(size_t)7;
    if (u->late_used + whole > u->late_room && grow_late(u) < 0)
        return -1;
    struct late *late = (struct late *)(u->late + u->late_used);
    late->mtime = e->mtime;
    late->length = (uint32_t)whole;
    memcpy(late->path, e->path, length);
    u->late_used += whole;
    return 0;
}

static int make_dir(struct unpack *u, int parent, const char *base)
{
    struct stat st;
    if (mkdirat(parent, base, 0700) == 0)
        return 0;
    if (errno != EEXIST || fstatat(parent, base, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return fail(u, errno, "cannot make a directory");
    if (S_ISDIR(st.st_mode))
        return 0;
    if (is_whiteout(&st))
        return whiteout_to_dir(u, parent, base, 0700);
    if (clear_way(u, parent, base) < 0)
        return -1;
    return mkdirat(parent, base, 0700) < 0 ? fail(u, errno, "cannot make a directory") : 0;
}

static int put_dir(struct unpack *u, int parent)
{
    struct entry *e = &u->entry;
    if (*e->path && make_dir(u, parent, e->base) < 0)
        return -1;
    int fd = openat(parent, *e->path ? e->base : ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return fail(u, errno, "cannot open a directory");
    int result = 0;
    if (fchown(fd, e->uid, e->gid) < 0 || fchmod(fd, e->mode) < 0)
        result = fail(u, errno, "cannot set owner or mode");
    if (!result)
        result = set_xattrs(u, fd, parent, e->base);
    close(fd);
    return result ? result : remember_time(u, e);
}

/* Owner, mode, xattrs and time of what has no descriptor: symlinks, devices, fifos. */
static int finish_name(struct unpack *u, int parent)
{
    struct entry *e = &u->entry;
    struct timespec times[2];
    if (fchownat(parent, e->base, e->uid, e->gid, AT_SYMLINK_NOFOLLOW) < 0)
        return fail(u, errno, "cannot set the owner");
    if (e->type != '2' && fchmodat(parent, e->base, e->mode, 0) < 0)
        return fail(u, errno, "cannot set the mode");
    if (set_xattrs(u, -1, parent, e->base) < 0)
        return -1;
    if (utimensat(parent, e->base, times_of(e, times), AT_SYMLINK_NOFOLLOW) < 0)
        return fail(u, errno, "cannot set the time");
    return 0;
}

static int put_symlink(struct unpack *u, int parent)
{
    struct entry *e = &u->entry;
    int made = symlinkat(e->link, parent, e->base);
    if (made < 0 && errno == EEXIST && clear_way(u, parent, e->base) == 0)
        made = symlinkat(e->link, parent, e->base);
    if (made < 0)
        return fail(u, errno, "cannot make a symlink");
    return finish_name(u, parent);
}

static int put_node(struct unpack *u, int parent)
{
    struct entry *e = &u->entry;
    mode_t kind = e->type == '3' ? S_IFCHR : e->type == '4' ? S_IFBLK : S_IFIFO;
    int made = mknodat(parent, e->base, kind | e->mode, e->device);
    if (made < 0 && errno == EEXIST && clear_way(u, parent, e->base) == 0)
        made = mknodat(parent, e->base, kind | e->mode, e->device);
    if (made < 0 && errno == EPERM && u->userxattr && kind != S_IFIFO)
        return 0; /* a user namespace has no devices; docker leaves them out too */
    if (made < 0)
        return fail(u, errno, "cannot make a device or fifo");
    return finish_name(u, parent);
}

/* Two names of one file already: linking it onto itself must not remove it. */
static bool same_file(int a, const char *name_a, int b, const char *name_b)
{
    struct stat one, two;
    return fstatat(a, name_a, &one, AT_SYMLINK_NOFOLLOW) == 0 && fstatat(b, name_b, &two, AT_SYMLINK_NOFOLLOW) == 0 &&
           one.st_ino == two.st_ino && one.st_dev == two.st_dev;
}

static int put_link(struct unpack *u, int parent)
{
    struct entry *e = &u->entry;
    char target[NAME_LIMIT];
    if (clean_path(u, e->link, target) < 0)
        return -1;
    char *slash = strrchr(target, '/');
    const char *name = slash ? slash + 1 : target, *dir = slash ? target : "";
    if (slash)
        *slash = 0;
    if (!*name)
        return fail(u, EPERM, "a hard link to the root directory");
    int from = open_in(u, dir, O_PATH | O_DIRECTORY, 0);
    if (from < 0)
        return fail(u, errno, "the target of a hard link is not in this layer");
    int result = linkat(from, name, parent, e->base, 0);
    if (result < 0 && errno == EEXIST) {
        if (same_file(from, name, parent, e->base))
            result = 0;
        else if (clear_way(u, parent, e->base) == 0)
            result = linkat(from, name, parent, e->base, 0);
    }
    if (result < 0)
        fail(u, errno, "cannot make a hard link");
    close(from);
    return result;
}

/* ".wh.NAME" hides NAME of the layers below, never of this one (image-spec 1.1, layer.md, Whiteouts). */
static int put_whiteout(struct unpack *u, int parent, const char *name)
{
    struct stat st;
    if (!*name || !strcmp(name, ".") || !strcmp(name, ".."))
        return fail(u, EPROTO, "a whiteout without a name");
    if (mknodat(parent, name, S_IFCHR, 0) == 0)
        return 0;
    if (errno != EEXIST || fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return fail(u, errno, "cannot make a whiteout");
    if (!S_ISDIR(st.st_mode))
        return 0; /* what is here already hides what is below */
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return fail(u, errno, "cannot open a directory");
    int result = make_opaque(u, fd);
    close(fd);
    return result;
}

static int put_special(struct unpack *u)
{
    struct entry *e = &u->entry;
    int parent = open_parent(u, e->parent, true);
    if (parent < 0)
        return -1;
    if (!strcmp(e->base, ".wh..wh..opq"))
        return make_opaque(u, parent);
    if (!strncmp(e->base, ".wh..wh.", 8))
        return 0; /* aufs' own files */
    return put_whiteout(u, parent, e->base + 4);
}

static int put_entry(struct unpack *u)
{
    struct entry *e = &u->entry;
    if (!*e->path && e->type != '5')
        return fail(u, EINVAL, "the root of the layer must be a directory");
    if (!strncmp(e->base, ".wh.", 4))
        return put_special(u);
    int parent = open_parent(u, e->parent, true);
    if (parent < 0)
        return -1;
    switch (e->type) {
    case '0': case '7': case 'S': return put_file(u, parent);
    case '1': return put_link(u, parent);
    case '2': return put_symlink(u, parent);
    case '3': case '4': case '6': return put_node(u, parent);
    case '5': return put_dir(u, parent);
    default: return fail(u, EPROTO, "an entry of an unknown type");
    }
}

/* Only files have data (Go's archive/tar, isHeaderOnlyType): the size of other types is not a length. */
static bool has_data(char type)
{
    return !strchr("123456", type);
}

static int one_entry(struct unpack *u, const uint8_t *block)
{
    struct entry *e = &u->entry;
    e->type = (char)block[156];
    e->sparse = false;
    if (entry_names(u, block) < 0 || entry_numbers(u, block) < 0)
        return -1;
    if (++u->entries > u->max_entries)
        return fail(u, E2BIG, "the layer has more entries than the limit");
    if (!has_data(e->type))
        e->size = 0;
    uint64_t size = e->size, before;
    if (e->type == 'S' && old_sparse(u, block) < 0)
        return -1;
    if (u->pax.sparse && e->type == '0') {
        e->sparse = true;
        e->real = u->pax.has_real ? u->pax.real : e->size;
    }
    before = u->consumed - (u->end - u->start);
    if (put_entry(u) < 0)
        return -1;
    uint64_t used = u->consumed - (u->end - u->start) - before; /* a whiteout may carry data that nobody took */
    if (stream(u, size - used, NULL, NULL) < 0)
        return -1;
    forget_pax(u);
    return skip_padding(u, size);
}

static int extended(struct unpack *u, const uint8_t *block, char type)
{
    int64_t size;
    if (parse_number(block + 124, 12, &size) < 0 || size < 0)
        return fail(u, EPROTO, "a number of a header is malformed");
    char *body = read_body(u, (uint64_t)size, type == 'L' || type == 'K' ? NAME_LIMIT : PAX_LIMIT);
    if (!body)
        return -1;
    if (type == 'L')
        u->pax.path = body;
    else if (type == 'K')
        u->pax.link = body;
    else
        return parse_pax(u, body, (uint64_t)size, type != 'g');
    if (strlen(body) >= NAME_LIMIT)
        return fail(u, ENAMETOOLONG, "a name is longer than 4095 bytes");
    return 0;
}

/* One header with what belongs to it: 1, or 0 at the end. */
static int step(struct unpack *u)
{
    const uint8_t *block;
    int got = next_block(u, &block);
    if (got <= 0)
        return got;
    if (all_zero(block)) {
        u->ended = true;
        return 0;
    }
    if (!checksum_right(block))
        return fail(u, EPROTO, "not a tar archive, or a damaged one (checksum of a header)");
    uint8_t header[BLOCK]; /* the buffer moves on while the body is read */
    memcpy(header, block, BLOCK);
    char type = (char)header[156];
    int result;
    if (type == 'L' || type == 'K' || type == 'x' || type == 'X')
        result = extended(u, header, type);
    else if (type == 'g')
        result = extended(u, header, type);
    else
        result = one_entry(u, header);
    return result < 0 ? -1 : 1;
}

static int set_late_times(struct unpack *u)
{
    struct late *late;
    for (size_t at = 0; at < u->late_used; at += late->length) {
        late = (struct late *)(u->late + at);
        int fd = open_in(u, late->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
        if (fd < 0)
            continue; /* a later entry replaced it */
        struct timespec time = {late->mtime.sec, late->mtime.nsec}, times[2] = {time, time};
        int result = futimens(fd, times);
        close(fd);
        if (result < 0)
            return fail(u, errno, "cannot set the time of a directory");
    }
    return 0;
}

/* The sender hashes the whole stream: what follows the end of the archive is read and forgotten. */
static int drain(struct unpack *u)
{
    ssize_t got;
    do {
        u->start = u->end = 0;
        got = more(u);
    } while (got > 0);
    return (int)got;
}

static int run(struct unpack *u)
{
    int got;
    if (!(u->buffer = map_memory(BUFFER)) || !(u->bodies = map_memory(BODIES)))
        return fail(u, ENOMEM, "no memory");
    while ((got = step(u)) > 0)
        ;
    u->entry.path[0] = 0;
    if (got < 0)
        return -1;
    if (u->pax.path || u->pax.link || u->pax.has_size)
        return fail(u, EPROTO, "the archive ends after an extended header");
    forget_parent(u);
    if ((u->ended && drain(u) < 0) || set_late_times(u) < 0)
        return -1;
    if (u->sync && syncfs(u->root) < 0)
        return fail(u, errno, "cannot write to disk");
    return 0;
}

static int parse_options(struct unpack *u, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *end = argv[i] + strlen(argv[i]);
        if (!strcmp(argv[i], "--userxattr"))
            u->userxattr = true;
        else if (!strcmp(argv[i], "--no-sync"))
            u->sync = false;
        else if (!strncmp(argv[i], "--max-bytes=", 12) && parse_decimal(argv[i] + 12, end, &u->max_bytes) == end)
            continue;
        else if (!strncmp(argv[i], "--max-entries=", 14) && parse_decimal(argv[i] + 14, end, &u->max_entries) == end)
            continue;
        else
            return fail(u, EINVAL, "unknown option");
    }
    return 0;
}

static int report(const struct unpack *u, const char *path)
{
    char room[NAME_LIMIT + 256];
    struct wh_buf text = wh_buf(room, sizeof room);
    wh_put(&text, u->err ? "fail " : "ok ");
    wh_put_u(&text, u->err ? (uint64_t)u->err : u->entries);
    wh_put(&text, " ");
    wh_put_u(&text, u->err ? u->entries : u->written);
    if (u->err) {
        wh_put(&text, "\n");
        wh_put(&text, u->what);
        wh_put(&text, "\n");
        wh_put(&text, path);
    }
    return wh_write_all(1, room, text.used);
}

int wh_role_unpack(int argc, char **argv)
{
    static struct unpack u; /* large; zeroed */
    u.root = u.parent = -1;
    u.sync = true;
    u.max_bytes = INT64_MAX;
    u.max_entries = 10000000;
    if (parse_options(&u, argc, argv) == 0 && confine(&u) == 0)
        (void)run(&u);
    if (report(&u, u.entry.path) < 0)
        return 1;
    return u.err ? 1 : 0;
}
