"""The verbs of registries: push, login, logout, referrers."""

from __future__ import annotations

from wherry.cli import human
from wherry.cli.app import App, is_terminal, verb
from wherry.cli.options import Values, one, switch, text
from wherry.cli.table import LISTING, Column, show
from wherry.errors import Kind, WherryError

_SECRET_MAX = 64 << 10


@verb(
    "push",
    "NAME[:TAG]",
    switch("-a --all-tags", "send all tags of the repository"),
    switch("-q --quiet", "print the name only"),
    aliases="wherry image push, wherry push",
    examples="""
wherry push registry.example/team/app:1
wherry push --all-tags registry.example/team/app""",
)
def push(app: App, values: Values) -> None:
    """Send an image to the registry of its name. What is there already is not sent again."""
    from wherry.engine.registries import repository

    name, quiet, every = values["name_tag"], values["quiet"], values["all_tags"]
    found, tagged = repository(name)
    if every and tagged:
        raise WherryError(Kind.INVALID, "tag can't be used with --all-tags/-a")
    if not quiet:
        if not (every or tagged):
            app.out("Using default tag: latest")
        app.out(f"The push refers to repository [{found}]")
        app.stdio.stdout.flush()  # before the progress, which is on the other stream
    for pushed in app.engine.push(name, app.progress(quiet), all_tags=every):
        digest = f"{pushed['Tag']}: digest: {pushed['Digest']} size: {pushed['Size']}"
        app.out(pushed["Name"] if quiet else digest)


@verb(
    "login",
    "[SERVER]",
    one("-u --username", text, "USER", "user name"),
    one("-p --password", text, "SECRET", "password or token (seen by all users of this machine: better not)"),
    switch("--password-stdin", "take the password from standard input"),
    examples="""
wherry login ghcr.io
wherry login -u anna --password-stdin registry.example < token""",
)
def login(app: App, values: Values) -> None:
    """Log in to a registry (docker.io where none is named). Kept as docker keeps it, by credential helpers too."""
    user, secret, server = values["username"] or "", values["password"] or "", values["server"] or ""
    if secret:
        app.err("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
    if values["password_stdin"]:
        user, secret = _from_stdin(app, user, secret)
    if not user and not secret and _is_in(app, server):
        return
    user = user or _asked(app, "Username: ")
    path = app.engine.login(server, user, secret or _hidden(app))
    if path:
        app.err(f"WARNING! Your password will be stored unencrypted in {path}.\n"
                "Configure a credential helper (credsStore) to remove this warning.")  # fmt: skip
    app.out("Login Succeeded")


def _from_stdin(app: App, user: str, secret: str) -> tuple[str, str]:
    if secret:
        raise WherryError(Kind.INVALID, "--password and --password-stdin are mutually exclusive")
    if not user:
        raise WherryError(Kind.INVALID, "Must provide --username with --password-stdin")
    return user, _filled(app.stdio.stdin.read(_SECRET_MAX).rstrip("\r\n"), "password")


def _is_in(app: App, server: str) -> bool:
    """docker tries what it has before it asks."""
    again = app.engine.login_again(server)
    if again is not None:
        app.out("Authenticating with existing credentials...")
        app.out("Login Succeeded" if again else "Login did not succeed: they are refused")
    return bool(again)


def _asked(app: App, prompt: str) -> str:
    _need_terminal(app)
    app.stdio.stdout.write(prompt)
    app.stdio.stdout.flush()
    return _filled(app.stdio.stdin.readline(_SECRET_MAX).strip(), "username")


def _hidden(app: App) -> str:
    """The terminal gives no echo."""
    _need_terminal(app)
    from getpass import getpass

    app.stdio.stdout.flush()
    return _filled(getpass("Password: ", app.stdio.stderr), "password")


def _need_terminal(app: App) -> None:
    if not is_terminal(app.stdio.stdin):
        raise WherryError(Kind.INVALID, "Cannot perform an interactive login from a non TTY device",
                          hint="-u USER --password-stdin")  # fmt: skip


def _filled(value: str, what: str) -> str:
    if not value:
        raise WherryError(Kind.INVALID, f"{what} is empty")
    return value


@verb(
    "logout",
    "[SERVER]",
    switch("-a --all", "log out of all registries"),
    examples="wherry logout ghcr.io",
)
def logout(app: App, values: Values) -> None:
    """Log out of a registry (docker.io where none is named)."""
    if values["all"] and values["server"]:
        raise WherryError(Kind.INVALID, "--all takes no SERVER")
    for server in app.engine.logins() if values["all"] else [values["server"] or ""]:
        name, was = app.engine.logout(server)
        app.out(f"Removing login credentials for {name}" if was else f"Not logged in to {name}")


COLUMNS = (
    Column("Digest", "DIGEST", lambda r, look: str(r["digest"]) if look.full else human.short_id(r["digest"])),
    Column("ArtifactType", "ARTIFACT TYPE", lambda r, _: str(r.get("artifactType", ""))),
    Column("Size", "SIZE", lambda r, _: human.size(r["size"])),
    Column("MediaType", "MEDIA TYPE", lambda r, _: str(r.get("mediaType", ""))),
)


@verb(
    "referrers",
    "IMAGE",
    one("--artifact-type", text, "TYPE", "only artifacts of this type"),
    *(flag for flag in LISTING if flag.key != "filter"),
    aliases="wherry image referrers",
    examples="wherry image referrers --artifact-type application/spdx+json ghcr.io/org/app:1",
)
def referrers(app: App, values: Values) -> None:
    """List what refers to an image in its registry: signatures, attestations, SBOMs."""
    rows = app.engine.referrers(values["image"], values["artifact_type"] or "")
    show(app, rows, COLUMNS, ("Digest", "ArtifactType", "Size"), values, key="Digest")
