/* Role init: pid 1 of a container with --init. Starts the command, hands every signal on, reaps what is orphaned, and ends
 * with the command's status (128+n for a signal, as docker-init). argv: init FILE ARGV0 ARGS... With "" for FILE it has
 * nothing to start: pid 1 of a pod, which reaps until it is killed. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "exec_int.h"

static void in_command(char **argv) __attribute__((noreturn));
static void in_command(char **argv) {
    setpgid(0, 0);
    ioctl(0, 0x5410 /* TIOCSPGRP */, &(pid_t){getpid()}); /* the foreground, where there is a terminal */
    wh_reset_signals();
    wh_exec_search(argv[1], argv + 2, environ);
    int err = errno;
    wh_write_all(2, argv[1], strlen(argv[1]));
    wh_write_all(2, err == ENOENT ? ": not found\n" : ": cannot be executed\n", err == ENOENT ? 12 : 21);
    _exit(err == ENOENT ? 127 : 126);
}

/* Reaps all that have ended; the exit status once the command has, else -1. */
static int reap(pid_t command) {
    int status, result = -1;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        if (pid == command) result = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return result;
}

int wh_role_init(int argc, char **argv) {
    sigset_t all;
    siginfo_t info;
    if (argc < 3) return 125;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    if (getpid() != 1) prctl(PR_SET_CHILD_SUBREAPER, 1L, 0, 0, 0);
    pid_t command = *argv[1] ? fork() : 0;
    int starts = !!*argv[1];
    if (starts && !command) {
        signal(SIGTTOU, SIG_IGN);
        in_command(argv);
    }
    if (command < 0) return 125;
    for (;;) {
        int number = sigwaitinfo(&all, &info), status = -1;
        if (number == SIGCHLD) status = reap(command);
        else if (number > 0 && starts) kill(-command, number), kill(command, number == SIGTSTP ? SIGSTOP : 0);
        if (status >= 0) return status;
    }
}
