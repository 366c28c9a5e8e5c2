/* The front: what `wherry`, `wherry-oci` and `wherry-cni` are installed as. The name of the file picks the program, so that
 * a symbolic link of any name is still it; `wherry-cni` alone is all CNI plugins, and the link's name says which.
 *
 * It hands the command to the warm process and does for it what only a descendant of the caller can: start the helper,
 * wait for it, take signals. Where there is no warm process, or it says COLD, it becomes Python. A command that has begun
 * is never repeated.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "exec_int.h"
#include "front.h"

#define ANSWER_MS 500 /* for the first answer; a cold start costs less than more patience */
#define ALL_SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
#define LOST 125

struct front {
    int sock, signals, target; /* target: pidfd that signals go to */
    sigset_t before;
    int fatal; /* the last signal that we passed on */
    const char *program;
};

static int received[WH_FRONT_FDS], count;

static const char *env_get(const char *name) {
    size_t n = strlen(name);
    for (char **e = environ; *e; e++)
        if (!strncmp(*e, name, n) && (*e)[n] == '=') return *e + n + 1;
    return "";
}

/* ---- messages ---- */

static int tell(int sock, const void *data, size_t n, const int *fds, size_t fd_count) {
    char room[CMSG_SPACE(8 * sizeof(int))];
    struct iovec part = {(void *)(uintptr_t)data, n};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd_count) {
        memset(room, 0, sizeof room);
        m.msg_control = room;
        m.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(fd_count * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(c), fds, fd_count * sizeof(int));
    }
    ssize_t done;
    do done = sendmsg(sock, &m, MSG_NOSIGNAL);
    while (done < 0 && errno == EINTR);
    return done == (ssize_t)n ? 0 : -1;
}

static int reply(struct front *f, uint32_t kind, int32_t value) {
    struct wh_msg msg = {kind, value};
    return tell(f->sock, &msg, sizeof msg, NULL, 0);
}

/* The next message; its descriptors are in `received`. 0: the other side is gone. */
static int hear(int sock, struct wh_msg *msg) {
    static char room[CMSG_SPACE(WH_FRONT_FDS * sizeof(int))] __attribute__((aligned(8)));
    struct iovec part = {msg, sizeof *msg};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    ssize_t n;
    do n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    count = 0;
    struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
        count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(received, CMSG_DATA(c), (size_t)count * sizeof(int));
    }
    return n == (ssize_t)sizeof *msg && !(m.msg_flags & MSG_CTRUNC);
}

static void drop_received(void) {
    while (count) close(received[--count]);
}

/* ---- the way to the warm process ---- */

/* STATE/warm, reached without a symlink, ours alone. */
static int warm_directory(void) {
    char path[4096];
    struct stat st;
    struct wh_buf b = wh_buf(path, sizeof path);
    const char *state = env_get("WHERRY_STATE"), *run = env_get("XDG_RUNTIME_DIR");
    if (*state) wh_put(&b, state);
    else if (!geteuid()) wh_put(&b, "/run/wherry");
    else if (*run) wh_put(&b, run), wh_put(&b, "/wherry");
    else return -1;
    wh_put(&b, "/warm");
    if (path[0] != '/' || b.used + 1 >= sizeof path) return -1;
    int fd = wh_openat2(AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC, RESOLVE_NO_SYMLINKS, 0);
    if (fd < 0) return -1;
    if (!fstat(fd, &st) && st.st_uid == geteuid() && (st.st_mode & 07777) == 0700) return fd;
    close(fd);
    return -1;
}

static int reach(void) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    struct ucred who;
    socklen_t n = sizeof who;
    int dir = warm_directory();
    if (dir < 0) return -1;
    struct wh_buf b = wh_buf(to.sun_path, sizeof to.sun_path);
    wh_put(&b, "/proc/self/fd/");
    wh_put_u(&b, (uint64_t)dir);
    wh_put(&b, "/socket");
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int there = sock >= 0 && !connect(sock, (struct sockaddr *)&to, sizeof to) &&
                !getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &who, &n) && who.uid == geteuid();
    close(dir);
    if (there && fcntl(sock, F_SETFL, 0) == 0) return sock;
    if (sock >= 0) close(sock);
    return -1;
}

static uint32_t counted(char **list) {
    uint32_t n = 0;
    while (list[n]) n++;
    return n;
}

static int write_list(int fd, char **list) {
    for (; *list; list++)
        if (wh_write_all(fd, *list, strlen(*list) + 1) < 0) return -1;
    return 0;
}

/* argv and environment lie behind each other on the stack as the kernel put them: one write. */
static int words(char **argv, uint32_t argc, uint32_t envc) {
    int fd = (int)syscall(SYS_memfd_create, "wherry-ask", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return -1;
    char *last = envc ? environ[envc - 1] : argv[argc - 1], *end = last + strlen(last) + 1;
    size_t whole = 0;
    for (uint32_t i = 0; i < argc; i++) whole += strlen(argv[i]) + 1;
    for (uint32_t i = 0; i < envc; i++) whole += strlen(environ[i]) + 1;
    int done = (size_t)(end - argv[0]) == whole ? wh_write_all(fd, argv[0], whole)
                                                : (write_list(fd, argv) < 0 ? -1 : write_list(fd, environ));
    if (!done && !fcntl(fd, F_ADD_SEALS, ALL_SEALS)) return fd;
    close(fd);
    return -1;
}

static int ask(struct front *f, char **argv) {
    struct wh_ask what = {.magic = WH_FRONT_MAGIC, .version = WH_FRONT_VERSION};
    struct wh_buf b = wh_buf(what.program, sizeof what.program);
    what.argc = counted(argv);
    what.envc = counted(environ);
    what.umask = (uint32_t)umask(0);
    umask((mode_t)what.umask);
    what.securebits = (uint32_t)prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
    wh_put(&b, f->program);
    int text = words(argv, what.argc, what.envc), here = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    const int fds[] = {text, 0, 1, 2, here};
    int done = text < 0 || here < 0 ? -1 : tell(f->sock, &what, sizeof what, fds, 5);
    if (text >= 0) close(text);
    if (here >= 0) close(here);
    return done;
}

/* ---- what is done for it ---- */

static int sealed(int fd) { return (fcntl(fd, F_GET_SEALS) & ALL_SEALS) == ALL_SEALS; }

/* In the child: descriptors into their places, then the sealed helper. received: helper, plan, report, slots... */
static void become_helper(const struct front *f, int monitor) __attribute__((noreturn));
static void become_helper(const struct front *f, int monitor) {
    static char *const none[] = {NULL};
    char *argv[] = {"wherry-helper", monitor ? "monitor" : "launch", NULL};
    int high = WH_PLAN_FD + count, null = monitor ? open("/dev/null", O_RDWR | O_CLOEXEC) : -1;
    for (int i = 0; i < count; i++)
        if ((received[i] = fcntl(received[i], F_DUPFD_CLOEXEC, high)) < 0) _exit(127);
    for (int fd = 0; monitor && fd < 3; fd++) dup2(null, fd);
    for (int i = 1; i < count; i++)
        if (dup2(received[i], WH_PLAN_FD + i - 1) < 0) _exit(127);
    sigprocmask(SIG_SETMASK, &f->before, NULL);
    execveat(received[0], "", argv, monitor ? none : environ, AT_EMPTY_PATH);
    _exit(127);
}

static int spawn(struct front *f, int monitor) {
    if (count < 3 || !sealed(received[0]) || !sealed(received[1])) return reply(f, WH_SPAWNED, -EPERM);
    pid_t pid = fork();
    if (!pid) become_helper(f, monitor);
    return reply(f, WH_SPAWNED, pid < 0 ? -errno : pid);
}

static int32_t reaped(pid_t pid) {
    int status = 0;
    while (waitpid(pid, &status, __WALL) < 0)
        if (errno != EINTR) return 127 << 8;
    return status;
}

/* A stop is for both: the one who works and, as the shell expects, us. Otherwise the signal goes on. */
static void pass_on(struct front *f) {
    struct signalfd_siginfo got;
    if (read(f->signals, &got, sizeof got) != sizeof got) return;
    int number = (int)got.ssi_signo;
    if (number != SIGTSTP) {
        f->fatal = number;
        syscall(SYS_pidfd_send_signal, f->target, number, NULL, 0);
        return;
    }
    syscall(SYS_pidfd_send_signal, f->target, SIGSTOP, NULL, 0);
    kill(getpid(), SIGSTOP);
    syscall(SYS_pidfd_send_signal, f->target, SIGCONT, NULL, 0);
}

/* Until there is a message; signals go on meanwhile. */
static void wait_for(struct front *f) {
    struct pollfd fds[2] = {{f->sock, POLLIN, 0}, {f->signals, POLLIN, 0}};
    while (!fds[0].revents) {
        if (poll(fds, 2, -1) < 0) continue;
        if (fds[1].revents) pass_on(f);
    }
}

/* ---- the conversation ---- */

/* What the caller ignores (nohup, a background job) stays ignored: once blocked, the kernel would keep it for us. */
static void catch_signals(struct front *f) {
    static const int own[] = {SIGCHLD, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGTTIN, SIGTTOU, SIGPIPE, SIGURG, SIGPROF};
    sigset_t all;
    struct sigaction now;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) sigdelset(&all, own[i]);
    for (int number = 1; number < NSIG; number++)
        if (!sigaction(number, NULL, &now) && now.sa_handler == SIG_IGN) sigdelset(&all, number);
    signal(SIGCHLD, SIG_DFL); /* ignored, it would take the status of who we wait for */
    sigprocmask(SIG_BLOCK, &all, &f->before);
    f->signals = signalfd(-1, &all, SFD_CLOEXEC);
}

/* BEGIN in time, else -1: the command is still ours. */
static int begun(struct front *f, char **argv) {
    struct wh_msg msg;
    struct pollfd answer = {f->sock, POLLIN, 0};
    if (ask(f, argv) < 0 || poll(&answer, 1, ANSWER_MS) != 1 || !hear(f->sock, &msg)) return -1;
    if (msg.kind != WH_BEGIN || count != 1) return drop_received(), -1;
    f->target = received[0];
    catch_signals(f);
    if (!reply(f, WH_GO, 0)) return 0;
    sigprocmask(SIG_SETMASK, &f->before, NULL);
    return -1; /* it is gone before its first effect */
}

/* It went without a word: by the signal that we passed on, or by an accident of its own. */
static int lost(const struct front *f) {
    static const char text[] = ": the warm process was lost in the middle of this command: see what it did before you repeat it\n";
    if (f->fatal) {
        signal(f->fatal, SIG_DFL);
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        kill(getpid(), f->fatal);
    }
    wh_write_all(2, f->program, strlen(f->program));
    wh_write_all(2, text, sizeof text - 1);
    return LOST;
}

static int converse(struct front *f) {
    struct wh_msg msg;
    for (;;) {
        wait_for(f);
        if (!hear(f->sock, &msg)) return lost(f);
        int done = 0;
        if (msg.kind == WH_END) return msg.value & 255;
        if (msg.kind == WH_SPAWN) done = spawn(f, msg.value == WH_SPAWN_MONITOR);
        else if (msg.kind == WH_REAP) done = reply(f, WH_STATUS, reaped(msg.value));
        else if (msg.kind == WH_REAPER) prctl(PR_SET_CHILD_SUBREAPER, 1L, 0, 0, 0);
        drop_received();
        if (done < 0) return lost(f);
    }
}

/* ---- cold ---- */

/* The interpreter is the one that `wherry-cold` beside us begins with, which the installer wrote; else, python3 beside us.
 * Where that line is not a plain path (one with spaces: the script starts itself by sh), the script. 1: it takes no -c. */
static int interpreter(char *path, size_t room) {
    static char line[4096];
    char *name = strrchr(path, '/') + 1;
    size_t left = room - (size_t)(name - path);
    stpcpy(name, "wherry-cold");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
    if (fd >= 0) close(fd);
    char *end = n > 0 ? memchr(line, '\n', (size_t)n) : NULL;
    if (n < 0) return stpcpy(name, "python3"), 0;
    if (!end || strncmp(line, "#!/", 3) || memchr(line, ' ', (size_t)(end - line)) || (size_t)(end - line) > left) return 1;
    *end = 0;
    if (!strcmp(line, "#!/bin/sh")) return 1;
    return stpcpy(path, line + 2), 0;
}

/* boot.py finds the program by its name. */
static int cold(const char *program, char *path, size_t room, int argc, char **argv) {
    static char mark[] = "WHERRY_FRONT=1";
    static const char boot[] = "from wherry.boot import main; main()";
    uint32_t envc = counted(environ);
    char *words[argc + 5], *env[envc + 2];
    char *first[] = {path, "-I", "-c", (char *)(uintptr_t)boot, (char *)(uintptr_t)program};
    int script = *path == '/' && interpreter(path, room);
    int before = script ? 2 : 5;
    if (script) first[1] = first[4];
    memcpy(words, first, (size_t)before * sizeof *first);
    memcpy(words + before, argv + 1, (size_t)argc * sizeof *argv); /* the closing NULL too */
    env[0] = mark;
    memcpy(env + 1, environ, (envc + 1) * sizeof *env);
    execve(path, words, env);
    int denied = errno == EACCES;
    wh_write_all(2, path, strlen(path));
    if (denied) wh_write_all(2, ": this user may not execute it\n", 31);
    else wh_write_all(2, ": cannot be executed: install wherry again\n", 43);
    return LOST;
}

/* A stream that the caller closed would be taken by one of ours: Python knows what to do. */
static int streams(void) { return fcntl(0, F_GETFD) >= 0 && fcntl(1, F_GETFD) >= 0 && fcntl(2, F_GETFD) >= 0; }

/* `wherry-cni/bridge` when called by a link of the name `bridge`; by its own name it is no plugin. */
static void put_plugin(struct wh_buf *program, const char *called) {
    const char *slash = strrchr(called, '/'), *name = slash ? slash + 1 : called;
    if (strcmp(name, "wherry-cni")) wh_put(program, "/"), wh_put(program, name);
}

/* Of a unit that is listened to, the main process must speak for the container that it starts: sd_notify(3). */
static int speaks(char **argv) {
    if (!*env_get("NOTIFY_SOCKET")) return 0;
    for (; *argv; argv++)
        if (!strcmp(*argv, "start")) return 1;
    return 0;
}

int wh_role_front(int argc, char **argv) {
    static char path[4096], program[256];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path / 2);
    const char *name = strrchr(n > 0 ? path : argv[0], '/');
    struct wh_buf b = wh_buf(program, sizeof program);
    wh_put(&b, name ? name + 1 : argv[0]);
    if (!strcmp(program, "wherry-cni")) put_plugin(&b, argv[0]);
    struct front f = {.program = program, .target = -1, .signals = -1};
    f.sock = strcmp(env_get("WHERRY_WARM"), "off") && !speaks(argv) && streams() ? reach() : -1;
    if (f.sock >= 0 && !begun(&f, argv)) return converse(&f);
    if (f.sock >= 0) close(f.sock);
    return cold(program, path, sizeof path, argc, argv);
}
