/* Paths of a container, beneath a root descriptor. Nothing is resolved twice as text: every prefix is opened anew with
 * RESOLVE_IN_ROOT, and what is made is made by name relative to such a handle (CVE-2021-30465, CVE-2024-45310). */
#define _GNU_SOURCE
#include <sys/stat.h>
#include <sys/vfs.h>

#include "exec_int.h"

#define MAX_PATH 4096
#define MAX_LINKS 40

int wh_openat2(int dir, const char *path, uint64_t flags, uint64_t resolve, uint64_t mode) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve};
    for (int tries = 0; tries < 64; tries++) { /* EAGAIN: a rename raced with ".." (openat2(2)) */
        int fd = (int)syscall(SYS_openat2, dir, path, &how, sizeof how);
        if (fd >= 0 || errno != EAGAIN) return fd;
    }
    return -1;
}

int wh_open_in(int root, const char *path, uint64_t flags, uint64_t extra) {
    return wh_openat2(root, *path ? path : ".", flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | extra, 0);
}

int wh_is_fs(int fd, long magic) {
    struct statfs st;
    if (syscall(SYS_fstatfs, fd, &st) < 0) return -1;
    return st.f_type == magic ? 0 : fail(EXDEV);
}

static int mkdirs(int root, char *path, mode_t mode, int *made, int depth);

/* `path` up to `end` is a symlink to nothing in `parent`: make what it names, as a shell in the container would see it. */
static int through_link(int root, int parent, char *path, char *start, char *end, mode_t mode, int depth) {
    char target[MAX_PATH], name[256], full[MAX_PATH];
    struct wh_buf n = wh_buf(name, sizeof name), b = wh_buf(full, sizeof full);
    wh_put_n(&n, start, (size_t)(end - start));
    ssize_t length = readlinkat(parent, name, target, sizeof target - 1);
    if (length < 0) return errno == EINVAL ? fail(ENOTDIR) : -1;
    target[length] = 0;
    if (depth >= MAX_LINKS) return fail(ELOOP);
    if (target[0] != '/') {
        wh_put_n(&b, path, (size_t)(start - path));
        wh_put(&b, "/");
    }
    wh_put(&b, target);
    if (b.used + 1 >= sizeof full) return fail(ENAMETOOLONG);
    return mkdirs(root, full, mode, NULL, depth + 1);
}

/* One component, `start` to `end`, of path: O_PATH of it, made if it is missing. Takes `parent`. */
static int step(int root, int parent, char *path, char *start, char *end, mode_t mode, int *made, int depth) {
    char kept = *end;
    *end = 0;
    int fd = wh_open_in(root, path, O_PATH | O_DIRECTORY, 0);
    if (fd < 0 && errno == ENOENT) {
        int fresh = mkdirat(parent, start, mode);
        if (!fresh && made) *made = 1;
        if (!fresh || errno == EEXIST) fd = wh_open_in(root, path, O_PATH | O_DIRECTORY, 0);
        if (fd < 0 && fresh < 0 && errno == ENOENT) fd = through_link(root, parent, path, start, end, mode, depth);
    }
    *end = kept;
    wh_close_keep(parent);
    return fd;
}

static int mkdirs(int root, char *path, mode_t mode, int *made, int depth) {
    int fd = wh_open_in(root, path, O_PATH | O_DIRECTORY, 0);
    if (fd >= 0 || errno != ENOENT) return fd;
    fd = wh_open_in(root, ".", O_PATH | O_DIRECTORY, 0);
    for (char *start = path; fd >= 0;) {
        while (*start == '/') start++;
        if (!*start) break;
        char *end = start;
        while (*end && *end != '/') end++;
        char *rest = end;
        while (*rest == '/') rest++;
        fd = step(root, fd, path, start, end, *rest ? 0755 : mode, *rest ? NULL : made, depth);
        start = end;
    }
    return fd;
}

int wh_mkdirs(int root, const char *path, mode_t mode, int *made) {
    char copy[MAX_PATH];
    struct wh_buf b = wh_buf(copy, sizeof copy);
    if (strlen(path) >= sizeof copy) return fail(ENAMETOOLONG);
    wh_put(&b, path);
    if (made) *made = 0;
    return mkdirs(root, copy, mode, made, 0);
}

int wh_parent(int root, const char *path, char *name, size_t room) {
    char copy[MAX_PATH];
    size_t end = strlen(path);
    while (end && path[end - 1] == '/') end--;
    size_t start = end;
    while (start && path[start - 1] != '/') start--;
    if (end == start || end - start >= room || start >= sizeof copy) return fail(EINVAL);
    struct wh_buf n = wh_buf(name, room), b = wh_buf(copy, sizeof copy);
    wh_put_n(&n, path + start, end - start);
    wh_put_n(&b, path, start);
    if (!strcmp(name, ".") || !strcmp(name, "..")) return fail(EINVAL);
    return mkdirs(root, copy, 0755, NULL, 0);
}
