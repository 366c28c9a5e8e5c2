/* What a plan makes inside the root: directories, nodes, links, and the copy of a directory's content into a new tmpfs. */
#define _GNU_SOURCE
#include <dirent.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "exec_int.h"

#define MAX_DEPTH 64
#define MAX_PATH 4096

int wh_do_MAKE_DIR(struct wh_run *run, const struct wh_record *r) {
    int made = 0, fd = wh_mkdirs(slot(run, r->fd1), s0(run, r), (mode_t)r->n0, &made);
    if (fd < 0) return -1;
    int done = made && (r->n1 || r->n2) ? fchownat(fd, "", (uid_t)r->n1, (gid_t)r->n2, AT_EMPTY_PATH) : 0;
    wh_close_keep(fd);
    return done;
}

static int same_node(int parent, const char *name, const struct wh_record *r) {
    struct stat st;
    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0) return -1;
    return (st.st_mode & S_IFMT) == (r->n0 & S_IFMT) && st.st_rdev == r->n1 ? 0 : fail(EEXIST);
}

int wh_do_NODE(struct wh_run *run, const struct wh_record *r) {
    char name[256];
    uid_t uid = (uid_t)(r->n2 >> 32), gid = (gid_t)r->n2;
    int parent = wh_parent(slot(run, r->fd1), s0(run, r), name, sizeof name);
    if (parent < 0) return -1;
    int done = mknodat(parent, name, (mode_t)r->n0, (dev_t)r->n1);
    if (!done && (uid || gid)) done = fchownat(parent, name, uid, gid, AT_SYMLINK_NOFOLLOW);
    else if (done < 0 && errno == EEXIST) done = same_node(parent, name, r);
    wh_close_keep(parent);
    return done;
}

int wh_do_SYMLINK(struct wh_run *run, const struct wh_record *r) {
    char name[256];
    int parent = wh_parent(slot(run, r->fd1), s1(run, r), name, sizeof name);
    if (parent < 0) return -1;
    int done = symlinkat(s0(run, r), parent, name);
    wh_close_keep(parent);
    return done < 0 && errno == EEXIST ? 0 : done;
}

/* ---- copy up: handles only, one level at a time ---- */

static int copy_tree(int from, int to, int depth);

static int copy_data(int in, int out) {
    char data[16384];
    for (;;) {
        ssize_t n = copy_file_range(in, NULL, out, NULL, 1 << 30, 0);
        if (n == 0) return 0;
        if (n < 0) break; /* other filesystem: by hand */
    }
    for (ssize_t n; (n = read(in, data, sizeof data)) != 0;)
        if (n < 0 || wh_write_all(out, data, (size_t)n) < 0) return -1;
    return 0;
}

static void copy_xattrs(int in, int out) {
    char names[2048], value[2048];
    ssize_t length = flistxattr(in, names, sizeof names);
    for (char *name = names; length > 0 && name < names + length; name += strlen(name) + 1) {
        ssize_t n = fgetxattr(in, name, value, sizeof value);
        if (n >= 0) fsetxattr(out, name, value, (size_t)n, 0); /* a tmpfs without some namespace of them */
    }
}

static int copy_file(int from, int to, const char *name, const struct stat *st) {
    int in = openat(from, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (in < 0) return -1;
    int out = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600), done = -1;
    if (out >= 0 && !copy_data(in, out) && !fchown(out, st->st_uid, st->st_gid)) {
        copy_xattrs(in, out);
        done = fchmod(out, st->st_mode & 07777);
    }
    wh_close_keep(in);
    wh_close_keep(out);
    return done;
}

static int copy_link(int from, int to, const char *name, const struct stat *st) {
    char text[MAX_PATH];
    ssize_t n = readlinkat(from, name, text, sizeof text - 1);
    if (n < 0) return -1;
    text[n] = 0;
    if (symlinkat(text, to, name) < 0) return -1;
    return fchownat(to, name, st->st_uid, st->st_gid, AT_SYMLINK_NOFOLLOW);
}

static int copy_node(int from, int to, const char *name, const struct stat *st) {
    (void)from;
    if (S_ISSOCK(st->st_mode)) return 0;
    if (mknodat(to, name, st->st_mode, st->st_rdev) < 0) return -1;
    return fchownat(to, name, st->st_uid, st->st_gid, AT_SYMLINK_NOFOLLOW);
}

static int copy_dir(int from, int to, const char *name, const struct stat *st, int depth) {
    if (mkdirat(to, name, 0700) < 0) return -1;
    int in = openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int out = openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), done = -1;
    if (in >= 0 && out >= 0 && !copy_tree(in, out, depth + 1) && !fchown(out, st->st_uid, st->st_gid)) {
        copy_xattrs(in, out);
        done = fchmod(out, st->st_mode & 07777);
    }
    wh_close_keep(in);
    wh_close_keep(out);
    return done;
}

static int copy_one(int from, int to, const char *name, int depth) {
    struct stat st;
    if (!strcmp(name, ".") || !strcmp(name, "..")) return 0;
    if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW) < 0) return -1;
    if (S_ISDIR(st.st_mode)) return copy_dir(from, to, name, &st, depth);
    if (S_ISREG(st.st_mode)) return copy_file(from, to, name, &st);
    return S_ISLNK(st.st_mode) ? copy_link(from, to, name, &st) : copy_node(from, to, name, &st);
}

static int copy_tree(int from, int to, int depth) {
    char entries[2048] __attribute__((aligned(8)));
    if (depth > MAX_DEPTH) return fail(ELOOP);
    for (ssize_t n; (n = getdents64(from, entries, sizeof entries)) != 0;) {
        if (n < 0) return -1;
        for (ssize_t at = 0; at < n;) {
            struct dirent64 *entry = (struct dirent64 *)(entries + at);
            if (copy_one(from, to, entry->d_name, depth) < 0) return -1;
            at += entry->d_reclen;
        }
    }
    return 0;
}

/* tmpcopyup: the image's directory, owner and mode too. A directory that is not there has nothing to copy. */
int wh_do_COPY_UP(struct wh_run *run, const struct wh_record *r) {
    struct stat st;
    int from = wh_open_in(slot(run, r->fd1), s0(run, r), O_RDONLY | O_DIRECTORY, 0);
    if (from < 0) return errno == ENOENT ? 0 : -1;
    int to = openat(slot(run, r->fd0), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int done = to < 0 ? -1 : copy_tree(from, to, 0);
    if (!done && !(done = fstat(from, &st))) done = fchown(to, st.st_uid, st.st_gid);
    if (!done) done = fchmod(to, st.st_mode & 07777);
    wh_close_keep(from);
    wh_close_keep(to);
    return done;
}
