/* The wire form of a plan. Written by runtime/wherry/container/wire.py, read by plan.c; native byte order, one machine.
 *
 *   struct wh_header | struct wh_record[count] | arena (strings and blobs)
 *
 * in a sealed memfd. Arena offsets are from the arena's start; offset 0 holds a NUL, so 0 means "" / absent.
 * Descriptors travel by slot: slot k < inherited is descriptor WH_FIRST_FD + k at the helper's start; ops fill higher ones.
 */
#ifndef WH_PLAN_H
#define WH_PLAN_H
#include <stdint.h>

#define WH_MAGIC 0x4c504857u /* "WHPL" */
#define WH_VERSION 1u
#define WH_MAX_OPS 4096u
#define WH_MAX_SLOTS 512
#define WH_PLAN_FD 3   /* the sealed plan */
#define WH_REPORT_FD 4 /* pipe or socket for struct wh_report, one write each */
#define WH_FIRST_FD 5  /* slot 0 */
#define WH_BPF_NAME "wherry" /* of our device programs: an update finds the one to replace by it */

enum { WH_SIDE_H = 1, WH_SIDE_C = 2, WH_SIDE_M = 4 };

enum wh_op {
    WH_OP_NONE,
#define OP(name, sides, text) WH_OP_##name,
#include "ops.def"
#undef OP
    WH_OP_COUNT
};

enum wh_flag {
    WH_F_MAY_BE_ABSENT = 1 << 0,
    WH_F_RECURSIVE = 1 << 1,
    WH_F_NOFOLLOW = 1 << 2,
    WH_F_MAKE_DIR = 1 << 3,
    WH_F_MAKE_FILE = 1 << 4,
    WH_F_REAL_DIR = 1 << 5,
    WH_F_EXIST_OK = 1 << 6,
    WH_F_MAY_FAIL = 1 << 7,
    WH_F_TTY = 1 << 8,
    WH_F_MOVE = 1 << 9,
    WH_F_HOST_PTMX = 1 << 10,
    WH_F_NO_BIND = 1 << 11,
    WH_F_INIT = 1 << 12,
    WH_F_CHROOT = 1 << 13,
};

enum { WH_CREATED = 1, WH_STARTED = 2, WH_FAILED = 3, WH_MONITOR = 4 /* pid is the detached monitor's own */ };
enum { WH_LOG_NONE, WH_LOG_CRI, WH_LOG_JSON, WH_LOG_JOURNALD };

struct wh_header {
    uint32_t magic, version;
    uint32_t count;     /* records */
    uint32_t arena;     /* bytes of arena */
    uint32_t inherited; /* slots filled at the start */
    uint32_t slots;     /* all slots */
};

struct wh_record {
    uint16_t op;
    uint16_t side; /* exactly one WH_SIDE_* */
    uint32_t flags;
    int32_t fd0, fd1; /* slots, -1: none */
    uint32_t s0, s1, s2, reserved;
    uint64_t n0, n1, n2;
}; /* 56 bytes */

struct wh_report {
    uint32_t magic;
    uint32_t stage;
    uint32_t index; /* of the failed record */
    int32_t err;    /* errno of the failure */
    int32_t pid;    /* container's init in the helper's pid namespace, 0 if none */
    uint32_t reserved;
    char detail[104]; /* what a number cannot say: the path that openat2 refused, a hook's last line; NUL-terminated */
};
#endif
