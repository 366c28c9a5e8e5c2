"""What every plugin shares: the call is read from an injected environment and stream, the answer goes to a stream.

Decides which variables a verb needs, which versions know which verb, and how a failure is told (an error object on
standard output, exit code 1). Refuses to know what any verb does. Callable many times in one process.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple

from wherry_cni.errors import BAD_CONFIG, BAD_ENV, INCOMPATIBLE, INTERNAL, UNDECODABLE, CniError
from wherry_cni.errors import IO as IO_ERROR
from wherry_cni.results import NEWEST, VERSIONS, Json, from_previous, to_version, version_of

__all__ = ["Call", "Program", "Verb", "capture", "faces", "main", "note", "removed", "tell", "valid_attachments"]

_MAX_CONFIG = 4 << 20  # bytes of standard input
_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_IFNAME = re.compile(r"(?!\.{1,2}$)[^/:\s\0]{1,15}")  # dev_valid_name() of the kernel
_IFNAMSIZ = 16  # bytes, with the end
_NEEDS = {  # specification, section 2: variables a verb cannot do without
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "GC": ("CNI_PATH",),
    "STATUS": (),
    "VERSION": (),
}
_VALID = {"cni.dev/valid-attachments", "cni.dev/attachments"}  # the second one stood in the text of 1.1.0 at first
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}


class Call(NamedTuple):
    """One call of a plugin. `program` is the path that it was started by, `env` the whole environment."""

    verb: str
    container_id: str
    netns: str
    ifname: str
    args: Mapping[str, str]
    path: tuple[str, ...]
    config: Json
    env: Mapping[str, str]
    program: str

    @property
    def network(self) -> str:
        """The network's name."""
        return str(self.config["name"])

    @property
    def previous(self) -> Json | None:
        """The prevResult, in the shape of 1.1.0."""
        return from_previous(self.config)

    @property
    def given(self) -> Mapping[str, Any]:
        """What the conventions put into args.cni."""
        args = self.config.get("args") or {}
        given = (args.get("cni") or {}) if isinstance(args, dict) else None
        if not isinstance(given, dict):
            raise CniError(BAD_CONFIG, "args, args.cni: not an object")
        return given

    @property
    def runtime(self) -> Mapping[str, object]:
        """What the runtime gives for declared capabilities. containerd writes "HostPort" where the conventions have
        "hostPort": a Go decoder takes either."""
        given = self.config.get("runtimeConfig") or {}
        if not isinstance(given, dict):
            raise CniError(BAD_CONFIG, "runtimeConfig is not an object")
        return {key: value if key == "aliases" else _uncapitalized(value) for key, value in given.items()}


def _uncapitalized(value: object) -> object:
    if isinstance(value, list):
        return [_uncapitalized(part) for part in value]
    if isinstance(value, dict):
        return {str(key)[:1].lower() + str(key)[1:]: part for key, part in value.items()}
    return value


Verb = Callable[[Call], Json | None]
Program = Callable[[Sequence[str], Mapping[str, str], IO[bytes], IO[bytes]], int]


def main(verbs: Mapping[str, Verb], argv: Sequence[str], env: Mapping[str, str], stdin: IO[bytes],
         stdout: IO[bytes]) -> int:
    """Serve one call; 0, or 1 with an error object on `stdout`."""
    version = NEWEST
    try:
        verb = env.get("CNI_COMMAND", "")
        if verb not in _NEEDS:
            raise CniError(BAD_ENV, f"CNI_COMMAND is {'unset' if not verb else f'unknown: {verb}'}",
                           f"a CNI plugin for versions {', '.join(VERSIONS)}; a container runtime calls it")
        config = _read_config(stdin, optional=verb == "VERSION")
        version = config.get("cniVersion") if config.get("cniVersion") in VERSIONS else NEWEST  # type: ignore[assignment]
        answer = {"cniVersion": version, "supportedVersions": list(VERSIONS)} if verb == "VERSION" else _serve(
            verbs, verb, argv, env, config)
    except CniError as problem:
        return tell(stdout, version, problem)
    except OSError as problem:
        return tell(stdout, version, CniError(IO_ERROR, f"{problem.strerror or problem}: {problem.filename or ''}"))
    except Exception as problem:
        return tell(stdout, version, CniError(INTERNAL, f"{type(problem).__name__}: {problem}", _where(problem)))
    if answer is not None:
        stdout.write(json.dumps(answer).encode() + b"\n")
        stdout.flush()
    return 0


def faces(verbs: Mapping[str, Verb]) -> tuple[Program, Callable[[], int]]:
    """A plugin's `main`, one call with injected streams, and its `entry`, the executable."""
    def with_streams(argv: Sequence[str], env: Mapping[str, str], stdin: IO[bytes], stdout: IO[bytes]) -> int:
        return main(verbs, argv, env, stdin, stdout)

    def of_the_process() -> int:
        return main(verbs, sys.argv, os.environ, sys.stdin.buffer, sys.stdout.buffer)

    return with_streams, of_the_process


def _serve(verbs: Mapping[str, Verb], verb: str, argv: Sequence[str], env: Mapping[str, str],
           config: Json) -> Json | None:
    version = version_of(config)
    if version < _SINCE.get(verb, ""):
        raise CniError(INCOMPATIBLE, f"{verb} is not part of CNI {version}", f"it came with {_SINCE[verb]}")
    if not _ID.fullmatch(str(config.get("name", ""))):
        raise CniError(BAD_CONFIG, f'bad network name "{config.get("name", "")}"')
    call = _call(verb, argv, env, config)
    if verb == "GC" and not _VALID & config.keys():  # cnitool's; "everybody is dead" must be said, not left out
        return None
    serve = verbs.get(verb)
    result = serve(call) if serve else None
    if verb != "ADD":
        return None
    if result is None:
        raise CniError(INTERNAL, "ADD gave no result")
    return to_version(result, version)


def _call(verb: str, argv: Sequence[str], env: Mapping[str, str], config: Json) -> Call:
    missing = [name for name in _NEEDS[verb] if not env.get(name)]
    if missing:
        raise CniError(BAD_ENV, f"required environment variables are missing: {', '.join(missing)}")
    container_id, ifname = env.get("CNI_CONTAINERID", ""), env.get("CNI_IFNAME", "")
    if container_id and not _ID.fullmatch(container_id):
        raise CniError(BAD_ENV, f'bad CNI_CONTAINERID "{container_id}"')
    if ifname and not (_IFNAME.fullmatch(ifname) and ifname.isprintable() and len(ifname.encode()) < _IFNAMSIZ):
        raise CniError(BAD_ENV, f"bad CNI_IFNAME {ifname!r}")
    netns = env.get("CNI_NETNS", "")
    if netns and _is_here(netns):
        if verb != "DEL":
            raise CniError(BAD_ENV, f"CNI_NETNS {netns} is the plugin's own network namespace")
        netns = ""  # a /proc/PID/ns/net whose process is another by now: the host's links are not the container's
    return Call(verb, container_id, netns, ifname, _args(env.get("CNI_ARGS", "")),
                tuple(part for part in env.get("CNI_PATH", "").split(os.pathsep) if part), config, env,
                argv[0] if argv else "")


def _is_here(netns: str) -> bool:
    try:
        return os.path.samestat(os.stat(netns), os.stat("/proc/thread-self/ns/net"))
    except OSError:
        return False


def _args(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(";") if part]
    if not all(middle for _, middle, _ in pairs):
        raise CniError(BAD_ENV, f'CNI_ARGS: "{text}" is not KEY=VALUE;...')
    return {key: value for key, _, value in pairs}


def _read_config(stdin: IO[bytes], *, optional: bool) -> Json:
    data = stdin.read(_MAX_CONFIG + 1)
    if len(data) > _MAX_CONFIG:
        raise CniError(UNDECODABLE, f"the configuration is larger than {_MAX_CONFIG} bytes")
    if optional and not data.strip():
        return {}
    try:
        config = json.loads(data)
    except ValueError as problem:
        raise CniError(UNDECODABLE, f"the configuration is not JSON: {problem}") from None
    if not isinstance(config, dict):
        raise CniError(UNDECODABLE, "the configuration is not an object")
    return config


def tell(stdout: IO[bytes], version: str, problem: CniError) -> int:
    """Print an error object; 1, the exit code that goes with it."""
    told: Json = {"cniVersion": version, "code": problem.code, "msg": problem.msg}
    if problem.details:
        told["details"] = problem.details
    stdout.write(json.dumps(told).encode() + b"\n")
    stdout.flush()
    return 1


def _where(problem: BaseException) -> str:
    """The last place in our code, for a report of what is our bug."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else ""


def capture(verbs: Mapping[str, Verb], argv: Sequence[str], env: Mapping[str, str], config: bytes) -> tuple[int, bytes]:
    """The same call in this process: (exit code, what it printed)."""
    out = io.BytesIO()
    return main(verbs, argv, env, io.BytesIO(config), out), out.getvalue()


def valid_attachments(call: Call) -> set[tuple[str, str]]:
    """The (container id, interface) pairs of a GC call; libcni writes null for an empty list."""
    listed = next((call.config[key] or [] for key in _VALID if key in call.config), None)
    if not isinstance(listed, list) or not all(isinstance(part, dict) for part in listed):
        raise CniError(BAD_CONFIG, "cni.dev/valid-attachments is not a list of objects")
    return {(str(part.get("containerID", "")), str(part.get("ifname", ""))) for part in listed}


def removed(call: Call) -> bool:
    """Whether a GC call is the network's last: a key of ours, for CNI has no verb for it."""
    return call.config.get("networkRemoved") is True


def note(text: str) -> None:
    """A line for the runtime's log; standard output is the answer's alone."""
    sys.stderr.write(f"{text}\n")
