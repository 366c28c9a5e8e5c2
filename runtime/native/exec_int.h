/* Between the executor's files only. Handlers return 0 or -1 with errno, and may say more in run->detail. */
#ifndef WH_EXEC_INT_H
#define WH_EXEC_INT_H
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "exec.h"

typedef int wh_handler(struct wh_run *run, const struct wh_record *r);
#define OP(name, sides, text) wh_handler wh_do_##name;
#include "ops.def"
#undef OP

enum { WH_RUNNING, WH_EXECING, WH_BROKEN };

/* The child writes here without a system call, because its seccomp filter may forbid any. */
struct wh_shared {
    int pid; /* the child as the host sees it, put there by clone3 before the child runs */
    volatile int listener; /* seccomp listener in the child, to be fetched; -1 */
    volatile int taken;
    volatile int state;
    volatile uint32_t at; /* record that the child is in */
    volatile int err;
    char detail[104];
};

static inline const char *s0(const struct wh_run *run, const struct wh_record *r) { return wh_text(run->plan, r->s0); }
static inline const char *s1(const struct wh_run *run, const struct wh_record *r) { return wh_text(run->plan, r->s1); }
static inline const char *s2(const struct wh_run *run, const struct wh_record *r) { return wh_text(run->plan, r->s2); }
static inline int slot(const struct wh_run *run, int32_t k) { return k < 0 ? -1 : run->slots[k]; }
static inline int fail(int err) {
    errno = err;
    return -1;
}

/* exec.c */
int wh_slot_put(struct wh_run *run, int32_t k, int fd); /* takes fd, or passes -1 on */
void wh_say(struct wh_run *run, const char *a, const char *b); /* detail = a b; keeps errno */
void wh_close_keep(int fd);                                    /* close without touching errno */
int wh_send_fd(int sock, const char *payload, size_t n, int fd);
int wh_has_op(const struct wh_plan *plan, uint16_t op);

/* exec_sync.c */
enum wh_await { WH_AWAIT_SYNC, WH_AWAIT_WAIT, WH_AWAIT_FD, WH_AWAIT_EXEC };
int wh_await(struct wh_run *run, enum wh_await what); /* AWAIT_FD: returns it */
int wh_child_post(struct wh_run *run, char kind, int fd);
int wh_child_wait(struct wh_run *run); /* for the parent's 'G' */
void wh_child_fail(struct wh_run *run, uint32_t index) __attribute__((noreturn));
int wh_deathsig(struct wh_run *run, int signal);

/* exec_cgroup.c, exec_host.c */
void wh_undo(struct wh_run *run);
int wh_pid_text(const struct wh_run *run, const char *in, char *out, size_t room); /* %p outside of quotes -> pid */
void wh_child_path(const struct wh_run *run, struct wh_buf *b);                    /* /proc/<child or self> */

/* exec_mount.c */
void wh_trees_early(struct wh_run *run); /* before a clone into a new user namespace */

/* exec_hook.c: argv[0] is replaced by nothing; input may be NULL. detail gets the last line of output */
int wh_spawn(struct wh_run *run, const char *path, const char *const *argv, const char *const *env, const char *input,
             uint64_t timeout_ms);

/* exec_proc.c: PATH of env is searched where the file has no slash. Returns only on failure */
int wh_exec_search(const char *file, char *const *argv, char *const *env);
void wh_reset_signals(void);

/* path.c */
int wh_openat2(int dir, const char *path, uint64_t flags, uint64_t resolve, uint64_t mode);
int wh_open_in(int root, const char *path, uint64_t flags, uint64_t extra); /* RESOLVE_IN_ROOT | NO_MAGICLINKS | extra */
int wh_mkdirs(int root, const char *path, mode_t mode, int *made);          /* O_PATH of the directory */
int wh_parent(int root, const char *path, char *name, size_t room);         /* parents made; O_PATH; last component */
int wh_is_fs(int fd, long magic);
#endif
