/* wherry-helper ROLE ...: picks the role. Descriptors: see plan.h. Under any other name it is the front (front.c). */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>

#include "exec_int.h"

static const struct {
    const char *name;
    int (*run)(int, char **);
} roles[] = {
    {"launch", wh_role_launch},
    {"monitor", wh_role_monitor},
    {"unpack", wh_role_unpack},
    {"init", wh_role_init},
};

/* Who started us and is killed cannot undo what we make any more, and may be told that it is deleted: we go first. */
static int abandoned(void) {
    struct pollfd reports = {WH_REPORT_FD, 0, 0};
    return prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || (poll(&reports, 1, 0) == 1 && reports.revents & POLLERR);
}

/* Carry the plan out up to its end or WAIT_START, and leave. */
int wh_role_launch(int argc, char **argv) {
    static struct wh_run run;
    struct wh_plan plan;
    const char *why = "";
    (void)argc, (void)argv;
    if (abandoned()) return 1;
    if (wh_plan_load(WH_PLAN_FD, &plan, &why) < 0) {
        wh_report_send(WH_REPORT_FD, WH_FAILED, WH_NO_RECORD, errno, 0, why);
        return 1;
    }
    close(WH_PLAN_FD);
    wh_run_init(&run, &plan, 0);
    return wh_execute(&plan, &run) < 0;
}

/* The helper is always called by a name of ours; no installed program has one that begins so. */
static int is_helper(const char *name) { return !strcmp(name, "wherry-helper") || !strcmp(name, "wherry-init"); }

int main(int argc, char **argv) {
    const char *slash = argc ? strrchr(argv[0], '/') : NULL, *name = slash ? slash + 1 : argc ? argv[0] : "";
    if (argc && !is_helper(name)) return wh_role_front(argc, argv);
    /* what we were given above 2 is ours: nothing of it reaches a program that we start */
    if (argc < 2) return 2;
    if (strcmp(argv[1], "init")) syscall(SYS_close_range, 3, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */);
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (!strcmp(argv[1], roles[i].name)) return roles[i].run(argc - 1, argv + 1);
    return 2;
}
