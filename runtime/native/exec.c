/* Carries a plan out: host records in this process, child records after CLONE in the child. One record after the other, no
 * branches; the first failure ends it, and what was made is undone (exec_host.c).
 *
 * Contract of the reports: WH_CREATED goes out once the child stands at WAIT_START (in a plan without one: when the record's
 * turn comes). WH_STARTED goes out once the exec has succeeded. WH_FAILED carries record, errno and detail; then nothing
 * of the plan is alive. The child dies with the helper until it is safe to let go: role launch lets go right before
 * WAIT_START and EXEC, role monitor never, unless the plan's PDEATHSIG says otherwise.
 */
#define _GNU_SOURCE
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "exec_int.h"

static const uint8_t monitor_only[WH_OP_COUNT] = {
    0,
#define OP(name, sides, text) (sides) == M,
#define H WH_SIDE_H
#define C WH_SIDE_C
#define M WH_SIDE_M
#include "ops.def"
#undef OP
#undef H
#undef C
#undef M
};

/* Declarations have no handler; the decoder keeps them off both sides. */
#define wh_do_MON_STDIO NULL
#define wh_do_MON_LOG NULL
#define wh_do_MON_ATTACH NULL
#define wh_do_MON_CLIENT NULL
#define wh_do_MON_EXIT NULL
#define wh_do_MON_OOM NULL
#define wh_do_MON_CLEANUP NULL
#define wh_do_MON_TIMER NULL
#define wh_do_MON_KILL NULL
static wh_handler *const handlers[WH_OP_COUNT] = {
    NULL,
#define OP(name, sides, text) wh_do_##name,
#include "ops.def"
#undef OP
};

/* ---- what every file uses ---- */

void wh_close_keep(int fd) {
    int err = errno;
    if (fd >= 0) close(fd);
    errno = err;
}

void wh_say(struct wh_run *run, const char *a, const char *b) {
    int err = errno;
    struct wh_buf text = wh_buf(run->detail, sizeof run->detail);
    wh_put(&text, a);
    wh_put(&text, b);
    errno = err;
}

int wh_slot_put(struct wh_run *run, int32_t k, int fd) {
    if (fd < 0) return -1;
    if (k < 0) {
        close(fd);
        return fail(EINVAL);
    }
    if (run->slots[k] >= 0) close(run->slots[k]);
    run->slots[k] = fd;
    return 0;
}

int wh_has_op(const struct wh_plan *plan, uint16_t op) {
    for (uint32_t i = 0; i < plan->head->count; i++)
        if (plan->rec[i].op == op) return 1;
    return 0;
}

void wh_run_init(struct wh_run *run, const struct wh_plan *plan, int stays) {
    memset(run, 0, sizeof *run);
    run->plan = plan;
    run->stays = stays;
    run->report = WH_REPORT_FD;
    run->pidfd = run->sock = run->procfd = run->self = run->root_at = run->fresh = run->start_slot = -1;
    run->failed = WH_NO_RECORD;
    for (int k = 0; k < WH_MAX_SLOTS; k++) run->slots[k] = k < (int)plan->head->inherited ? WH_FIRST_FD + k : -1;
}

/* ---- records ---- */

static int tolerated(const struct wh_record *r) {
    if (r->flags & WH_F_MAY_FAIL) return 1;
    return r->flags & WH_F_MAY_BE_ABSENT && (errno == ENOENT || errno == ENOTDIR);
}

static int carry_out(struct wh_run *run, uint32_t i) {
    const struct wh_record *r = &run->plan->rec[i];
    run->detail[0] = 0;
    if (monitor_only[r->op]) return fail(EINVAL);
    if (handlers[r->op](run, r) >= 0 || tolerated(r)) return 0;
    return -1;
}

static void child_main(struct wh_run *run, uint32_t from) __attribute__((noreturn));
static void child_main(struct wh_run *run, uint32_t from) {
    for (uint32_t i = 0; i < run->plan->head->count; i++) {
        if (run->plan->rec[i].side != WH_SIDE_C) continue;
        run->shared->at = i;
        if (carry_out(run, i) < 0) wh_child_fail(run, i);
    }
    wh_child_fail(run, from); /* not reached: EXEC is the last record */
}

/* First things in the child: nothing inherited by accident, and no life without the parent. */
static int child_begin(struct wh_run *run, int theirs) {
    close(run->sock);
    run->sock = theirs;
    run->in_child = 1;
    run->pidfd = -1;
    if (run->report >= 0) close(run->report);
    run->report = -1;
    if (wh_deathsig(run, SIGKILL) < 0) return -1;
    wh_reset_signals();
    umask(0);
    if (wh_has_op(run->plan, WH_OP_WAIT_START))
        run->procfd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return 0;
}

/* In a new user namespace: while the child still has the host's id, it may pass the directories that ours lie in. */
static void hold_root(struct wh_run *run) {
    for (uint32_t i = 0; i < run->plan->head->count; i++) {
        const struct wh_record *r = &run->plan->rec[i];
        if (r->op == WH_OP_ROOT) run->root_at = open(s0(run, r), O_PATH | O_DIRECTORY | O_CLOEXEC);
    }
}

static int needs_self(const struct wh_plan *plan) {
    for (uint32_t i = 0; i < plan->head->count; i++)
        if (plan->rec[i].op == WH_OP_EXEC) return !!(plan->rec[i].flags & WH_F_INIT);
    return 0;
}

static int prepare(struct wh_run *run, int pair[2]) {
    struct wh_shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return -1;
    run->shared = shared;
    shared->listener = -1;
    if (needs_self(run->plan) && (run->self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC)) < 0) return -1;
    /* Not dumpable until exec (CVE-2016-9962). An unprivileged helper must stay so until the id maps are written. */
    if (!geteuid()) prctl(PR_SET_DUMPABLE, 0L, 0, 0, 0);
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
}

/* A cgroup namespace takes its root from the cgroup of its maker, so with CLONE_INTO_CGROUP the child makes it itself. */
int wh_do_CLONE(struct wh_run *run, const struct wh_record *r) {
    int pair[2], pidfd = -1, cgroup = slot(run, r->fd0), late = 0;
    uint64_t flags = r->n0;
    if (r->fd0 >= 0 && cgroup < 0) return fail(EBADF);
    if (cgroup >= 0 && flags & CLONE_NEWCGROUP) flags &= ~(uint64_t)(late = CLONE_NEWCGROUP);
    if (flags & CLONE_NEWUSER) wh_trees_early(run);
    if (prepare(run, pair) < 0) return -1;
    run->sock = pair[0];
    struct clone_args args = {
        .flags = flags | CLONE_PIDFD | CLONE_PARENT_SETTID | (cgroup >= 0 ? CLONE_INTO_CGROUP : 0),
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .parent_tid = (uint64_t)(uintptr_t)&run->shared->pid,
        .exit_signal = SIGCHLD,
        .cgroup = cgroup >= 0 ? (uint64_t)cgroup : 0,
    };
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (!pid) {
        uint32_t here = (uint32_t)(r - run->plan->rec);
        if (flags & CLONE_NEWUSER) hold_root(run);
        if (child_begin(run, pair[1]) < 0 || (late && unshare(late) < 0)) wh_child_fail(run, here);
        child_main(run, here);
    }
    wh_close_keep(pair[1]);
    if (pid < 0) return -1;
    run->pid = (pid_t)pid;
    run->pidfd = pidfd;
    return 0;
}

/* Whoever joined a user namespace can only then make a pid namespace that this one owns, and is in it only if born there. */
static int succeed(struct wh_run *run, uint64_t flags) {
    int pidfd = -1;
    struct clone_args args = {
        .flags = flags | CLONE_PARENT | CLONE_PIDFD | CLONE_PARENT_SETTID,
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .parent_tid = (uint64_t)(uintptr_t)&run->shared->pid,
    };
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid < 0) return -1;
    if (!pid) return wh_deathsig(run, run->deathsig) < 0 ? -1 : wh_child_wait(run);
    _exit(wh_child_post(run, 'F', pidfd) < 0);
}

int wh_do_REBORN(struct wh_run *run, const struct wh_record *r) {
    if (run->in_child) return succeed(run, r->n0);
    int pidfd = wh_await(run, WH_AWAIT_FD);
    if (pidfd < 0) return -1;
    while (waitpid(run->pid, NULL, __WALL) < 0 && errno == EINTR) {}
    close(run->pidfd);
    run->pidfd = pidfd;
    run->pid = run->shared->pid;
    return wh_send_fd(run->sock, "G", 1, -1);
}

/* ---- the whole ---- */

static void close_slots(struct wh_run *run, int keep_monitors) {
    uint8_t keep[WH_MAX_SLOTS] = {0};
    for (uint32_t i = 0; keep_monitors && i < run->plan->head->count; i++) {
        const struct wh_record *r = &run->plan->rec[i];
        if (r->side == WH_SIDE_M && r->fd0 >= 0) keep[r->fd0] = 1;
    }
    for (int k = 0; k < (int)run->plan->head->slots; k++) {
        if (keep[k] || run->slots[k] < 0) continue;
        close(run->slots[k]);
        run->slots[k] = -1;
    }
}

static void release(struct wh_run *run) {
    while (run->stashed) close(run->stash[--run->stashed]);
    if (run->self >= 0) close(run->self);
    run->self = -1;
    if (run->sock < 0 && run->shared) {
        munmap(run->shared, sizeof *run->shared);
        run->shared = NULL;
    }
    if (run->report >= 0) close(run->report);
    run->report = -1;
}

/* Every record of the host is done; a child that has not arrived where it belongs is not a success. */
static int settle(struct wh_run *run) {
    return wh_await(run, wh_has_op(run->plan, WH_OP_WAIT_START) ? WH_AWAIT_WAIT : WH_AWAIT_EXEC);
}

static int broken(struct wh_run *run, uint32_t index) {
    run->err = errno;
    if (run->failed == WH_NO_RECORD && run->shared && run->shared->state == WH_BROKEN) { /* the cause of our own failure */
        run->failed = run->shared->at;
        run->err = run->shared->err;
        memcpy(run->detail, run->shared->detail, sizeof run->detail);
    }
    if (run->failed == WH_NO_RECORD) run->failed = index;
    wh_undo(run);
    wh_report_send(run->report, WH_FAILED, run->failed, run->err, run->pid, run->detail);
    if (run->sock >= 0) close(run->sock);
    if (run->pidfd >= 0) close(run->pidfd);
    run->sock = run->pidfd = -1;
    close_slots(run, 0);
    release(run);
    errno = run->err;
    return -1;
}

int wh_execute(struct wh_plan *plan, struct wh_run *run) {
    uint32_t last = 0;
    for (uint32_t i = 0; i < plan->head->count; i++) {
        if (plan->rec[i].side != WH_SIDE_H) continue;
        last = i;
        if (carry_out(run, i) < 0) return broken(run, i);
    }
    if (settle(run) < 0) return broken(run, last);
    close_slots(run, 1);
    release(run);
    return 0;
}

int wh_collect(struct wh_plan *plan, struct wh_run *run) {
    (void)plan;
    struct wh_shared *shared = run->shared;
    char byte;
    if (run->sock < 0) return 1;
    ssize_t n = recv(run->sock, &byte, 1, MSG_DONTWAIT);
    if (n > 0 || (n < 0 && errno != ECONNRESET)) return 0;
    close(run->sock);
    run->sock = -1;
    run->failed = shared->at;
    run->err = shared->state == WH_BROKEN ? shared->err : ECHILD;
    int done = shared->state == WH_EXECING ? 1 : -1;
    memcpy(run->detail, shared->detail, sizeof run->detail);
    release(run);
    return done;
}
