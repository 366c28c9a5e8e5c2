/* How the front and the warm process talk: one SOCK_SEQPACKET connection a command; runtime/wherry/warm/wire.py is the
 * other side.
 *
 *   front -> warm   WH_ASK     struct wh_ask; descriptors: sealed memfd (argv, then environment, each NUL-terminated),
 *                              0, 1, 2, working directory (O_PATH)
 *   warm -> front   COLD       not served: start Python. Nothing was begun
 *                   BEGIN      descriptor: pidfd of the process that will do it. It waits for GO before its first effect
 *   front -> warm   GO
 *   warm -> front   SPAWN      value: a role; descriptors: helper, plan, report, slots... -> SPAWNED value: pid
 *                   REAP       value: pid -> STATUS value: wait status
 *                   REAPER     orphans below the front become its children
 *                   END        value: exit code
 */
#ifndef WH_FRONT_H
#define WH_FRONT_H
#include <stdint.h>

#define WH_FRONT_MAGIC 0x52464857u /* "WHFR" */
#define WH_FRONT_VERSION 1u
#define WH_FRONT_FDS 253 /* SCM_MAX_FD */

enum { WH_COLD = 1, WH_BEGIN, WH_GO, WH_SPAWN, WH_SPAWNED, WH_REAP, WH_STATUS, WH_REAPER, WH_END };
enum { WH_SPAWN_LAUNCH, WH_SPAWN_MONITOR };

struct wh_ask {
    uint32_t magic, version;
    uint32_t argc, envc;
    uint32_t umask, securebits;
    char program[32]; /* wherry, wherry-oci, wherry-cni/PLUGIN */
};

struct wh_msg {
    uint32_t kind;
    int32_t value;
};
#endif
