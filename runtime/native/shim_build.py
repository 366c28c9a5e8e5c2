"""Builds `_shim`, the cffi module (API mode, abi3) of shim.c: `shim_build.py OUTPUT`."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile

from cffi import FFI

HERE = os.path.dirname(os.path.abspath(__file__))

CALLS = """
int sh_openat2(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
int sh_open_tree(int dir, const char *path, unsigned flags);
int sh_move_mount(int from, const char *from_path, int to, const char *to_path, unsigned flags);
int sh_mount_setattr(int dir, const char *path, unsigned flags, uint64_t set, uint64_t clr, uint64_t propagation,
                     uint64_t userns);
int sh_fsopen(const char *type);
int sh_fsconfig(int context, unsigned command, const char *key, const char *value);
int sh_fsmount(int context, unsigned attributes);
int sh_umount(const char *path, int flags);
int sh_setns(int fd, int kind);
int sh_unshare(int flags);
int sh_go_on_in(int cgroup);
void sh_populate(const uint64_t *areas, size_t count);
int sh_read_many(int dir, const char *names, size_t count, char *out, size_t room, int32_t *sizes);
int sh_inotify(void);
int sh_inotify_add(int fd, const char *path, uint32_t events);
int sh_pidfd_getfd(int pidfd, int fd);
int sh_bpf_device(int cgroup, const void *code, unsigned count, char *log, unsigned log_size, int replace);
int sh_memfd(const char *name, int executable);
int sh_seal(int fd);
int sh_syncfs(int fd);
void sh_trim(void);
int sh_only_compute(void);
"""
CONSTANTS = [
    "AT_EMPTY_PATH", "AT_RECURSIVE", "AT_SYMLINK_NOFOLLOW", "OPEN_TREE_CLONE", "OPEN_TREE_CLOEXEC",
    "MOVE_MOUNT_F_EMPTY_PATH", "MOVE_MOUNT_T_EMPTY_PATH", "MOUNT_ATTR_RDONLY", "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_NODEV", "MOUNT_ATTR_NOEXEC", "MOUNT_ATTR_NOSYMFOLLOW", "MOUNT_ATTR_IDMAP", "RESOLVE_IN_ROOT",
    "RESOLVE_BENEATH", "RESOLVE_NO_MAGICLINKS", "RESOLVE_NO_SYMLINKS", "RESOLVE_NO_XDEV", "FSCONFIG_SET_FLAG",
    "FSCONFIG_SET_STRING", "FSCONFIG_CMD_CREATE", "FSCONFIG_CMD_RECONFIGURE", "CLONE_NEWNET", "CLONE_NEWNS",
    "CLONE_NEWUSER", "CLONE_NEWPID", "CLONE_NEWIPC", "CLONE_NEWUTS", "CLONE_NEWCGROUP", "WH_MAGIC", "WH_VERSION",
    "WH_MAX_OPS", "WH_MAX_SLOTS", "WH_SIDE_H", "WH_SIDE_C", "WH_SIDE_M", "WH_CREATED", "WH_STARTED", "WH_FAILED",
    "WH_LOG_NONE", "WH_LOG_CRI", "WH_LOG_JSON", "WH_LOG_JOURNALD",
]


def read(name: str) -> str:
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return file.read()


def names() -> list[str]:
    """The constants of ops.def and plan.h: their values are the compiler's business."""
    operations = re.findall(r"^OP\((\w+),", read("ops.def"), re.M)
    flags = re.findall(r"\b(WH_F_\w+) = 1", read("plan.h"))
    return [*CONSTANTS, *flags, *(f"WH_OP_{name}" for name in operations)]


def main(output: str) -> None:
    """Compile into a scratch directory, then rename into place: a running process keeps its old file."""
    ffi = FFI()
    ffi.cdef(CALLS + "".join(f"#define {name} ...\n" for name in names()))
    ffi.set_source("wherry.kernel._shim", read("shim.c"), include_dirs=[HERE], py_limited_api=True,
                   extra_compile_args=["-O2", "-g0", "-Wall", "-DPy_LIMITED_API=0x030b0000"])
    with tempfile.TemporaryDirectory() as scratch:
        built = ffi.compile(tmpdir=scratch, verbose=bool(os.environ.get("VERBOSE")))
        shutil.copy(built, output + ".tmp")
    os.replace(output + ".tmp", output)


if __name__ == "__main__":
    main(sys.argv[1])
