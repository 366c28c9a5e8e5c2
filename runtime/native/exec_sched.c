/* How the process is scheduled: policy, I/O priority, CPUs, memory nodes. The values come ready from the planner, as the
 * kernel's own structures; what this kernel or our rights forbid is its errno. */
#define _GNU_SOURCE
#include "exec_int.h"

#define IOPRIO_WHO_PGRP 1

/* struct sched_attr carries its own size (sched_setattr(2)); 48 bytes is the first version of it. */
int wh_do_SCHEDULER(struct wh_run *run, const struct wh_record *r) {
    uint32_t size = 0;
    if (r->n0 < 6) return fail(EINVAL);
    memcpy(&size, s0(run, r), sizeof size);
    if (size > 8 * r->n0) return fail(EINVAL);
    return (int)syscall(SYS_sched_setattr, 0, s0(run, r), 0);
}

/* The process group is the container's own: SESSION has been. */
int wh_do_IO_PRIORITY(struct wh_run *run, const struct wh_record *r) {
    (void)run;
    return (int)syscall(SYS_ioprio_set, IOPRIO_WHO_PGRP, 0, r->n0);
}

/* The helper's own CPUs are inherited by the clone; a monitor wants them back afterwards (n0 is 0). */
int wh_do_CPUS(struct wh_run *run, const struct wh_record *r) {
    if (!r->n0) return run->cpus_size > 0 ? (int)syscall(SYS_sched_setaffinity, 0, run->cpus_size, run->cpus) : fail(EINVAL);
    if (!run->in_child && !run->cpus_size) {
        long size = syscall(SYS_sched_getaffinity, 0, sizeof run->cpus, run->cpus);
        if (size < 0) return -1;
        run->cpus_size = (size_t)size;
    }
    return (int)syscall(SYS_sched_setaffinity, 0, 8 * r->n0, s0(run, r));
}

/* set_mempolicy(2) looks at one bit less than it is told. */
int wh_do_MEM_POLICY(struct wh_run *run, const struct wh_record *r) {
    return (int)syscall(SYS_set_mempolicy, r->n1, r->n0 ? s0(run, r) : NULL, r->n0 ? 64 * r->n0 + 1 : 0);
}
