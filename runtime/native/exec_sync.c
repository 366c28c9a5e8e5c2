/* How the child and its parent talk: a SOCK_SEQPACKET pair and one shared page.
 *
 *   child -> parent   'S' at a barrier, 'W' at WAIT_START, 'F' with a descriptor (console, or its successor's pidfd)
 *   parent -> child   'G' go on
 *
 * The child's end closes at exec (CLOEXEC) and at death. The shared page tells which: state EXECING or BROKEN. After the
 * seccomp filter is in, the child makes no call of ours any more but execve; it only writes to the page.
 * So "created" is: 'W' has come (the fifo is not yet open, every earlier step is done). "Started" is: the end closed while
 * the state is EXECING.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "exec_int.h"

union control {
    struct cmsghdr align;
    char room[CMSG_SPACE(sizeof(int))];
};

int wh_send_fd(int sock, const char *payload, size_t n, int fd) {
    union control control;
    struct iovec data = {(void *)(uintptr_t)payload, n};
    struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1};
    memset(&control, 0, sizeof control);
    if (fd >= 0) {
        m.msg_control = control.room;
        m.msg_controllen = sizeof control.room;
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    ssize_t done;
    do done = sendmsg(sock, &m, MSG_NOSIGNAL);
    while (done < 0 && errno == EINTR);
    return done == (ssize_t)n ? 0 : -1;
}

/* One message: its kind, 0 at the end, -1. A descriptor that came along goes to *fd. */
static int receive(int sock, int *fd) {
    char kind = 0;
    union control control;
    struct iovec data = {&kind, 1};
    struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control};
    ssize_t n;
    do n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n <= 0) return n < 0 && errno != ECONNRESET ? -1 : 0;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) memcpy(fd, CMSG_DATA(c), sizeof *fd);
    return (unsigned char)kind;
}

/* ---- child ---- */

int wh_child_post(struct wh_run *run, char kind, int fd) { return wh_send_fd(run->sock, &kind, 1, fd); }

int wh_child_wait(struct wh_run *run) {
    int fd = -1;
    return receive(run->sock, &fd) == 'G' ? 0 : fail(ECANCELED);
}

/* Whoever started us waits for the exec; it counts what is left in the fifo. */
static void tell_starter(const struct wh_run *run) {
    char byte;
    int fd = run->start_slot < 0 ? -1 : run->slots[run->start_slot];
    if (fd >= 0 && !fcntl(fd, F_SETFL, O_NONBLOCK)) (void)!read(fd, &byte, 1);
}

void wh_child_fail(struct wh_run *run, uint32_t index) {
    int err = errno, is_exec = run->plan->rec[index].op == WH_OP_EXEC;
    memcpy(run->shared->detail, run->detail, sizeof run->detail);
    run->shared->at = index;
    run->shared->err = err;
    run->shared->state = WH_BROKEN;
    tell_starter(run);
    _exit(!is_exec ? 125 : err == ENOENT ? 127 : 126); /* docker's codes */
}

/* Sets the parent-death signal; the parent may have died just before, which its closed end tells. */
int wh_deathsig(struct wh_run *run, int signal) {
    struct pollfd end = {run->sock, 0, 0};
    run->deathsig = signal;
    if (prctl(PR_SET_PDEATHSIG, (long)signal, 0, 0, 0) < 0) return -1;
    if (signal && run->sock >= 0 && poll(&end, 1, 0) == 1 && end.revents & (POLLHUP | POLLERR)) _exit(125);
    return 0;
}

/* ---- parent ---- */

static int child_died(struct wh_run *run) {
    run->failed = run->shared->at;
    if (run->shared->state == WH_BROKEN) {
        memcpy(run->detail, run->shared->detail, sizeof run->detail);
        return fail(run->shared->err ? run->shared->err : EIO);
    }
    wh_say(run, "the child died here", "");
    return fail(ECHILD);
}

static int at_end(struct wh_run *run, enum wh_await what) {
    close(run->sock);
    run->sock = -1;
    if (run->shared->state != WH_EXECING) return child_died(run);
    return what == WH_AWAIT_EXEC ? 0 : fail(EPROTO);
}

static int fetch_listener(struct wh_run *run) {
    int fd = (int)syscall(SYS_pidfd_getfd, run->pidfd, run->shared->listener, 0);
    if (fd >= 0) run->shared->taken = 1;
    return fd;
}

static int take_stashed(struct wh_run *run) {
    int fd = run->stash[0];
    memmove(run->stash, run->stash + 1, --run->stashed * sizeof *run->stash);
    return fd;
}

/* One message, or none within the time that a listener may take to appear. 1: got what was awaited. */
static int one_message(struct wh_run *run, enum wh_await what) {
    struct pollfd end = {run->sock, POLLIN, 0};
    if (what == WH_AWAIT_FD && poll(&end, 1, 2) == 0) return 0;
    int fd = -1, kind = receive(run->sock, &fd);
    if (kind < 0) return -1;
    if (!kind) return at_end(run, what) < 0 ? -1 : 1;
    if (kind == 'F' && fd >= 0 && run->stashed < 8) run->stash[run->stashed++] = fd;
    if (kind == 'W') run->arrived = 1;
    if (kind == 'S') return what == WH_AWAIT_SYNC ? 1 : fail(EPROTO);
    return what == WH_AWAIT_WAIT && run->arrived;
}

int wh_await(struct wh_run *run, enum wh_await what) {
    if (run->pid <= 0 || (run->sock < 0 && what != WH_AWAIT_EXEC)) return fail(EPROTO);
    if (run->sock < 0 || (what == WH_AWAIT_WAIT && run->arrived)) return 0;
    for (;;) {
        if (what == WH_AWAIT_FD && run->stashed) return take_stashed(run);
        if (what == WH_AWAIT_FD && run->shared->listener >= 0 && !run->shared->taken) return fetch_listener(run);
        int got = one_message(run, what);
        if (got) return got < 0 ? -1 : 0;
    }
}

int wh_do_SYNC(struct wh_run *run, const struct wh_record *r) {
    (void)r;
    if (run->in_child) return wh_child_post(run, 'S', -1) < 0 ? -1 : wh_child_wait(run);
    if (wh_await(run, WH_AWAIT_SYNC) < 0) return -1;
    return wh_send_fd(run->sock, "G", 1, -1);
}

int wh_do_RECV_FD(struct wh_run *run, const struct wh_record *r) {
    return wh_slot_put(run, r->fd0, wh_await(run, WH_AWAIT_FD));
}

/* A plan without WAIT_START reports "created" as it comes by; else the child must have arrived there. Whoever waits for
 * "started" and is gone by then (killed) has written no record: what nobody knows of does not run. */
int wh_do_REPORT(struct wh_run *run, const struct wh_record *r) {
    if (r->n0 == WH_STARTED && wh_await(run, WH_AWAIT_EXEC) < 0) return -1;
    int waits = wh_has_op(run->plan, WH_OP_WAIT_START);
    if (r->n0 == WH_CREATED && waits && wh_await(run, WH_AWAIT_WAIT) < 0) return -1;
    int sent = wh_report_send(run->report, (uint32_t)r->n0, (uint32_t)(r - run->plan->rec), 0, run->pid, NULL);
    return waits ? 0 : sent;
}
