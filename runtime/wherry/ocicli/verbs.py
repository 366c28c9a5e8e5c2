"""Every verb of `wherry-oci` as a table: runc's and crun's names, options and arguments.

The module of a verb (`life`, `look`, …) has a function `do_<verb>`; it is imported when the verb is called.
"""

from __future__ import annotations

from typing import Final

from .flags import Flag, Verb

__all__ = ["GLOBAL", "MODULES", "VERBS"]

GLOBAL: Final = (
    Flag("root", "directory of the containers' state", "DIR"),
    Flag("log", "write errors and warnings to this file, as callers read them", "FILE"),
    Flag("log-format", "text (default) or json", "FORMAT"),
    Flag("log-level", "debug, info, warning (default) or error", "LEVEL"),
    Flag("debug", "log more, and show where an error came from"),
    Flag("systemd-cgroup", "cgroups are systemd's scopes: cgroupsPath is slice:prefix:name"),
    Flag("cgroup-manager", "cgroupfs, systemd or disabled (crun's spelling)", "NAME"),
    Flag("rootless", "true, false or auto (default): whether to do without what only root may", "MODE"),
    Flag("criu", "accepted for callers of old", "PATH"),
    Flag("help", "this text", short="h"),
    Flag("version", "the version", short="v"),
)

_BUNDLE = Flag("bundle", "directory with config.json (default: the current one)", "DIR", "b")
_CONFIG = Flag("config", "another file than config.json of the bundle", "FILE", "f")
_CONSOLE = Flag("console-socket", "unix socket that gets the terminal's master", "PATH")
_PID_FILE = Flag("pid-file", "file that gets the pid", "FILE")
_NO_PIVOT = Flag("no-pivot", "MS_MOVE instead of pivot_root, for a root on a ramdisk")
_NO_KEYRING = Flag("no-new-keyring", "keep the caller's session keyring")
_PRESERVE = Flag("preserve-fds", "descriptors 3 to 3+N-1 stay open", "N")
_CREATE = (_BUNDLE, _CONFIG, _CONSOLE, _PID_FILE, _NO_PIVOT, _NO_KEYRING, _PRESERVE)
_FORMAT = Flag("format", "table (default) or json", "FORMAT", "f")

_EXEC = (
    Flag("process", "file with the process as JSON", "FILE", "p"),
    Flag("detach", "do not wait for the end", short="d"),
    Flag("tty", "give it a terminal", short="t"),
    Flag("user", "UID[:GID]", "IDS", "u"),
    Flag("additional-gids", "one more group", "GID", "g", many=True),
    Flag("cwd", "working directory", "DIR"),
    Flag("env", "NAME=VALUE", "VAR", "e", many=True),
    Flag("cap", "one more capability", "NAME", "c", many=True),
    Flag("apparmor", "AppArmor profile", "PROFILE"),
    Flag("process-label", "SELinux label", "LABEL"),
    Flag("no-new-privs", "no new privileges"),
    Flag("cgroup", "a cgroup below the container's own", "PATH", many=True),
    Flag("ignore-paused", "do it though the container is paused"),
    _CONSOLE,
    _PID_FILE,
    _PRESERVE,
)

_UPDATE = (
    Flag("resources", "file with linux.resources as JSON, - for standard input", "FILE", "r"),
    Flag("memory", "limit in bytes, also such as 64m; -1: none", "N"),
    Flag("memory-reservation", "soft limit in bytes", "N"),
    Flag("memory-swap", "memory and swap in bytes, -1: unlimited", "N"),
    Flag("cpu-share", "v1-style shares", "N"),
    Flag("cpu-quota", "microseconds a period", "N"),
    Flag("cpu-period", "microseconds", "N"),
    Flag("cpu-burst", "microseconds", "N"),
    Flag("cpu-idle", "1: SCHED_IDLE", "N"),
    Flag("cpu-rt-period", "of cgroup v1 alone: only a warning", "N"),
    Flag("cpu-rt-runtime", "of cgroup v1 alone: only a warning", "N"),
    Flag("kernel-memory", "of cgroup v1 alone: only a warning", "N"),
    Flag("kernel-memory-tcp", "of cgroup v1 alone: only a warning", "N"),
    Flag("cpuset-cpus", "CPUs, such as 0-2,4", "LIST"),
    Flag("cpuset-mems", "memory nodes", "LIST"),
    Flag("pids-limit", "number of tasks", "N"),
    Flag("blkio-weight", "10 to 1000", "N"),
    Flag("l3-cache-schema", "Intel RDT: a line of schemata, L3:...", "LINE"),
    Flag("mem-bw-schema", "Intel RDT: a line of schemata, MB:...", "LINE"),
)

_CRIU = (
    Flag("image-path", "directory of the images (default: ./checkpoint)", "DIR"),
    Flag("work-path", "directory of CRIU's log (default: that of the images)", "DIR"),
    Flag("tcp-established", "with open TCP connections"),
    Flag("ext-unix-sk", "with outside unix sockets"),
    Flag("shell-job", "with a terminal's session from outside"),
    Flag("file-locks", "with file locks"),
    Flag("manage-cgroups-mode", "soft (default), full, strict or ignore", "MODE"),
    Flag("empty-ns", "accepted: a network namespace always is, its devices are the caller's", "NAME", many=True),
    Flag("auto-dedup", "punch out of earlier images what later ones have"),
    Flag("lazy-pages", "memory by userfaultfd when it is wanted"),
)

VERBS: Final = (
    Verb("create", "make a container from a bundle; it waits for start", "ID", 1, 1, _CREATE),
    Verb("start", "run the process of a created container", "ID", 1, 1),
    Verb("state", "print the container's state as JSON", "ID", 1, 1),
    Verb(
        "kill",
        "send a signal (default TERM) to the container's first process",
        "ID [SIGNAL]",
        1,
        2,
        (Flag("all", "to every process of the container", short="a"),),
    ),
    Verb("delete", "remove a stopped container", "ID", 1, 1, (Flag("force", "kill it first", short="f"),)),
    Verb("run", "create, start, wait, delete", "ID", 1, 1, (*_CREATE, Flag("detach", "do not wait", short="d"),
         Flag("keep", "do not delete it at its end"))),
    Verb("exec", "run one more process in a running container", "ID [COMMAND [ARG...]]", 1, -1, _EXEC, command=True),
    Verb("list", "list the containers", "", 0, 0, (_FORMAT, Flag("quiet", "ids only", short="q"))),
    Verb("ps", "list the processes of a container; further words go to ps(1)", "ID [PS-OPTION...]", 1, -1,
         (_FORMAT,), command=True),
    Verb("pause", "freeze every process", "ID", 1, 1),
    Verb("resume", "let them go on", "ID", 1, 1),
    Verb("update", "change limits of a running container", "ID", 1, 1, _UPDATE),
    Verb("events", "print events and statistics as JSON lines", "ID", 1, 1,
         (Flag("interval", "time between two statistics, such as 5s", "TIME"), Flag("stats", "once, then leave"))),
    Verb("spec", "write a config.json to start from", "", 0, 0,
         (_BUNDLE, Flag("rootless", "one that a user without rights can run"))),
    Verb("features", "print what this runtime can do, as the runtime-spec's features.md says", "", 0, 0),
    Verb("checkpoint", "save a running container by CRIU", "ID", 1, 1,
         (*_CRIU, Flag("leave-running", "let it go on"), Flag("pre-dump", "memory only, and let it go on"),
          Flag("parent-path", "the previous dump, relative to the image path", "DIR"),
          Flag("page-server", "a server that takes the memory", "ADDRESS:PORT"),
          Flag("status-fd", "descriptor that gets a byte once lazy pages are ready", "N"))),
    Verb("restore", "bring a container back from a checkpoint", "ID", 1, 1,
         (*_CREATE, *_CRIU, Flag("detach", "do not wait", short="d"),
          Flag("no-subreaper", "accepted: a detached restore never is one"),
          Flag("lsm-profile", "TYPE:NAME instead of the profile that it had", "PROFILE"),
          Flag("lsm-mount-context", "SELinux context of mounts instead of theirs", "CONTEXT"))),
)  # fmt: skip

#: verb -> the module that carries it out
MODULES: Final = {
    "create": "create", "start": "life", "state": "look", "kill": "life", "delete": "life", "run": "run",
    "exec": "exec", "list": "look", "ps": "look", "pause": "life", "resume": "life", "update": "update",
    "events": "events", "spec": "spec", "features": "features", "checkpoint": "criu", "restore": "criu",
}  # fmt: skip
