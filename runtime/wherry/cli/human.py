"""Numbers and times as docker prints them for people (go-units). Pure: the present is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# (below this many seconds, what is said); the first row that fits, docker/go-units duration.go
STEPS: tuple[tuple[float, Callable[[float], str]], ...] = (
    (1, lambda _: "Less than a second"),
    (2, lambda _: "1 second"),
    (60, lambda s: f"{int(s)} seconds"),
    (120, lambda _: "About a minute"),
    (60 * 60, lambda s: f"{int(s / 60)} minutes"),
    (60 * 90, lambda _: "About an hour"),
    (48 * 3600, lambda s: f"{int(s / 3600 + 0.5)} hours"),
    (14 * 86400, lambda s: f"{int(s / 86400)} days"),
    (60 * 86400, lambda s: f"{int(s / 604800)} weeks"),
    (730 * 86400, lambda s: f"{int(s / 86400 / 30)} months"),
)


def ago(seconds: float) -> str:
    """ "3 minutes", "About an hour", "2 weeks" — without the word ago."""
    for below, say in STEPS:
        if seconds < below:
            return say(seconds)
    return f"{int(seconds / 86400 / 365)} years"


def _scaled(number: float, base: float, units: Sequence[str], digits: int) -> str:
    at = 0
    while number >= base and at < len(units) - 1:
        number /= base
        at += 1
    text = f"{number:.{digits}g}"
    return (f"{number:.0f}" if "e" in text else text) + units[at]  # 999.9 would be 1e+03


def size(number: float, digits: int = 3) -> str:
    """Powers of 1000: images and disks, "4.26MB"."""
    return _scaled(number, 1000, ("B", "kB", "MB", "GB", "TB", "PB", "EB"), digits)


def memory(number: float, digits: int = 4) -> str:
    """Powers of 1024: memory, "1.945MiB"."""
    return _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"), digits)


def stamp(seconds: float) -> str:
    """Local time as docker's tables print it: 2026-01-31 10:00:00 +0000 UTC."""
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(seconds))


def rfc3339(seconds: float) -> str:
    """Local time as docker prints it with --human=false: 2026-01-31T10:00:00+01:00."""
    import time

    text = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
    return "Z".join([text[:-5], ""]) if text.endswith("0000") else f"{text[:-2]}:{text[-2:]}"


def short_id(text: str) -> str:
    """Twelve digits of an id, without the algorithm."""
    return text.partition(":")[2][:12] if ":" in text else text[:12]


def shortened(text: str, width: int) -> str:
    """At most so many characters, the last one an ellipsis."""
    return text if len(text) <= width else text[: width - 1] + "…"


def ports(rows: Sequence[dict[str, object]]) -> str:
    """The PORTS column: published ones first with their addresses, ranges joined."""
    if not rows:
        return ""
    published = [r for r in rows if r.get("PublicPort")]
    plain = [r for r in rows if not r.get("PublicPort")]
    return ", ".join([*_published(published), *_plain(plain)])


def _number(row: dict[str, object], key: str) -> int:
    value = row.get(key)
    return value if isinstance(value, int) else 0


def _published(rows: Sequence[dict[str, object]]) -> list[str]:
    def key(row: dict[str, object]) -> tuple[str, str, int, int]:
        return str(row.get("Type")), str(row.get("IP", "")), _number(row, "PublicPort"), _number(row, "PrivatePort")

    keyed = sorted(key(row) for row in rows)
    out: list[tuple[str, str, int, int, int]] = []  # protocol, address, first public, first private, length
    for protocol, address, public, private in keyed:
        if out:
            p, a, first, inner, length = out[-1]
            if (p, a, first + length, inner + length) == (protocol, address, public, private):
                out[-1] = (p, a, first, inner, length + 1)
                continue
        out.append((protocol, address, public, private, 1))
    return [f"{_host(a)}{_span(first, n)}->{_span(inner, n)}/{p}" for p, a, first, inner, n in out]


def _plain(rows: Sequence[dict[str, object]]) -> list[str]:
    out: list[tuple[str, int, int]] = []
    for protocol, private in sorted((str(r.get("Type")), _number(r, "PrivatePort")) for r in rows):
        if out and (out[-1][0], out[-1][1] + out[-1][2]) == (protocol, private):
            out[-1] = (protocol, out[-1][1], out[-1][2] + 1)
        else:
            out.append((protocol, private, 1))
    return [f"{_span(first, n)}/{p}" for p, first, n in out]


def _span(first: int, length: int) -> str:
    return str(first) if length == 1 else f"{first}-{first + length - 1}"


def _host(address: str) -> str:
    return (f"[{address}]:" if ":" in address else f"{address}:") if address else ""
