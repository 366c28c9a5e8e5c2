/* Programs that a plan runs beside the container: hooks with the state on standard input, newuidmap and newgidmap.
 * Each has a deadline; its output is read only for the last line, which becomes the detail of a failure. */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "exec_int.h"

#define MAX_ARGS 1024
static char state_text[1 << 17];

struct program {
    pid_t pid;
    int pidfd, in, out; /* our ends */
    int line_over;
    const char *input;
    size_t left;
    uint64_t deadline; /* ms, 0: none */
};

static uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void in_program(int in, int out, const char *path, const char *const *argv, const char *const *env)
    __attribute__((noreturn));
static void in_program(int in, int out, const char *path, const char *const *argv, const char *const *env) {
    setpgid(0, 0);
    wh_reset_signals();
    prctl(PR_SET_PDEATHSIG, (long)SIGKILL, 0, 0, 0);
    umask(022);
    /* both ends are above 2: the helper always has a standard input, output and error */
    if (dup2(in, 0) >= 0 && dup2(out, 1) >= 0 && dup2(out, 2) >= 0) {
        syscall(SYS_close_range, 3, ~0u, 0);
        execve(path, (char *const *)(uintptr_t)argv, (char *const *)(uintptr_t)env);
    }
    int err = errno;
    wh_write_all(2, "cannot be executed", 18);
    _exit(err == ENOENT ? 127 : 126);
}

static int launch(struct program *p, const char *path, const char *const *argv, const char *const *env) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) < 0) return -1;
    if (pipe2(out, O_CLOEXEC) < 0) {
        wh_close_keep(in[0]);
        wh_close_keep(in[1]);
        return -1;
    }
    p->pid = fork();
    if (!p->pid) in_program(in[0], out[1], path, argv, env);
    wh_close_keep(in[0]);
    wh_close_keep(out[1]);
    p->in = in[1];
    p->out = out[0];
    fcntl(p->in, F_SETFL, O_NONBLOCK);
    fcntl(p->out, F_SETFL, O_NONBLOCK);
    p->pidfd = p->pid < 0 ? -1 : (int)syscall(SYS_pidfd_open, p->pid, 0);
    return p->pid < 0 ? -1 : 0;
}

/* Keeps the last line that has something in it. */
static void keep_line(struct wh_run *run, struct program *p, const char *data, ssize_t n) {
    size_t used = strlen(run->detail);
    for (ssize_t i = 0; i < n; i++) {
        if (data[i] == '\n') {
            p->line_over = 1;
            continue;
        }
        if (p->line_over) used = 0;
        p->line_over = 0;
        if (used < sizeof run->detail - 1) run->detail[used++] = data[i];
        run->detail[used] = 0;
    }
}

static void drain(struct wh_run *run, struct program *p) {
    char data[512];
    for (int rounds = 0; rounds < 128 && p->out >= 0; rounds++) {
        ssize_t n = read(p->out, data, sizeof data);
        if (n > 0) keep_line(run, p, data, n);
        else if (n == 0 || errno != EAGAIN) close(p->out), p->out = -1;
        else return;
    }
}

static void feed(struct program *p) {
    ssize_t n = p->left ? write(p->in, p->input, p->left) : 0;
    if (n > 0) {
        p->input += n;
        p->left -= (size_t)n;
    }
    if (!p->left || (n < 0 && errno != EAGAIN)) close(p->in), p->in = -1; /* it need not read */
}

/* One turn of the wait: 1 the program has ended, 0 go on, -1 its time is over. */
static int turn(struct wh_run *run, struct program *p) {
    struct pollfd fds[3] = {{p->pidfd, POLLIN, 0}, {p->out, POLLIN, 0}, {p->in, POLLOUT, 0}};
    uint64_t now = now_ms();
    if (p->deadline && now >= p->deadline) return -1;
    if (poll(fds, 3, p->deadline ? (int)(p->deadline - now) : -1) < 0 && errno != EINTR) return -1;
    if (p->in >= 0 && fds[2].revents) feed(p);
    if (p->out >= 0 && fds[1].revents) drain(run, p);
    return !!(fds[0].revents & POLLIN);
}

static int verdict(struct wh_run *run, struct program *p, int ended) {
    int status = 0;
    if (ended < 0) kill(-p->pid, SIGKILL), kill(p->pid, SIGKILL);
    while (waitpid(p->pid, &status, __WALL) < 0 && errno == EINTR) {}
    if (p->out >= 0) drain(run, p);
    if (p->in >= 0) close(p->in);
    if (p->out >= 0) close(p->out);
    if (p->pidfd >= 0) close(p->pidfd);
    if (ended < 0) return fail(ETIMEDOUT);
    if (!status) return run->detail[0] = 0, 0;
    if (!run->detail[0]) {
        struct wh_buf b = wh_buf(run->detail, sizeof run->detail);
        wh_put(&b, WIFEXITED(status) ? "exit status " : "killed by signal ");
        wh_put_u(&b, (uint64_t)(WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status)));
    }
    return fail(ECHILD);
}

int wh_spawn(struct wh_run *run, const char *path, const char *const *argv, const char *const *env, const char *input,
             uint64_t timeout_ms) {
    struct program p = {.input = input ? input : "", .deadline = timeout_ms ? now_ms() + timeout_ms : 0};
    p.left = strlen(p.input);
    run->detail[0] = 0;
    if (launch(&p, path, argv, env) < 0) return -1;
    feed(&p);
    int ended;
    do ended = turn(run, &p);
    while (!ended);
    return verdict(run, &p, ended);
}

int wh_do_HOOK_STATE(struct wh_run *run, const struct wh_record *r) {
    if (wh_pid_text(run, s0(run, r), state_text, sizeof state_text) < 0) return -1;
    run->hook_state = state_text;
    return 0;
}

int wh_do_HOOK(struct wh_run *run, const struct wh_record *r) {
    const char *argv[MAX_ARGS], *env[MAX_ARGS];
    if (wh_vector(run->plan, r->s1, r->n0, argv, MAX_ARGS) < 0 || wh_vector(run->plan, r->s2, r->n1, env, MAX_ARGS) < 0)
        return -1;
    return wh_spawn(run, s0(run, r), argv, env, run->hook_state, r->n2);
}

int wh_do_RUN_MAP(struct wh_run *run, const struct wh_record *r) {
    const char *argv[MAX_ARGS], *const env[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    char pid[24];
    struct wh_buf b = wh_buf(pid, sizeof pid);
    wh_put_u(&b, (uint64_t)run->pid);
    argv[0] = s0(run, r);
    argv[1] = pid;
    if (wh_vector(run->plan, r->s1, r->n0, argv + 2, MAX_ARGS - 2) < 0) return -1;
    return wh_spawn(run, s0(run, r), argv, env, NULL, 10000);
}
