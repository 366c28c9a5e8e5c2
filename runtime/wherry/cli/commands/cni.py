"""The verbs that lend our CNI plugins to other runtimes."""

from __future__ import annotations

import os

from wherry.cli.app import App, verb
from wherry.cli.options import Values, switch


@verb(
    "install",
    "DIR",
    switch("-f --force", "replace plugins of others"),
    examples="wherry cni install /opt/cni/bin",
)
def install(app: App, values: Values) -> None:
    """Put our CNI plugins into a directory, where any CNI runtime finds them: bridge, host-local, portmap and others.

    They are links to the installed wherry-cni, which a warm process answers for where there is one."""
    from wherry.engine import cni

    app.out("\n".join(cni.install(os.path.join(app.cwd, values["dir"]), force=values["force"])))


@verb("uninstall", "DIR", examples="wherry cni uninstall /opt/cni/bin")
def uninstall(app: App, values: Values) -> None:
    """Take our CNI plugins out of a directory again; those of others stay."""
    from wherry.engine import cni

    for path in cni.uninstall(os.path.join(app.cwd, values["dir"])):
        app.out(path)
