/* Host-side system calls for Python (cffi, API mode). One function a call; -1 and errno as in libc. No state, no policy.
 * Numbers of operations, flags and sides are exported from the same headers that the helper is built from. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "arch.h"
#include "plan.h"

static int sh_openat2(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
    struct open_how how = {.flags = flags, .mode = mode, .resolve = resolve};
    for (int tries = 0; tries < 4096; tries++) { /* EAGAIN: a rename anywhere raced with ".." (openat2(2)) */
        int fd = (int)syscall(SYS_openat2, dir, path, &how, sizeof how);
        if (fd >= 0 || errno != EAGAIN) return fd;
    }
    return -1;
}

static int sh_open_tree(int dir, const char *path, unsigned flags) {
    return (int)syscall(SYS_open_tree, dir, path, flags);
}

static int sh_move_mount(int from, const char *from_path, int to, const char *to_path, unsigned flags) {
    return (int)syscall(SYS_move_mount, from, from_path, to, to_path, flags);
}

static int sh_mount_setattr(int dir, const char *path, unsigned flags, uint64_t set, uint64_t clr, uint64_t propagation,
                            uint64_t userns) {
    struct mount_attr attr = {.attr_set = set, .attr_clr = clr, .propagation = propagation, .userns_fd = userns};
    return (int)syscall(SYS_mount_setattr, dir, path, flags, &attr, sizeof attr);
}

static int sh_fsopen(const char *type) { return (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC); }

static int sh_fsconfig(int context, unsigned command, const char *key, const char *value) {
    return (int)syscall(SYS_fsconfig, context, command, key, value, 0);
}

static int sh_fsmount(int context, unsigned attributes) {
    return (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes);
}

static int sh_umount(const char *path, int flags) { return (int)syscall(SYS_umount2, path, flags); }

static int sh_setns(int fd, int kind) { return (int)syscall(SYS_setns, fd, kind); }

static int sh_unshare(int flags) { return (int)syscall(SYS_unshare, flags); }

/* A new process that goes on here in this one's memory, born into a cgroup: moving there later would wait for an RCU grace
 * period, a fork would copy every page that it touches. As with vfork(2) the old one sleeps until the new one has ended,
 * and ends then; it resumes on a stack that is no longer its own, so after the first call nothing but registers. Taking the
 * memory down is a millisecond's work that must not keep the CPU from the front, which ends now: nice 19 first. */
static int sh_go_on_in(int cgroup) {
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_VFORK | CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)cgroup};
    long result;
#if defined(__x86_64__)
    __asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjle 1f\n\t"
                     "xor %%edi, %%edi\n\txor %%esi, %%esi\n\tmov %[nice], %%edx\n\tmov %[lower], %%eax\n\tsyscall\n\t"
                     "xor %%edi, %%edi\n\tmov %[end], %%eax\n\tsyscall\n1:"
                     : "=a"(result)
                     : "0"((long)SYS_clone3), "D"(&args), "S"(sizeof args), [end] "i"(SYS_exit_group),
                       [lower] "i"(SYS_setpriority), [nice] "i"(19) /* PRIO_PROCESS, 0: this one */
                     : "rcx", "rdx", "r11", "memory");
#elif defined(__aarch64__)
    register long x0 __asm__("x0") = (long)&args, x1 __asm__("x1") = sizeof args, x8 __asm__("x8") = SYS_clone3;
    __asm__ volatile("svc #0\n\tcmp x0, #0\n\tb.le 1f\n\t"
                     "mov x0, #0\n\tmov x1, #0\n\tmov x2, %[nice]\n\tmov x8, %[lower]\n\tsvc #0\n\t"
                     "mov x0, #0\n\tmov x8, %[end]\n\tsvc #0\n1:"
                     : "+r"(x0), "+r"(x1), "+r"(x8)
                     : [end] "i"(SYS_exit_group), [lower] "i"(SYS_setpriority), [nice] "i"(19)
                     : "x2", "cc", "memory");
    result = x0;
#else
    result = -ENOSYS;
    (void)args;
#endif
    if (result == 0) return 0;
    errno = (int)-result;
    return -1;
}

/* Own copies of what a fork shares, before they are needed; what is not there, or not ours to write, stays as it is. */
static void sh_populate(const uint64_t *areas, size_t count) {
    for (size_t i = 0; i < count; i++)
        madvise((void *)(uintptr_t)areas[2 * i], areas[2 * i + 1] - areas[2 * i], MADV_POPULATE_WRITE);
}

static ssize_t read_all(int fd, char *out, size_t room) {
    size_t used = 0;
    for (;;) {
        ssize_t n = read(fd, out + used, room - used);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        used += (size_t)n;
        if (n == 0 || used == room) return (ssize_t)used;
    }
}

/* What is in `count` files below `dir`, behind each other in `out`; `sizes` gets each one's bytes, or -errno. A name that ends
 * in "@" is a link, whose target counts. -1 and ENOSPC: more than `room` in all. */
static int sh_read_many(int dir, const char *names, size_t count, char *out, size_t room, int32_t *sizes) {
    char *end = out + room;
    for (size_t i = 0; i < count; i++, names += strlen(names) + 1) {
        size_t length = strlen(names), left = (size_t)(end - out);
        char plain[256];
        ssize_t n;
        if (length && names[length - 1] == '@' && length < sizeof plain) {
            memcpy(plain, names, length - 1);
            plain[length - 1] = 0;
            n = readlinkat(dir, plain, out, left);
        } else {
            int fd = openat(dir, names, O_RDONLY | O_CLOEXEC);
            n = fd < 0 ? -1 : read_all(fd, out, left);
            int saved = errno;
            if (fd >= 0) close(fd);
            errno = saved;
        }
        if (n >= 0 && (size_t)n >= left) {
            errno = ENOSPC;
            return -1;
        }
        sizes[i] = n < 0 ? -errno : (int32_t)n;
        out += n < 0 ? 0 : n;
    }
    return 0;
}

static int sh_inotify(void) { return inotify_init1(IN_CLOEXEC | IN_NONBLOCK); }

static int sh_inotify_add(int fd, const char *path, uint32_t events) { return inotify_add_watch(fd, path, events); }

static int sh_pidfd_getfd(int pidfd, int fd) { return (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0); }

static int bpf(int command, union bpf_attr *attr) { return (int)syscall(SYS_bpf, command, attr, sizeof *attr); }

static int is_ours(int program) {
    struct bpf_prog_info info;
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    memset(&info, 0, sizeof info);
    attr.info.bpf_fd = (uint32_t)program;
    attr.info.info_len = sizeof info;
    attr.info.info = (uint64_t)(uintptr_t)&info;
    return !bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) && !strncmp(info.name, WH_BPF_NAME, sizeof info.name);
}

/* The device program of ours that is attached right here; systemd may have one beside it. -1: none. */
static int attached_here(int cgroup) {
    uint32_t ids[64]; /* BPF_CGROUP_MAX_PROGS */
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.query.target_fd = (uint32_t)cgroup;
    attr.query.attach_type = BPF_CGROUP_DEVICE;
    attr.query.prog_ids = (uint64_t)(uintptr_t)ids;
    attr.query.prog_cnt = 64;
    if (bpf(BPF_PROG_QUERY, &attr) < 0) return -1;
    for (uint32_t i = 0, count = attr.query.prog_cnt; i < count; i++) {
        memset(&attr, 0, sizeof attr);
        attr.prog_id = ids[i];
        int fd = bpf(BPF_PROG_GET_FD_BY_ID, &attr);
        if (fd < 0) continue;
        if (is_ours(fd)) return fd;
        close(fd);
    }
    return -1;
}

/* A cgroup device program: load with its log for errors, attach with BPF_F_ALLOW_MULTI; the link lives with the cgroup.
 * With `replace` it takes the place of ours in one step (5.6), so that no rule is missing in between. */
static int sh_bpf_device(int cgroup, const void *code, unsigned count, char *log, unsigned log_size, int replace) {
    union bpf_attr load, attach;
    int fd, ret, old = -1;
    memset(&load, 0, sizeof load);
    load.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
    load.insns = (uint64_t)(uintptr_t)code;
    load.insn_cnt = count;
    load.license = (uint64_t)(uintptr_t) "GPL";
    load.log_buf = (uint64_t)(uintptr_t)log;
    load.log_size = log_size;
    load.log_level = log_size ? 1 : 0;
    memcpy(load.prog_name, WH_BPF_NAME, sizeof WH_BPF_NAME);
    if ((fd = bpf(BPF_PROG_LOAD, &load)) < 0) return -1;
    if (replace) old = attached_here(cgroup);
    memset(&attach, 0, sizeof attach);
    attach.target_fd = (uint32_t)cgroup;
    attach.attach_bpf_fd = (uint32_t)fd;
    attach.attach_type = BPF_CGROUP_DEVICE;
    attach.attach_flags = BPF_F_ALLOW_MULTI;
    if (old >= 0) {
        attach.attach_flags |= BPF_F_REPLACE;
        attach.replace_bpf_fd = (uint32_t)old;
    }
    ret = bpf(BPF_PROG_ATTACH, &attach);
    int saved = errno;
    close(fd);
    if (old >= 0) close(old);
    errno = saved;
    return ret;
}

#ifndef AT_RECURSIVE /* linux/fcntl.h has it, but cannot stand beside fcntl.h */
#define AT_RECURSIVE 0x8000
#endif
#define ALL_SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
#ifndef MFD_EXEC
#define MFD_EXEC 0x10u
#endif

/* `executable`: vm.memfd_noexec may forbid it unless asked for (Linux 6.3); older kernels refuse the flag. */
static int sh_memfd(const char *name, int executable) {
    int fd = -1;
    if (executable) fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);
    if (fd < 0) fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    return fd;
}

static int sh_seal(int fd) { return fcntl(fd, F_ADD_SEALS, ALL_SEALS); }

static int sh_syncfs(int fd) { return syncfs(fd); }

static void sh_trim(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

/* What a process needs that computes in threads, on descriptors that it has or is given: no path, no socket, no signal to others.
 * clone3 hides its flags behind a pointer: ENOSYS has libc take clone, which may make threads only. */
static int sh_only_compute(void) {
    static const uint32_t allowed[] = {
        SYS_read, SYS_write, SYS_close, SYS_recvmsg, SYS_futex, SYS_mmap, SYS_munmap, SYS_mremap, SYS_mprotect, SYS_madvise, SYS_brk,
        SYS_rt_sigreturn, SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_sigaltstack, SYS_set_robust_list, SYS_rseq, SYS_sched_yield,
        SYS_sched_getaffinity, SYS_gettid, SYS_getpid, SYS_clock_gettime, SYS_clock_nanosleep, SYS_getrandom, SYS_fstat, SYS_lseek,
        SYS_exit, SYS_exit_group,
    };
    enum { COUNT = sizeof allowed / sizeof *allowed };
    struct sock_filter code[COUNT + 12];
    unsigned n = 0;
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, WH_AUDIT_ARCH, 1, 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < COUNT; i++)
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], (uint8_t)(COUNT - i + 5), 0);
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS);
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 2);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0]));
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 1, 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {(unsigned short)n, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, 0) < 0) return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}
