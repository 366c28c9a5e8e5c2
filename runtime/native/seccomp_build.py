"""Builds `_seccomp`, the cffi module (API mode, abi3) over libseccomp: `seccomp_build.py OUTPUT`.

A module of its own because it is loaded only when a filter is not in the cache.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile

from cffi import FFI

CDEF = """
typedef void *scmp_filter_ctx;
struct scmp_arg_cmp { unsigned int arg; int op; uint64_t datum_a; uint64_t datum_b; ...; };
struct scmp_version { unsigned int major; unsigned int minor; unsigned int micro; ...; };
scmp_filter_ctx seccomp_init(uint32_t def_action);
void seccomp_release(scmp_filter_ctx ctx);
int seccomp_attr_set(scmp_filter_ctx ctx, int attr, uint32_t value);
int seccomp_arch_exist(const scmp_filter_ctx ctx, uint32_t arch_token);
int seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch_token);
uint32_t seccomp_arch_resolve_name(const char *arch_name);
int seccomp_syscall_resolve_name(const char *name);
int seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int arg_cnt,
                           const struct scmp_arg_cmp *arg_array);
int seccomp_export_bpf(const scmp_filter_ctx ctx, int fd);
const struct scmp_version *seccomp_version(void);
int wh_attr(const char *name);
uint32_t wh_action(const char *name, uint32_t data);
"""

SOURCE = """
#include <errno.h>
#include <string.h>
#include <seccomp.h>

static int wh_attr(const char *name) {
    if (!strcmp(name, "optimize")) return SCMP_FLTATR_CTL_OPTIMIZE;
    if (!strcmp(name, "no_new_privs")) return SCMP_FLTATR_CTL_NNP;
    if (!strcmp(name, "bad_arch")) return SCMP_FLTATR_ACT_BADARCH;
    return -EINVAL;
}

/* The action's number, or UINT32_MAX. */
static uint32_t wh_action(const char *name, uint32_t data) {
    if (!strcmp(name, "SCMP_ACT_ALLOW")) return SCMP_ACT_ALLOW;
    if (!strcmp(name, "SCMP_ACT_ERRNO")) return SCMP_ACT_ERRNO(data);
    if (!strcmp(name, "SCMP_ACT_TRACE")) return SCMP_ACT_TRACE(data);
    if (!strcmp(name, "SCMP_ACT_TRAP")) return SCMP_ACT_TRAP;
    if (!strcmp(name, "SCMP_ACT_LOG")) return SCMP_ACT_LOG;
    if (!strcmp(name, "SCMP_ACT_NOTIFY")) return SCMP_ACT_NOTIFY;
    if (!strcmp(name, "SCMP_ACT_KILL") || !strcmp(name, "SCMP_ACT_KILL_THREAD")) return SCMP_ACT_KILL_THREAD;
    if (!strcmp(name, "SCMP_ACT_KILL_PROCESS")) return SCMP_ACT_KILL_PROCESS;
    return UINT32_MAX;
}
"""


def main(output: str) -> None:
    """Compile in a scratch directory, rename into place."""
    ffi = FFI()
    ffi.cdef(CDEF)
    ffi.set_source("wherry.kernel._seccomp", SOURCE, libraries=["seccomp"], py_limited_api=True,
                   extra_compile_args=["-O2", "-g0", "-Wall", "-DPy_LIMITED_API=0x030b0000"])
    with tempfile.TemporaryDirectory() as scratch:
        built = ffi.compile(tmpdir=scratch, verbose=bool(os.environ.get("VERBOSE")))
        shutil.copy(built, output + ".tmp")
    os.replace(output + ".tmp", output)


if __name__ == "__main__":
    main(sys.argv[1])
