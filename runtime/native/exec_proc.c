/* What the process is to be: names, limits, ids, capabilities, filter, and the exec itself. */
#define _GNU_SOURCE
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/keyctl.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "exec_int.h"

#define MAX_ARGS 16384
extern int setgroups(size_t, const gid_t *);

int wh_do_HOSTNAME(struct wh_run *run, const struct wh_record *r) { return sethostname(s0(run, r), strlen(s0(run, r))); }
int wh_do_DOMAINNAME(struct wh_run *run, const struct wh_record *r) {
    return setdomainname(s0(run, r), strlen(s0(run, r)));
}

int wh_do_LOOPBACK(struct wh_run *run, const struct wh_record *r) {
    (void)run, (void)r;
    struct ifreq request;
    memset(&request, 0, sizeof request);
    memcpy(request.ifr_name, "lo", 3);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    int done = ioctl(fd, 0x8913 /* SIOCGIFFLAGS */, &request);
    request.ifr_flags |= IFF_UP;
    if (!done) done = ioctl(fd, 0x8914 /* SIOCSIFFLAGS */, &request);
    wh_close_keep(fd);
    return done;
}

int wh_do_PERSONALITY(struct wh_run *run, const struct wh_record *r) {
    (void)run;
    return syscall(SYS_personality, r->n0) < 0 ? -1 : 0;
}

int wh_do_KEYRING(struct wh_run *run, const struct wh_record *r) {
    const char *name = *s0(run, r) ? s0(run, r) : NULL;
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name) >= 0 || errno == ENOSYS) return 0;
    return -1; /* a full quota too: the process would see the caller's keys */
}

int wh_do_SESSION(struct wh_run *run, const struct wh_record *r) {
    (void)run;
    if (setsid() < 0) return -1;
    return r->flags & WH_F_TTY ? ioctl(0, 0x540e /* TIOCSCTTY */, 0L) : 0;
}

/* Above 2 a target may be one of our own descriptors: those wait until EXEC, when ours are no longer needed. */
int wh_do_STDIO(struct wh_run *run, const struct wh_record *r) {
    int fd = slot(run, r->fd0), target = (int)r->n0;
    if (fd < 0 || r->n0 > 65535) return fail(EBADF);
    if (target <= 2) return dup2(fd, target) < 0 ? -1 : 0;
    if (run->late_count == (int)(sizeof run->late / sizeof *run->late)) return fail(EMFILE);
    run->late[run->late_count].target = target;
    run->late[run->late_count++].source = fd;
    return 0;
}

int wh_do_RLIMIT(struct wh_run *run, const struct wh_record *r) {
    (void)run;
    struct rlimit limit = {.rlim_cur = r->n1, .rlim_max = r->n2};
    return (int)syscall(SYS_prlimit64, 0L, r->n0, &limit, NULL);
}

int wh_do_PDEATHSIG(struct wh_run *run, const struct wh_record *r) {
    if (r->n0 > 64) return fail(EINVAL);
    run->wish = (int)r->n0;
    return r->n0 ? wh_deathsig(run, (int)r->n0) : 0;
}

int wh_do_UMASK(struct wh_run *run, const struct wh_record *r) {
    run->umask_set = 1;
    run->umask = (mode_t)r->n0; /* put in force at EXEC: what we make until then has the mode that the plan names */
    return 0;
}

static int write_proc(int procfs, const char *path, uint64_t resolve, const char *a, const char *b) {
    char text[4096];
    struct wh_buf t = wh_buf(text, sizeof text);
    wh_put(&t, a);
    wh_put(&t, b);
    int fd = wh_openat2(procfs, path, O_WRONLY | O_NOFOLLOW, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV | resolve, 0);
    if (fd < 0) return -1;
    int done = wh_is_fs(fd, PROC_SUPER_MAGIC);
    if (!done && write(fd, text, t.used) != (ssize_t)t.used) done = -1;
    wh_close_keep(fd);
    return done;
}

int wh_do_SYSCTL(struct wh_run *run, const struct wh_record *r) {
    char path[512];
    struct wh_buf p = wh_buf(path, sizeof path);
    wh_put(&p, "sys/");
    wh_put(&p, s0(run, r));
    return write_proc(slot(run, r->fd0), path, RESOLVE_NO_SYMLINKS, s1(run, r), "");
}

/* /proc/self is an ordinary link. In a user namespace a process that is not dumpable may not write its own label. */
int wh_do_LSM_EXEC(struct wh_run *run, const struct wh_record *r) {
    char path[128];
    struct wh_buf p = wh_buf(path, sizeof path);
    const char *verb = strstr(s0(run, r), "apparmor") && strncmp(s1(run, r), "exec ", 5) ? "exec " : "";
    wh_put(&p, "self/");
    wh_put(&p, s0(run, r));
    int done = write_proc(slot(run, r->fd0), path, 0, verb, s1(run, r));
    if (done < 0 && errno == EACCES) {
        prctl(PR_SET_DUMPABLE, 1L, 0, 0, 0);
        done = write_proc(slot(run, r->fd0), path, 0, verb, s1(run, r));
        int err = errno;
        prctl(PR_SET_DUMPABLE, 0L, 0, 0, 0);
        errno = err;
    }
    return done;
}

/* ---- ids and capabilities: each change of them clears the parent-death signal (prctl(2)) ---- */

static int set_caps(uint64_t effective, uint64_t permitted, uint64_t inheritable) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    for (int i = 0; i < 2; i++)
        data[i] = (struct __user_cap_data_struct){(uint32_t)(effective >> (32 * i)), (uint32_t)(permitted >> (32 * i)),
                                                  (uint32_t)(inheritable >> (32 * i))};
    return (int)syscall(SYS_capset, &header, data);
}

static int raise_permitted(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data) < 0) return -1;
    for (int i = 0; i < 2; i++) data[i].effective = data[i].permitted;
    return (int)syscall(SYS_capset, &header, data);
}

int wh_do_BOUNDING(struct wh_run *run, const struct wh_record *r) {
    (void)run;
    for (int cap = 0; cap < 64; cap++) {
        if (r->n0 >> cap & 1) continue;
        if (prctl(PR_CAPBSET_DROP, (long)cap, 0, 0, 0) < 0) return errno == EINVAL && cap > 37 ? 0 : -1;
    }
    return 0;
}

int wh_do_GROUPS(struct wh_run *run, const struct wh_record *r) {
    return setgroups(r->n0, (const gid_t *)(const void *)s0(run, r));
}

int wh_do_GID(struct wh_run *run, const struct wh_record *r) {
    gid_t id = (gid_t)r->n0, a, b, c;
    if (r->n0 >= UINT32_MAX) return fail(EINVAL);
    if (setresgid(id, id, id) < 0 || getresgid(&a, &b, &c) < 0) return -1;
    return a == id && b == id && c == id ? wh_deathsig(run, run->deathsig) : fail(EPERM);
}

int wh_do_UID(struct wh_run *run, const struct wh_record *r) {
    uid_t id = (uid_t)r->n0, a, b, c;
    if (r->n0 >= UINT32_MAX) return fail(EINVAL);
    if (prctl(PR_SET_KEEPCAPS, 1L, 0, 0, 0) < 0 || setresuid(id, id, id) < 0 || getresuid(&a, &b, &c) < 0) return -1;
    if (a != id || b != id || c != id) return fail(EPERM);
    if (prctl(PR_SET_KEEPCAPS, 0L, 0, 0, 0) < 0 || raise_permitted() < 0) return -1;
    prctl(PR_SET_DUMPABLE, 0L, 0, 0, 0); /* a change of ids made it what fs.suid_dumpable says, perhaps 1 */
    return wh_deathsig(run, run->deathsig);
}

int wh_do_CAPS(struct wh_run *run, const struct wh_record *r) {
    return set_caps(r->n0, r->n1, r->n2) < 0 ? -1 : wh_deathsig(run, run->deathsig);
}

int wh_do_AMBIENT(struct wh_run *run, const struct wh_record *r) {
    (void)run;
    if (prctl(PR_CAP_AMBIENT, (long)PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0) return -1;
    for (int cap = 0; cap < 64; cap++)
        if (r->n0 >> cap & 1 && prctl(PR_CAP_AMBIENT, (long)PR_CAP_AMBIENT_RAISE, (long)cap, 0, 0) < 0) return -1;
    return 0;
}

int wh_do_NO_NEW_PRIVS(struct wh_run *run, const struct wh_record *r) {
    (void)run, (void)r;
    return prctl(PR_SET_NO_NEW_PRIVS, 1L, 0, 0, 0);
}

static int move_late(struct wh_run *run) {
    int above = 64;
    for (int i = 0; i < run->late_count; i++)
        if (run->late[i].target >= above) above = run->late[i].target + 1;
    if (!run->late_count) return 0;
    if ((run->sock = fcntl(run->sock, F_DUPFD_CLOEXEC, above)) < 0) return -1;
    if (run->self >= 0 && (run->self = fcntl(run->self, F_DUPFD_CLOEXEC, above)) < 0) return -1;
    for (int i = 0; i < run->late_count; i++)
        if ((run->late[i].source = fcntl(run->late[i].source, F_DUPFD_CLOEXEC, above)) < 0) return -1;
    for (int i = 0; i < run->late_count; i++)
        if (dup2(run->late[i].source, run->late[i].target) < 0) return -1;
    run->late_count = 0;
    return 0;
}

/* What is done once, right before the exec: modes, descriptors above 2, the hold of the parent. */
static int make_ready(struct wh_run *run) {
    if (run->ready) return 0;
    umask(run->umask_set ? run->umask : 022);
    if (move_late(run) < 0) return -1;
    if (run->deathsig != run->wish && wh_deathsig(run, run->wish) < 0) return -1;
    run->ready = 1;
    return 0;
}

/* The parent fetches a listener by pidfd: the filter itself may hold any call with which it could be sent. */
static int wait_taken(struct wh_run *run) {
    while (!run->shared->taken) {
#if defined(__x86_64__)
        __asm__ volatile("pause");
#endif
    }
    return 0;
}

static int last_but_exec(const struct wh_run *run, const struct wh_record *r) {
    for (const struct wh_record *end = run->plan->rec + run->plan->head->count; ++r < end;)
        if (r->side == WH_SIDE_C) return r->op == WH_OP_EXEC;
    return 0;
}

int wh_do_SECCOMP(struct wh_run *run, const struct wh_record *r) {
    struct sock_fprog program = {(unsigned short)r->n0, (struct sock_filter *)(uintptr_t)s0(run, r)};
    if (!r->n0 || r->n0 > BPF_MAXINSNS) return fail(EINVAL);
    if (last_but_exec(run, r) && make_ready(run) < 0) return -1; /* the filter need not allow what EXEC still has to do */
    long fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, r->n1, &program);
    if (fd < 0) return -1;
    if (!(r->n1 & SECCOMP_FILTER_FLAG_NEW_LISTENER)) return fd ? fail(ESRCH) : 0;
    run->shared->listener = (int)fd;
    return wait_taken(run);
}

/* ---- the end ---- */

int wh_do_CLOSE_FROM(struct wh_run *run, const struct wh_record *r) {
    (void)run;
    if (!syscall(SYS_close_range, r->n0, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */)) return 0;
    /* The container's filter may be older than the call (Linux 5.9). main() has marked what was given; ours are low. */
    if (errno != EPERM && errno != ENOSYS) return -1;
    for (int fd = (int)r->n0; fd < 1024; fd++) fcntl(fd, F_SETFD, FD_CLOEXEC);
    return 0;
}

/* A path outside of the root reads "(unreachable)/..." (CVE-2024-21626). */
int wh_do_CHDIR(struct wh_run *run, const struct wh_record *r) {
    char here[4096];
    if (chdir(s0(run, r)) < 0) return -1;
    if (!getcwd(here, sizeof here)) return -1;
    return here[0] == '/' ? 0 : fail(EXDEV);
}

static int open_fifo(struct wh_run *run, int fd) {
    char name[16];
    struct wh_buf b = wh_buf(name, sizeof name);
    wh_put_u(&b, (uint64_t)fd);
    return openat(run->procfd, name, O_RDONLY | O_CLOEXEC);
}

/* From here on the launch role may be gone. A writer that closes without a byte has not started anything. Our end stays
 * open until exec closes it, which the starter sees; a step that fails before that takes one more byte (wh_child_fail). */
int wh_do_WAIT_START(struct wh_run *run, const struct wh_record *r) {
    char byte;
    int fd = slot(run, r->fd0), opened = -1;
    if (fd < 0) return fail(EBADF);
    if (!run->stays && wh_deathsig(run, run->wish) < 0) return -1;
    if (wh_child_post(run, 'W', -1) < 0) return -1;
    for (;;) {
        ssize_t n = read(opened >= 0 ? opened : fd, &byte, 1);
        if (n == 1) break;
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno != EBADF || opened >= 0)) return -1;
        if (n == 0 && opened < 0) return fail(EPIPE); /* a pipe, not a fifo by name: nobody can start it any more */
        if (opened >= 0) close(opened);
        do opened = open_fifo(run, fd);
        while (opened < 0 && errno == EINTR);
        if (opened < 0) return -1;
    }
    close(fd);
    run->slots[r->fd0] = opened;
    run->start_slot = r->fd0;
    return 0;
}

/* Ignored signals and the mask survive exec; Python ignores SIGPIPE, the monitor blocks what it reads by signalfd. */
void wh_reset_signals(void) {
    struct sigaction set;
    sigset_t none;
    memset(&set, 0, sizeof set);
    for (int n = 1; n <= 64; n++)
        if (n != SIGKILL && n != SIGSTOP) sigaction(n, &set, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Would execve find a program there? */
static int probe(const char *path) {
    struct stat st;
    if (stat(path, &st) < 0) return -1;
    return S_ISDIR(st.st_mode) ? fail(EACCES) : faccessat(AT_FDCWD, path, X_OK, 0);
}

/* Executes, or without an argv only looks. A directory is no program, whatever execve says of it; what cannot be executed
 * wins over what is not there. */
static int search(const char *file, char *const *argv, char *const *env) {
    static char candidate[4096 + 256];
    const char *path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    int err = ENOENT;
    if (!*file) return fail(ENOENT);
    if (strchr(file, '/')) return argv ? execve(file, argv, env) : probe(file);
    for (int i = 0; env[i]; i++)
        if (!strncmp(env[i], "PATH=", 5)) path = env[i] + 5;
    for (;;) {
        const char *end = strchr(path, ':');
        size_t n = end ? (size_t)(end - path) : strlen(path);
        struct wh_buf b = wh_buf(candidate, sizeof candidate);
        wh_put_n(&b, path, n);
        if (n) wh_put(&b, "/");
        wh_put(&b, file);
        if (!(argv ? execve(candidate, argv, env) : probe(candidate))) return 0;
        if (errno == EACCES) err = EACCES;
        else if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP && errno != ENAMETOOLONG) return -1;
        if (!end) return fail(err);
        path = end + 1;
    }
}

int wh_exec_search(const char *file, char *const *argv, char *const *env) { return search(file, argv, env); }

static const char *argv_room[MAX_ARGS + 4], *env_room[MAX_ARGS];

/* Before the wait for start, so that it is the create that fails. Other errors (a filter's, say) are left to the exec. */
int wh_do_FIND(struct wh_run *run, const struct wh_record *r) {
    if (wh_vector(run->plan, r->s1, r->n0, env_room, MAX_ARGS) < 0) return -1;
    int found = search(s0(run, r), NULL, (char *const *)(uintptr_t)env_room);
    return found < 0 && (errno == ENOENT || errno == ENOTDIR || errno == EACCES) ? -1 : 0;
}

/* Role init of the helper becomes pid 1 and starts the command: argv is NAME init FILE argv... (init.c). */
static int exec_init(struct wh_run *run, const char *file) {
    argv_room[0] = "wherry-init";
    argv_room[1] = "init";
    argv_room[2] = file;
    return (int)syscall(SYS_execveat, run->self, "", argv_room, env_room, AT_EMPTY_PATH);
}

int wh_do_EXEC(struct wh_run *run, const struct wh_record *r) {
    const char **argv = argv_room + 3;
    if (wh_vector(run->plan, r->s1, r->n0, argv, MAX_ARGS) < 0 || wh_vector(run->plan, r->s2, r->n1, env_room, MAX_ARGS) < 0)
        return -1;
    if (make_ready(run) < 0) return -1;
    run->shared->state = WH_EXECING;
    if (r->flags & WH_F_INIT) return exec_init(run, s0(run, r));
    return wh_exec_search(s0(run, r), (char *const *)(uintptr_t)argv, (char *const *)(uintptr_t)env_room);
}
