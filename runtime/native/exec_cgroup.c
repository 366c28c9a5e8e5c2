/* cgroup v2 by descriptor, device rules, and the undo of a start: what was made here goes away if a later step fails. */
#define _GNU_SOURCE
#include <linux/bpf.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "exec_int.h"

#define MAX_PATH 4096

static int write_at(int dir, const char *name, const char *value) {
    int fd = wh_openat2(dir, name, O_WRONLY, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV, 0);
    if (fd < 0) return -1;
    size_t n = strlen(value);
    ssize_t done = write(fd, value, n);
    wh_close_keep(fd);
    return done < 0 ? -1 : (size_t)done == n ? 0 : fail(EIO);
}

/* mkdir -p of a host path that is ours; the first directory made is remembered for the undo. */
static int make_path(struct wh_run *run, const char *path, int exist_ok) {
    char copy[MAX_PATH];
    size_t n = strlen(path), first = 0;
    if (n < 2 || n >= sizeof copy || path[0] != '/') return fail(EINVAL);
    memcpy(copy, path, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (copy[i] != '/' && copy[i]) continue;
        copy[i] = 0;
        int made = !mkdir(copy, 0755), last = i == n;
        if (!made && (errno != EEXIST || (last && !exist_ok))) return wh_say(run, copy, ""), -1;
        if (made && !first) first = i;
        if (made && first == i && run->made_count < 64) {
            run->made[run->made_count].path = path;
            run->made[run->made_count++].from = (uint32_t)i;
        }
        if (!last) copy[i] = '/';
    }
    return 0;
}

int wh_do_CGROUP_DIR(struct wh_run *run, const struct wh_record *r) {
    if (make_path(run, s0(run, r), r->flags & WH_F_EXIST_OK) < 0) return -1;
    return wh_slot_put(run, r->fd0, open(s0(run, r), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

int wh_do_CGROUP_SET(struct wh_run *run, const struct wh_record *r) {
    return write_at(slot(run, r->fd0), s0(run, r), s1(run, r));
}

static const struct wh_record *join_record(const struct wh_plan *plan) {
    for (uint32_t i = 0; i < plan->head->count; i++)
        if (plan->rec[i].op == WH_OP_CGROUP_JOIN) return &plan->rec[i];
    return NULL;
}

/* Being born into a cgroup is free, moving there waits for an RCU grace period (15 ms): kernel/cgroup/cgroup.c takes
 * cgroup_threadgroup_rwsem for writing only to migrate. A leaf that is not there yet is left to CGROUP_JOIN. */
pid_t wh_fork_joined(const struct wh_plan *plan, const char **entered) {
    const struct wh_record *r = join_record(plan);
    struct clone_args args = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD};
    *entered = NULL;
    int dir = r ? open(wh_text(plan, r->s0), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (dir < 0) return fork();
    args.cgroup = (uint64_t)dir;
    pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
    close(dir);
    if (pid < 0) return fork();
    *entered = wh_text(plan, r->s0);
    return pid;
}

int wh_do_CGROUP_JOIN(struct wh_run *run, const struct wh_record *r) {
    if (run->joined == s0(run, r)) return 0; /* born there */
    if (make_path(run, s0(run, r), 1) < 0) return -1;
    int dir = open(s0(run, r), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) return -1;
    int done = write_at(dir, "cgroup.procs", "0");
    wh_close_keep(dir);
    if (!done) run->joined = s0(run, r);
    return done;
}

int wh_do_DEVICE_BPF(struct wh_run *run, const struct wh_record *r) {
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
    attr.insns = (uint64_t)(uintptr_t)s0(run, r);
    attr.insn_cnt = (uint32_t)r->n0;
    attr.license = (uint64_t)(uintptr_t) "Apache-2.0";
    memcpy(attr.prog_name, WH_BPF_NAME, sizeof WH_BPF_NAME);
    int program = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
    if (program < 0) return -1;
    memset(&attr, 0, sizeof attr);
    attr.target_fd = (uint32_t)slot(run, r->fd0);
    attr.attach_bpf_fd = (uint32_t)program;
    attr.attach_type = BPF_CGROUP_DEVICE;
    attr.attach_flags = BPF_F_ALLOW_MULTI;
    int done = (int)syscall(SYS_bpf, BPF_PROG_ATTACH, &attr, sizeof attr);
    wh_close_keep(program);
    return done;
}

/* ---- undo ---- */

static void end_child(struct wh_run *run) {
    if (run->pid <= 0) return;
    syscall(SYS_pidfd_send_signal, run->pidfd, SIGKILL, NULL, 0);
    while (waitpid(run->pid, NULL, __WALL) < 0 && errno == EINTR) {}
}

/* Length of the path of the first directory that was made on the way to the leaf that we entered; 0: none was. */
static size_t made_for_us(const struct wh_run *run) {
    for (int i = 0; run->joined && i < run->made_count; i++)
        if (run->made[i].path == run->joined) return run->made[i].from;
    return 0;
}

/* Out of what is to be removed, to the nearest cgroup above it that takes us. */
static void leave_joined(struct wh_run *run) {
    char path[MAX_PATH];
    for (size_t n = made_for_us(run); n > 1; n--) {
        while (n > 1 && run->joined[n - 1] != '/') n--;
        struct wh_buf b = wh_buf(path, sizeof path);
        wh_put_n(&b, run->joined, n);
        wh_put(&b, "cgroup.procs");
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        ssize_t done = fd < 0 ? -1 : write(fd, "0", 1);
        if (fd >= 0) close(fd);
        if (done == 1) return;
    }
}

static int remove_dir(const char *path) {
    const struct timespec pause = {0, 2000000};
    for (int tries = 0; tries < 250; tries++) { /* the last processes may still be dying */
        if (!rmdir(path) || errno != EBUSY) return 0;
        nanosleep(&pause, NULL);
    }
    return -1;
}

static void remove_made(const char *path, uint32_t from) {
    char copy[MAX_PATH];
    struct wh_buf b = wh_buf(copy, sizeof copy);
    wh_put(&b, path);
    size_t used = b.used;
    wh_put(&b, "/cgroup.kill");
    int fd = open(copy, O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        wh_write_all(fd, "1", 1);
        close(fd);
    }
    for (size_t n = used; n >= from; n--) {
        if (n != used && path[n] != '/') continue;
        copy[n] = 0;
        if (remove_dir(copy) < 0) return;
    }
}

void wh_undo(struct wh_run *run) {
    end_child(run);
    leave_joined(run);
    while (run->made_count) {
        run->made_count--;
        remove_made(run->made[run->made_count].path, run->made[run->made_count].from);
    }
    if (run->pidfile) unlink(run->pidfile);
}
