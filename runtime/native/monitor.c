/* Role monitor: one per container or exec session, from the start to the end of its init.
 *
 * It detaches, carries the plan out, relays stdio to the log and to attached clients, and at init's end: kills the cgroup
 * (where the plan says so), drains what is left of the output, writes exit.json, sends EXIT, and hands over to the cleanup:
 * a client that claimed it does it, else the cleanup command is exec'd in this process's place, so that nothing of the
 * monitor stays in memory. It never knows what an operation does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "monitor.h"

#define DRAIN_MS 1000             /* after init's end, for processes that it left behind with its output open */
#define DRAIN_BYTES (16u << 20)   /* and at most so much */
#define TRIM_MS 1000              /* idle for so long: give buffers back */
#define TURNS 8                   /* reads of one stream before the others get their turn */
#define GATHER_US 1000            /* between two reads of a busy stream that nobody watches */
#define TIMERS 4
#define TIMER_MAX_MS 3600000      /* the backstop for a timer's command: it has deadlines of its own */
#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif

enum { TAG_INIT, TAG_START, TAG_LISTEN, TAG_INPUT, TAG_OUTPUT, TAG_TIMER = 16, TAG_COMMAND = 32 };

struct timer {
    const struct wh_record *record;
    int fd, pidfd;
    pid_t pid;
    int64_t started;
};

struct wh_monitor {
    struct wh_plan plan;
    struct wh_run run;
    struct wh_log log;
    struct wh_client client[WH_CLIENTS];
    struct timer timer[TIMERS];
    int timers;
    int epoll, listener, input, peer;
    struct { int fd, watched; struct wh_line line; } output[2];
    int tty, once, settled, killer, oom, starved, perhaps;
    int64_t above; /* of the cgroup above at the start, -1 if it does not matter */
    size_t held_at, held; /* standard input that the container has not taken yet */
    const struct wh_record *exit_dir, *cleanup, *first;
    int ended, code, signal, paused, want_trim;
    int64_t deadline, gathered;
    size_t drained, taken; /* bytes after init's end; bytes in this turn */
    char error[104];
};

static struct wh_monitor the;
static char chunk[WH_CHUNK] __attribute__((aligned(4096)));
static char held[WH_CHUNK] __attribute__((aligned(4096)));
static char lines[2][WH_LINE_MAX] __attribute__((aligned(4096)));

int wh_epoll(const struct wh_monitor *m) { return m->epoll; }
struct wh_client *wh_clients(struct wh_monitor *m) { return m->client; }
int wh_stdin_once(const struct wh_monitor *m) { return m->once; }
int wh_stdin_unclaimed(const struct wh_monitor *m) { return m->once && !m->first; }
int wh_reopen_log(struct wh_monitor *m) { return wh_log_reopen(&m->log); }

void wh_first_gone(struct wh_monitor *m) {
    if (!m->first || !m->first->n0 || m->ended) return;
    kill(m->run.pid, SIGKILL); /* our child, not reaped: the pid is its own */
    kill(-m->run.pid, SIGKILL);
}

void wh_settled(struct wh_monitor *m) { m->settled = 1; }

int64_t wh_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void add(struct wh_monitor *m, int fd, uint32_t events, uint32_t tag) {
    struct epoll_event event = {.events = events, .data.u32 = tag};
    epoll_ctl(m->epoll, EPOLL_CTL_ADD, fd, &event);
}

static void drop(struct wh_monitor *m, int *fd) {
    if (*fd < 0) return;
    epoll_ctl(m->epoll, EPOLL_CTL_DEL, *fd, NULL);
    close(*fd);
    *fd = -1;
}

/* ---- standard input ---- */

int wh_input_busy(const struct wh_monitor *m) { return m->held != 0; }

void wh_input_end(struct wh_monitor *m) {
    if (m->tty || !m->once) return;
    if (m->held) m->once = 2; /* what is held goes first */
    else drop(m, &m->input);
}

/* Writes as much as goes; -1: the container has closed its end. */
static ssize_t push(struct wh_monitor *m, const char *data, size_t n) {
    size_t at = 0;
    while (at < n) {
        ssize_t done = write(m->input, data + at, n - at);
        if (done > 0) at += (size_t)done;
        else if (errno == EAGAIN) break;
        else if (errno != EINTR) return -1;
    }
    return (ssize_t)at;
}

static void input_gone(struct wh_monitor *m) {
    drop(m, &m->input);
    m->held = 0;
}

void wh_input(struct wh_monitor *m, const char *data, size_t n) {
    if (m->input < 0) return;
    ssize_t done = m->held ? 0 : push(m, data, n);
    if (done < 0) {
        input_gone(m);
        return;
    }
    n -= (size_t)done;
    if (!n) return;
    /* one chunk at most is held: a client is not read while anything is */
    if (n > sizeof held - m->held) n = sizeof held - m->held;
    if (!m->held) {
        m->held_at = 0;
        add(m, m->input, EPOLLOUT, TAG_INPUT);
    }
    memcpy(held + m->held, data + done, n);
    m->held += n;
}

static void input_ready(struct wh_monitor *m) {
    ssize_t done = push(m, held + m->held_at, m->held - m->held_at);
    if (done >= 0) {
        m->held_at += (size_t)done;
        if (m->held_at < m->held) return;
        epoll_ctl(m->epoll, EPOLL_CTL_DEL, m->input, NULL);
        m->held = 0;
        if (m->once == 2) input_gone(m);
    } else {
        input_gone(m);
    }
    wh_clients_listen(m);
}

void wh_resize(struct wh_monitor *m, unsigned rows, unsigned cols) {
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)cols};
    if (m->tty && m->output[0].fd >= 0) ioctl(m->output[0].fd, TIOCSWINSZ, &size);
}

/* ---- output ---- */

static void output_end(struct wh_monitor *m, int i) {
    if (m->output[i].watched) epoll_ctl(m->epoll, EPOLL_CTL_DEL, m->output[i].fd, NULL);
    m->output[i].watched = 0;
    close(m->output[i].fd);
    m->output[i].fd = -1;
    wh_log_end(&m->log, &m->output[i].line);
}

/* Room for a chunk at every client, else nothing is read; after the end the whole queue may fill. */
static size_t queue_limit(const struct wh_monitor *m) {
    return m->ended ? WH_QUEUE - WH_CHUNK - 4096 : WH_QUEUE_PAUSE;
}

static void output_ready(struct wh_monitor *m, int i) {
    for (int turn = 0; turn < TURNS && m->output[i].fd >= 0; turn++) {
        if (wh_clients_full(m, queue_limit(m))) return;
        ssize_t n = read(m->output[i].fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) {
            if (m->ended && m->tty) output_end(m, i); /* a terminal may be held open for ever: what was written is here */
            return;
        }
        if (n <= 0) { /* EIO: a terminal's last user is gone */
            output_end(m, i);
            return;
        }
        if (m->ended) m->drained += (size_t)n;
        m->taken += (size_t)n;
        wh_log_feed(&m->log, &m->output[i].line, chunk, (size_t)n);
        wh_clients_send(m, i ? WH_STDERR : WH_STDOUT, chunk, (size_t)n);
        if ((size_t)n < sizeof chunk && !m->ended) return;
    }
}

/* Back-pressure: a pipe with a hung-up writer would wake us for ever, so a paused one is taken out of the set. */
static void watch_output(struct wh_monitor *m) {
    int on = !wh_clients_full(m, queue_limit(m));
    m->paused = !on;
    for (int i = 0; i < 2; i++) {
        if (m->output[i].fd < 0 || m->output[i].watched == on) continue;
        if (on) add(m, m->output[i].fd, EPOLLIN, TAG_OUTPUT + (uint32_t)i);
        else epoll_ctl(m->epoll, EPOLL_CTL_DEL, m->output[i].fd, NULL);
        m->output[i].watched = on;
    }
}

/* ---- timers: commands at intervals, never two of one at once ---- */

static void arm(const struct timer *t, uint64_t ms) {
    struct itimerspec when = {.it_value = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000}};
    if (!ms) when.it_value.tv_nsec = 1;
    timerfd_settime(t->fd, 0, &when, NULL);
}

/* Becomes the command: nothing of ours but /dev/null at 0 to 2 passes on. */
static void become(struct wh_monitor *m, uint32_t argv, uint64_t count) {
    static const char *words[512], *env[512];
    for (int number = 1; number < 65; number++) signal(number, SIG_DFL); /* our caller may have ignored some, too */
    env[0] = NULL;
    if (wh_vector(&m->plan, argv, count, words, 512) < 0) return;
    if (m->cleanup && wh_vector(&m->plan, m->cleanup->s1, m->cleanup->n1, env, 512) < 0) return;
    syscall(SYS_close_range, 3u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */);
    execve(words[0], (char *const *)words, (char *const *)env);
}

static pid_t start_command(struct wh_monitor *m, uint32_t argv, uint64_t count) {
    pid_t pid = fork();
    if (pid) return pid;
    setsid();
    become(m, argv, count);
    _exit(127);
}

static void timer_ready(struct wh_monitor *m, int i) {
    struct timer *t = &m->timer[i];
    uint64_t ticks;
    if (read(t->fd, &ticks, sizeof ticks) < 0) return;
    if (t->pid > 0) { /* the backstop */
        kill(t->pid, SIGKILL);
        return;
    }
    t->pid = start_command(m, t->record->s0, t->record->n2);
    t->pidfd = t->pid > 0 ? (int)syscall(SYS_pidfd_open, t->pid, 0) : -1;
    if (t->pidfd >= 0) {
        add(m, t->pidfd, EPOLLIN, TAG_COMMAND + (uint32_t)i);
        arm(t, TIMER_MAX_MS);
    } else {
        if (t->pid > 0) waitpid(t->pid, NULL, 0);
        t->pid = 0;
        arm(t, t->record->n0);
    }
}

static void command_ended(struct wh_monitor *m, int i) {
    struct timer *t = &m->timer[i];
    waitpid(t->pid, NULL, 0);
    drop(m, &t->pidfd);
    t->pid = 0;
    arm(t, t->record->n0); /* as docker: the interval runs from the end of the last check */
}

static void stop_timers(struct wh_monitor *m) {
    for (int i = 0; i < m->timers; i++) {
        struct timer *t = &m->timer[i];
        drop(m, &t->fd);
        if (t->pid <= 0) continue;
        kill(t->pid, SIGKILL); /* our child, not reaped: the pid is its own */
        command_ended(m, i);
    }
}

/* ---- the end ---- */

/* How often the OOM killer took one of a cgroup; -1 where nobody counts it, or the cgroup is gone. */
static int64_t oom_kills(const struct wh_monitor *m, const char *events) {
    char text[512];
    int fd = m->oom < 0 ? -1 : openat(m->oom, events, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    const char *at = strstr(text, "\noom_kill ");
    if (!at) return -1;
    int64_t count = 0;
    for (at += 10; *at >= '0' && *at <= '9'; at++) count = 10 * count + (*at - '0');
    return count;
}

/* First of all at init's end. systemd takes a scope's cgroup away as soon as it is empty, and may be faster than we are:
 * then the count of the cgroup above tells, which keeps that of those that are gone (cgroup-v2: memory.events). */
static void look_for_oom(struct wh_monitor *m) {
    int64_t own = oom_kills(m, "memory.events");
    m->starved = own > 0;
    m->perhaps = own < 0 && m->above >= 0 && oom_kills(m, "../memory.events") > m->above;
}

static void kill_cgroup(const struct wh_monitor *m) {
    int fd = m->killer < 0 ? -1 : openat(m->killer, "cgroup.kill", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    wh_write_all(fd, "1", 1);
    close(fd);
}

/* Bytes that JSON text can hold as they are; the errors are ours, so others do not occur. */
static void put_plain(struct wh_buf *b, const char *s) {
    for (; *s; s++) wh_put_n(b, *s < ' ' || *s == '"' || *s == '\\' || *s == 0x7f ? "?" : s, 1);
}

static void write_exit(struct wh_monitor *m) {
    char text[512], path[4096], temporary[4096];
    struct timespec now;
    if (!m->exit_dir) return;
    clock_gettime(CLOCK_REALTIME, &now);
    struct wh_buf b = wh_buf(text, sizeof text), p = wh_buf(path, sizeof path), t = wh_buf(temporary, sizeof temporary);
    wh_put(&b, "{\"code\":");
    wh_put_u(&b, (uint64_t)m->code);
    wh_put(&b, ",\"signal\":");
    wh_put_u(&b, (uint64_t)m->signal);
    wh_put(&b, m->starved ? ",\"oom\":true,\"time\":" : ",\"oom\":false,\"time\":");
    wh_put_u(&b, (uint64_t)now.tv_sec);
    wh_put(&b, ".");
    wh_put_n(&b, "000", now.tv_nsec < 100000000 ? now.tv_nsec < 10000000 ? 2 : 1 : 0);
    wh_put_u(&b, (uint64_t)now.tv_nsec / 1000000);
    wh_put(&b, ",\"error\":\"");
    put_plain(&b, m->error);
    wh_put(&b, "\"}\n");
    wh_put(&p, wh_text(&m->plan, m->exit_dir->s0));
    wh_put(&p, "/exit.json");
    wh_put(&t, path);
    wh_put(&t, ".tmp");
    unlink(temporary);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) return; /* the next wherry command finds no monitor and no record, and settles it */
    int ok = wh_write_all(fd, text, b.used) == 0;
    close(fd);
    if (ok) rename(temporary, path);
}

static void init_ended(struct wh_monitor *m) {
    int status = 0;
    while (waitpid(m->run.pid, &status, 0) < 0 && errno == EINTR) continue;
    drop(m, &m->run.pidfd);
    m->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    if (!m->error[0]) m->code = m->signal ? 128 + m->signal : WEXITSTATUS(status);
    m->starved |= m->perhaps && m->code == 128 + SIGKILL;
    m->ended = 1;
    m->deadline = wh_now() + DRAIN_MS;
    kill_cgroup(m);
    stop_timers(m);
    drop(m, &m->listener);
    if (m->peer >= 0) close(m->peer);
    m->peer = -1;
    input_gone(m);
    m->once = 0;
    wh_clients_listen(m);
    for (int i = 0; i < 2; i++)
        if (m->output[i].fd >= 0) output_ready(m, i);
}

static int drain_over(struct wh_monitor *m) {
    if (m->output[0].fd < 0 && m->output[1].fd < 0) return 1;
    return m->drained > DRAIN_BYTES || wh_now() >= m->deadline;
}

static void send_exit(struct wh_monitor *m) {
    unsigned code = (unsigned)m->code;
    char payload[5] = {(char)(code >> 24), (char)(code >> 16), (char)(code >> 8), (char)code, (char)m->starved};
    wh_clients_send(m, WH_EXIT, payload, sizeof payload);
    for (int i = 0; i < WH_CLIENTS; i++) m->client[i].mute = 1;
}

/* Records the end; from here on nobody needs this process but clients that are still reading. */
static void finish(struct wh_monitor *m) {
    for (int i = 0; i < 2; i++)
        if (m->output[i].fd >= 0) output_end(m, i);
    wh_log_flush(&m->log);
    if (m->log.fd >= 0) close(m->log.fd);
    m->log.fd = -1;
    wh_clients_hear(m);
    write_exit(m);
    send_exit(m);
    m->ended = 2;
}

/* Lets go of clients that have everything. Returns 1 while someone claims the cleanup, 2 while someone only reads. */
static int farewell(struct wh_monitor *m) {
    int claimed = 0, reading = 0;
    for (struct wh_client *c = m->client; c < m->client + WH_CLIENTS; c++) {
        if (c->fd < 0) continue;
        if (c->used) reading = 2;
        else if (!c->claimed || m->settled) wh_client_drop(m, c);
        claimed |= c->fd >= 0 && c->claimed && !m->settled;
    }
    return claimed ? 1 : reading;
}

/* No claiming client is left. Exec'd in our place; by a child of its own if somebody still reads. */
static void hand_over(struct wh_monitor *m, int reading) {
    if (!m->cleanup || m->settled) return;
    m->settled = 1;
    if (reading) start_command(m, m->cleanup->s0, m->cleanup->n0);
    else become(m, m->cleanup->s0, m->cleanup->n0);
}

/* ---- the loop ---- */

static void accept_all(struct wh_monitor *m) {
    int fd;
    while ((fd = accept4(m->listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) wh_client_add(m, fd, 0);
}

/* A plan with a start fifo: the child waited, and has now exec'd or failed. */
static void start_ready(struct wh_monitor *m) {
    if (wh_collect(&m->plan, &m->run) >= 0) return; /* what it closes leaves the set by itself */
    struct wh_buf b = wh_buf(m->error, sizeof m->error);
    wh_put(&b, "start: errno ");
    wh_put_u(&b, (uint64_t)m->run.err);
    m->code = m->run.err == ENOENT || m->run.err == ENOTDIR ? 127 : 126;
}

static void dispatch(struct wh_monitor *m, const struct epoll_event *event) {
    uint32_t tag = event->data.u32;
    if (tag >= WH_TAG_CLIENT) wh_client_event(m, &m->client[tag - WH_TAG_CLIENT], event->events);
    else if (tag >= TAG_COMMAND) command_ended(m, (int)(tag - TAG_COMMAND));
    else if (tag >= TAG_TIMER) timer_ready(m, (int)(tag - TAG_TIMER));
    else if (tag >= TAG_OUTPUT && m->output[tag - TAG_OUTPUT].fd >= 0) output_ready(m, (int)(tag - TAG_OUTPUT));
    else if (tag == TAG_INPUT && m->input >= 0) input_ready(m);
    else if (tag == TAG_START && m->run.sock >= 0) start_ready(m);
}

static void trim(struct wh_monitor *m) {
    m->want_trim = 0;
    madvise(chunk, sizeof chunk, MADV_DONTNEED);
    if (!m->held) madvise(held, sizeof held, MADV_DONTNEED);
    for (int i = 0; i < 2; i++)
        if (!m->output[i].line.used) madvise(lines[i], WH_LINE_MAX, MADV_DONTNEED);
    wh_log_trim();
    wh_clients_trim(m);
}

static int patience(const struct wh_monitor *m) {
    if (m->ended == 1) return 50;
    if (m->paused || m->ended) return 1000; /* to look at stalled clients */
    return m->want_trim ? TRIM_MS : -1;
}

/* A stream of small writes is let gather in its pipe: a wake-up for each would cost its writer more than the writing. Only
 * while it flows (the last piece came just now), and only where no client waits for it. */
static void gather(struct wh_monitor *m) {
    static const struct timespec pause = {0, GATHER_US * 1000};
    int64_t now = wh_now();
    int flows = m->taken && m->taken < sizeof chunk && now - m->gathered <= 2 * GATHER_US / 1000;
    if (m->taken) m->gathered = now;
    m->taken = 0;
    for (int i = 0; flows && i < WH_CLIENTS; i++) flows = m->client[i].fd < 0;
    if (!flows || m->ended) return;
    nanosleep(&pause, NULL);
    m->gathered = wh_now();
}

static void turn(struct wh_monitor *m) {
    struct epoll_event events[16];
    int n = epoll_wait(m->epoll, events, 16, patience(m)), init = 0, guests = 0;
    for (int i = 0; i < n; i++) {
        if (events[i].data.u32 == TAG_INIT) {
            look_for_oom(m);
            init = 1;
        } else if (events[i].data.u32 == TAG_LISTEN) guests = 1;
        else dispatch(m, &events[i]);
    }
    if (guests && m->listener >= 0) accept_all(m); /* last: a new client must not meet events of its place's former one */
    if (init && !m->ended) init_ended(m); /* last: its output came before */
    wh_log_flush(&m->log);
    if (n > 0) m->want_trim = 1;
    else if (n == 0 && m->want_trim) trim(m);
    gather(m);
    watch_output(m);
}

static void loop(struct wh_monitor *m) {
    while (!m->ended || (m->ended == 1 && !drain_over(m))) turn(m);
    finish(m);
    for (int left; (left = farewell(m)) != 0; turn(m)) {
        if (left == 2) hand_over(m, 1);
        wh_clients_full(m, 0); /* drops who has stalled */
    }
    hand_over(m, 0);
}

/* ---- the start ---- */

static int slot(const struct wh_monitor *m, const struct wh_record *r) {
    return r->fd0 >= 0 && r->fd0 < WH_MAX_SLOTS ? m->run.slots[r->fd0] : -1;
}

/* Before the plan runs: what can fail must fail the start. */
static int declare_log(struct wh_monitor *m, const struct wh_record *r) {
    m->log.driver = r->n0;
    m->log.path = wh_text(&m->plan, r->s0);
    if (r->n0 == WH_LOG_JOURNALD) {
        const char *field = wh_text(&m->plan, r->s1);
        for (uint64_t i = 0; i < r->n1; i++, field += strlen(field) + 1)
            if (wh_log_field(&m->log, field) < 0) return -1;
    } else {
        m->log.max = r->n1;
        m->log.files = r->n2 ? r->n2 : 1;
    }
    return wh_log_open(&m->log);
}

static int declare(struct wh_monitor *m) {
    m->log.fd = -1;
    for (uint32_t i = 0; i < m->plan.head->count; i++) {
        const struct wh_record *r = &m->plan.rec[i];
        if (r->op == WH_OP_MON_LOG && declare_log(m, r) < 0) {
            wh_report_send(m->run.report, WH_FAILED, i, errno, 0, m->log.path);
            return -1;
        }
        if (r->op == WH_OP_MON_EXIT) m->exit_dir = r;
        if (r->op == WH_OP_MON_CLEANUP) m->cleanup = r;
        if (r->op == WH_OP_MON_CLIENT) m->first = r;
    }
    return 0;
}

static void take_stdio(struct wh_monitor *m, const struct wh_record *r) {
    int fd = slot(m, r);
    if (fd < 0) return;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    if (r->flags & WH_F_TTY) {
        m->tty = 1;
        m->input = fcntl(fd, F_DUPFD_CLOEXEC, 3); /* of its own, to be watched by itself */
        m->output[0].fd = fd;
        m->peer = ioctl(fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC); /* no hang-up while init lives */
    } else if (r->n0 == 0) {
        m->input = fd;
        m->once |= r->n1 != 0;
    } else {
        m->output[r->n0 == 2].fd = fd;
    }
}

static void take_timer(struct wh_monitor *m, const struct wh_record *r) {
    if (m->timers == TIMERS) return;
    struct timer *t = &m->timer[m->timers];
    t->record = r;
    t->pidfd = -1;
    t->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (t->fd < 0) return;
    arm(t, r->n1);
    add(m, t->fd, EPOLLIN, TAG_TIMER + (uint32_t)m->timers++);
}

static void take_slots(struct wh_monitor *m) {
    for (uint32_t i = 0; i < m->plan.head->count; i++) {
        const struct wh_record *r = &m->plan.rec[i];
        if (r->op == WH_OP_MON_STDIO) take_stdio(m, r);
        else if (r->op == WH_OP_MON_ATTACH) m->listener = slot(m, r);
        else if (r->op == WH_OP_MON_OOM) {
            m->oom = slot(m, r);
            if (r->n0) m->above = oom_kills(m, "../memory.events");
        }
        else if (r->op == WH_OP_MON_KILL) m->killer = slot(m, r);
        else if (r->op == WH_OP_MON_TIMER) take_timer(m, r);
    }
}

static void begin(struct wh_monitor *m) {
    static const char *const names[] = {"stdout", "stderr"};
    const int ignored[] = {SIGPIPE, SIGHUP, SIGINT, SIGTERM};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) signal(ignored[i], SIG_IGN);
    m->epoll = epoll_create1(EPOLL_CLOEXEC);
    m->listener = m->input = m->peer = m->oom = m->killer = -1;
    m->above = -1;
    for (int i = 0; i < 2; i++) {
        m->output[i].fd = -1;
        m->output[i].line.name = names[i];
        m->output[i].line.at = lines[i];
    }
    for (int i = 0; i < WH_CLIENTS; i++) m->client[i].fd = -1;
    take_slots(m);
    add(m, m->run.pidfd, EPOLLIN, TAG_INIT);
    if (m->run.sock >= 0) add(m, m->run.sock, EPOLLIN, TAG_START);
    if (m->listener >= 0) {
        fcntl(m->listener, F_SETFL, O_NONBLOCK);
        add(m, m->listener, EPOLLIN, TAG_LISTEN);
    }
    m->want_trim = 1;
    if (m->first && slot(m, m->first) >= 0) {
        m->once |= 1;
        wh_client_add(m, slot(m, m->first), 1);
    }
    watch_output(m);
}

/* The caller reaps its child at once and never has a zombie of ours; the monitor is nobody's child but init's. */
static const char *detach(const struct wh_plan *plan) {
    const char *entered;
    pid_t pid = wh_fork_joined(plan, &entered);
    if (pid) _exit(pid < 0);
    setsid();
    umask(022);
    if (chdir("/") < 0) _exit(1);
    prctl(PR_SET_NAME, "wherry-monitor", 0, 0, 0);
    return entered;
}

int wh_role_monitor(int argc, char **argv) {
    struct wh_monitor *m = &the;
    const char *why = NULL;
    (void)argc, (void)argv;
    if (wh_plan_load(WH_PLAN_FD, &m->plan, &why) < 0) {
        wh_report_send(WH_REPORT_FD, WH_FAILED, WH_NO_RECORD, errno, 0, why);
        return 1;
    }
    const char *entered = detach(&m->plan);
    close(WH_PLAN_FD);
    wh_report_send(WH_REPORT_FD, WH_MONITOR, WH_NO_RECORD, 0, getpid(), NULL);
    wh_run_init(&m->run, &m->plan, 1);
    m->run.joined = entered;
    if (declare(m) < 0 || wh_execute(&m->plan, &m->run) < 0) return 1;
    begin(m);
    loop(m);
    return 0;
}
