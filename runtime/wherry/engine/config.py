"""Where a wherry lives and what its administrator set: the one loader of places and of wherry.toml.

Decides between flags, environment (WHERRY_ROOT, WHERRY_STATE, WHERRY_CONFIG), and the defaults of root or, for
another user, the XDG directories. Refuses to know what a setting means to a container.
"""

import os
import stat
from collections.abc import Mapping
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.model import Json, Place

__all__ = ["Settings", "hosts_directory", "networking", "place", "settings"]

_MAX_CONFIG = 1 << 20
_FORMATS = ("auto", "directory", "erofs")  # image/formats.py, which no command needs that only reads settings


class Settings(NamedTuple):
    """wherry.toml. Every key has a default; an unknown key is an error, for a typing mistake must not be silent."""

    publish_default: str = ""  # every address, as docker; the setting exists to narrow it
    log_driver: str = "local"
    pids_limit: int = 2048
    profile: str = "default"
    default_network: str = "bridge"
    cgroup_parent: str = "/wherry"
    missing_controllers: str = "degrade"  # wherry-oci and CRI, whose callers always send limits; or "error"
    stop_timeout: int = 10
    userns_base: int = 0x10000000  # first host id of the ranges that --userns auto gives
    userns_size: int = 65536
    snapshot_format: str = "auto"  # of layers from now on: erofs where a probe says that it can be
    cni_conf: str = ""  # a directory of CNI lists in the stead of /etc/cni/net.d
    volume_driver_idle: int = 30  # seconds after which wherry's own CSI driver, started on demand, leaves
    pod_network: str = ""  # the CNI network of pods; "": the first list of the CNI directory
    pod_cgroup_driver: str = "auto"  # cgroupfs or systemd, as the kubelet is told; auto: systemd where it runs
    stream_address: str = "127.0.0.1:0"  # where exec, attach and port-forward of the CRI are served
    log_level: str = "info"  # of wherryd: debug (each call), info, warning, error
    log_format: str = "auto"  # of wherryd: text, json; auto: text, with the journal's priorities where it reads
    socket_group: str = "wherry"  # who beside root may talk to wherryd, where such a group exists
    nri_socket: str = ""  # where wherryd serves plugins of the Node Resource Interface; "": it does not
    nri_timeout: int = 2  # seconds that one of them has for an answer
    docker_log_driver: str = "json-file"  # where docker's clients name none: some read back only that and journald
    docker_tcp: str = ""  # ADDRESS:PORT for the Docker API with certificates on both sides; "": no TCP at all
    tls_ca: str = ""  # PEM file of the authorities whose certificates let a client of docker_tcp in
    tls_cert: str = ""  # PEM file of the server's certificate and what signed it
    tls_key: str = ""  # PEM file of its key
    otlp_endpoint: str = ""  # where wherryd sends spans of its calls by OTLP, as http://127.0.0.1:4318; "": nowhere
    handlers: Mapping[str, str] = {}  # RuntimeClass handlers beside "wherry": a name and an OCI runtime's path
    cni_path: str = ""  # directories of their plugins, with ":" between them, as in CNI_PATH


def _user_place(env: Mapping[str, str]) -> Place:
    home = env.get("HOME") or "/"
    data = env.get("XDG_DATA_HOME") or f"{home}/.local/share"
    run = env.get("XDG_RUNTIME_DIR") or _private(f"/tmp/wherry-{os.getuid()}")  # noqa: S108  # checked
    conf = env.get("XDG_CONFIG_HOME") or f"{home}/.config"
    return Place(f"{data}/wherry", f"{run}/wherry", f"{conf}/wherry/wherry.toml", f"{conf}/cni/net.d", Place().cni_bin)


def _private(path: str) -> str:
    """A directory in a place where everybody may make one: ours alone, or it is not taken."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            hint = "remove it, or set XDG_RUNTIME_DIR to a directory of your own"
            raise WherryError(Kind.DENIED, f"{path} is not a directory of this user alone", hint=hint) from None
    return path


def place(root: str = "", state: str = "", config: str = "", env: Mapping[str, str] | None = None) -> Place:
    """Resolve where this wherry lives: flags first, then the environment, then the defaults of this user."""
    env = os.environ if env is None else env
    base = Place() if os.geteuid() == 0 else _user_place(env)
    wanted = {
        "root": root or env.get("WHERRY_ROOT", ""),
        "state": state or env.get("WHERRY_STATE", ""),
        "config": config or env.get("WHERRY_CONFIG", ""),
    }
    given = {key: os.path.abspath(value) for key, value in wanted.items() if value}
    return base._replace(**given)  # type: ignore[arg-type]


def hosts_directory(where: Place) -> str:
    """What is set for registries, one directory each (image/hosts.py), beside wherry.toml."""
    return os.path.join(os.path.dirname(where.config), "hosts.d")


def settings(path: str, env: Mapping[str, str] | None = None) -> Settings:
    """Read wherry.toml; an absent file is all defaults. WHERRY_SNAPSHOT_FORMAT goes before what it says."""
    wanted = (os.environ if env is None else env).get("WHERRY_SNAPSHOT_FORMAT", "")
    found = _read(path)
    return _known(path, found._replace(snapshot_format=wanted) if wanted else found)


def networking(where: Place, known: Settings) -> Place:
    """The place with the CNI directories that are set."""
    path = tuple(part for part in known.cni_path.split(":") if part)
    return where._replace(cni_conf=known.cni_conf or where.cni_conf, cni_bin=path or where.cni_bin)


def _read(path: str) -> Settings:
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_CONFIG + 1)
    except (FileNotFoundError, NotADirectoryError):
        return Settings()
    except PermissionError as error:
        raise WherryError(Kind.DENIED, f"cannot read {path}: {error.strerror}") from error
    return _checked(path, _parse(path, text))


def _parse(path: str, text: bytes) -> Json:
    import tomllib

    if len(text) > _MAX_CONFIG:
        raise WherryError(Kind.INVALID, f"{path} is larger than {_MAX_CONFIG} bytes")
    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WherryError(Kind.INVALID, f"{path} is not valid TOML: {error}") from error


def _checked(path: str, values: Json) -> Settings:
    defaults = Settings()
    for key, value in values.items():
        if key not in Settings._fields:
            hint = f"known: {', '.join(Settings._fields)}"
            raise WherryError(Kind.INVALID, f"{path}: unknown setting {key}", hint=hint)
        if type(value) is not type(getattr(defaults, key)):
            kind = type(getattr(defaults, key)).__name__
            raise WherryError(Kind.INVALID, f"{path}: {key} must be of type {kind}, not {type(value).__name__}")
    return Settings(**values)


def _known(path: str, found: Settings) -> Settings:
    if found.snapshot_format not in _FORMATS:
        message = f"{path}: snapshot_format must be one of {', '.join(_FORMATS)}, not {found.snapshot_format[:80]!r}"
        raise WherryError(Kind.INVALID, message)
    return found
