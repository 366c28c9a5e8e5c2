/* Text without stdio: bounded building, numbers, whole writes, reports. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "exec.h"

struct wh_buf wh_buf(char *at, size_t room) {
    at[0] = 0;
    return (struct wh_buf){at, room, 0};
}

void wh_put_n(struct wh_buf *b, const char *s, size_t n) {
    size_t left = b->room - b->used - 1;
    if (n > left) n = left;
    memcpy(b->at + b->used, s, n);
    b->used += n;
    b->at[b->used] = 0;
}

void wh_put(struct wh_buf *b, const char *s) { wh_put_n(b, s, strlen(s)); }

void wh_put_u(struct wh_buf *b, uint64_t n) {
    char digits[20];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + n % 10);
    while (n /= 10);
    wh_put_n(b, digits + at, sizeof digits - at);
}

int wh_write_all(int fd, const void *data, size_t n) {
    const char *p = data;
    while (n) {
        ssize_t done = write(fd, p, n);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return -1;
        p += done;
        n -= (size_t)done;
    }
    return 0;
}

int wh_report_send(int fd, uint32_t stage, uint32_t index, int err, pid_t pid, const char *detail) {
    struct wh_report report = {.magic = WH_MAGIC, .stage = stage, .index = index, .err = err, .pid = pid};
    struct wh_buf b = wh_buf(report.detail, sizeof report.detail);
    if (detail) wh_put(&b, detail);
    return fd < 0 ? 0 : wh_write_all(fd, &report, sizeof report);
}
