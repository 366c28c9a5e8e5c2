"""systemd's units: those that come with wherry, and one made for a container.

Decides where they lie (in the package, or beside its sources) and that they name programs by their whole paths: systemd
does not look into a virtual environment. Speaks to no systemd.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator

from wherry.errors import Kind, WherryError

from . import codec
from .house import House

__all__ = ["install", "of_container"]

_PROGRAM = re.compile(r"^(Exec\w+=)(wherry[a-z-]*)(?= |$)", re.MULTILINE)
_SUFFIXES = (".service", ".socket")

_UNIT = """[Unit]
Description=container {name}
Wants=network-online.target
After=network-online.target
RequiresMountsFor={root}

[Service]
Type={type}
NotifyAccess=main
ExecStart={wherry}{places} start --attach {name}
ExecStop={wherry}{places} stop {name}
# After a watchdog's signal, too, which reaches only the process that waits for it.
ExecStopPost={wherry}{places} stop --time 1 {name}
Restart={restart}
RestartSec=1
# The container's own grace, and some for what follows.
TimeoutStopSec={patience}
KillMode=process
Delegate=yes

[Install]
WantedBy=multi-user.target
"""


def _program(name: str) -> str:
    beside = os.path.join(os.path.dirname(sys.executable), name)
    found = beside if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        raise WherryError(Kind.PRECONDITION, f"the program {name} is not installed", hint="pip install wherry")
    return found


def _shipped() -> str:
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    places = (os.path.join(here, "_units"), os.path.join(here, "..", "..", "scripts", "systemd"))
    found = next((path for path in places if os.path.isdir(path)), None)
    if found is None:
        raise WherryError(Kind.INTERNAL, f"the units are not beside the program: {', '.join(places)}")
    return found


def install(directory: str) -> Iterator[str]:
    """Write all units that come with wherry into a directory; the path of each. Enabling them is left to the caller."""
    from wherry.kernel import files

    source = _shipped()
    try:
        os.makedirs(directory, exist_ok=True)
        for name in sorted(name for name in os.listdir(source) if name.endswith(_SUFFIXES)):
            with open(os.path.join(source, name), encoding="utf-8") as file:
                text = _PROGRAM.sub(lambda found: found[1] + _program(found[2]), file.read())
            path = os.path.join(directory, name)
            files.atomic_write(path, text.encode(), 0o644)
            yield path
    except OSError as error:
        raise WherryError(Kind.INVALID, f"cannot write units into {directory}: {error.strerror}") from error


def of_container(house: House, ref: str, *, notify: bool) -> str:
    """The text of a unit that runs a container: its start, stop and restart policy are systemd's then. `notify`: it
    tells by sd_notify(3) when it is ready."""
    row = house.db.find(ref)
    options = codec.decode_options(row.config["options"])
    grace = options.stop_timeout if options.stop_timeout is not None else house.settings.stop_timeout
    restart = {"no": "no", "on-failure": "on-failure"}.get(options.restart.name, "always")
    place = house.place
    return _UNIT.format(
        name=row.name, type="notify" if notify else "exec", root=place.root,
        wherry=_program("wherry"), restart=restart, patience=max(0, grace) + 20,
        places=f" --root {place.root} --state {place.state} --config {place.config}",
    )  # fmt: skip
