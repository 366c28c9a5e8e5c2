"""The tree of commands as click groups, and the options of `wherry` itself."""

from __future__ import annotations

from typing import Any

import click

from .app import App
from .clicks import Lazy, Switch, Typed, WithDefault
from .menu import BUILDER, CNI, CONTAINER, GENERATE, IMAGE, INTERNAL, NETWORK, SNAPSHOT, SYSTEM, TOP, VOLUME, WARM
from .parse import boolean


class Root(Lazy):
    """`wherry` itself: the places and --debug are known before a command is."""

    def invoke(self, ctx: click.Context) -> Any:
        """Put the global options into the App, then go on to the command."""
        app = ctx.ensure_object(App)
        given = {key: ctx.params[key] for key in ("root", "state", "config")}
        app.places.update({key: value for key, value in given.items() if value})
        app.debug = bool(ctx.params["debug"])
        return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """--version prints one line and ends, as docker's -v."""
        if args and args[0] in ("--version", "-v"):
            from importlib.metadata import version

            ctx.ensure_object(App).out(f"wherry version {version('wherry')}")
            ctx.exit()
        return super().parse_args(ctx, ["--debug=true" if a in ("--debug", "-D") else a for a in args[:1]] + args[1:])


def _place(name: str, text: str) -> click.Option:
    return click.Option([f"--{name}"], metavar="PATH", help=text)


ROOT = Root(
    "wherry",
    TOP,
    help="A Linux container runtime: images to isolated, networked, logged containers, without a daemon.",
    params=[
        _place("root", "where images, volumes and containers are kept (WHERRY_ROOT; /var/lib/wherry)"),
        _place("state", "where running containers are kept track of (WHERRY_STATE; /run/wherry)"),
        _place("config", "the file of settings (WHERRY_CONFIG; /etc/wherry/wherry.toml)"),
        Switch(["-D", "--debug"], type=Typed(boolean), default=False, metavar=" ", help="show tracebacks of failures"),
        Switch(["-v", "--version"], type=Typed(boolean), default=False, metavar=" ", help="print the version"),
    ],
)
BUILDER_GROUP = Lazy("builder", BUILDER, help="Manage builds")
CNI_GROUP = Lazy("cni", CNI, help="Lend our CNI plugins to other runtimes")
CONTAINER_GROUP = Lazy("container", CONTAINER, help="Manage containers")
GENERATE_GROUP = Lazy("generate", GENERATE, help="Write what other programs need")
IMAGE_GROUP = Lazy("image", IMAGE, help="Manage images")
VOLUME_GROUP = Lazy("volume", VOLUME, help="Manage volumes")
SNAPSHOT_GROUP = WithDefault("snapshot", SNAPSHOT, help="Take and manage snapshots of volumes")
NETWORK_GROUP = Lazy("network", NETWORK, help="Manage networks")
SYSTEM_GROUP = Lazy("system", SYSTEM, help="Manage this wherry")
WARM_GROUP = Lazy("warm", WARM, help="Manage the process that makes short commands quick")
INTERNAL_GROUP = Lazy("internal", INTERNAL, help="What monitors call")
