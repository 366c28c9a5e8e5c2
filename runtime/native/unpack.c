/* Role `unpack`: one tar stream from standard input into the directory of descriptor 3, confined.
 *
 * The archive is hostile. Before its first byte is read this process has its own mount and network namespace, the target
 * directory as its only root (pivot_root), no_new_privs, few capabilities or none, and a seccomp allow-list. The archive is
 * read by tar.c, and what becomes of it is the sink's: files (unpack_dir.c) or one file that is a file system
 * (unpack_erofs.c). Which calls and capabilities are needed is theirs to say; it is taken away here.
 *
 *   wherry-helper unpack [--format=directory|erofs] [--userxattr] [--max-bytes=N] [--max-entries=N] [--no-sync]
 *
 * One report on standard output: "ok ENTRIES BYTES\n", or "fail ERRNO ENTRY\nWHAT\nPATH". EOVERFLOW: the layer is not at
 * fault, but this format cannot hold it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "arch.h"
#include "exec.h"
#include "unpack.h"

void *wh_map_memory(size_t size)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

int wh_fail(struct unpack *u, int err, const char *what)
{
    if (!u->err) {
        u->err = err ? err : EIO;
        u->what = what;
    }
    return -1;
}

int wh_write_at(struct unpack *u, int fd, const uint8_t *data, size_t size, uint64_t at)
{
    while (size) {
        ssize_t put = pwrite(fd, data, size, (off_t)at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return wh_fail(u, put < 0 ? errno : ENOSPC, "cannot write");
        data += put;
        at += (uint64_t)put;
        size -= (size_t)put;
    }
    return 0;
}

/* ---- confinement ---- */

/* What every sink may do: read, report, use memory, end. */
static const int ALWAYS[] = {
    SYS_read, SYS_write, SYS_brk, SYS_mmap, SYS_munmap, SYS_mremap, SYS_exit, SYS_exit_group, SYS_rt_sigreturn,
};
enum { ALWAYS_COUNT = sizeof ALWAYS / sizeof ALWAYS[0], MOST_CALLS = 64 };

static struct sock_filter let_through(int call)
{
    return (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call, 0, 1);
}

static int filter_calls(struct unpack *u)
{
    const struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_filter code[2 * MOST_CALLS + 5];
    unsigned n = 0;
    if (u->sink->call_count + ALWAYS_COUNT > MOST_CALLS)
        return wh_fail(u, E2BIG, "cannot install the seccomp filter");
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, WH_AUDIT_ARCH, 1, 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < ALWAYS_COUNT + u->sink->call_count; i++) {
        code[n++] = let_through(i < ALWAYS_COUNT ? ALWAYS[i] : u->sink->calls[i - ALWAYS_COUNT]);
        code[n++] = allow;
    }
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    struct sock_fprog program = {(unsigned short)n, code};
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        return wh_fail(u, errno, "cannot install the seccomp filter");
    return 0;
}

static int drop_caps(struct unpack *u)
{
    const uint64_t keep = u->sink->caps;
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {0};
    if (syscall(SYS_capget, &header, data) < 0)
        return wh_fail(u, errno, "cannot read the capabilities");
    for (int i = 0; i < 2; i++) {
        data[i].permitted &= (uint32_t)(keep >> (32 * i));
        data[i].effective = data[i].permitted;
        data[i].inheritable = 0;
    }
    if (syscall(SYS_capset, &header, data) < 0)
        return wh_fail(u, errno, "cannot drop capabilities");
    return 0;
}

/* Ten million entries take four minutes; chains of links can be made to take days within the limits of bytes and entries. */
enum { CPU_SECONDS = 3600 };

static int set_limits(struct unpack *u)
{
    static const struct { int resource; rlim_t most; } LIMITS[] = {
        {RLIMIT_CPU, CPU_SECONDS}, {RLIMIT_NOFILE, 64}, {RLIMIT_CORE, 0}, {RLIMIT_AS, (rlim_t)1 << 30}, {RLIMIT_MEMLOCK, 0}, {RLIMIT_MSGQUEUE, 0},
    };
    for (size_t i = 0; i < sizeof LIMITS / sizeof LIMITS[0]; i++) {
        struct rlimit limit;
        if (getrlimit((__rlimit_resource_t)LIMITS[i].resource, &limit) < 0)
            return wh_fail(u, errno, "cannot read a resource limit");
        limit.rlim_max = limit.rlim_max < LIMITS[i].most ? limit.rlim_max : LIMITS[i].most;
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit((__rlimit_resource_t)LIMITS[i].resource, &limit) < 0)
            return wh_fail(u, errno, "cannot set a resource limit");
    }
    return 0;
}

/* The target directory becomes "/", and nothing else is left in this mount namespace. */
static int change_root(struct unpack *u)
{
    /* unshare moves the working directory into the new namespace, but no descriptor */
    if (fchdir(3) < 0 || unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) < 0)
        return wh_fail(u, errno, "cannot unshare the mount and network namespaces");
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return wh_fail(u, errno, "cannot make the mounts private");
    int tree = (int)syscall(SYS_open_tree, AT_FDCWD, ".", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree < 0)
        return wh_fail(u, errno, "cannot clone the target's mount");
    if (syscall(SYS_move_mount, tree, "", AT_FDCWD, ".", MOVE_MOUNT_F_EMPTY_PATH) < 0 || fchdir(tree) < 0)
        return wh_fail(u, errno, "cannot mount the target directory");
    close(tree);
    if (syscall(SYS_pivot_root, ".", ".") == 0) {
        if (umount2(".", MNT_DETACH) < 0)
            return wh_fail(u, errno, "cannot leave the old root");
    } else if (errno != EINVAL || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0) { /* an initramfs root */
        return wh_fail(u, errno, "cannot change the root");
    }
    close(3);
    if (chdir("/") < 0 || (u->root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        return wh_fail(u, errno, "cannot open the new root");
    return 0;
}

static int confine(struct unpack *u)
{
    umask(0);
    syscall(SYS_close_range, 4, ~0U, 0);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, 0) < 0)
        return wh_fail(u, errno, "prctl");
    if (change_root(u) < 0 || set_limits(u) < 0 || u->sink->begin(u) < 0 || drop_caps(u) < 0)
        return -1;
    return filter_calls(u);
}

static int choose(struct unpack *u, const char *format)
{
    static const struct sink *const SINKS[] = {&wh_directory_sink, &wh_erofs_sink};
    for (size_t i = 0; i < sizeof SINKS / sizeof SINKS[0]; i++) {
        if (!strcmp(format, SINKS[i]->name)) {
            u->sink = SINKS[i];
            return 0;
        }
    }
    return wh_fail(u, EINVAL, "unknown format");
}

static int parse_options(struct unpack *u, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *end = argv[i] + strlen(argv[i]);
        if (!strcmp(argv[i], "--userxattr"))
            u->userxattr = true;
        else if (!strcmp(argv[i], "--no-sync"))
            u->sync = false;
        else if (!strncmp(argv[i], "--format=", 9)) {
            if (choose(u, argv[i] + 9) < 0)
                return -1;
        } else if (!strncmp(argv[i], "--max-bytes=", 12) && wh_parse_decimal(argv[i] + 12, end, &u->max_bytes) == end)
            continue;
        else if (!strncmp(argv[i], "--max-entries=", 14) && wh_parse_decimal(argv[i] + 14, end, &u->max_entries) == end)
            continue;
        else
            return wh_fail(u, EINVAL, "unknown option");
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
    u.root = -1;
    u.sink = &wh_directory_sink;
    u.sync = true;
    u.max_bytes = INT64_MAX;
    u.max_entries = 10000000;
    if (parse_options(&u, argc, argv) == 0 && confine(&u) == 0 && wh_tar(&u) == 0)
        (void)u.sink->end(&u);
    if (report(&u, u.entry.path) < 0)
        return 1;
    return u.err ? 1 : 0;
}

