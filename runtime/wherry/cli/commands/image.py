"""The verbs of images."""

from __future__ import annotations

from collections.abc import Sequence

from wherry.cli import human, parse
from wherry.cli.app import App, verb
from wherry.cli.options import Values, one, switch
from wherry.cli.table import LISTING, Column, Look, filters, show
from wherry.errors import Kind, WherryError
from wherry.model import ImageRecord, Json

FILTERS = ("before", "dangling", "label", "reference", "since", "until")
NONE = "<none>"


def _split(tag: str) -> tuple[str, str]:
    """Repository and tag; a colon before a slash belongs to the registry's port."""
    name, colon, rest = tag.rpartition(":")
    return (name, rest) if colon and "/" not in rest else (tag, NONE)


def one_row_a_name(images: Sequence[Json], digests: bool) -> list[Json]:
    """docker's list has a line for every name of an image."""
    rows = []
    for image in images:
        tags = [tag for tag in image.get("RepoTags") or () if tag != f"{NONE}:{NONE}"]
        found = [d.partition("@")[2] for d in image.get("RepoDigests") or ()] if digests else []
        for tag in tags or [f"{NONE}:{NONE}"]:
            repository, name = _split(tag)
            rows.append({**image, "Repository": repository, "Tag": name, "Digest": found[0] if found else NONE})
    return rows


def _id(row: Json, look: Look) -> str:
    return str(row["Id"]) if look.full else human.short_id(row["Id"])


def _since(row: Json, look: Look) -> str:
    return human.ago(look.now - row["Created"]) + " ago" if row["Created"] else "N/A"


COLUMNS = (
    Column("Repository", "REPOSITORY", lambda r, _: str(r["Repository"])),
    Column("Tag", "TAG", lambda r, _: str(r["Tag"])),
    Column("Digest", "DIGEST", lambda r, _: str(r["Digest"])),
    Column("ID", "IMAGE ID", _id),
    Column("CreatedSince", "CREATED", _since),
    Column("CreatedAt", "CREATED AT", lambda r, _: human.stamp(r["Created"]) if r["Created"] else "N/A"),
    Column("Size", "SIZE", lambda r, _: human.size(r["Size"])),
    Column("Containers", "CONTAINERS", lambda r, _: str(r.get("Containers", "N/A"))),
    Column("SharedSize", "SHARED SIZE", lambda r, _: human.size(max(r.get("SharedSize", 0), 0))),
)


@verb(
    "images",
    "[REPOSITORY[:TAG]]",
    switch("-a --all", "show unnamed images too"),
    switch("--digests", "show digests"),
    *LISTING,
    aliases="wherry image ls, wherry image list, wherry images",
    examples="""
wherry images --filter dangling=true -q
wherry images --format '{{.Repository}}:{{.Tag}} {{.Size}}'""",
)
def images(app: App, values: Values) -> None:
    """List images. Filters: before, dangling, label, reference, since, until."""
    wanted = filters(values, FILTERS)
    if values["repository_tag"]:
        wanted.setdefault("reference", []).append(values["repository_tag"])
    rows = one_row_a_name(app.engine.images(all=values["all"], filters=wanted), True)
    digest = ("Digest",) if values["digests"] else ()
    show(app, rows, COLUMNS, ("Repository", "Tag", *digest, "ID", "CreatedSince", "Size"), values)


@verb(
    "pull",
    "IMAGE",
    one("--platform", parse.platform, "OS/ARCH", "the platform to fetch, where an image has several"),
    switch("-a --all-tags", "fetch all images of the repository"),
    switch("--all-platforms", "fetch the images of all platforms; this machine's is unpacked"),
    switch("-q --quiet", "print the name only"),
    aliases="wherry image pull, wherry pull",
    examples="""
wherry pull alpine:3
wherry pull --all-platforms alpine:3
wherry pull --platform linux/arm64 ghcr.io/org/app
wherry pull oci:./layout:latest""",
)
def pull(app: App, values: Values) -> None:
    """Fetch an image from a registry, or from oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE."""
    every, platform, quiet = values["all_platforms"], values["platform"] or "", values["quiet"]
    if every and (platform or values["all_tags"]):
        raise WherryError(Kind.INVALID, "--all-platforms excludes --platform and --all-tags")
    engine, name, progress = app.engine, values["image"], app.progress(quiet)
    if values["all_tags"]:
        for record in engine.pull_tags(name, platform, progress):
            _told(app, record, quiet)
    else:
        _told(app, engine.pull(name, platform, progress, all_platforms=every), quiet)


def _told(app: App, record: ImageRecord, quiet: bool) -> None:
    if not quiet:
        app.out(f"Digest: {record.target or record.manifest}")
    app.out(record.names[0] if record.names else record.id)


@verb(
    "rmi",
    "IMAGE...",
    switch("-f --force", "remove also the names of an image that stopped containers use"),
    aliases="wherry image rm, wherry image remove, wherry rmi",
    examples="wherry rmi alpine:3\nwherry rmi -f $(wherry images -q)",
)
def rmi(app: App, values: Values) -> int:
    """Remove names of images, and an image with its last name."""
    code = 0
    for ref in values["image"]:
        try:
            done = app.engine.remove_image(ref, force=values["force"])
        except WherryError as error:
            app.fail(error)
            code = 1
            continue
        for step in done:
            for word, what in step.items():
                app.out(f"{word}: {what}")
    return code


@verb(
    "tag",
    "SOURCE-IMAGE TARGET-IMAGE",
    aliases="wherry image tag, wherry tag",
    examples="wherry tag alpine:3 registry.example/base:1",
)
def tag(app: App, values: Values) -> None:
    """Give an image one more name."""
    app.engine.tag(values["source_image"], values["target_image"])
