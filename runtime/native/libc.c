/* The C library that the helper links: the usual names over raw system calls, nothing else.
 *
 * A static glibc maps about 0.7 MiB into every monitor; this is a few KiB. Declarations come from the system's headers,
 * so calls are type-checked as ever; a function that is not here does not link, which keeps stdio, malloc and locales
 * out. Structures that differ between glibc and the kernel are converted here (sigaction, sigset_t).
 */
#define _GNU_SOURCE
#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "sys.h"

/* gcc must not turn these loops into calls of themselves. */
#pragma GCC optimize("no-tree-loop-distribute-patterns")
#pragma GCC diagnostic ignored "-Warray-parameter"
#undef errno

#define KERNEL_SIGSET 8 /* bytes; glibc's sigset_t is longer */

char **environ;
static int last_error;
int *__errno_location(void) { return &last_error; }

static long checked(long ret) {
    if (ret < 0 && ret > -4096) {
        last_error = (int)-ret;
        return -1;
    }
    return ret;
}

#define L(x) ((long)(x))
#define CALL(nr, a, b, c, d, e, f) checked(wh_sys6(nr, L(a), L(b), L(c), L(d), L(e), L(f)))
#define W0(type, name, nr) type name(void) { return (type)CALL(nr, 0, 0, 0, 0, 0, 0); }
#define W1(type, name, nr, A) type name(A a) { return (type)CALL(nr, a, 0, 0, 0, 0, 0); }
#define W2(type, name, nr, A, B) type name(A a, B b) { return (type)CALL(nr, a, b, 0, 0, 0, 0); }
#define W3(type, name, nr, A, B, C) type name(A a, B b, C c) { return (type)CALL(nr, a, b, c, 0, 0, 0); }
#define W4(type, name, nr, A, B, C, D) type name(A a, B b, C c, D d) { return (type)CALL(nr, a, b, c, d, 0, 0); }
#define W5(type, name, nr, A, B, C, D, E) \
    type name(A a, B b, C c, D d, E e) { return (type)CALL(nr, a, b, c, d, e, 0); }
#define W6(type, name, nr, A, B, C, D, E, F) \
    type name(A a, B b, C c, D d, E e, F f) { return (type)CALL(nr, a, b, c, d, e, f); }

/* ---- files ---- */
W3(ssize_t, read, SYS_read, int, void *, size_t)
W3(ssize_t, write, SYS_write, int, const void *, size_t)
W4(ssize_t, pread, SYS_pread64, int, void *, size_t, off_t)
W4(ssize_t, pwrite, SYS_pwrite64, int, const void *, size_t, off_t)
W3(ssize_t, readv, SYS_readv, int, const struct iovec *, int)
W3(ssize_t, writev, SYS_writev, int, const struct iovec *, int)
W1(int, close, SYS_close, int)
W1(int, dup, SYS_dup, int)
W3(int, dup3, SYS_dup3, int, int, int)
W3(off_t, lseek, SYS_lseek, int, off_t, int)
W2(int, ftruncate, SYS_ftruncate, int, off_t)
W4(int, fallocate, SYS_fallocate, int, int, off_t, off_t)
W1(int, fsync, SYS_fsync, int)
W1(int, fdatasync, SYS_fdatasync, int)
W1(int, syncfs, SYS_syncfs, int)
W4(ssize_t, sendfile, SYS_sendfile, int, int, off_t *, size_t)
W6(ssize_t, copy_file_range, SYS_copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned)
W6(ssize_t, splice, SYS_splice, int, off64_t *, int, off64_t *, size_t, unsigned)
W2(int, pipe2, SYS_pipe2, int *, int)
W2(int, flock, SYS_flock, int, int)

int dup2(int from, int to) {
    if (from == to) return fcntl(from, F_GETFD) < 0 ? -1 : to;
    return dup3(from, to, 0);
}

int openat(int dir, const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    unsigned mode = va_arg(list, unsigned);
    va_end(list);
    return (int)CALL(SYS_openat, dir, path, flags, mode, 0, 0);
}

int open(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    unsigned mode = va_arg(list, unsigned);
    va_end(list);
    return (int)CALL(SYS_openat, AT_FDCWD, path, flags, mode, 0, 0);
}

int fcntl(int fd, int command, ...) {
    va_list list;
    va_start(list, command);
    long arg = va_arg(list, long);
    va_end(list);
    return (int)CALL(SYS_fcntl, fd, command, arg, 0, 0, 0);
}

int ioctl(int fd, unsigned long request, ...) {
    va_list list;
    va_start(list, request);
    long arg = va_arg(list, long);
    va_end(list);
    return (int)CALL(SYS_ioctl, fd, request, arg, 0, 0, 0);
}

/* ---- names ---- */
W2(int, fstat, SYS_fstat, int, struct stat *)
W4(int, fstatat, SYS_newfstatat, int, const char *, struct stat *, int)
int stat(const char *path, struct stat *st) { return fstatat(AT_FDCWD, path, st, 0); }
int lstat(const char *path, struct stat *st) { return fstatat(AT_FDCWD, path, st, AT_SYMLINK_NOFOLLOW); }
W5(int, statx, SYS_statx, int, const char *, int, unsigned, struct statx *)
W3(int, mkdirat, SYS_mkdirat, int, const char *, mode_t)
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
W3(int, unlinkat, SYS_unlinkat, int, const char *, int)
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
W5(int, renameat2, SYS_renameat2, int, const char *, int, const char *, unsigned)
int renameat(int a, const char *from, int b, const char *to) { return renameat2(a, from, b, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }
W5(int, linkat, SYS_linkat, int, const char *, int, const char *, int)
W3(int, symlinkat, SYS_symlinkat, const char *, int, const char *)
W4(ssize_t, readlinkat, SYS_readlinkat, int, const char *, char *, size_t)
ssize_t readlink(const char *path, char *out, size_t n) { return readlinkat(AT_FDCWD, path, out, n); }
W2(int, fchmod, SYS_fchmod, int, mode_t)
W3(int, fchown, SYS_fchown, int, uid_t, gid_t)
W5(int, fchownat, SYS_fchownat, int, const char *, uid_t, gid_t, int)
W4(int, mknodat, SYS_mknodat, int, const char *, mode_t, dev_t)
W4(int, utimensat, SYS_utimensat, int, const char *, const struct timespec *, int)
int futimens(int fd, const struct timespec *times) { return (int)CALL(SYS_utimensat, fd, 0, times, 0, 0, 0); }
W1(int, chdir, SYS_chdir, const char *)
W1(int, fchdir, SYS_fchdir, int)
W1(int, chroot, SYS_chroot, const char *)
W3(ssize_t, getdents64, SYS_getdents64, int, void *, size_t)
W1(mode_t, umask, SYS_umask, mode_t)
W5(int, fsetxattr, SYS_fsetxattr, int, const char *, const void *, size_t, int)
W5(int, lsetxattr, SYS_lsetxattr, const char *, const char *, const void *, size_t, int)
W5(int, setxattr, SYS_setxattr, const char *, const char *, const void *, size_t, int)
W4(ssize_t, fgetxattr, SYS_fgetxattr, int, const char *, void *, size_t)
W4(ssize_t, lgetxattr, SYS_lgetxattr, const char *, const char *, void *, size_t)
W3(ssize_t, flistxattr, SYS_flistxattr, int, char *, size_t)
W3(ssize_t, llistxattr, SYS_llistxattr, const char *, char *, size_t)
W2(int, fremovexattr, SYS_fremovexattr, int, const char *)
W2(int, inotify_rm_watch, SYS_inotify_rm_watch, int, int)
W1(int, inotify_init1, SYS_inotify_init1, int)
W3(int, inotify_add_watch, SYS_inotify_add_watch, int, const char *, uint32_t)

/* fchmodat2 is new (6.6), so flags are refused as in the kernel's old call. */
int fchmodat(int dir, const char *path, mode_t mode, int flags) {
    if (flags) {
        last_error = EOPNOTSUPP;
        return -1;
    }
    return (int)CALL(SYS_fchmodat, dir, path, mode, 0, 0, 0);
}

int faccessat(int dir, const char *path, int mode, int flags) {
    if (!flags) return (int)CALL(SYS_faccessat, dir, path, mode, 0, 0, 0);
    return (int)CALL(SYS_faccessat2, dir, path, mode, flags, 0, 0);
}

char *getcwd(char *out, size_t n) { return CALL(SYS_getcwd, out, n, 0, 0, 0, 0) < 0 ? NULL : out; }

/* ---- mounts and namespaces ---- */
W5(int, mount, SYS_mount, const char *, const char *, const char *, unsigned long, const void *)
W2(int, umount2, SYS_umount2, const char *, int)
W1(int, unshare, SYS_unshare, int)
W2(int, setns, SYS_setns, int, int)
W2(int, sethostname, SYS_sethostname, const char *, size_t)
W2(int, setdomainname, SYS_setdomainname, const char *, size_t)
W1(int, uname, SYS_uname, struct utsname *)
W2(int, memfd_create, SYS_memfd_create, const char *, unsigned)

/* ---- processes ---- */
W0(pid_t, getpid, SYS_getpid)
W0(pid_t, getppid, SYS_getppid)
W0(uid_t, getuid, SYS_getuid)
W0(uid_t, geteuid, SYS_geteuid)
W0(gid_t, getgid, SYS_getgid)
W0(pid_t, setsid, SYS_setsid)
W2(int, setpgid, SYS_setpgid, pid_t, pid_t)
W2(int, kill, SYS_kill, pid_t, int)
W3(int, execve, SYS_execve, const char *, char *const *, char *const *)
W5(int, execveat, SYS_execveat, int, const char *, char *const *, char *const *, int)
W4(pid_t, wait4, SYS_wait4, pid_t, int *, int, struct rusage *)
pid_t waitpid(pid_t pid, int *status, int options) { return wait4(pid, status, options, NULL); }
int waitid(idtype_t type, id_t id, siginfo_t *info, int options) {
    return (int)CALL(SYS_waitid, type, id, info, options, 0, 0);
}
W3(int, setresuid, SYS_setresuid, uid_t, uid_t, uid_t)
W3(int, setresgid, SYS_setresgid, gid_t, gid_t, gid_t)
W3(int, getresuid, SYS_getresuid, uid_t *, uid_t *, uid_t *)
W3(int, getresgid, SYS_getresgid, gid_t *, gid_t *, gid_t *)
extern int setgroups(size_t, const gid_t *);
W2(int, setgroups, SYS_setgroups, size_t, const gid_t *)
W2(int, getgroups, SYS_getgroups, int, gid_t *)
W4(int, prlimit, SYS_prlimit64, pid_t, enum __rlimit_resource, const struct rlimit *, struct rlimit *)
int setrlimit(__rlimit_resource_t what, const struct rlimit *limit) { return prlimit(0, what, limit, NULL); }
int getrlimit(__rlimit_resource_t what, struct rlimit *limit) { return prlimit(0, what, NULL, limit); }
W0(int, sched_yield, SYS_sched_yield)
W3(int, setpriority, SYS_setpriority, __priority_which_t, id_t, int)
W3(ssize_t, getrandom, SYS_getrandom, void *, size_t, unsigned)

pid_t fork(void) { return (pid_t)CALL(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0); }

void _exit(int status) {
    wh_sys6(SYS_exit_group, status, 0, 0, 0, 0, 0);
    for (;;) __builtin_trap(); /* a seccomp filter may forbid even this call; the fault ends us */
}

int prctl(int option, ...) {
    long arg[4];
    va_list list;
    va_start(list, option);
    for (int i = 0; i < 4; i++) arg[i] = va_arg(list, long);
    va_end(list);
    return (int)CALL(SYS_prctl, option, arg[0], arg[1], arg[2], arg[3], 0);
}

long syscall(long nr, ...) {
    long arg[6];
    va_list list;
    va_start(list, nr);
    for (int i = 0; i < 6; i++) arg[i] = va_arg(list, long);
    va_end(list);
    return CALL(nr, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
}

/* ---- memory ---- */
W6(void *, mmap, SYS_mmap, void *, size_t, int, int, int, off_t)
W2(int, munmap, SYS_munmap, void *, size_t)
W3(int, madvise, SYS_madvise, void *, size_t, int)
W3(int, mprotect, SYS_mprotect, void *, size_t, int)

/* ---- signals: the kernel's sigaction has another order and needs a restorer ---- */
struct kernel_sigaction {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    unsigned long mask;
};

#if defined(__x86_64__)
#define WH_SA_RESTORER 0x04000000ul
void wh_restore(void);
__asm__(".text\n.globl wh_restore\n.type wh_restore,@function\nwh_restore:\n\tmovl $15, %eax\n\tsyscall\n");
#else
#define WH_SA_RESTORER 0ul
#define wh_restore NULL
#endif

int sigaction(int number, const struct sigaction *set, struct sigaction *old) {
    struct kernel_sigaction in, out;
    if (set) {
        in.handler = set->sa_handler;
        in.flags = (unsigned long)set->sa_flags | WH_SA_RESTORER;
        in.restorer = wh_restore;
        memcpy(&in.mask, &set->sa_mask, sizeof in.mask);
    }
    if (CALL(SYS_rt_sigaction, number, set ? &in : NULL, old ? &out : NULL, KERNEL_SIGSET, 0, 0) < 0) return -1;
    if (old) {
        memset(old, 0, sizeof *old);
        old->sa_handler = out.handler;
        old->sa_flags = (int)out.flags;
        memcpy(&old->sa_mask, &out.mask, sizeof out.mask);
    }
    return 0;
}

__sighandler_t signal(int number, __sighandler_t handler) {
    struct sigaction set = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
    return sigaction(number, &set, &old) < 0 ? SIG_ERR : old.sa_handler;
}

int sigprocmask(int how, const sigset_t *set, sigset_t *old) {
    if (old) memset(old, 0, sizeof *old);
    return (int)CALL(SYS_rt_sigprocmask, how, set, old, KERNEL_SIGSET, 0, 0);
}

int sigemptyset(sigset_t *set) { return memset(set, 0, sizeof *set), 0; }
int sigfillset(sigset_t *set) { return memset(set, 0xff, sizeof *set), 0; }
int sigaddset(sigset_t *set, int n) { return set->__val[0] |= 1ul << (n - 1), 0; }
int sigdelset(sigset_t *set, int n) { return set->__val[0] &= ~(1ul << (n - 1)), 0; }
int sigismember(const sigset_t *set, int n) { return (set->__val[0] >> (n - 1)) & 1; }
int sigtimedwait(const sigset_t *set, siginfo_t *info, const struct timespec *time) {
    return (int)CALL(SYS_rt_sigtimedwait, set, info, time, KERNEL_SIGSET, 0, 0);
}
int sigwaitinfo(const sigset_t *set, siginfo_t *info) { return sigtimedwait(set, info, NULL); }
int signalfd(int fd, const sigset_t *set, int flags) {
    return (int)CALL(SYS_signalfd4, fd, set, KERNEL_SIGSET, flags, 0, 0);
}

/* ---- waiting and time ---- */
int ppoll(struct pollfd *fds, nfds_t n, const struct timespec *time, const sigset_t *set) {
    struct timespec copy; /* the kernel writes the rest of the time back */
    if (time) copy = *time;
    return (int)CALL(SYS_ppoll, fds, n, time ? &copy : NULL, set, KERNEL_SIGSET, 0);
}
int poll(struct pollfd *fds, nfds_t n, int ms) {
    struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000};
    return ppoll(fds, n, ms < 0 ? NULL : &time, NULL);
}
W1(int, epoll_create1, SYS_epoll_create1, int)
W4(int, epoll_ctl, SYS_epoll_ctl, int, int, int, struct epoll_event *)
int epoll_wait(int fd, struct epoll_event *events, int n, int ms) {
    return (int)CALL(SYS_epoll_pwait, fd, events, n, ms, 0, KERNEL_SIGSET);
}
int eventfd(unsigned value, int flags) { return (int)CALL(SYS_eventfd2, value, flags, 0, 0, 0, 0); }
W2(int, timerfd_create, SYS_timerfd_create, __clockid_t, int)
W4(int, timerfd_settime, SYS_timerfd_settime, int, int, const struct itimerspec *, struct itimerspec *)
W2(int, clock_gettime, SYS_clock_gettime, clockid_t, struct timespec *)
W2(int, nanosleep, SYS_nanosleep, const struct timespec *, struct timespec *)
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

/* ---- sockets ---- */
W3(int, socket, SYS_socket, int, int, int)
W4(int, socketpair, SYS_socketpair, int, int, int, int *)
W2(int, listen, SYS_listen, int, int)
W2(int, shutdown, SYS_shutdown, int, int)
W3(ssize_t, sendmsg, SYS_sendmsg, int, const struct msghdr *, int)
W3(ssize_t, recvmsg, SYS_recvmsg, int, struct msghdr *, int)
W5(int, setsockopt, SYS_setsockopt, int, int, int, const void *, socklen_t)
W5(int, getsockopt, SYS_getsockopt, int, int, int, void *, socklen_t *)
ssize_t send(int fd, const void *p, size_t n, int flags) { return (ssize_t)CALL(SYS_sendto, fd, p, n, flags, 0, 0); }
ssize_t recv(int fd, void *p, size_t n, int flags) { return (ssize_t)CALL(SYS_recvfrom, fd, p, n, flags, 0, 0); }
int bind(int fd, __CONST_SOCKADDR_ARG a, socklen_t n) { return (int)CALL(SYS_bind, fd, a.__sockaddr__, n, 0, 0, 0); }
int connect(int fd, __CONST_SOCKADDR_ARG a, socklen_t n) {
    return (int)CALL(SYS_connect, fd, a.__sockaddr__, n, 0, 0, 0);
}
int accept4(int fd, __SOCKADDR_ARG a, socklen_t *n, int flags) {
    return (int)CALL(SYS_accept4, fd, a.__sockaddr__, n, flags, 0, 0);
}
ssize_t sendto(int fd, const void *p, size_t n, int flags, __CONST_SOCKADDR_ARG a, socklen_t len) {
    return (ssize_t)CALL(SYS_sendto, fd, p, n, flags, a.__sockaddr__, len);
}

struct cmsghdr *__cmsg_nxthdr(struct msghdr *m, struct cmsghdr *c) {
    if (c->cmsg_len < sizeof *c) return NULL;
    char *next = (char *)c + CMSG_ALIGN(c->cmsg_len), *end = (char *)m->msg_control + m->msg_controllen;
    if (next + sizeof *c > end || next + CMSG_ALIGN(((struct cmsghdr *)next)->cmsg_len) > end) return NULL;
    return (struct cmsghdr *)next;
}

/* ---- device numbers ---- */
unsigned gnu_dev_major(dev_t d) { return (unsigned)(((d >> 8) & 0xfff) | ((d >> 32) & ~0xfffu)); }
unsigned gnu_dev_minor(dev_t d) { return (unsigned)((d & 0xff) | ((d >> 12) & ~0xffu)); }
dev_t gnu_dev_makedev(unsigned major, unsigned minor) {
    return ((dev_t)(major & 0xfffff000u) << 32) | ((dev_t)(major & 0xfffu) << 8) | ((dev_t)(minor & 0xffffff00u) << 12) |
           (minor & 0xffu);
}

/* ---- memory and text ---- */
/* A log is millions of short pieces: "rep movsb" alone takes some 30 cycles to begin. */
void *memcpy(void *restrict to, const void *restrict from, size_t n) {
    char *t = to;
    const char *f = from;
#if defined(__x86_64__)
    if (n >= 512) {
        __asm__ volatile("rep movsb" : "+D"(t), "+S"(f), "+c"(n) : : "memory");
        return to;
    }
#endif
    for (; n >= 16; n -= 16, t += 16, f += 16) __builtin_memcpy(t, f, 16);
    if (n & 8) __builtin_memcpy(t, f, 8), t += 8, f += 8;
    if (n & 4) __builtin_memcpy(t, f, 4), t += 4, f += 4;
    for (n &= 3; n; n--) *t++ = *f++;
    return to;
}

void *memmove(void *to, const void *from, size_t n) {
    char *t = to;
    const char *f = from;
    if (t <= f || t >= f + n) {
        if (t + n <= f || f + n <= t) return memcpy(to, from, n);
        while (n--) *t++ = *f++;
        return to;
    }
    while (n--) t[n] = f[n];
    return to;
}

void *memset(void *to, int value, size_t n) {
    void *start = to;
#if defined(__x86_64__)
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
#else
    char *t = to;
    while (n--) *t++ = (char)value;
#endif
    return start;
}

int memcmp(const void *a, const void *b, size_t n) {
    const unsigned char *x = a, *y = b;
    for (; n; n--, x++, y++)
        if (*x != *y) return *x - *y;
    return 0;
}

/* Eight bytes at a time: the monitor looks for the ends of log lines with it. */
void *memchr(const void *s, int value, size_t n) {
    const unsigned char *p = s;
#if defined(__SSE2__)
    const __m128i all = _mm_set1_epi8((char)value);
    for (; n >= 16; n -= 16, p += 16) {
        int found = _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(const void *)p), all));
        if (found) return (void *)(uintptr_t)(p + __builtin_ctz((unsigned)found));
    }
#endif
    const uint64_t ones = 0x0101010101010101ull, want = ones * (unsigned char)value;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t word;
        __builtin_memcpy(&word, p, 8);
        word ^= want;
        if ((word - ones) & ~word & (ones << 7)) break;
    }
    for (; n; n--, p++)
        if (*p == (unsigned char)value) return (void *)(uintptr_t)p;
    return NULL;
}

void *memrchr(const void *s, int value, size_t n) {
    const unsigned char *p = s;
    while (n--)
        if (p[n] == (unsigned char)value) return (void *)(uintptr_t)(p + n);
    return NULL;
}

size_t strlen(const char *s) {
    size_t n = 0;
    while (s[n]) n++;
    return n;
}

size_t strnlen(const char *s, size_t room) {
    size_t n = 0;
    while (n < room && s[n]) n++;
    return n;
}

int strcmp(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return (unsigned char)*a - (unsigned char)*b;
}

int strncmp(const char *a, const char *b, size_t n) {
    for (; n && *a && *a == *b; n--) a++, b++;
    return n ? (unsigned char)*a - (unsigned char)*b : 0;
}

char *strchr(const char *s, int c) {
    for (;; s++) {
        if (*s == (char)c) return (char *)(uintptr_t)s;
        if (!*s) return NULL;
    }
}

char *strrchr(const char *s, int c) {
    const char *found = NULL;
    for (;; s++) {
        if (*s == (char)c) found = s;
        if (!*s) return (char *)(uintptr_t)found;
    }
}

char *strstr(const char *s, const char *what) {
    size_t n = strlen(what);
    for (; *s; s++)
        if (!strncmp(s, what, n)) return (char *)(uintptr_t)s;
    return n ? NULL : (char *)(uintptr_t)s;
}

char *stpcpy(char *restrict to, const char *restrict from) {
    while ((*to = *from)) to++, from++;
    return to;
}

char *strcpy(char *restrict to, const char *restrict from) { return stpcpy(to, from), to; }

/* ---- the start: argc, argv and environment lie on the stack ---- */
int main(int argc, char **argv);
__attribute__((noreturn, used)) void wh_begin(long *stack) {
    char **argv = (char **)(stack + 1);
    environ = argv + stack[0] + 1;
    _exit(main((int)stack[0], argv));
}

#if defined(__x86_64__)
__asm__(".text\n.globl _start\n.type _start,@function\n_start:\n\txorl %ebp, %ebp\n\tmovq %rsp, %rdi\n\tandq $-16, %rsp\n\tcall wh_begin\n");
#else
__asm__(".text\n.globl _start\n.type _start,@function\n_start:\n\tmov x29, #0\n\tmov x0, sp\n\tbl wh_begin\n");
#endif
