/* Lines of output to a log: CRI lines, docker's JSON lines, or journald's datagrams.
 *
 * One batch buffer, one write for many lines. Rotation renames before it creates, oldest first, so that a crash at any
 * point leaves every line in some file and only a gap in the numbers.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "exec_int.h"
#include "monitor.h"

#pragma GCC optimize("O2")

#define MUTE_MS 5000 /* a journald that does not take lines is left alone for so long */

static char batch[WH_BATCH] __attribute__((aligned(4096)));
static char fields[4096] __attribute__((aligned(4096)));
static char stamp[31]; /* "2006-01-02T15:04:05.000000000Z" */
static time_t stamped;

/* Howard Hinnant's civil_from_days. */
static void civil(int64_t days, unsigned *year, unsigned *month, unsigned *day) {
    days += 719468;
    unsigned era = (unsigned)(days / 146097), doe = (unsigned)(days % 146097);
    unsigned yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    unsigned doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
    *day = doy - (153 * mp + 2) / 5 + 1;
    *month = mp < 10 ? mp + 3 : mp - 9;
    *year = yoe + era * 400 + (*month <= 2);
}

static void digits(char *at, unsigned n, int count) {
    while (count--) {
        at[count] = (char)('0' + n % 10);
        n /= 10;
    }
}

static void set_stamp(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (now.tv_sec != stamped || !stamp[0]) {
        unsigned year, month, day, second = (unsigned)(now.tv_sec % 86400);
        civil(now.tv_sec / 86400, &year, &month, &day);
        memcpy(stamp, "0000-00-00T00:00:00.000000000Z", sizeof stamp);
        digits(stamp, year, 4);
        digits(stamp + 5, month, 2);
        digits(stamp + 8, day, 2);
        digits(stamp + 11, second / 3600, 2);
        digits(stamp + 14, second / 60 % 60, 2);
        digits(stamp + 17, second % 60, 2);
        stamped = now.tv_sec;
    }
    digits(stamp + 20, (unsigned)now.tv_nsec, 9);
}

/* ---- files ---- */

/* After a crash or a full disk the last record may lack its end. */
static int ends_torn(int fd, uint64_t size) {
    char last = '\n';
    return size && pread(fd, &last, 1, (off_t)size - 1) == 1 && last != '\n';
}

/* A pod's log lies below a directory that others write to: no link there leads it anywhere else. */
static int open_path(const struct wh_log *log, int flags, mode_t mode) {
    return wh_openat2(AT_FDCWD, log->path, (uint64_t)flags, log->driver == WH_LOG_CRI ? RESOLVE_NO_SYMLINKS : 0, mode);
}

static int open_file(struct wh_log *log) {
    const int flags = O_RDWR | O_APPEND | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;
    struct stat st;
    int fd = open_path(log, flags, 0);
    if (fd < 0 && errno == ENOENT) {
        fd = open_path(log, flags | O_CREAT | O_EXCL, 0640);
        if (fd >= 0) fchmod(fd, 0640); /* whatever the umask is */
    }
    if (fd < 0) return -1;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_nlink != 1) {
        close(fd);
        errno = EINVAL;
        return -1;
    }
    log->fd = fd;
    log->size = (uint64_t)st.st_size;
    log->torn = ends_torn(fd, log->size);
    return 0;
}

static int open_journal(struct wh_log *log) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t n = strlen(log->path);
    if (n >= sizeof to.sun_path) return errno = ENAMETOOLONG, -1;
    memcpy(to.sun_path, log->path, n);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    const struct timeval patience = {.tv_sec = 1}; /* a journald that hangs must not hang us: the line is lost */
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0) {
        int err = errno;
        close(fd);
        errno = err;
        return -1;
    }
    log->fd = fd;
    return 0;
}

int wh_log_open(struct wh_log *log) {
    log->fd = -1;
    if (log->driver == WH_LOG_NONE) return 0;
    if (log->driver != WH_LOG_JOURNALD) return open_file(log);
    if (!log->path[0]) log->path = "/run/systemd/journal/socket";
    return open_journal(log);
}

int wh_log_field(struct wh_log *log, const char *field) {
    size_t n = strlen(field);
    if (log->fields + n + 1 > sizeof fields || memchr(field, '\n', n)) return errno = EINVAL, -1;
    memcpy(fields + log->fields, field, n);
    fields[log->fields + n] = '\n';
    log->fields += n + 1;
    return 0;
}

static void numbered(struct wh_buf *out, const char *path, uint64_t n) {
    wh_put(out, path);
    if (!n) return;
    wh_put(out, ".");
    wh_put_u(out, n);
}

static void rotate(struct wh_log *log) {
    static char from[4096], to[4096];
    close(log->fd);
    log->fd = -1;
    for (uint64_t n = log->files - 1; n; n--) {
        struct wh_buf a = wh_buf(from, sizeof from), b = wh_buf(to, sizeof to);
        numbered(&a, log->path, n - 1);
        numbered(&b, log->path, n);
        rename(from, to); /* ENOENT: a gap, or not so many yet */
    }
    if (log->files <= 1) unlink(log->path);
    open_file(log); /* if it fails, every flush tries again */
}

int wh_log_reopen(struct wh_log *log) {
    if (log->driver == WH_LOG_NONE || log->driver == WH_LOG_JOURNALD) return 0;
    wh_log_flush(log); /* what came before belongs to the old file */
    struct wh_log old = *log;
    if (open_file(log) < 0) {
        int err = errno;
        *log = old;
        return err;
    }
    if (old.fd >= 0) close(old.fd);
    return 0;
}

/* Writes part of the batch; on an error the rest of it is lost, and the next record starts a line of its own. */
static void write_out(struct wh_log *log, size_t n) {
    if (log->fd < 0 && open_file(log) < 0) return;
    if (log->torn) {
        if (write(log->fd, "\n", 1) != 1) return;
        log->torn = 0;
        log->size++;
    }
    for (size_t at = 0; at < n;) {
        ssize_t done = write(log->fd, batch + at, n - at);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) {
            log->torn = at && batch[at - 1] != '\n';
            return;
        }
        at += (size_t)done;
        log->size += (uint64_t)done;
    }
}

void wh_log_flush(struct wh_log *log) {
    if (!log->used) return;
    write_out(log, log->used);
    log->used = 0;
}

/* The record from `start` on is complete; the file may be full before it. */
static void commit(struct wh_log *log, size_t start, size_t end) {
    log->used = end;
    if (!log->max || log->size + end <= log->max || log->size + start == 0) return;
    write_out(log, start);
    if (log->size) rotate(log);
    memmove(batch, batch + start, end - start);
    log->used = end - start;
}

static char *put(char *to, const char *from, size_t n) {
    memcpy(to, from, n);
    return to + n;
}
/* a size that the compiler knows: no call */
#define FIXED(to, from, n) (__builtin_memcpy(to, from, n), (to) + (n))
#define LITERAL(to, text) FIXED(to, text, sizeof(text) - 1)

/* ---- CRI: time stream F|P line ---- */
static void cri(struct wh_log *log, const struct wh_line *line, const char *text, size_t n, int full) {
    if (WH_BATCH - log->used < n + 64) wh_log_flush(log);
    size_t start = log->used;
    char *to = FIXED(batch + start, stamp, 30);
    *to++ = ' ';
    to = FIXED(to, line->name, 6);
    to = full ? LITERAL(to, " F ") : LITERAL(to, " P ");
    to = put(to, text, n);
    *to++ = '\n';
    commit(log, start, (size_t)(to - batch));
}

/* ---- docker's json-file ---- */

/* Bytes of the valid UTF-8 sequence at p (RFC 3629), 0 if it is none. */
static size_t utf8(const unsigned char *p, size_t n) {
    unsigned char c = p[0], low = 0x80, high = 0xBF;
    size_t more = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : 1;
    if (c < 0xC2 || c > 0xF4 || n <= more) return 0;
    if (c == 0xE0) low = 0xA0;
    if (c == 0xED) high = 0x9F; /* surrogates */
    if (c == 0xF0) low = 0x90;
    if (c == 0xF4) high = 0x8F;
    if (p[1] < low || p[1] > high) return 0;
    for (size_t i = 2; i <= more; i++)
        if ((p[i] & 0xC0) != 0x80) return 0;
    return more + 1;
}

static char *escape(char *to, unsigned char c) {
    static const char hex[] = "0123456789abcdef", plain[] = "\"\\\n\r\t", word[] = "\"\\nrt";
    const char *found = c ? strchr(plain, c) : NULL;
    *to++ = '\\';
    if (found) {
        *to++ = word[found - plain];
        return to;
    }
    to = LITERAL(to, "u00");
    *to++ = hex[c >> 4];
    *to++ = hex[c & 15];
    return to;
}

#define BYTES(c) (0x0101010101010101u * (c))

/* Whether a byte of the word wants escaping: above 0x7f, below 0x20, a quote or a backslash. */
static int wants_escape(uint64_t w) {
    uint64_t quote = w ^ BYTES('"'), slash = w ^ BYTES('\\');
    return (w | (w - BYTES(0x20)) | (quote - BYTES(1)) | (slash - BYTES(1))) & BYTES(0x80) ? 1 : 0;
}

/* Eight plain bytes at a time. */
static size_t plain_run(char *to, const unsigned char *p, size_t n) {
    size_t i = 0;
    for (uint64_t w; i + 8 <= n; i += 8) {
        __builtin_memcpy(&w, p + i, 8);
        if (wants_escape(w)) break;
        __builtin_memcpy(to + i, &w, 8);
    }
    return i;
}

/* At most six bytes for one. */
static char *json_text(char *to, const unsigned char *p, size_t n) {
    for (size_t i = 0; i < n;) {
        size_t run = plain_run(to, p + i, n - i);
        to += run;
        i += run;
        if (i == n) break;
        unsigned char c = p[i];
        if (c < 0x80) {
            if (c >= 0x20 && c != '"' && c != '\\') *to++ = (char)c;
            else to = escape(to, c);
            i++;
            continue;
        }
        size_t length = utf8(p + i, n - i);
        if (length) to = put(to, (const char *)p + i, length);
        else to = LITERAL(to, "\\ufffd");
        i += length ? length : 1;
    }
    return to;
}

static void json(struct wh_log *log, const struct wh_line *line, const char *text, size_t n, int full) {
    if (WH_BATCH - log->used < 6 * n + 128) wh_log_flush(log);
    size_t start = log->used;
    char *to = LITERAL(batch + start, "{\"log\":\"");
    to = json_text(to, (const unsigned char *)text, n);
    if (full) to = LITERAL(to, "\\n");
    to = LITERAL(to, "\",\"stream\":\"");
    to = FIXED(to, line->name, 6);
    to = LITERAL(to, "\",\"time\":\"");
    to = FIXED(to, stamp, 30);
    to = LITERAL(to, "\"}\n");
    commit(log, start, (size_t)(to - batch));
}

/* ---- journald: native protocol, one datagram a line ---- */
static void journal(struct wh_log *log, const struct wh_line *line, const char *text, size_t n, int full) {
    static const char out[] = "PRIORITY=6\n", err[] = "PRIORITY=3\n", part[] = "CONTAINER_PARTIAL_MESSAGE=true\n";
    int is_err = line->name[3] == 'e';
    struct iovec iov[] = {
        {(void *)(is_err ? err : out), sizeof out - 1},
        {fields, log->fields},
        {(void *)part, full ? 0 : sizeof part - 1},
        {(void *)"MESSAGE=", 8},
        {(void *)text, n},
        {(void *)"\n", 1},
    };
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 6};
    if (log->mute && wh_now() < log->mute) return;
    if (log->fd >= 0 && sendmsg(log->fd, &message, MSG_NOSIGNAL) >= 0) return;
    /* journald was restarted: its socket is a new one */
    if (log->fd >= 0) close(log->fd);
    log->fd = -1;
    log->mute = 0;
    if (open_journal(log) < 0 || sendmsg(log->fd, &message, MSG_NOSIGNAL) < 0) log->mute = wh_now() + MUTE_MS;
}

static void record(struct wh_log *log, struct wh_line *line, const char *text, size_t n, int full) {
    if (log->driver == WH_LOG_CRI) cri(log, line, text, n, full);
    else if (log->driver == WH_LOG_JSON) json(log, line, text, n, full);
    else journal(log, line, text, n, full);
    line->parted = !full;
}

/* A part of a line does not end inside a character: at most three bytes wait for the next part. */
static size_t part_of(const char *text, size_t n) {
    for (size_t back = 1; back <= 3 && back < n; back++) {
        unsigned char c = (unsigned char)text[n - back];
        if ((c & 0xC0) == 0x80) continue;
        size_t want = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC0 ? 2 : 1;
        return want > back ? n - back : n;
    }
    return n;
}

/* Adds to the line so far; what is more than a line may hold goes out as a part. */
static void collect(struct wh_log *log, struct wh_line *line, const char *data, size_t n) {
    while (n) {
        if (line->used == WH_LINE_MAX) {
            size_t part = part_of(line->at, WH_LINE_MAX);
            record(log, line, line->at, part, 0);
            line->used -= part;
            memmove(line->at, line->at + part, line->used);
        }
        size_t take = WH_LINE_MAX - line->used;
        if (take > n) take = n;
        memcpy(line->at + line->used, data, take);
        line->used += take;
        data += take;
        n -= take;
    }
}

void wh_log_feed(struct wh_log *log, struct wh_line *line, const char *data, size_t n) {
    if (log->driver == WH_LOG_NONE || !n) return;
    set_stamp();
    for (const char *end = data + n, *stop; data < end; data = stop + 1) {
        stop = memchr(data, '\n', (size_t)(end - data));
        size_t length = (size_t)((stop ? stop : end) - data);
        if (stop && !line->used && length <= WH_LINE_MAX) {
            record(log, line, data, length, 1);
            continue;
        }
        collect(log, line, data, length);
        if (!stop) return;
        record(log, line, line->at, line->used, 1);
        line->used = 0;
    }
}

void wh_log_end(struct wh_log *log, struct wh_line *line) {
    if (log->driver == WH_LOG_NONE || (!line->used && !line->parted)) return;
    set_stamp();
    record(log, line, line->at, line->used, 1);
    line->used = 0;
}

void wh_log_trim(void) { madvise(batch, sizeof batch, MADV_DONTNEED); }
