"""The system calls that docker's default seccomp profile allows, as a table of our own; as of 2026.

One row: names, and what must hold for the row to count: capabilities of the bounding set, architectures, kernel.
Compared
with the profile of the distribution's container tools by tests/unit/test_oci_seccomp.py.
"""

from typing import Final, NamedTuple

__all__ = ["ARCHITECTURES", "CLONE_NAMESPACES", "DEFAULT_ROWS", "FAMILIES", "STRICT_FAMILIES", "Row"]


class Row(NamedTuple):
    """Calls allowed (or refused with `errno`) under a condition. Empty conditions always hold."""

    names: tuple[str, ...]
    args: tuple[tuple[int, int, int, str], ...] = ()  # index, value, valueTwo, operator without SCMP_CMP_
    caps: tuple[str, ...] = ()  # all of them are needed
    not_caps: tuple[str, ...] = ()  # none of them
    arches: tuple[str, ...] = ()  # GOARCH names
    not_arches: tuple[str, ...] = ()
    kernel: tuple[int, int] = (0, 0)  # this or newer
    errno: int = 0  # 0: allowed


#: GOARCH -> native architecture and those that its kernel also runs
ARCHITECTURES: Final[dict[str, tuple[str, ...]]] = {
    "amd64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "arm64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "mips64": ("SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64N32"),
    "mips64le": ("SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64N32"),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "loong64": ("SCMP_ARCH_LOONGARCH64",),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "arm": ("SCMP_ARCH_ARM",),
    "386": ("SCMP_ARCH_X86",),
}

#: address families of socket(2) (linux/socket.h). Not here: those that the kernel no longer has (DECnet 12, ECONET
#: 19, ATMSVC
#: 20, IRDA 23, WANPIPE 25, ISDN 34, CAIF 37); ALG 38, the kernel's crypto as attack surface; VSOCK 40, which reaches
#: the
#: hypervisor past every network namespace. All below 12 are allowed by one comparison
FAMILIES_BELOW: Final = 12
FAMILIES: Final[tuple[int, ...]] = (
    13,
    14,
    15,
    16,
    17,
    18,  # NETBEUI SECURITY KEY NETLINK PACKET ASH
    21,
    22,
    24,  # RDS SNA PPPOX
    26,
    27,
    28,
    29,
    30,
    31,
    32,
    33,  # LLC IB MPLS CAN TIPC BLUETOOTH IUCV RXRPC
    35,
    36,
    39,  # PHONET IEEE802154 NFC
    41,
    42,
    43,
    44,
    45,  # KCM QIPCRTR SMC XDP MCTP
)
#: UNIX, INET, INET6, NETLINK
STRICT_FAMILIES: Final[tuple[int, ...]] = (1, 2, 10, 16)

#: CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
CLONE_NAMESPACES: Final = 0x7E020000

_ALWAYS: Final = """
_llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32
clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown
fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64
fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv
futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid
geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority
getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid
gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioprio_get ioprio_set ipc kill
landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen
listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack
membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink
mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open
openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll
ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev
pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages
removexattr removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile
sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid
setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid
setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat
shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketpair splice stat stat64
statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask
uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write
writev
"""

_ADMIN: Final = """
bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules
lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname
sethostname setns syslog umount umount2 unshare
"""

_ENOSYS = 38


def _row(names: str, *caps: str) -> Row:
    return Row(tuple(names.split()), caps=tuple(f"CAP_{cap}" for cap in caps))


#: what all profiles share; socket, socketcall and ioctl differ and are added by seccomp.py
DEFAULT_ROWS: Final[tuple[Row, ...]] = (
    Row(tuple(_ALWAYS.split())),
    Row(("process_vm_readv", "process_vm_writev", "ptrace"), kernel=(4, 8)),
    *(Row(("personality",), args=((0, value, 0, "EQ"),)) for value in (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)),
    Row(("sync_file_range2", "swapcontext"), arches=("ppc64le",)),
    Row(
        ("arm_fadvise64_64", "arm_sync_file_range", "sync_file_range2", "breakpoint", "cacheflush", "set_tls"),
        arches=("arm", "arm64"),
    ),
    Row(("arch_prctl",), arches=("amd64",)),
    Row(("modify_ldt",), arches=("amd64", "386")),
    Row(("s390_pci_mmio_read", "s390_pci_mmio_write", "s390_runtime_instr"), arches=("s390x",)),
    Row(("riscv_flush_icache",), arches=("riscv64",)),
    _row("open_by_handle_at", "DAC_READ_SEARCH"),
    _row(_ADMIN, "SYS_ADMIN"),
    # flags of clone(2) are its first argument, on s390 its second
    Row(("clone",), args=((0, CLONE_NAMESPACES, 0, "MASKED_EQ"),), not_caps=("CAP_SYS_ADMIN",), not_arches=("s390x",)),
    Row(("clone",), args=((1, CLONE_NAMESPACES, 0, "MASKED_EQ"),), not_caps=("CAP_SYS_ADMIN",), arches=("s390x",)),
    # its flags lie behind a pointer, where no filter sees them; ENOSYS makes libc fall back to clone
    Row(("clone3",), not_caps=("CAP_SYS_ADMIN",), errno=_ENOSYS),
    _row("reboot", "SYS_BOOT"),
    _row("chroot", "SYS_CHROOT"),
    _row("delete_module init_module finit_module", "SYS_MODULE"),
    _row("acct", "SYS_PACCT"),
    _row("kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace", "SYS_PTRACE"),
    _row("iopl ioperm", "SYS_RAWIO"),
    _row("settimeofday stime clock_settime clock_settime64", "SYS_TIME"),
    _row("vhangup", "SYS_TTY_CONFIG"),
    _row("get_mempolicy mbind set_mempolicy set_mempolicy_home_node", "SYS_NICE"),
    _row("syslog", "SYSLOG"),
    _row("bpf", "BPF"),
    _row("perf_event_open", "PERFMON"),
)
