/* Records of the host side, and those that both sides know: descriptors, namespaces, the child's /proc, pid file. */
#define _GNU_SOURCE
#include <linux/magic.h>
#include <sched.h>
#include <stdio.h> /* rename */
#include <sys/stat.h>

#include "exec_int.h"

/* A name in a container's root may lead to any file by now: what was opened is looked at, and not used if it is another. */
static int only(int fd, uint64_t device) {
    struct stat st;
    if (fd < 0 || (!fstat(fd, &st) && S_ISCHR(st.st_mode) && st.st_rdev == device)) return fd;
    close(fd);
    return fail(ENODEV);
}

int wh_do_OPEN(struct wh_run *run, const struct wh_record *r) {
    int fd, flags = (int)r->n0 | O_CLOEXEC | O_NOCTTY;
    wh_say(run, s0(run, r), "");
    if (r->fd1 < 0) fd = open(s0(run, r), flags, 0600);
    else fd = wh_openat2(slot(run, r->fd1), s0(run, r), (uint64_t)flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
                         flags & O_CREAT ? 0600 : 0);
    return wh_slot_put(run, r->fd0, r->n1 ? only(fd, r->n1) : fd);
}

int wh_do_CLOSE(struct wh_run *run, const struct wh_record *r) {
    if (slot(run, r->fd0) >= 0) close(run->slots[r->fd0]);
    if (r->fd0 >= 0) run->slots[r->fd0] = -1;
    return 0;
}

int wh_do_SETNS(struct wh_run *run, const struct wh_record *r) {
    if (setns(slot(run, r->fd0), (int)r->n0) < 0) return -1;
    return run->in_child ? wh_deathsig(run, run->deathsig) : 0; /* a change of user namespace clears it */
}

int wh_do_UNSHARE(struct wh_run *run, const struct wh_record *r) {
    if (unshare((int)r->n0) < 0) return -1;
    return run->in_child ? wh_deathsig(run, run->deathsig) : 0;
}

void wh_child_path(const struct wh_run *run, struct wh_buf *b) {
    wh_put(b, "/proc/");
    if (run->pid > 0) wh_put_u(b, (uint64_t)run->pid);
    else wh_put(b, "self");
}

/* Before the clone it is the helper's own file (time_for_children has offsets then). */
int wh_do_PROC_WRITE(struct wh_run *run, const struct wh_record *r) {
    char path[64];
    struct wh_buf b = wh_buf(path, sizeof path);
    wh_child_path(run, &b);
    int dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) return -1;
    int fd = wh_is_fs(dir, PROC_SUPER_MAGIC) < 0 ? -1 : openat(dir, s0(run, r), O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
    wh_close_keep(dir);
    if (fd < 0) return -1;
    size_t n = strlen(s1(run, r)); /* maps must come in one write */
    ssize_t done = write(fd, s1(run, r), n);
    wh_close_keep(fd);
    return done < 0 ? -1 : (size_t)done == n ? 0 : fail(EIO);
}

int wh_do_PIDFILE(struct wh_run *run, const struct wh_record *r) {
    char temporary[4096], digits[24];
    struct wh_buf b = wh_buf(temporary, sizeof temporary), d = wh_buf(digits, sizeof digits);
    wh_put(&b, s0(run, r));
    wh_put(&b, ".wherry-");
    wh_put_u(&d, (uint64_t)run->pid);
    wh_put(&b, digits);
    if (b.used + 1 >= sizeof temporary) return fail(ENAMETOOLONG);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0) return -1;
    int done = wh_write_all(fd, digits, d.used);
    wh_close_keep(fd);
    if (done < 0 || rename(temporary, s0(run, r)) < 0) {
        int err = errno;
        unlink(temporary);
        return fail(err);
    }
    run->pidfile = s0(run, r);
    return 0;
}

/* Writes the pid where %p stands outside of a JSON string: text of the config cannot be taken for it. */
int wh_pid_text(const struct wh_run *run, const char *in, char *out, size_t room) {
    struct wh_buf b = wh_buf(out, room);
    int quoted = 0;
    for (; *in; in++) {
        if (quoted && *in == '\\' && in[1]) wh_put_n(&b, in++, 1);
        else if (*in == '"') quoted = !quoted;
        else if (!quoted && in[0] == '%' && in[1] == 'p') {
            wh_put_u(&b, run->shared ? (uint64_t)run->shared->pid : 0);
            in++;
            continue;
        }
        wh_put_n(&b, in, 1);
    }
    return b.used + 1 >= room ? fail(E2BIG) : (int)b.used;
}

int wh_do_SEND_FD(struct wh_run *run, const struct wh_record *r) {
    static char payload[1 << 16];
    int n = wh_pid_text(run, s0(run, r), payload, sizeof payload);
    if (n < 0) return -1;
    return wh_send_fd(slot(run, r->fd1), payload, n ? (size_t)n : 1, slot(run, r->fd0));
}
