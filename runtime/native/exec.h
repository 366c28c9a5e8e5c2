/* What the roles share: a loaded plan, a run of it, and the few helpers every file uses.
 *
 * The helper is freestanding: libc.c holds the C library that it links (raw system calls behind the usual names), because a
 * static glibc costs 0.7 MiB of memory a monitor. Headers are glibc's; what libc.c does not define does not link.
 * So: no stdio, no malloc, no locale. Static buffers, direct calls, text.c for numbers.
 */
#ifndef WH_EXEC_H
#define WH_EXEC_H
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "plan.h"

#define WH_NO_RECORD UINT32_MAX /* wh_report.index where no record is at fault */

struct wh_plan {
    const struct wh_header *head;
    const struct wh_record *rec; /* head->count of them */
    const char *arena;
    size_t size; /* of the mapping */
};

/* Checks seals and every offset; -1 with errno, and *why for people. The descriptor may be closed afterwards. */
int wh_plan_load(int fd, struct wh_plan *plan, const char **why);
/* Text at an arena offset; the next string of a list is s + strlen(s) + 1. */
static inline const char *wh_text(const struct wh_plan *plan, uint32_t offset) { return plan->arena + offset; }
/* A list as a NULL-terminated vector into `out` (room for `room` pointers, one for the NULL); -1 if it does not fit. */
int wh_vector(const struct wh_plan *plan, uint32_t offset, uint64_t count, const char **out, size_t room);

struct wh_shared; /* one page that parent and child see: exec_sync.c */

struct wh_run {
    /* in */
    int stays;  /* 1: the monitor role; the child keeps its parent-death guard until EXEC */
    int report; /* WH_REPORT_FD, or -1; closed and -1 once nothing more will be reported */
    /* out */
    pid_t pid;                /* the child, in the helper's pid namespace; 0 before CLONE */
    int pidfd;                /* of the child; -1 */
    int slots[WH_MAX_SLOTS];  /* -1: empty. After success only slots that a monitor record (fd0) names are open */
    int sock;                 /* still open (>= 0) only where the child waits at WAIT_START: see wh_collect */
    uint32_t failed;          /* record at fault */
    int err;
    char detail[104];
    /* of the executor */
    const struct wh_plan *plan;
    struct wh_shared *shared;
    int in_child, arrived, stash[8], stashed;
    int deathsig, wish, umask_set, ready, procfd, self; /* deathsig: in force; wish: what the plan wants to stay */
    int start_slot;           /* of the fifo that WAIT_START read from; -1: it has not, or there is none */
    mode_t umask;
    int root_at;                       /* where ROOT goes, opened before the ids change; -1 */
    uint8_t early[WH_MAX_OPS / 8];     /* TREE records that the host has carried out already: exec_mount.c */
    struct { int target, source; } late[64]; /* STDIO of descriptors above 2, done at EXEC */
    int late_count;
    struct { const char *path; uint32_t from; } made[64]; /* cgroup directories to take away again: exec_cgroup.c */
    int made_count;
    int32_t fresh;                         /* slot of the resctrl group that was made here; -1 */
    uint64_t cpus[128];                    /* the helper's own, before CPUS changed them */
    size_t cpus_size;                      /* bytes of them; 0: unchanged */
    const char *joined, *hook_state, *pidfile;
};

/* fork(2), but into the leaf cgroup of the plan's CGROUP_JOIN where it exists; *entered is for run->joined. */
pid_t wh_fork_joined(const struct wh_plan *plan, const char **entered);

/* Fills a run (slots from WH_FIRST_FD on); `stays` as above. */
void wh_run_init(struct wh_run *run, const struct wh_plan *plan, int stays);

/* Carries the plan out. 0: the host's records are done, the child runs (or waits at WAIT_START). -1: the child is dead and
 * reaped, what was made is undone, WH_FAILED is reported, run->err says why. Never returns in the child. */
int wh_execute(struct wh_plan *plan, struct wh_run *run);

/* For a monitor whose child waits at WAIT_START: call when run->sock is readable.
 * 1: it has exec'd, 0: not yet, -1: it failed (run->failed, err, detail). After 1 and -1 sock is closed and -1. */
int wh_collect(struct wh_plan *plan, struct wh_run *run);

/* Sends one struct wh_report (detail may be NULL); ignores errors: the reader may be gone. */
int wh_report_send(int fd, uint32_t stage, uint32_t index, int err, pid_t pid, const char *detail);

/* Roles: argv[0] is the role's name. Return an exit status. */
int wh_role_launch(int argc, char **argv);
int wh_role_monitor(int argc, char **argv);
int wh_role_unpack(int argc, char **argv);
int wh_role_init(int argc, char **argv);
int wh_role_front(int argc, char **argv); /* front.c: under any other name */

/* text.c: a bounded text builder; it never overflows and always ends in NUL. */
struct wh_buf {
    char *at;
    size_t room, used;
};
struct wh_buf wh_buf(char *at, size_t room);
void wh_put(struct wh_buf *b, const char *s);
void wh_put_n(struct wh_buf *b, const char *s, size_t n);
void wh_put_u(struct wh_buf *b, uint64_t n); /* decimal */
int wh_write_all(int fd, const void *data, size_t n);
#endif
