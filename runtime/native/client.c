/* Attached clients: what they send is parsed here, what they get is queued here.
 *
 * A queue is a ring in memory that is mapped when a client is slow for the first time. Nothing here waits for a client.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "monitor.h"

#define HEARD 64 /* chunks that a client may have on the way at the end: far above a socket's buffer */

static char scratch[WH_CHUNK] __attribute__((aligned(4096)));

/* A client's input waits while standard input is full. Nothing to wait for: out of the set, for a hang-up would wake us
 * again and again before what was sent ahead of it can be taken. */
static void watch(struct wh_monitor *m, struct wh_client *c) {
    uint32_t want = (c->used ? EPOLLOUT : 0) | (wh_input_busy(m) ? 0 : EPOLLIN);
    struct epoll_event event = {.events = want, .data.u32 = WH_TAG_CLIENT + (uint32_t)(c - wh_clients(m))};
    int how = !want ? EPOLL_CTL_DEL : c->watching ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (want || c->watching) epoll_ctl(wh_epoll(m), how, c->fd, &event);
    c->watching = want != 0;
}

static void deafen(struct wh_client *c) {
    c->deaf = 1;
    c->used = 0;
}

void wh_clients_listen(struct wh_monitor *m) {
    for (struct wh_client *c = wh_clients(m); c < wh_clients(m) + WH_CLIENTS; c++)
        if (c->fd >= 0) watch(m, c);
}

void wh_client_drop(struct wh_monitor *m, struct wh_client *c) {
    if (c->fd < 0) return;
    close(c->fd);
    if (c->queue) munmap(c->queue, WH_QUEUE);
    int first = c->first;
    memset(c, 0, sizeof *c);
    c->fd = -1;
    if (!first) return;
    wh_input_end(m);
    wh_first_gone(m);
}

/* ---- to the client ---- */

static int enqueue(struct wh_client *c, const char *data, size_t n) {
    if (!c->queue) {
        void *at = mmap(NULL, WH_QUEUE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) return -1;
        c->queue = at;
    }
    if (n > WH_QUEUE - c->used) return -1;
    size_t to = (c->at + c->used) % WH_QUEUE, run = WH_QUEUE - to;
    if (run > n) run = n;
    memcpy(c->queue + to, data, run);
    memcpy(c->queue, data + run, n - run);
    c->used += n;
    return 0;
}

static ssize_t send_iov(int fd, struct iovec *iov, size_t count) {
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = count};
    return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Sends what is queued. */
static int flush(struct wh_client *c) {
    while (c->used) {
        size_t run = WH_QUEUE - c->at;
        if (run > c->used) run = c->used;
        struct iovec iov[2] = {{c->queue + c->at, run}, {c->queue, c->used - run}};
        ssize_t done = send_iov(c->fd, iov, 2);
        if (done < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
        c->at = (c->at + (size_t)done) % WH_QUEUE;
        c->used -= (size_t)done;
        c->moved = wh_now();
    }
    c->at = 0; /* the same pages again next time */
    return 0;
}

static int send_frame(struct wh_client *c, int type, const char *data, size_t n) {
    unsigned char head[8] = {(unsigned char)type, 0, 0, 0, (unsigned char)(n >> 24), (unsigned char)(n >> 16),
                             (unsigned char)(n >> 8), (unsigned char)n};
    size_t done = 0;
    if (!c->used) {
        struct iovec iov[2] = {{head, sizeof head}, {(void *)data, n}};
        ssize_t sent = send_iov(c->fd, iov, 2);
        if (sent < 0 && errno != EAGAIN && errno != EINTR) return -1;
        done = sent > 0 ? (size_t)sent : 0;
        c->moved = wh_now();
    }
    if (done < sizeof head && enqueue(c, (char *)head + done, sizeof head - done) < 0) return -1;
    size_t from = done > sizeof head ? done - sizeof head : 0;
    return from < n ? enqueue(c, data + from, n - from) : 0;
}

void wh_clients_send(struct wh_monitor *m, int type, const char *data, size_t n) {
    for (struct wh_client *c = wh_clients(m); c < wh_clients(m) + WH_CLIENTS; c++) {
        if (c->fd < 0 || c->mute || c->deaf || (c->quiet && type != WH_EXIT)) continue;
        size_t before = c->used;
        if (send_frame(c, type, data, n) < 0) deafen(c);
        if (!before != !c->used) watch(m, c);
    }
}

int wh_clients_full(struct wh_monitor *m, size_t limit) {
    int full = 0;
    for (struct wh_client *c = wh_clients(m); c < wh_clients(m) + WH_CLIENTS; c++) {
        if (c->fd < 0 || c->used <= limit) continue;
        if (!c->first && wh_now() - c->moved >= WH_STALL_MS) wh_client_drop(m, c);
        else full = 1;
    }
    return full;
}

/* ---- from the client ---- */

static int answer(struct wh_client *c, int type, int number) {
    char payload[4] = {(char)(number >> 24), (char)(number >> 16), (char)(number >> 8), (char)number};
    return send_frame(c, type, payload, sizeof payload);
}

static int control(struct wh_monitor *m, struct wh_client *c) {
    switch (c->head[0]) {
    case WH_EOF:
        if (wh_stdin_once(m)) wh_input_end(m);
        return 0;
    case WH_RESIZE:
        wh_resize(m, c->control[0] << 8 | c->control[1], c->control[2] << 8 | c->control[3]);
        return 0;
    case WH_CLAIM: c->claimed = 1; return 0;
    case WH_DONE: wh_settled(m); return 0;
    case WH_QUIET: c->quiet = 1; return 0;
    case WH_REOPEN: return answer(c, WH_REOPEN, wh_reopen_log(m));
    default: return -1;
    }
}

/* A header is complete: -1 if no client of ours would send it. */
static int begin(struct wh_monitor *m, struct wh_client *c) {
    const uint8_t *h = c->head;
    c->left = (uint32_t)h[4] << 24 | (uint32_t)h[5] << 16 | (uint32_t)h[6] << 8 | h[7];
    c->control_used = 0;
    if (h[0] == WH_STDIN) return 0;
    if (c->left != (h[0] == WH_RESIZE ? 4 : 0)) return -1;
    return c->left ? 0 : control(m, c);
}

static int payload(struct wh_monitor *m, struct wh_client *c, const char *data, size_t n) {
    c->left -= (uint32_t)n;
    if (c->head[0] == WH_STDIN) {
        if (wh_stdin_unclaimed(m)) c->first = 1;
        wh_input(m, data, n);
        return 0;
    }
    memcpy(c->control + c->control_used, data, n);
    c->control_used = (uint8_t)(c->control_used + n);
    return c->left ? 0 : control(m, c);
}

static int parse(struct wh_monitor *m, struct wh_client *c, const char *data, size_t n) {
    while (n) {
        size_t take;
        if (c->left) {
            take = c->left < n ? c->left : n;
            if (payload(m, c, data, take) < 0) return -1;
        } else {
            take = sizeof c->head - c->head_used;
            if (take > n) take = n;
            memcpy(c->head + c->head_used, data, take);
            c->head_used = (uint8_t)(c->head_used + take);
            if (c->head_used == sizeof c->head) {
                c->head_used = 0;
                if (begin(m, c) < 0) return -1;
            }
        }
        data += take;
        n -= take;
    }
    return 0;
}

/* One read. 1: perhaps more; 0: no more now; -1: drop the client. */
static int receive(struct wh_monitor *m, struct wh_client *c) {
    ssize_t n = recv(c->fd, scratch, sizeof scratch, MSG_DONTWAIT);
    if (n < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
    if (n == 0) return -1;
    return parse(m, c, scratch, (size_t)n) < 0 ? -1 : (size_t)n == sizeof scratch;
}

void wh_client_event(struct wh_monitor *m, struct wh_client *c, uint32_t events) {
    if (c->fd < 0) return;
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR) && flush(c) < 0) deafen(c);
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR) && !wh_input_busy(m) && receive(m, c) < 0) wh_client_drop(m, c);
    else watch(m, c);
}

/* What has arrived already: a claim sent long ago must not be overtaken by the container's end. */
void wh_clients_hear(struct wh_monitor *m) {
    for (struct wh_client *c = wh_clients(m); c < wh_clients(m) + WH_CLIENTS; c++) {
        int more = c->fd >= 0;
        for (int turn = 0; more > 0 && turn < HEARD; turn++) more = receive(m, c); /* it may send without an end */
        if (more < 0) wh_client_drop(m, c);
    }
}

void wh_client_add(struct wh_monitor *m, int fd, int first) {
    struct wh_client *c = wh_clients(m);
    while (c < wh_clients(m) + WH_CLIENTS && c->fd >= 0) c++;
    if (c == wh_clients(m) + WH_CLIENTS) {
        close(fd);
        return;
    }
    memset(c, 0, sizeof *c);
    c->fd = fd;
    c->first = (uint8_t)first;
    c->moved = wh_now();
    if (send_frame(c, WH_ACK, "started", 7) < 0) deafen(c); /* gone again, but perhaps not without a word */
    watch(m, c);
}

void wh_clients_trim(struct wh_monitor *m) {
    madvise(scratch, sizeof scratch, MADV_DONTNEED);
    for (struct wh_client *c = wh_clients(m); c < wh_clients(m) + WH_CLIENTS; c++) {
        if (!c->queue || c->used) continue;
        munmap(c->queue, WH_QUEUE);
        c->queue = NULL;
    }
}
