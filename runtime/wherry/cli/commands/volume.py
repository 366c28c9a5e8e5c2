"""The verbs of volumes."""

from __future__ import annotations

import os

from wherry.cli import human
from wherry.cli.app import App, each, verb
from wherry.cli.commands.archive import input_of, output_to, whole_file
from wherry.cli.commands.inspect import FORMAT as IN_FORM
from wherry.cli.commands.inspect import report
from wherry.cli.options import Values, many, one, switch, text
from wherry.cli.parse import key_value, required_value, size
from wherry.cli.table import FILTER, FORMAT, QUIET, Column, filters, show
from wherry.errors import Kind, WherryError
from wherry.model import Json

COLUMNS = (
    Column("Driver", "DRIVER", lambda r, _: str(r["Driver"])),
    Column("Name", "VOLUME NAME", lambda r, _: str(r["Name"])),
    Column("Mountpoint", "MOUNTPOINT", lambda r, _: str(r["Mountpoint"])),
    Column("Scope", "SCOPE", lambda r, _: str(r.get("Scope", "local"))),
    Column("Labels", "LABELS", lambda r, _: ",".join(f"{k}={v}" for k, v in sorted((r.get("Labels") or {}).items()))),
    Column("Size", "SIZE", lambda r, _: _size(r)),
)
SNAPSHOTS = (
    Column("Name", "SNAPSHOT", lambda r, _: str(r["Name"])),
    Column("Volume", "VOLUME", lambda r, _: str(r["Volume"])),
    Column("Driver", "DRIVER", lambda r, _: str(r["Driver"])),
    Column("CreatedAt", "CREATED", lambda r, _: str(r["CreatedAt"])),
    Column("Size", "SIZE", lambda r, _: human.size(r["Size"]) if r["Size"] else "N/A"),
)
OPT = many("-o --opt", required_value, "KEY=VALUE", "option of the driver, beside those of the source")
LABEL = many("--label", key_value, "KEY=VALUE", "set a label")


def _size(row: Json) -> str:
    """What it takes, or the size that it has, where either is known without looking."""
    known = row.get("UsageData") or row.get("Status") or {}
    found = known.get("Size", known.get("size"))
    return "N/A" if found is None else human.size(found)


@verb(
    "create",
    "[VOLUME]",
    one("-d --driver", text, "DRIVER", "local (default), csi.wherry.dev, or a CSI driver's socket: unix:///PATH"),
    LABEL,
    many("-o --opt", required_value, "KEY=VALUE", "option of the driver: size=, fs=, ..."),
    examples="""
wherry volume create --label app=web data
wherry volume create -o size=2G -o fs=xfs -o write-bps=20m db
wherry volume create -o type=none -o o=bind -o device=/srv/www www
wherry volume create -d unix:///run/nfs/csi.sock -o size=10G -o server=nas shared""",
)
def create(app: App, values: Values) -> None:
    """Create a volume and print its name.

    A plain volume is a directory. With -o size= it is as large as that and no larger, and wherry's own CSI driver keeps
    it: fs=ext4|xfs, backend=auto|image|directory, pool=NAME, provisioning=thin|thick, access=mount|block, and limits
    read-bps=, write-bps=, read-iops=, write-iops=. Another driver gets all options but size, fs and access as its
    parameters.
    """
    made = app.engine.volume_create(
        values["volume"] or "",
        driver=values["driver"] or "local",
        labels=dict(values["label"]),
        options=dict(values["opt"]),
    )
    app.out(made["Name"])


@verb("ls", "", FILTER, FORMAT, QUIET, aliases="wherry volume ls, wherry volume list", examples="wherry volume ls -q")
def ls(app: App, values: Values) -> None:
    """List volumes. Filters: dangling, driver, label, name."""
    rows = app.engine.volume_list(filters(values, ("dangling", "driver", "label", "name")))
    show(app, rows, COLUMNS, ("Driver", "Name"), values, key="Name")


@verb(
    "rm",
    "VOLUME...",
    switch("-f --force", "a missing volume is no failure"),
    aliases="wherry volume rm, wherry volume remove",
    examples="wherry volume rm data",
)
def rm(app: App, values: Values) -> int:
    """Remove volumes that no container uses."""
    return each(app, values["volume"], lambda name: app.engine.volume_remove(name, force=values["force"]))


@verb(
    "resize",
    "VOLUME SIZE",
    aliases="wherry volume resize",
    examples="wherry volume resize db 4G\nwherry volume resize db +1G",
)
def resize(app: App, values: Values) -> None:
    """Make a volume larger, while containers use it or not, and print the bytes that it has then.

    SIZE is what it is to have, or with a + before it what is added.
    Volumes do not shrink, and those without a size are as large as the disk.
    """
    wanted = size("SIZE", values["size"].removeprefix("+"))
    app.out(str(app.engine.volume_resize(values["volume"], wanted, more=values["size"].startswith("+"))))


@verb("clone", "VOLUME NEW", LABEL, OPT, aliases="wherry volume clone", examples="wherry volume clone db db-test")
def clone(app: App, values: Values) -> None:
    """Create a volume with the content that another has now, and print its name.

    Blocks are shared where the file system can. Containers that have a plain volume are frozen while it is copied.
    """
    options = dict(values["opt"])
    made = app.engine.volume_clone(values["volume"], values["new"], labels=dict(values["label"]), options=options)
    app.out(made["Name"])


@verb(
    "restore",
    "SNAPSHOT NEW",
    LABEL,
    OPT,
    aliases="wherry volume restore",
    examples="wherry volume restore db-monday db-again",
)
def restore(app: App, values: Values) -> None:
    """Create a volume with what a snapshot holds, and print its name. The snapshot stays."""
    options = dict(values["opt"])
    made = app.engine.volume_restore(values["snapshot"], values["new"], labels=dict(values["label"]), options=options)
    app.out(made["Name"])


# ---- snapshots ----


@verb(
    "create",
    "VOLUME [NAME]",
    aliases="wherry volume snapshot, wherry volume snapshot create",
    examples="wherry volume snapshot db\nwherry volume snapshot db db-monday",
)
def snapshot(app: App, values: Values) -> None:
    """Take a snapshot of a volume, in use or not, and print its name (the volume's with the time where none is given).

    Containers that have a plain volume are frozen while it is copied; a driver's snapshot takes no time.
    """
    app.out(app.engine.volume_snapshot(values["volume"], values["name"] or "")["Name"])


@verb(
    "ls",
    "",
    FILTER,
    FORMAT,
    QUIET,
    aliases="wherry volume snapshot ls",
    examples="wherry volume snapshot ls --filter volume=db",
)
def snapshot_ls(app: App, values: Values) -> None:
    """List snapshots of volumes, oldest first. Filters: driver, name, volume."""
    rows = app.engine.volume_snapshots(filters(values, ("driver", "name", "volume")))
    show(app, rows, SNAPSHOTS, [column.name for column in SNAPSHOTS], values, key="Name")


@verb(
    "rm",
    "SNAPSHOT...",
    switch("-f --force", "a missing snapshot is no failure"),
    aliases="wherry volume snapshot rm",
    examples="wherry volume snapshot rm db-monday",
)
def snapshot_rm(app: App, values: Values) -> int:
    """Remove snapshots. Volumes made of them stay."""
    return each(
        app, values["snapshot"], lambda name: app.engine.volume_snapshot_remove(name, force=values["force"])
    )


@verb("inspect", "SNAPSHOT...", IN_FORM, examples="wherry volume snapshot inspect db-monday")
def snapshot_inspect(app: App, values: Values) -> int:
    """Show snapshots in full, as JSON."""
    return report(app, values["snapshot"], values["format"], app.engine.volume_snapshot_inspect)


# ---- tars ----


@verb(
    "export",
    "VOLUME",
    one("-o --output", text, "FILE", "write to a file instead of standard output"),
    aliases="wherry volume export",
    examples="wherry volume export -o db.tar db\nwherry volume export db | zstd > db.tar.zst",
)
def export(app: App, values: Values) -> None:
    """Write a volume's content as a tar, with owners, times and attributes."""
    target = output_to(app, values["output"], "a tar")
    if isinstance(target, int):
        app.engine.volume_export(values["volume"], app.raw_out)
        return
    with whole_file(target) as file:
        app.engine.volume_export(values["volume"], file.write)


@verb(
    "import",
    "VOLUME FILE",
    aliases="wherry volume import",
    examples="wherry volume import db db.tar\nssh host wherry volume export db | wherry volume import db -",
)
def import_(app: App, values: Values) -> None:
    """Unpack a tar (plain, gzip, zstd, bzip2 or xz; - is standard input) into a volume, over what that holds."""
    path = values["file"]
    if path == "-":
        app.engine.volume_import(values["volume"], input_of(app, "a tar"), origin="standard input")
        return
    try:
        file = open(os.path.join(app.cwd, path), "rb")  # noqa: SIM115  # closed below, and not in here
    except OSError as error:
        raise WherryError(Kind.INVALID, f"cannot read {path}: {error.strerror}", hint="give a readable tar") from error
    with file:
        app.engine.volume_import(values["volume"], file, origin=path)
