/* SPY: a static program that tells from inside of a container what could be reached, and what forbidden acts answer.
 *
 *   spy facts            descriptors, links of them, dumpable, capabilities, groups, namespaces, mounts: "key: value"
 *   spy acts             one "name errno" a line, "ok" for what succeeded
 *   spy swap A B         exchange the names A and B without an end (renameat2 RENAME_EXCHANGE)
 *   spy write FILE       write over the program FILE is running from (/proc/PID/exe)
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

static void said(const char *name, long result) { printf("%s %s\n", name, result >= 0 ? "ok" : strerrorname_np(errno)); }

static void links(const char *directory, const char *key) {
    char path[512], target[4096];
    DIR *dir = opendir(directory);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (e->d_name[0] == '.' || atoi(e->d_name) == dirfd(dir)) {
            if (!strcmp(key, "fd") || e->d_name[0] == '.') continue;
        }
        snprintf(path, sizeof path, "%s/%s", directory, e->d_name);
        ssize_t n = readlink(path, target, sizeof target - 1);
        target[n < 0 ? 0 : n] = 0;
        printf("%s.%s: %s\n", key, e->d_name, target);
    }
    if (dir) closedir(dir);
}

static void copy(const char *path, const char *key) {
    char line[8192];
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) printf("%s: %s", key, line);
    if (file) fclose(file);
}

static int facts(void) {
    char cwd[4096];
    printf("dumpable: %d\ncwd: %s\n", prctl(PR_GET_DUMPABLE), getcwd(cwd, sizeof cwd) ? cwd : "?");
    links("/proc/self/fd", "fd");
    links("/proc/self/ns", "ns");
    copy("/proc/self/status", "status");
    copy("/proc/self/mountinfo", "mount");
    copy("/proc/keys", "key");
    copy("/proc/net/unix", "unix");
    return 0;
}

static long unix_abstract(void) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    memcpy(to.sun_path, "\0/containerd-shim", 17);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(fd, (struct sockaddr *)&to, sizeof to);
}

static long node(const char *path, mode_t kind, unsigned major, unsigned minor) {
    unlink(path);
    if (mknod(path, kind | 0600, makedev(major, minor)) < 0) return -1;
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    int err = errno;
    unlink(path);
    errno = err;
    return fd;
}

static int socketcall(int family) { /* 32-bit entry: what libseccomp's other architectures let through */
    long result;
    static unsigned args[3];
    args[0] = (unsigned)family, args[1] = SOCK_STREAM, args[2] = 0;
#if defined(__x86_64__)
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(102), "b"(1), "c"(args) : "memory");
#else
    result = -ENOSYS;
#endif
    if (result < 0) errno = (int)-result, result = -1;
    return (int)result;
}

static int acts(void) {
    char byte = 'x';
    struct { uint64_t flags, rest[10]; } clone3 = {CLONE_NEWUSER, {0}};
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    said("tiocsti", ioctl(master, TIOCSTI, &byte));
    said("tiocsti-high", syscall(SYS_ioctl, master, 0x100000000UL | TIOCSTI, &byte));
    said("tioclinux", ioctl(master, TIOCLINUX, &byte));
    said("tiocgwinsz", ioctl(master, TIOCGWINSZ, (char[16]){0}));
    said("af_alg", socket(38, SOCK_SEQPACKET, 0));
    said("af_alg-high", syscall(SYS_socket, 0x100000000UL | 38, SOCK_SEQPACKET, 0));
    said("af_vsock", socket(40, SOCK_STREAM, 0));
    said("socketcall-alg", socketcall(38));
    said("socketcall-vsock", socketcall(40));
    said("af_inet", socket(AF_INET, SOCK_STREAM, 0));
    said("af_unix", socket(AF_UNIX, SOCK_STREAM, 0));
    said("unshare-user", unshare(CLONE_NEWUSER));
    said("unshare-mount", unshare(CLONE_NEWNS));
    said("clone3", syscall(SYS_clone3, &clone3, 64));
    said("mount", mount("none", "/tmp", "tmpfs", 0, NULL));
    said("umount", umount2("/proc", MNT_DETACH));
    said("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1));
    said("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
    said("pivot_root", syscall(SYS_pivot_root, "/", "/"));
    said("setns", setns(open("/proc/self/ns/mnt", O_RDONLY), 0));
    said("open_by_handle_at", syscall(SYS_open_by_handle_at, AT_FDCWD, (char[64]){8}, O_RDONLY));
    said("bpf", syscall(SYS_bpf, 0, NULL, 0));
    said("perf", syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0));
    said("keyctl", syscall(SYS_keyctl, 0, -3, 0));
    said("add_key", syscall(SYS_add_key, "user", "a", "b", 1, -3));
    said("io_uring", syscall(SYS_io_uring_setup, 1, NULL));
    said("userfaultfd", syscall(SYS_userfaultfd, 0));
    said("kexec", syscall(SYS_kexec_load, 0, 0, NULL, 0));
    said("init_module", syscall(SYS_init_module, NULL, 0, ""));
    said("reboot", syscall(SYS_reboot, 0xfee1dead, 672274793, 0x89abcdef, NULL));
    said("swapon", swapon("/etc/passwd", 0));
    said("syslog", syscall(SYS_syslog, 3, (char[16]){0}, 16));
    said("settimeofday", syscall(SYS_clock_settime, 0, (long[2]){0}));
    said("sethostname", sethostname("evil", 4));
    said("iopl", syscall(172, 3));
    said("acct", syscall(SYS_acct, NULL));
    said("quotactl", syscall(SYS_quotactl, 0, NULL, 0, NULL));
    said("node-mem", node("/tmp/mem", S_IFCHR, 1, 1));
    said("node-kmsg", node("/tmp/kmsg", S_IFCHR, 1, 11));
    said("node-loop", node("/tmp/loop", S_IFBLK, 7, 0));
    said("node-null", node("/tmp/null", S_IFCHR, 1, 3));
    said("core_pattern", open("/proc/sys/kernel/core_pattern", O_WRONLY));
    said("sysrq", open("/proc/sysrq-trigger", O_WRONLY));
    said("kcore", open("/proc/kcore", O_WRONLY | O_CREAT, 0600) < 0 ? -1 : lseek(open("/proc/kcore", O_RDONLY), 0, SEEK_END) > 0 ? 0 : (errno = ENODATA, -1));
    said("sys-uevent", open("/sys/kernel/uevent_helper", O_WRONLY));
    said("cgroup-procs", open("/sys/fs/cgroup/cgroup.procs", O_WRONLY));
    said("firmware", readdir(opendir("/sys/firmware")) && mkdir("/sys/firmware/x", 0700));
    said("abstract", unix_abstract());
    said("kill-all", kill(-1, 0));
    return 0;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "facts")) return facts();
    if (!strcmp(what, "acts")) return acts();
    while (!strcmp(what, "swap") && argc > 3) syscall(SYS_renameat2, AT_FDCWD, argv[2], AT_FDCWD, argv[3], RENAME_EXCHANGE);
    if (!strcmp(what, "write") && argc > 2) said("write", open(argv[2], O_WRONLY | O_TRUNC));
    return 0;
}
