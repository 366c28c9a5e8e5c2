/* Mounts of the child by the new API: filesystems and trees are detached descriptors until ATTACH puts them on a handle. */
#define _GNU_SOURCE
#include <linux/magic.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "exec_int.h"
#include "sys.h"

#define MAX_PATH 4096
#define MAX_LINKS 40
#ifndef MS_REC
#define MS_REC 16384
#endif
extern int mount(const char *, const char *, const char *, unsigned long, const void *);
extern int umount2(const char *, int);

static int move_to(int from, int to) {
    return (int)syscall(SYS_move_mount, from, "", to, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

static int clone_of(int fd, unsigned flags) {
    return (int)syscall(SYS_open_tree, fd, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags);
}

static int set_attr(int fd, const char *path, unsigned flags, const struct wh_record *r, int userns) {
    struct mount_attr attr = {.attr_set = r->n0, .attr_clr = r->n1, .propagation = r->n2};
    if (userns >= 0) attr.userns_fd = (uint64_t)userns;
    return (int)syscall(__NR_mount_setattr, fd, path, flags | (r->flags & WH_F_RECURSIVE ? AT_RECURSIVE : 0), &attr,
                        sizeof attr);
}

int wh_do_PROPAGATE(struct wh_run *run, const struct wh_record *r) {
    struct mount_attr attr = {.propagation = r->n0 & ~(uint64_t)MS_REC};
    return (int)syscall(__NR_mount_setattr, AT_FDCWD, s0(run, r), r->n0 & MS_REC ? AT_RECURSIVE : 0, &attr, sizeof attr);
}

/* ---- new filesystems ---- */

/* The kernel's own words, "e overlay: ..." (fs/fs_context.c); the last one counts. */
static void say_context(struct wh_run *run, int fs, const char *what) {
    char message[512];
    int err = errno;
    wh_say(run, what, "");
    for (ssize_t n; (n = read(fs, message, sizeof message - 1)) > 0;) {
        while (n && message[n - 1] == '\n') n--;
        message[n] = 0;
        wh_say(run, message + (n > 2 && message[1] == ' ' ? 2 : 0), "");
    }
    errno = err;
}

/* "slot:N" names a descriptor of ours: a path too long for fsconfig (255 bytes) goes by /proc/self/fd. */
static int value_of(const struct wh_run *run, const char *value, struct wh_buf *out) {
    uint64_t k = 0;
    if (strncmp(value, "slot:", 5)) return wh_put(out, value), 0;
    for (value += 5; *value >= '0' && *value <= '9' && k < WH_MAX_SLOTS; value++) k = k * 10 + (uint64_t)(*value - '0');
    if (*value || k >= run->plan->head->slots || run->slots[k] < 0) return fail(EBADF);
    wh_put(out, "/proc/self/fd/");
    wh_put_u(out, (uint64_t)run->slots[k]);
    return 0;
}

static int configure(const struct wh_run *run, int fs, const char *option) {
    char key[256], value[MAX_PATH];
    struct wh_buf k = wh_buf(key, sizeof key), v = wh_buf(value, sizeof value);
    const char *equals = strchr(option, '=');
    if (!equals) return (int)syscall(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, option, NULL, 0);
    wh_put_n(&k, option, (size_t)(equals - option));
    if (value_of(run, equals + 1, &v) < 0) return -1;
    return (int)syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, key, value, 0);
}

static int configure_all(struct wh_run *run, const struct wh_record *r, int fs) {
    const char *option = s1(run, r);
    for (uint64_t i = 0; i < r->n0; i++, option += strlen(option) + 1)
        if (configure(run, fs, option) < 0) return say_context(run, fs, option), -1;
    return 0;
}

static int fill(struct wh_run *run, const struct wh_record *r, int fs) {
    if (*s2(run, r) && syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "source", s2(run, r), 0) < 0)
        return say_context(run, fs, "source"), -1;
    if (configure_all(run, r, fs) < 0) return -1;
    if (syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0) return say_context(run, fs, ""), -1;
    int fd = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, r->n1);
    if (fd < 0) say_context(run, fs, "");
    return fd;
}

int wh_do_FS_NEW(struct wh_run *run, const struct wh_record *r) {
    int fs = (int)syscall(SYS_fsopen, s0(run, r), FSOPEN_CLOEXEC);
    if (fs < 0) return -1;
    int fd = fill(run, r, fs);
    wh_close_keep(fs);
    return wh_slot_put(run, r->fd0, fd);
}

static int reconfigure(struct wh_run *run, const struct wh_record *r, int mounted) {
    int fs = (int)syscall(SYS_fspick, mounted, "", FSPICK_CLOEXEC | FSPICK_EMPTY_PATH);
    if (fs < 0) return -1;
    int done = configure_all(run, r, fs);
    if (!done) done = (int)syscall(SYS_fsconfig, fs, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0);
    if (done < 0) say_context(run, fs, "");
    wh_close_keep(fs);
    return done;
}

/* Both calls refuse what is no mount's root with EINVAL. */
int wh_do_REMOUNT(struct wh_run *run, const struct wh_record *r) {
    struct mount_attr attr = {.attr_set = r->n1, .attr_clr = r->n2};
    unsigned flags = AT_EMPTY_PATH | (r->flags & WH_F_RECURSIVE ? AT_RECURSIVE : 0);
    int target = wh_open_in(slot(run, r->fd1), s0(run, r), O_PATH | (r->flags & WH_F_NOFOLLOW ? O_NOFOLLOW : 0), 0);
    if (target < 0) return -1;
    int done = r->n0 ? reconfigure(run, r, target) : 0;
    if (!done && (r->n1 || r->n2 || !r->n0))
        done = (int)syscall(__NR_mount_setattr, target, "", flags, &attr, sizeof attr);
    wh_close_keep(target);
    return done;
}

/* ---- trees ---- */

static int clone_and_close(int fd, const struct wh_record *r) {
    int tree = fd < 0 ? -1 : clone_of(fd, r->flags & WH_F_RECURSIVE ? AT_RECURSIVE : 0);
    wh_close_keep(fd);
    return tree;
}

static uint8_t *early_bit(struct wh_run *run, const struct wh_record *r, uint8_t *bit) {
    size_t i = (size_t)(r - run->plan->rec);
    *bit = (uint8_t)(1 << i % 8);
    return &run->early[i / 8];
}

/* A child in a user namespace of its own may not pass 0700 directories of the host: its host trees are cloned by us, while
 * we may. Slaves, as after the child's PROPAGATE. What fails here is tried again, and reported, at its turn. */
void wh_trees_early(struct wh_run *run) {
    struct mount_attr slave = {.propagation = 1 << 19 /* MS_SLAVE */};
    for (uint32_t i = 0; i < run->plan->head->count; i++) {
        const struct wh_record *r = &run->plan->rec[i];
        uint8_t bit, *byte = early_bit(run, r, &bit);
        if (r->op != WH_OP_TREE || r->side != WH_SIDE_C || r->fd1 >= 0 || wh_do_TREE(run, r) < 0) continue;
        if (!syscall(__NR_mount_setattr, slot(run, r->fd0), "", AT_EMPTY_PATH | AT_RECURSIVE, &slave, sizeof slave))
            *byte |= bit;
    }
}

int wh_do_TREE(struct wh_run *run, const struct wh_record *r) {
    const char *path = s0(run, r);
    uint8_t bit;
    if (*early_bit(run, r, &bit) & bit) return 0;
    uint64_t flags = O_PATH | (r->flags & WH_F_NOFOLLOW ? O_NOFOLLOW : 0);
    wh_say(run, path, "");
    if (!*path) return wh_slot_put(run, r->fd0, clone_of(slot(run, r->fd1), r->flags & WH_F_RECURSIVE ? AT_RECURSIVE : 0));
    int fd = r->fd1 >= 0 ? wh_open_in(slot(run, r->fd1), path, flags, 0) : wh_openat2(AT_FDCWD, path, flags, 0, 0);
    return wh_slot_put(run, r->fd0, clone_and_close(fd, r));
}

int wh_do_TREE_IN(struct wh_run *run, const struct wh_record *r) {
    int fd = wh_open_in(slot(run, r->fd1), s0(run, r), O_PATH | (r->flags & WH_F_NOFOLLOW ? O_NOFOLLOW : 0), 0);
    return wh_slot_put(run, r->fd0, clone_and_close(fd, r));
}

int wh_do_ATTR(struct wh_run *run, const struct wh_record *r) {
    return set_attr(slot(run, r->fd0), "", AT_EMPTY_PATH, r, slot(run, r->fd1));
}

int wh_do_ROOT_ATTR(struct wh_run *run, const struct wh_record *r) {
    (void)run;
    return set_attr(AT_FDCWD, "/", 0, r, -1);
}

/* ---- attaching ---- */

/* A tree cloned from a shared mount is its peer: slave at least, or every mount beneath would appear on the host. */
int wh_do_ROOT(struct wh_run *run, const struct wh_record *r) {
    int fd = slot(run, r->fd0);
    struct mount_attr slave = {.propagation = 1 << 19 /* MS_SLAVE */};
    if (syscall(__NR_mount_setattr, fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &slave, sizeof slave) < 0) return -1;
    int done = (int)syscall(SYS_move_mount, fd, "", AT_FDCWD, s0(run, r), MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS);
    if (done < 0 && errno == EACCES && run->root_at >= 0) done = move_to(fd, run->root_at);
    if (done < 0) return -1;
    return wh_slot_put(run, r->fd1, fcntl(fd, F_DUPFD_CLOEXEC, 0));
}

/* `at`, the last component of which is a symlink in `parent`, becomes what that names. */
static int follow_link(int parent, const char *name, char *at) {
    char link[MAX_PATH], next[MAX_PATH];
    struct wh_buf b = wh_buf(next, sizeof next);
    const char *slash = strrchr(at, '/');
    ssize_t n = readlinkat(parent, name, link, sizeof link - 1);
    if (n <= 0) return n ? -1 : fail(ENOENT);
    link[n] = 0;
    if (link[0] != '/' && slash) wh_put_n(&b, at, (size_t)(slash - at + 1));
    wh_put(&b, link);
    if (b.used + 1 >= sizeof next) return fail(ENAMETOOLONG);
    memcpy(at, next, b.used + 1);
    return 0;
}

/* Makes the file `at`, and the directories that lead to it; 1: it is a symlink to nothing, and `at` is now what that names. */
static int make_file(int root, char *at, uint64_t nofollow) {
    char name[256];
    int parent = wh_parent(root, at, name, sizeof name), done = 0;
    if (parent < 0) return -1;
    int fd = openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0) done = errno != EEXIST || nofollow || follow_link(parent, name, at) < 0 ? -1 : 1;
    wh_close_keep(fd);
    wh_close_keep(parent);
    return done;
}

/* A file to mount on, made if need be: created by name in a handle, opened again beneath the root. */
static int file_target(int root, const char *path, uint64_t nofollow) {
    char at[MAX_PATH];
    struct wh_buf b = wh_buf(at, sizeof at);
    int fd = wh_open_in(root, path, O_PATH | nofollow, 0), more = 1;
    if (fd >= 0 || errno != ENOENT) return fd;
    wh_put(&b, path);
    if (b.used + 1 >= sizeof at) return fail(ENAMETOOLONG);
    for (int links = 0; more > 0 && links < MAX_LINKS; links++) more = make_file(root, at, nofollow);
    if (more) return more < 0 ? -1 : fail(ELOOP);
    return wh_open_in(root, path, O_PATH | nofollow, 0);
}

/* proc and sysfs: every component a directory of the image's own, no link that moves them (CVE-2023-27561). */
static int real_dir(int root, const char *path, int make) {
    int fd = wh_open_in(root, path, O_PATH | O_DIRECTORY, RESOLVE_NO_SYMLINKS);
    if (fd >= 0 || errno != ENOENT || !make) return fd;
    fd = wh_mkdirs(root, path, 0755, NULL);
    if (fd < 0) return -1;
    close(fd);
    return wh_open_in(root, path, O_PATH | O_DIRECTORY, RESOLVE_NO_SYMLINKS);
}

static int target_of(struct wh_run *run, const struct wh_record *r, int mounted) {
    int root = slot(run, r->fd1);
    struct stat st;
    uint64_t nofollow = r->flags & WH_F_NOFOLLOW ? O_NOFOLLOW : 0;
    if (r->flags & WH_F_REAL_DIR) return real_dir(root, s0(run, r), r->flags & WH_F_MAKE_DIR);
    if (!(r->flags & (WH_F_MAKE_DIR | WH_F_MAKE_FILE))) return wh_open_in(root, s0(run, r), O_PATH | nofollow, 0);
    if (fstat(mounted, &st) < 0) return -1;
    int file = r->flags & WH_F_MAKE_FILE && (!(r->flags & WH_F_MAKE_DIR) || !S_ISDIR(st.st_mode));
    if (file) return file_target(root, s0(run, r), nofollow);
    if (!nofollow) return wh_mkdirs(root, s0(run, r), 0755, NULL);
    int fd = wh_open_in(root, s0(run, r), O_PATH | O_NOFOLLOW, 0);
    return fd >= 0 || errno != ENOENT ? fd : wh_mkdirs(root, s0(run, r), 0755, NULL);
}

int wh_do_ATTACH(struct wh_run *run, const struct wh_record *r) {
    int mounted = slot(run, r->fd0), target = target_of(run, r, mounted);
    if (target < 0) return -1;
    int done = move_to(mounted, target);
    wh_close_keep(target);
    return done;
}

/* Before 6.15 a detached mount cannot be cloned: the first path then gets the mount itself, which can be cloned from there. */
static int put_copy(int mounted, int target) {
    int copy = clone_of(mounted, 0);
    if (copy < 0) return errno == EINVAL ? move_to(mounted, target) : -1;
    int done = move_to(copy, target);
    wh_close_keep(copy);
    return done;
}

int wh_do_MASK(struct wh_run *run, const struct wh_record *r) {
    struct stat st;
    int target = wh_open_in(slot(run, r->fd1), s0(run, r), O_PATH, 0);
    if (target < 0) return -1;
    int done = fstat(target, &st);
    if (!done) done = put_copy(S_ISDIR(st.st_mode) ? run->slots[r->n0] : slot(run, r->fd0), target);
    wh_close_keep(target);
    return done;
}

int wh_do_READONLY(struct wh_run *run, const struct wh_record *r) {
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
    int target = wh_open_in(slot(run, r->fd1), s0(run, r), O_PATH, 0);
    if (target < 0) return -1;
    int tree = clone_of(target, AT_RECURSIVE), done = -1;
    if (tree >= 0) done = (int)syscall(__NR_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr);
    if (!done) done = move_to(tree, target);
    wh_close_keep(tree);
    wh_close_keep(target);
    return done;
}

/* ---- the root changes ---- */

static int pivot(int root, int old) {
    if (fchdir(root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || fchdir(old) < 0) return -1;
    /* the old root lies on top of the new one: nothing of its unmount may reach the host */
    struct mount_attr slave = {.propagation = 1 << 19 /* MS_SLAVE */};
    if (syscall(__NR_mount_setattr, AT_FDCWD, ".", AT_RECURSIVE, &slave, sizeof slave) < 0) return -1;
    if (umount2(".", 2 /* MNT_DETACH */) < 0) return -1;
    return chdir("/");
}

int wh_do_PIVOT(struct wh_run *run, const struct wh_record *r) {
    int root = slot(run, r->fd0);
    prctl(PR_SET_DUMPABLE, 0L, 0, 0, 0); /* for the unprivileged helper: see prepare() in exec.c */
    if (r->flags & WH_F_CHROOT) {
        if (fchdir(root) < 0 || chroot(".") < 0) return -1;
        return chdir("/");
    }
    if (r->flags & WH_F_MOVE) {
        if (fchdir(root) < 0 || mount(".", "/", NULL, 8192 /* MS_MOVE */, NULL) < 0 || chroot(".") < 0) return -1;
        return chdir("/");
    }
    int old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (old < 0) return -1;
    int done = pivot(root, old);
    wh_close_keep(old);
    return done;
}
