"""What one flag's value means: text to a typed value, docker's grammar, one teaching error for each way to be wrong.

Pure: no file, environment, clock or current directory is read here (`options.py` brings those). Every parser takes
the flag's name (for the error) and the text. It refuses to know what the host can do: a limit that parses may still be
refused by the engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from wherry.errors import Kind, WherryError
from wherry.model import Attachment, MountRequest, PortMapping, RestartPolicy


def bad(flag: str, text: str, why: str, allowed: str) -> WherryError:
    """The one shape of a bad value: the flag, the value, the reason; the hint says what is allowed."""
    return WherryError(Kind.INVALID, f'invalid value "{text}" for {flag}: {why}', hint=f"{flag} takes {allowed}")


def choice(*words: str) -> Callable[[str, str], str]:
    """A parser for a closed set of words."""

    def one_of(flag: str, text: str) -> str:
        if text not in words:
            raise bad(flag, text, "unknown value", "one of " + ", ".join(words))
        return text

    return one_of


TRUE, FALSE = frozenset({"1", "t", "true"}), frozenset({"0", "f", "false"})


def boolean(flag: str, text: str) -> bool:
    """Go's strconv.ParseBool, which docker's flags use."""
    low = text.lower()
    if low in TRUE or low in FALSE:
        return low in TRUE
    raise bad(flag, text, "not a boolean", "true or false")


# ---- numbers ----

SIZE_UNITS = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
SIZE = r"(?a)(\d+(?:\.\d+)?) ?(?:([kmgtp])i?)?b?"
SIZE_HELP = "a number of bytes with an optional unit: 512b, 64k, 10m, 1.5g, 2t (powers of 1024)"


def size(flag: str, text: str) -> int:
    """docker's RAMInBytes: units are powers of 1024."""
    found = re.fullmatch(SIZE, text.lower())
    if found is None:
        raise bad(flag, text, "not a size", SIZE_HELP)
    return int(float(found[1]) * 1024 ** SIZE_UNITS[found[2] or ""]) if "." in found[1] or found[2] else int(found[1])


def bytes_or_unlimited(flag: str, text: str) -> int:
    """A size, or -1 for no limit."""
    return -1 if text == "-1" else size(flag, text)


def integer(low: int, high: int) -> Callable[[str, str], int]:
    """A parser for a whole number in a closed range."""

    def whole(flag: str, text: str) -> int:
        allowed = f"a whole number from {low} to {high}"
        if not re.fullmatch(r"[+-]?\d{1,20}", text, re.ASCII):
            raise bad(flag, text, "not a whole number", allowed)
        if not low <= int(text) <= high:
            raise bad(flag, text, "out of range", allowed)
        return int(text)

    return whole


def cpus(flag: str, text: str) -> float:
    """A positive number of CPUs; the kernel's period of 100 ms makes 0.01 the least."""
    allowed = "a number of CPUs such as 0.5 or 2"
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", text, re.ASCII):
        raise bad(flag, text, "not a number", allowed)
    if not 0.01 <= float(text) <= 8192:
        raise bad(flag, text, "out of range", "at least 0.01 CPUs (0.01 to 8192)")
    return float(text)


def cpuset(flag: str, text: str) -> str:
    """A list of CPUs or memory nodes as the kernel writes it."""
    parts = re.fullmatch(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", text, re.ASCII)
    ranges = [p.split("-") for p in text.split(",")] if parts else []
    if not parts or any(int(r[0]) > int(r[-1]) for r in ranges):
        raise bad(flag, text, "not a list of numbers", "numbers and ranges such as 0-3 or 0,2")
    return text


DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION_PART = r"(?a)(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)"


def duration(flag: str, text: str) -> float:
    """Go's time.ParseDuration without a sign, in seconds."""
    if text == "0":
        return 0.0
    parts = list(re.finditer(DURATION_PART, text))
    if not parts or "".join(p[0] for p in parts) != text:
        raise bad(flag, text, "not a duration", "a number with a unit, or several: 300ms, 10s, 1m30s, 1h2m3s")
    return sum(float(p[1]) * DURATION_UNITS[p[2]] for p in parts)


MOMENT_HELP = "a duration (10m), a date (2026-01-31, 2026-01-31T10:00:00Z) or Unix seconds"


def moment(flag: str, text: str, now: float) -> float:
    """docker's --since and --until: a Unix time, an RFC 3339 time, or a duration before `now`. Unix seconds."""
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    if re.match(DURATION_PART, text) and not re.match(r"\d{4}-", text):
        return now - duration(flag, text)
    from datetime import UTC, datetime

    try:
        when = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    except ValueError:
        raise bad(flag, text, "not a time", MOMENT_HELP) from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


# ---- words ----

NAME = r"(?a)[a-zA-Z0-9][a-zA-Z0-9_.-]+"


def name(flag: str, text: str) -> str:
    """A name for a container, as docker allows it."""
    bare = text.removeprefix("/")
    if not re.fullmatch(NAME, bare):
        raise bad(flag, text, "not a name", "two or more of a-z A-Z 0-9 _ . -, a letter or digit first")
    return bare


def hostname(flag: str, text: str) -> str:
    """One host name by RFC 1123; the kernel holds 64 bytes."""
    label = r"[a-zA-Z0-9]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9])?"
    if len(text) > 64 or not re.fullmatch(rf"{label}(\.{label})*", text, re.ASCII):
        raise bad(flag, text, "not a host name", "letters, digits, dots and dashes, 64 at most")
    return text


def namespace(*words: str) -> Callable[[str, str], str]:
    """A parser for a namespace's mode: one of the words, or another container's."""

    def mode(flag: str, text: str) -> str:
        kind, _, ref = text.partition(":")
        if text not in ("", *words) and not (kind == "container" and ref):
            why = "no container is named" if kind == "container" else "unknown value"
            raise bad(flag, text, why, ", ".join((*words, "container:NAME")))
        return text

    return mode


def workdir(flag: str, text: str) -> str:
    """A directory inside the container."""
    if not text.startswith("/") or "\0" in text:
        raise bad(flag, text, "not an absolute path", "an absolute path inside the container, such as /srv")
    return text


def stream(flag: str, text: str) -> str:
    """One of the three standard streams, docker ignores case."""
    return choice("stdin", "stdout", "stderr")(flag, text.lower())


def signal_name(flag: str, text: str) -> str:
    """A signal by name or number, given back as its full name or its number."""
    import signal

    bare = text.upper().removeprefix("SIG")
    if bare.isascii() and bare.isdigit() and 1 <= int(bare) <= 64:
        return bare
    realtime = re.fullmatch(r"RTMIN(\+\d{1,2})?|RTMAX(-\d{1,2})?", bare)
    if not realtime and f"SIG{bare}" not in signal.Signals.__members__:
        raise bad(flag, text, "unknown signal", "a signal's name or number: TERM, SIGKILL, 9, RTMIN+3")
    return f"SIG{bare}"


def platform(flag: str, text: str) -> str:
    """os/arch[/variant]; containerd also allows the architecture alone."""
    if not re.fullmatch(r"[a-z0-9_]+(/[a-z0-9_]+){0,2}", text, re.ASCII):
        raise bad(flag, text, "not a platform", "OS/ARCH[/VARIANT] such as linux/arm64 or linux/arm/v7")
    parts = text.split("/")
    if len(parts) > 1 and parts[0] != "linux":
        raise bad(flag, text, "only linux images run here", "linux/ARCH[/VARIANT]")
    return text


def key_value(flag: str, text: str) -> tuple[str, str]:
    """KEY=VALUE or KEY alone (an empty value)."""
    key, _, value = text.partition("=")
    if not key:
        raise bad(flag, text, "the key is empty", "KEY=VALUE")
    return key, value


def required_value(flag: str, text: str) -> tuple[str, str]:
    """KEY=VALUE with both sides."""
    key, eq, value = text.partition("=")
    if not key or not eq:
        raise bad(flag, text, "no KEY=VALUE pair", "KEY=VALUE")
    return key, value


def env_name(flag: str, text: str) -> str:
    """KEY=VALUE or KEY; the execve string ends at the first NUL, so there may be none."""
    if not text or text.startswith("=") or "\0" in text:
        raise bad(flag, text, "the variable's name is empty", "KEY=VALUE, or KEY to take yours")
    return text


def line_file(flag: str, path: str, text: str) -> list[str]:
    """The lines of an --env-file or --label-file: # comments and blank lines fall away, values are kept to the end."""
    lines = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.rstrip("\r").lstrip()
        if not line or line.startswith("#"):
            continue
        key = line.partition("=")[0]
        if not key or re.search(r"\s", key.rstrip()) or "\0" in line:
            raise WherryError(
                Kind.INVALID,
                f'{flag} {path}, line {number}: "{key}" is not a name',
                hint="one KEY=VALUE a line; # begins a comment",
            )
        lines.append(line)
    return lines


def restart(flag: str, text: str) -> RestartPolicy:
    """no, always, unless-stopped, on-failure[:n]."""
    word, colon, count = text.partition(":")
    allowed = "one of no, always, unless-stopped, on-failure, on-failure:N"
    if word not in ("no", "always", "unless-stopped", "on-failure"):
        raise bad(flag, text, "unknown policy", allowed)
    if colon and word != "on-failure":
        raise bad(flag, text, f"{word} takes no number", allowed)
    if colon and not re.fullmatch(r"\d{1,9}", count, re.ASCII):
        raise bad(flag, text, "the number of retries is not a whole number", allowed)
    return RestartPolicy(word, int(count) if colon else 0)


SECURITY_KEYS = ("apparmor", "label", "mask", "no-new-privileges", "seccomp", "systempaths", "unmask")


def security(flag: str, text: str) -> str:
    """docker's KEY=VALUE (older: KEY:VALUE); no-new-privileges stands alone too."""
    found = re.match(r"[a-z-]+", text)
    key, rest = (found[0], text[found.end() :]) if found else ("", "")
    if key not in SECURITY_KEYS:
        raise bad(flag, text, "unknown option", "one of " + ", ".join(f"{k}=..." for k in SECURITY_KEYS))
    if key == "no-new-privileges":
        return "no-new-privileges=" + ("true" if not rest or boolean(f"{flag} {key}", rest[1:]) else "false")
    if key == "label" and rest[1:] == "":
        raise bad(flag, text, "no value", "label=type:T, label=level:L or label=disable")
    if not rest or rest[0] not in "=:" or len(rest) == 1:
        raise bad(flag, text, "no value", f"{key}=VALUE")
    return f"{key}={rest[1:]}"


KEY_WORD = r"ctrl-([a-z@\[\\\]^_])|(.)"


def detach_keys(flag: str, text: str) -> bytes:
    """docker's key sequence "ctrl-p,ctrl-q" as the bytes that the terminal sends; empty: none."""
    keys = bytearray()
    for word in text.split(",") if text else []:
        found = re.fullmatch(KEY_WORD, word)
        if found is None or not word.isascii():
            raise bad(
                flag, text, f'unknown key "{word}"', "letters and ctrl-LETTER (also @ [ \\ ] ^ _), commas between"
            )
        keys.append(ord(found[1].upper()) & 0x1F if found[1] else ord(found[2]))
    return bytes(keys)


# ---- network ----


def is_ip(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address; inet_pton, since ipaddress costs 5 ms of import."""
    import socket

    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
        return True
    return False


def ip(flag: str, text: str) -> str:
    """An address without a prefix."""
    if not is_ip(text):
        raise bad(flag, text, "not an IP address", "an address such as 10.88.0.5 or fd00::5")
    return text


def cidr(flag: str, text: str) -> str:
    """A subnet, its host bits clear."""
    import ipaddress

    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise bad(flag, text, str(error), "a subnet such as 10.90.0.0/24") from None


PORT_HELP = "[IP:][HOST[-HOST]:]CONTAINER[-CONTAINER][/tcp|udp|sctp], such as 8080:80 or 127.0.0.1:53:53/udp"


def _ports(flag: str, text: str, whole: str, lowest: int = 1) -> range:
    """N or N-M as a range of ports."""
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text, re.ASCII)
    if found is None:
        raise bad(flag, whole, f'"{text}" is not a port', PORT_HELP)
    first, last = int(found[1]), int(found[2] or found[1])
    if not lowest <= first <= last <= 65535:
        raise bad(flag, whole, f'"{text}" is not a port from {lowest} to 65535', PORT_HELP)
    return range(first, last + 1)


def _protocol(flag: str, text: str) -> tuple[str, str]:
    """What is before the slash, and the protocol."""
    body, slash, protocol = text.partition("/")
    if slash and protocol.lower() not in ("tcp", "udp", "sctp"):
        raise bad(flag, text, f'unknown protocol "{protocol}"', PORT_HELP)
    return body, protocol.lower() or "tcp"


def _host_and_rest(body: str) -> tuple[str, str]:
    """Split an address ([v6] or v4) off a port specification."""
    if body.startswith("["):
        address, _, rest = body[1:].partition("]")
        return address, rest.removeprefix(":")
    address, _, rest = body.partition(":") if body.count(":") == 2 else ("", "", body)
    return address, rest


def publish(flag: str, text: str) -> tuple[PortMapping, ...]:
    """-p: one mapping for each container port; with several host ports for one, whichever is free."""
    body, protocol = _protocol(flag, text)
    address, rest = _host_and_rest(body)
    if body.count(":") > 2 and not body.startswith("["):
        raise bad(flag, text, "too many colons", PORT_HELP + "; an IPv6 address stands in brackets")
    if address and not is_ip(address):
        raise bad(flag, text, f'"{address}" is not an IP address', PORT_HELP)
    left, colon, right = rest.rpartition(":")
    inside = _ports(flag, right, text)
    outside = _ports(flag, left, text, 0) if colon and left else None
    if outside is not None and len(inside) == 1 and len(outside) > 1:  # any free one of the range, as docker
        if not outside[0]:
            raise bad(flag, text, '"0" is not a port from 1 to 65535', PORT_HELP)
        return (PortMapping(inside[0], outside[0], protocol, address, outside[-1]),)
    if outside is not None and len(outside) != len(inside):
        why = f"{len(outside)} host ports for {len(inside)} container ports"
        raise bad(flag, text, why, "two ranges of the same length, or a range of host ports for one container port")
    hosts: Iterable[int] = outside if outside is not None else [0] * len(inside)
    return tuple(PortMapping(c, h, protocol, address) for c, h in zip(inside, hosts, strict=True))


def expose(flag: str, text: str) -> tuple[str, ...]:
    """--expose: "80/tcp" for each port of the range."""
    body, protocol = _protocol(flag, text)
    return tuple(f"{port}/{protocol}" for port in _ports(flag, body, text))


def add_host(flag: str, text: str) -> str:
    """host:ip, host=ip, host:host-gateway; given back as host:ip."""
    host, address = text.split("=", 1) if "=" in text else (text.partition(":")[0], text.partition(":")[2])
    address = address.removeprefix("[").removesuffix("]")
    if not host or not (address == "host-gateway" or is_ip(address)):
        raise bad(flag, text, "not a host and an address", "HOST:IP, or HOST:host-gateway")
    return f"{host}:{address}"


MAC = r"(?i)[0-9a-f]{2}(:[0-9a-f]{2}){5}"


def mac(flag: str, text: str) -> str:
    """A unicast MAC address (the lowest bit of the first octet marks a group)."""
    if not re.fullmatch(MAC, text) or int(text[:2], 16) & 1:
        raise bad(flag, text, "not a unicast MAC address", "six pairs of hex digits such as 02:42:ac:11:00:02")
    return text.lower()


NETWORK_KEYS = ("name", "alias", "ip", "ip6", "mac-address", "driver-opt", "gw-priority")
NETWORK_HELP = (
    "a network's name, none, host, container:NAME, name=NETWORK,KEY=VALUE,... or NETWORK:KEY=VALUE,... with the keys "
    + ", ".join(NETWORK_KEYS[1:])
)


def network(flag: str, text: str) -> Attachment:
    """One --network, short or long form, docker's or podman's. Interfaces get their names in `options.py`, by order."""
    if "=" not in text:
        return attachment(flag, text, [("name", text)])
    head, colon, rest = text.partition(":")
    if colon and "=" not in head and head != "container":
        return attachment(flag, text, [("name", head), *(required_value(flag, part) for part in _csv(flag, rest))])
    return attachment(flag, text, [required_value(flag, part) for part in _csv(flag, text)])


def attachment(flag: str, text: str, pairs: Sequence[tuple[str, str]]) -> Attachment:
    """The wish that the pairs of a long --network describe."""
    given: dict[str, str] = {}
    aliases: list[str] = []
    options: dict[str, str] = {}
    for name, value in pairs:
        key = {"mac": "mac-address", "mac_address": "mac-address"}.get(name, name)
        if key not in NETWORK_KEYS:
            raise bad(flag, text, f'unknown key "{key}"', NETWORK_HELP)
        if key == "alias":
            aliases.append(hostname(f"{flag} alias", value))
        elif key == "driver-opt":
            options |= dict([driver_option(f"{flag} driver-opt", value)])
        given[key] = value
    if given.get("name", "") in ("", "container:"):
        raise bad(flag, text, "no network is named", NETWORK_HELP)
    parsers = {"ip": ip, "ip6": ip6, "mac-address": mac}
    checked = {key: parser(f"{flag} {key}", given[key]) for key, parser in parsers.items() if given.get(key)}
    priority = integer(-(2**31), 2**31 - 1)(f"{flag} gw-priority", given.get("gw-priority", "0"))
    return Attachment(given["name"], tuple(aliases), checked.get("ip", ""), checked.get("mac-address", ""),
                      ip6=checked.get("ip6", ""), options=options, priority=priority)  # fmt: skip


def driver_option(flag: str, text: str) -> tuple[str, str]:
    """KEY=VALUE of an endpoint. Whether a network knows it, the engine says."""
    return required_value(flag, text)


def named_ip(flag: str, text: str) -> tuple[str, str]:
    """NAME=IP; as with docker the name may be left out."""
    name, _, address = text.rpartition("=")
    return name or address, ip(flag, address)


def ip4(flag: str, text: str) -> str:
    """An IPv4 address."""
    if ":" in text:
        raise bad(flag, text, "not an IPv4 address", "an address such as 10.88.0.5; --ip6 takes IPv6")
    return ip(flag, text)


def ip6(flag: str, text: str) -> str:
    """An IPv6 address."""
    if ":" not in text:
        raise bad(flag, text, "not an IPv6 address", "an address such as fd00::5")
    return ip(flag, text)


def link(flag: str, text: str) -> str:
    """docker's old links: refused."""
    raise bad(flag, text, "links are not built", "nothing: containers of a network find each other by name and alias")


# ---- mounts and devices ----

PROPAGATION = frozenset({"shared", "slave", "private", "rshared", "rslave", "rprivate"})
FLAGS = frozenset({"ro", "rw", "dev", "nodev", "suid", "nosuid", "exec", "noexec"})
BIND_OPTIONS = FLAGS | PROPAGATION | {"z", "Z", "U", "bind", "rbind", "idmap"}
VOLUME_OPTIONS = FLAGS | {"z", "Z", "U", "nocopy", "copy"}
MAC_ONLY = frozenset({"consistent", "cached", "delegated"})  # docker's words for its Mac file sharing: no meaning here
EXCLUSIVE = ({"ro", "rw"}, {"z", "Z"}, {"dev", "nodev"}, {"suid", "nosuid"}, {"exec", "noexec"}, PROPAGATION)
VOLUME_HELP = "[HOST-PATH or VOLUME:]CONTAINER-PATH[:OPTIONS]"


def _csv(flag: str, text: str) -> list[str]:
    """docker reads --mount and --network as one line of CSV, so a quoted value may hold commas."""
    import csv

    try:
        return next(csv.reader([text]), [])
    except csv.Error:
        raise bad(flag, text, "more than one line", "KEY=VALUE,... in one line") from None


def _target(flag: str, text: str, target: str) -> str:
    import posixpath

    if not target.startswith("/") or "\0" in target:
        raise bad(flag, text, f'the container path "{target}" is not absolute', VOLUME_HELP)
    clean = posixpath.normpath("/" + target.lstrip("/"))
    if clean == "/":
        raise bad(flag, text, "the container path may not be /", VOLUME_HELP)
    return clean


def _mount_options(flag: str, text: str, options: Sequence[str], allowed: frozenset[str] | set[str]) -> tuple[str, ...]:
    kept = tuple(o for o in options if o and o not in MAC_ONLY)
    for option in kept:
        if option not in allowed:
            raise bad(flag, text, f'unknown option "{option}"', "the options " + ", ".join(sorted(allowed)))
    for group in EXCLUSIVE:
        clash = sorted(group & set(kept))
        if len(clash) > 1:
            raise bad(flag, text, f'"{clash[0]}" and "{clash[1]}" exclude each other', "one of them")
    return kept


def is_path(source: str) -> bool:
    """docker's rule for what is a host path and what is a volume's name."""
    return source.startswith(("/", ".", "~/"))


def volume(flag: str, text: str) -> MountRequest:
    """-v. A missing host directory is made, as docker does for -v and does not for --mount."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise bad(flag, text, "not a volume" if len(parts) <= 3 else "too many colons", VOLUME_HELP)
    if len(parts) == 1:
        return MountRequest("volume", _target(flag, text, parts[0]))
    source, target = parts[0], _target(flag, text, parts[1])
    bind = is_path(source)
    if not bind and not re.fullmatch(NAME, source):
        why = f'"{source}" is no volume name'
        raise bad(flag, text, why, "an absolute host path (or ./PATH), or a volume's name of a-z A-Z 0-9 _ . -")
    words = parts[2].split(",") if len(parts) == 3 else []
    options = _mount_options(flag, text, words, BIND_OPTIONS if bind else VOLUME_OPTIONS)
    return MountRequest("bind" if bind else "volume", target, source, options, create_source=bind)


MOUNT_KEYS = {
    "target": "target",
    "dst": "target",
    "destination": "target",
    "source": "source",
    "src": "source",
    "type": "type",
    "readonly": "ro",
    "ro": "ro",
    "bind-propagation": "propagation",
    "volume-nocopy": "nocopy",
    "volume-driver": "driver",
    "volume-opt": "opt",
    "tmpfs-size": "size",
    "tmpfs-mode": "mode",
    "relabel": "relabel",
    "consistency": "",
}
MOUNT_BY_KIND = {"bind": {"propagation", "relabel"}, "volume": {"nocopy", "driver"}, "tmpfs": {"size", "mode"}}
MOUNT_HELP = (
    "type=bind|volume|tmpfs,source=..,target=..[,readonly][,bind-propagation=..][,relabel=shared|private]"
    "[,volume-nocopy][,volume-driver=..][,volume-opt=KEY=VALUE]...[,tmpfs-size=..][,tmpfs-mode=..]"
)
RELABEL = {"shared": "z", "private": "Z"}


def mount(flag: str, text: str) -> MountRequest:
    """--mount: docker's KEY=VALUE line; the type is volume where none is given."""
    given, options = _mount_fields(flag, text)
    kind = given.pop("type", "volume")
    if kind not in MOUNT_BY_KIND:
        raise bad(flag, text, f'unknown type "{kind}"', MOUNT_HELP)
    source, target = given.pop("source", ""), given.pop("target", "")
    if not target:
        raise bad(flag, text, "target is missing", MOUNT_HELP)
    _mount_source(flag, text, kind, source)
    stray = sorted(set(given) - MOUNT_BY_KIND[kind] - {"ro"}) + (["volume-opt"] if options and kind != "volume" else [])
    if stray:
        raise bad(flag, text, f'"{stray[0]}" does not go with type={kind}', MOUNT_HELP)
    driver = given.pop("driver", "")
    words = tuple(_mount_words(flag, given))
    return MountRequest(kind, _target(flag, text, target), source, words, driver=driver, driver_options=options)


def _mount_fields(flag: str, text: str) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
    """The keys but for volume-opt, and those."""
    given: dict[str, str] = {}
    options: list[tuple[str, str]] = []
    for part in _csv(flag, text):
        key, eq, value = part.partition("=")
        if key.strip() not in MOUNT_KEYS:
            raise bad(flag, text, f'unknown key "{key}"', MOUNT_HELP)
        meaning = MOUNT_KEYS[key.strip()]
        if not eq and meaning not in ("ro", "nocopy"):
            raise bad(flag, text, f'"{key}" has no value', MOUNT_HELP)
        if meaning == "opt":
            options.append(required_value(f"{flag} volume-opt", value))
        elif meaning:
            given[meaning] = value if eq else "true"
    return given, tuple(options)


def _mount_source(flag: str, text: str, kind: str, source: str) -> None:
    fits = {
        "bind": (is_path(source), "a bind mount needs source=PATH, absolute or ./PATH"),
        "volume": (not source or bool(re.fullmatch(NAME, source)), f'"{source}" is no volume name'),
        "tmpfs": (not source, "a tmpfs has no source"),
    }
    good, why = fits[kind]
    if not good:
        raise bad(flag, text, why, MOUNT_HELP)


def _mount_words(flag: str, given: dict[str, str]) -> Iterable[str]:
    """The options of a MountRequest that the keys of --mount stand for."""
    for key, value in given.items():
        if key in ("ro", "nocopy"):
            if boolean(flag, value):
                yield key
        elif key == "propagation":
            yield choice(*sorted(PROPAGATION))(f"{flag} bind-propagation", value)
        elif key == "relabel":
            yield RELABEL[choice(*RELABEL)(f"{flag} relabel", value)]
        else:
            inner = f"{flag} tmpfs-{key}"
            yield f"{key}={size(inner, value) if key == 'size' else mode_of(inner, value)}"


def mode_of(flag: str, text: str) -> str:
    """File mode bits in octal."""
    if not re.fullmatch(r"0?o?[0-7]{1,4}", text, re.ASCII):
        raise bad(flag, text, "not an octal mode", "an octal mode such as 1777")
    return text.replace("o", "").lstrip("0").rjust(1, "0")


TMPFS_FLAGS = (
    FLAGS
    | PROPAGATION
    | {
        "noatime",
        "relatime",
        "atime",
        "nodiratime",
        "diratime",
        "strictatime",
        "sync",
        "async",
        "notmpcopyup",
        "tmpcopyup",
    }
)
TMPFS_KEYS = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol", "huge")


def tmpfs(flag: str, text: str) -> MountRequest:
    """--tmpfs PATH[:OPTIONS], the options of tmpfs(5)."""
    path, _, rest = text.partition(":")
    options = []
    for word in rest.split(",") if rest else []:
        key, eq, value = word.partition("=")
        if not (word in TMPFS_FLAGS if not eq else key in TMPFS_KEYS and value):
            why = f'unknown option "{word}"'
            raise bad(flag, text, why, "PATH[:OPTIONS] with tmpfs options such as size=64m,mode=1777,noexec")
        if key == "mode":
            mode_of(f"{flag} mode", value)
        sized = key == "size" and not value.endswith("%")
        options.append(f"size={size(f'{flag} size', value)}" if sized else word)
    return MountRequest("tmpfs", _target(flag, text, path), "", tuple(options))


CDI = r"(?a)[a-zA-Z0-9][\w.-]*/[a-zA-Z0-9][\w.-]*=[a-zA-Z0-9][\w.:-]*"


def device(flag: str, text: str) -> str:
    """HOST[:CONTAINER][:rwm], or a CDI name VENDOR/CLASS=NAME."""
    if re.fullmatch(CDI, text):
        return text
    allowed = "/dev/HOST[:/dev/CONTAINER][:rwm], or a CDI name such as vendor.com/class=name"
    host, *rest = text.split(":")
    rights = rest.pop() if rest and not rest[-1].startswith("/") else "rwm"
    if not host.startswith("/") or len(rest) > 1:
        raise bad(flag, text, "not a device", allowed)
    if not rights or set(rights) - set("rwm") or len(set(rights)) != len(rights):
        raise bad(flag, text, f'unknown rights "{rights}"', allowed)
    return f"{host}:{rest[0] if rest else host}:{rights}"


ULIMITS = (
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
)


def ulimit(flag: str, text: str) -> str:
    """NAME=SOFT[:HARD]; -1 is unlimited."""
    allowed = "NAME=SOFT[:HARD] with -1 for unlimited; the names are " + ", ".join(ULIMITS)
    key, _, value = text.partition("=")
    if key not in ULIMITS:
        raise bad(flag, text, f'unknown limit "{key}"', allowed)
    numbers = ["-1" if n == "unlimited" else n for n in value.split(":")]
    if len(numbers) > 2 or not all(re.fullmatch(r"-1|\d{1,19}", n, re.ASCII) for n in numbers):
        raise bad(flag, text, f'"{value}" is not SOFT[:HARD]', allowed)
    soft, hard = int(numbers[0]), int(numbers[-1])
    if hard != -1 and (soft == -1 or soft > hard):
        raise bad(flag, text, "the soft limit is above the hard one", allowed)
    return f"{key}={soft}:{hard}"
