/* The tests' payload: one static program that tells what it sees from inside, or does one simple thing.
 *
 *   probe facts            ids, groups, capabilities, limits, descriptors, cwd, umask, tty, one "key: value" a line
 *   probe exit N | kill N  ends so
 *   probe sleep SECONDS | bytes N | env NAME | args ... | try CALL PATH | threads N
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

static void descriptors(void) {
    printf("fds:");
    for (int fd = 0; fd < 1024; fd++)
        if (fcntl(fd, F_GETFD) >= 0) printf(" %d", fd);
    printf("\n");
}

static void from_status(void) {
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) {
        char *tab = strchr(line, '\t');
        int wanted = !strncmp(line, "Cap", 3) || !strncmp(line, "Sig", 3) || !strncmp(line, "NoNewPrivs", 10) ||
                     !strncmp(line, "Seccomp:", 8);
        if (tab) *tab = ' ';
        if (tab && wanted) printf("%s", line);
    }
    if (status) fclose(status);
}

static int facts(void) {
    uid_t r, e, s;
    gid_t groups[128];
    char cwd[4096];
    struct rlimit files;
    struct utsname names;
    getresuid(&r, &e, &s);
    printf("uid: %u %u %u\n", r, e, s);
    getresgid(&r, &e, &s);
    printf("gid: %u %u %u\n", r, e, s);
    int n = getgroups(128, groups);
    printf("groups:");
    for (int i = 0; i < n; i++) printf(" %u", groups[i]);
    mode_t mask = umask(0);
    umask(mask);
    getrlimit(RLIMIT_NOFILE, &files);
    uname(&names);
    printf("\ncwd: %s\numask: %03o\nnofile: %lu %lu\npid: %d\nsid: %d\nhostname: %s\ndomainname: %s\ntty: %s\n",
           getcwd(cwd, sizeof cwd), mask, files.rlim_cur, files.rlim_max, getpid(), getsid(0), names.nodename,
           names.domainname, isatty(0) ? ttyname(0) ? ttyname(0) : "?" : "no");
    printf("dumpable: %d\ndeathsig: ", prctl(PR_GET_DUMPABLE));
    int deathsig = 0;
    prctl(PR_GET_PDEATHSIG, &deathsig);
    printf("%d\n", deathsig);
    descriptors();
    from_status();
    return 0;
}

static int bytes(long n) {
    char block[4096];
    memset(block, 'x', sizeof block);
    for (size_t i = 79; i < sizeof block; i += 80) block[i] = '\n';
    while (n > 0) {
        ssize_t done = write(1, block, n < (long)sizeof block ? (size_t)n : sizeof block);
        if (done < 0) return 1;
        n -= done;
    }
    return 0;
}

static int attempt(const char *call, const char *path) {
    long result = -1;
    errno = 0;
    if (!strcmp(call, "open")) result = open(path, O_RDONLY);
    if (!strcmp(call, "write")) result = open(path, O_WRONLY);
    if (!strcmp(call, "create")) result = open(path, O_WRONLY | O_CREAT, 0600);
    if (!strcmp(call, "mkdir")) result = mkdir(path, 0700);
    if (!strcmp(call, "mount")) result = mount("none", path, "tmpfs", 0, NULL);
    if (!strcmp(call, "sethostname")) result = sethostname(path, strlen(path));
    if (!strcmp(call, "personality")) result = syscall(SYS_personality, 0xffffffff);
    printf("%s\n", result >= 0 ? "ok" : strerrorname_np(errno));
    return 0;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "facts", *value = argc > 2 ? argv[2] : "0";
    if (!strcmp(what, "facts")) return facts();
    if (!strcmp(what, "exit")) return atoi(value);
    if (!strcmp(what, "kill")) return raise(atoi(value));
    if (!strcmp(what, "sleep")) return (int)sleep((unsigned)atoi(value));
    if (!strcmp(what, "bytes")) return bytes(atol(value));
    if (!strcmp(what, "env")) return puts(getenv(value) ? getenv(value) : "(none)"), 0;
    if (!strcmp(what, "try") && argc > 3) return attempt(argv[2], argv[3]);
    for (int i = 1; i < argc; i++) puts(argv[i]);
    return 0;
}
