"""`inspect`, for everything or for one type of object."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from wherry.cli import parse
from wherry.cli.app import App, verb
from wherry.cli.options import Values, one, switch, text
from wherry.errors import WherryError
from wherry.model import Json

FORMAT = one("-f --format", text, "TEMPLATE", "'json' or a Go template, such as '{{.State.Status}}'")
SIZE = switch("-s --size", "measure what containers take on disk")
TYPES = ("container", "image", "network", "volume")


def found_and_failed(refs: Sequence[str], look: Callable[[str], Json]) -> tuple[list[Json], list[WherryError]]:
    """What there is, and what failed."""
    objects, failures = [], []
    for ref in refs:
        try:
            objects.append(look(ref))
        except WherryError as error:
            failures.append(error)
    return objects, failures


def report(app: App, refs: Sequence[str], form: str | None, look: Callable[[str], Json]) -> int:
    """Print the objects, then the failures; 1 if there were any."""
    objects, failures = found_and_failed(refs, look)
    if form and form != "json":
        from wherry.cli.gotemplate import Template

        template = Template(form)
        for item in objects:
            app.out(template.render(item))
    else:
        app.out(json.dumps(objects, separators=(",", ":")) if form else json.dumps(objects, indent=4))
    for failure in failures:
        app.fail(failure)
    return 1 if failures else 0


@verb(
    "inspect",
    "NAME...",
    FORMAT,
    SIZE,
    one("--type", parse.choice(*TYPES), "TYPE", "look only for a container, image, network or volume"),
    examples="""
wherry inspect web
wherry inspect -f '{{.State.Status}} {{.NetworkSettings.IPAddress}}' web
wherry inspect -f '{{range .Mounts}}{{.Source}} -> {{.Destination}}{{println}}{{end}}' web
wherry inspect --type image alpine""",
)
def inspect(app: App, values: Values) -> int:
    """Show containers, images, volumes and networks in full, as JSON."""
    kind, size = values["type"] or "", values["size"]
    return report(app, values["name"], values["format"], lambda ref: app.engine.inspect(ref, kind, size=size))


@verb(
    "inspect",
    "CONTAINER...",
    FORMAT,
    SIZE,
    aliases="wherry container inspect",
    examples="wherry container inspect -f '{{json .State}}' web",
)
def container(app: App, values: Values) -> int:
    """Show containers in full, as JSON."""
    size = values["size"]
    look = app.engine.inspect
    return report(app, values["container"], values["format"], lambda ref: look(ref, "container", size=size))


@verb("inspect", "IMAGE...", FORMAT, examples="wherry image inspect -f '{{.Config.Cmd}}' alpine")
def image(app: App, values: Values) -> int:
    """Show images in full, as JSON."""
    return report(app, values["image"], values["format"], app.engine.inspect_image)


@verb("inspect", "VOLUME...", FORMAT, examples="wherry volume inspect -f '{{.Mountpoint}}' data")
def volume(app: App, values: Values) -> int:
    """Show volumes in full, as JSON."""
    return report(app, values["volume"], values["format"], app.engine.volume_inspect)


@verb("inspect", "NETWORK...", FORMAT, examples="wherry network inspect bridge")
def network(app: App, values: Values) -> int:
    """Show networks in full, as JSON."""
    return report(app, values["network"], values["format"], app.engine.network_inspect)
