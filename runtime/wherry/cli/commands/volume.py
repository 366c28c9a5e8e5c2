"""The verbs of volumes."""

from __future__ import annotations

from wherry.cli import human
from wherry.cli.app import App, each, verb
from wherry.cli.options import Values, many, one, switch, text
from wherry.cli.parse import key_value, required_value
from wherry.cli.table import FILTER, FORMAT, QUIET, Column, filters, show

COLUMNS = (
    Column("Driver", "DRIVER", lambda r, _: str(r["Driver"])),
    Column("Name", "VOLUME NAME", lambda r, _: str(r["Name"])),
    Column("Mountpoint", "MOUNTPOINT", lambda r, _: str(r["Mountpoint"])),
    Column("Scope", "SCOPE", lambda r, _: str(r.get("Scope", "local"))),
    Column("Labels", "LABELS", lambda r, _: ",".join(f"{k}={v}" for k, v in sorted((r.get("Labels") or {}).items()))),
    Column("Size", "SIZE", lambda r, _: human.size(r["UsageData"]["Size"]) if r.get("UsageData") else "N/A"),
)


@verb(
    "create",
    "[VOLUME]",
    one("-d --driver", text, "DRIVER", "the driver (local)"),
    many("--label", key_value, "KEY=VALUE", "set a label"),
    many("-o --opt", required_value, "KEY=VALUE", "option of the driver"),
    examples="wherry volume create --label app=web data",
)
def create(app: App, values: Values) -> None:
    """Create a volume and print its name."""
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
