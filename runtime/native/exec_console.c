/* The container's terminal: made in its own devpts, verified, bound on /dev/console through handles (CVE-2025-52565). */
#define _GNU_SOURCE
#include <linux/magic.h>
#include <linux/mount.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <termios.h>

#include "exec_int.h"

static int open_master(int root, int host) {
    struct stat st;
    int fd = host ? open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)
                  : wh_open_in(root, "/dev/pts/ptmx", O_RDWR | O_NOCTTY, RESOLVE_NO_SYMLINKS);
    if (fd < 0) return -1;
    int good = !fstat(fd, &st) && S_ISCHR(st.st_mode) && st.st_rdev == makedev(5, 2);
    if (good && !host) good = !wh_is_fs(fd, DEVPTS_SUPER_MAGIC);
    if (good) return fd;
    close(fd);
    return fail(EXDEV);
}

static int open_slave(int master, const struct wh_record *r) {
    int unlock = 0, fd;
    struct winsize size = {.ws_row = (unsigned short)r->n0, .ws_col = (unsigned short)r->n1};
    if (ioctl(master, TIOCSPTLCK, &unlock) < 0) return -1;
    if (r->n0 && r->n1 && ioctl(master, TIOCSWINSZ, &size) < 0) return -1;
    fd = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd < 0) return -1;
    if (!fchown(fd, (uid_t)r->n2, (gid_t)-1)) return fd;
    wh_close_keep(fd);
    return -1;
}

/* The target is a file of the root's /dev, never what a link there names. */
static int bind_console(int root, int slave) {
    char name[16];
    int dev = wh_parent(root, "/dev/console", name, sizeof name);
    if (dev < 0) return -1;
    int fd = openat(dev, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0620);
    if (fd >= 0) close(fd);
    int target = fd < 0 && errno != EEXIST ? -1 : openat(dev, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    int tree = target < 0 ? -1 : (int)syscall(SYS_open_tree, slave, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    int done = -1;
    if (tree >= 0)
        done = (int)syscall(SYS_move_mount, tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
    wh_close_keep(tree);
    wh_close_keep(target);
    wh_close_keep(dev);
    return done;
}

static int become_stdio(int slave) {
    for (int i = 0; i < 3; i++)
        if (dup2(slave, i) < 0) return -1;
    return 0;
}

int wh_do_CONSOLE(struct wh_run *run, const struct wh_record *r) {
    int master = open_master(slot(run, r->fd1), r->flags & WH_F_HOST_PTMX);
    if (master < 0) return wh_say(run, "the root's devpts", ""), -1;
    int slave = open_slave(master, r), done = slave < 0 ? -1 : 0;
    if (!done && !(r->flags & WH_F_NO_BIND)) done = bind_console(slot(run, r->fd1), slave);
    if (!done) done = become_stdio(slave);
    if (!done) done = wh_child_post(run, 'F', master);
    wh_close_keep(slave);
    wh_close_keep(master);
    return done;
}
