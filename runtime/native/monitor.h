/* The monitor role in parts: log.c (lines to files), client.c (attached clients), monitor.c (the loop, the end).
 *
 * Memory is the design's measure: no heap, static buffers that cost nothing until touched and are given back when idle.
 *
 * Frames of the attach socket, both ways: type u8, three zero bytes, length u32 big endian, payload.
 *
 *   to the client    STDOUT, STDERR  bytes          ACK   "started", once at the start
 *                    REOPEN          errno u32 big endian: 0, the log goes on in a new file
 *                    EXIT            code i32 big endian (docker's: 128 + n by signal), oom u8; then nothing more
 *   from the client  STDIN           bytes          RESIZE rows u16, columns u16, big endian
 *                    EOF             closes standard input where it was opened for one client (see WH_STDIN_ONCE)
 *                    CLAIM           "I will do the cleanup"     DONE "and have done it"
 *                    QUIET           no output is sent to this client: one that stops or waits need not read
 *                    REOPEN          "the log's file was renamed": the next line goes to a new one at the same path
 *
 * Standard input belongs to one client ("once") where the plan names a first client, or says so (then the first that
 * sends some): its EOF, or its end, is the end of the input, as docker's StdinOnce. Else it stays open for whoever
 * attaches next.
 */
#ifndef WH_MONITOR_H
#define WH_MONITOR_H
#include <stddef.h>
#include <stdint.h>

#include "exec.h"

enum { WH_STDIN, WH_STDOUT, WH_STDERR, WH_EXIT, WH_ACK, WH_EOF, WH_RESIZE, WH_CLAIM, WH_DONE, WH_QUIET, WH_REOPEN };

#define WH_CHUNK 65536      /* one read of output, one read from a client */
#define WH_LINE_MAX 16384   /* a longer line is logged in parts */
#define WH_BATCH (160 << 10) /* log bytes collected for one write; holds any one record (JSON: six times a line) */

/* ---- log.c ---- */
struct wh_log {
    uint64_t driver;   /* WH_LOG_* */
    const char *path;  /* journald: its socket */
    uint64_t max;      /* bytes a file, 0: unbounded */
    uint64_t files;    /* kept, this one counted */
    int fd;
    int torn;          /* a write stopped inside a record: start the next on a new line */
    uint64_t size;     /* of the file */
    size_t used;       /* of the batch */
    size_t fields;     /* bytes of journald fields */
    int64_t mute;      /* ms: until then journald gets nothing */
};
struct wh_line {
    const char *name;  /* "stdout", "stderr" */
    char *at;          /* WH_LINE_MAX bytes: the line so far */
    size_t used;
    int parted;        /* earlier parts of this line are logged */
};
/* Opens the file (O_NOFOLLOW, regular) or connects; -1 with errno. */
int wh_log_open(struct wh_log *log);
/* journald: adds FIELD=value to every message; -1 if it cannot be. */
int wh_log_field(struct wh_log *log, const char *field);
/* Goes on in a new file at the same path, where there may be one already; no line is lost or torn apart. On an error (the
 * errno is returned) it goes on in the old one. */
int wh_log_reopen(struct wh_log *log);
/* Takes output in; whole lines go to the batch. */
void wh_log_feed(struct wh_log *log, struct wh_line *line, const char *data, size_t n);
/* The stream has ended: its last line may have no newline. */
void wh_log_end(struct wh_log *log, struct wh_line *line);
/* Writes the batch. Errors drop lines: a full disk must not stop the container. */
void wh_log_flush(struct wh_log *log);
/* Gives the buffers' memory back; the batch must be flushed. */
void wh_log_trim(void);

/* ---- client.c ---- */
#define WH_CLIENTS 32
#define WH_QUEUE (1 << 20)    /* room of a client's queue: memory only as far as it is used */
#define WH_QUEUE_PAUSE (192 << 10) /* above this the container's output is not read (with one chunk: 256 KiB a client) */
#define WH_STALL_MS 10000     /* an additional client that takes nothing for so long is dropped */

struct wh_client {
    int fd; /* -1: free */
    uint8_t first, claimed, watching, quiet;
    uint8_t mute; /* it has its EXIT: nothing more is sent */
    uint8_t deaf; /* it does not read any more; what it sent still counts */
    uint8_t head[8], head_used, control[4], control_used;
    uint32_t left; /* payload bytes of the frame to come */
    char *queue;   /* ring, mapped when first needed */
    size_t at, used;
    int64_t moved; /* ms, when it last took something */
};

/* What clients ask of the monitor. */
struct wh_monitor;
void wh_input(struct wh_monitor *m, const char *data, size_t n); /* at most a chunk while not busy: all of it is taken */
int wh_input_busy(const struct wh_monitor *m);
void wh_input_end(struct wh_monitor *m);
void wh_resize(struct wh_monitor *m, unsigned rows, unsigned cols);
int wh_epoll(const struct wh_monitor *m);
struct wh_client *wh_clients(struct wh_monitor *m);
void wh_settled(struct wh_monitor *m); /* DONE: the cleanup has been done */
int wh_stdin_once(const struct wh_monitor *m);
int wh_stdin_unclaimed(const struct wh_monitor *m); /* for one client, and no plan names it */
int wh_reopen_log(struct wh_monitor *m);
void wh_first_gone(struct wh_monitor *m); /* the first client has hung up: init may be tied to it */
int64_t wh_now(void); /* ms, monotonic */

#define WH_TAG_CLIENT 64 /* epoll data of client i: WH_TAG_CLIENT + i */

void wh_client_add(struct wh_monitor *m, int fd, int first);
void wh_client_event(struct wh_monitor *m, struct wh_client *c, uint32_t events);
void wh_client_drop(struct wh_monitor *m, struct wh_client *c);
void wh_clients_send(struct wh_monitor *m, int type, const char *data, size_t n);
void wh_clients_listen(struct wh_monitor *m); /* standard input has become busy, or free again */
void wh_clients_hear(struct wh_monitor *m);
void wh_clients_trim(struct wh_monitor *m);
/* Whether some client's queue is above `limit`; drops additional clients that have stalled. */
int wh_clients_full(struct wh_monitor *m, size_t limit);
#endif
