"""Images: fetching, sending, looking at them, archives of them.

Decides docker's lines of progress, and which credentials a request brings. They are the client's: none of our own are
looked up for him.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Callable
from functools import partial

from aiohttp import web

from wherry.engine.values import RegistryLogin
from wherry.errors import Kind, WherryError
from wherry.model import Json, ProgressEvent

from . import pipes
from .call import Call, Route, Version, parsed
from .fields import Fields
from .gate import answer

__all__ = ["ROUTES", "familiar", "login", "progress"]

_TAR = {"Content-Type": "application/x-tar"}
_BAR = 50  # characters


def login(call: Call) -> RegistryLogin | None:
    """X-Registry-Auth: base64 (URL's alphabet, padded or not) of {"username", "password", "identitytoken", …}."""
    raw = call.request.headers.get("X-Registry-Auth", "")
    if not raw:
        return None
    try:
        text = base64.b64decode(raw + "=" * (-len(raw) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise WherryError(Kind.INVALID, "X-Registry-Auth is no base64") from None
    found = Fields(parsed(text or b"{}", "X-Registry-Auth"))
    server = found.text("serveraddress")
    for key, kind in (("registrytoken", "bearer"), ("identitytoken", "identity")):
        if secret := found.text(key):
            return RegistryLogin(found.text("username"), secret, server, kind)
    user, secret = found.text("username"), found.text("password")
    return RegistryLogin(user, secret, server) if user or secret else None


def progress(event: ProgressEvent) -> Json:
    """docker's line for a piece of work."""
    line: Json = {"status": event.status, "id": event.key[:12]} if event.key else {"status": event.status}
    if not event.total or event.done >= event.total:
        return {**line, "progressDetail": {}}
    filled = _BAR * event.done // event.total
    bar = "=" * filled + ">" + " " * (_BAR - filled)
    words = f"[{bar}]  {_size(event.done)}/{_size(event.total)}"
    return {**line, "progressDetail": {"current": event.done, "total": event.total}, "progress": words}


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g}{unit}"
        count /= 1000
    return f"{count:.4g}TB"


def _telling(news: pipes.News) -> Callable[[ProgressEvent], None]:
    return lambda event: news.tell(progress(event), (event.key, event.status))


async def create(call: Call) -> web.StreamResponse:
    """`POST /images/create`: pull, or import a tar (`fromSrc=-`)."""
    if source := call.text("fromSrc"):
        return await _imported(call, source)
    name, tag = call.text("fromImage"), call.text("tag")
    if not name:
        raise WherryError(Kind.INVALID, "fromImage or fromSrc must be given")
    _sound(name)
    name += f"{'@' if ':' in tag else ':'}{tag}" if tag else ""
    who, platform, news = login(call), call.text("platform"), pipes.News(call)
    before = await _known(call, name)
    pull = call.parts.measures.pulling("docker", call.engine.pull_as)
    work = call.parts.fetch(pull, name, who, platform=platform, progress=_telling(news))
    given, record = await news.during(work)
    if record is not None:
        news.tell({"status": f"Digest: {record.target or record.manifest}"})
        what = "Image is up to date" if record.id == before else "Downloaded newer image"
        news.tell({"status": f"Status: {what} for {familiar(name)}"})
        given = await news.write()
    await given.write_eof()
    return given


async def _known(call: Call, name: str) -> str:
    """The image that has this name here; "" for none."""
    with contextlib.suppress(WherryError):
        return str((await call.parts.look(call.engine.image_record, name)).id)
    return ""


def _sound(name: str) -> None:
    """No directory or archive of this host is a client's to name."""
    if name.split(":", 1)[0] in ("oci", "oci-archive", "oci-dir", "docker-archive", "docker-dir", "dir"):
        raise WherryError(Kind.INVALID, f"invalid reference format: {name[:200]}")


async def _imported(call: Call, source: str) -> web.StreamResponse:
    if source != "-":
        raise WherryError(Kind.UNSUPPORTED, "an import from a URL is not done", hint="send the tar: fromSrc=-")
    repo, tag = call.text("repo"), call.text("tag")
    name = f"{repo}:{tag}" if repo and tag else repo
    made = await pipes.received(call, lambda file: call.engine.import_tar(
        file, name, message=call.text("message"), changes=tuple(call.texts("changes")), platform=call.text("platform"),
    ))  # fmt: skip
    return answer({"status": made.id})


async def push(call: Call) -> web.StreamResponse:
    """`POST /images/{name}/push`."""
    name, tag, who = call.ref("name"), call.text("tag"), login(call)
    whole = f"{name}:{tag}" if tag else name
    every, news = not tag and ":" not in name.rpartition("/")[2] and "tag" not in call.request.query, pipes.News(call)

    def work() -> list[Json]:
        news.tell({"status": f"The push refers to repository [{name}]"})
        return list(call.engine.push_as(whole, who, _telling(news), all_tags=every))

    given, pushed = await news.during(call.parts.fetch(work))
    for one in pushed or ():
        news.tell({"status": f"{one['Tag']}: digest: {one['Digest']} size: {one['Size']}"})
        news.tell({"progressDetail": {}, "aux": {key: one[key] for key in ("Tag", "Digest", "Size")}})
    given = await news.write()
    await given.write_eof()
    return given


async def load(call: Call) -> web.StreamResponse:
    """`POST /images/load`."""
    records = await pipes.received(call, lambda file: call.engine.load("the request's body", None, file))
    lines = [{"stream": f"Loaded image: {familiar(name)}\n"} for record in records for name in record.names]
    lines += [{"stream": f"Loaded image ID: {record.id}\n"} for record in records if not record.names]
    news = pipes.News(call)
    for line in lines:
        news.tell(line)
    given = await news.write()
    await given.write_eof()
    return given


def familiar(name: str) -> str:
    """A name as docker shows it."""
    return name.removeprefix("docker.io/").removeprefix("library/")


async def save(call: Call) -> web.StreamResponse:
    """`GET /images/get` and `GET /images/{name}/get`: docker's archive."""
    names = [call.ref("name")] if "name" in call.request.match_info else call.texts("names")
    names = [one for name in names for one in name.split(",") if one]
    if not names:
        raise WherryError(Kind.INVALID, "names must be given")
    for name in names:
        await call.parts.look(call.engine.image_record, name)
    return await pipes.sent(call, lambda fd: call.engine.save(names, fd, "docker-archive"), _TAR)


async def listed(call: Call) -> web.StreamResponse:
    """`GET /images/json`."""
    filters = call.filters()
    if old := call.text("filter"):  # of clients before 1.25
        filters.setdefault("reference", []).append(old)
    return answer(await call.parts.look(call.engine.images, all=call.flag("all"), filters=filters))


async def inspect(call: Call) -> web.StreamResponse:
    """`GET /images/{name}/json`."""
    return answer(await call.parts.look(call.engine.inspect_image, call.ref("name")))


async def history(call: Call) -> web.StreamResponse:
    """`GET /images/{name}/history`."""
    return answer(await call.parts.look(call.engine.history, call.ref("name")))


async def tag(call: Call) -> web.StreamResponse:
    """`POST /images/{name}/tag`."""
    repo, word = call.text("repo"), call.text("tag")
    if not repo:
        raise WherryError(Kind.INVALID, "repo must be given")
    await call.parts.change(call.engine.tag, call.ref("name"), f"{repo}:{word}" if word else repo)
    return web.Response(status=201)


async def remove(call: Call) -> web.StreamResponse:
    """`DELETE /images/{name}`."""
    return answer(await call.parts.change(call.engine.remove_image, call.ref("name"), force=call.flag("force")))


async def prune(call: Call) -> web.StreamResponse:
    """`POST /images/prune`."""
    filters = call.filters()
    every = filters.pop("dangling", ["1"])[0].lower() in ("0", "false")
    return answer(await call.parts.wait(partial(call.engine.image_prune, all=every, filters=filters)))


async def commit(call: Call) -> web.StreamResponse:
    """`POST /commit`."""
    repo, word = call.text("repo"), call.text("tag")
    ref = await call.parts.look(call.engine.container_id, call.text("container"))
    made = await call.parts.wait(
        call.engine.commit, ref, f"{repo}:{word}" if repo and word else repo, author=call.text("author"),
        message=call.text("comment"), changes=tuple(call.texts("changes")), pause=call.flag("pause", True),
    )  # fmt: skip
    return answer({"Id": made.id}, 201)


async def search(call: Call) -> web.StreamResponse:
    """`GET /images/search`: no registry but one has it, and that is another API."""
    del call
    raise WherryError(Kind.UNSUPPORTED, "search is not available", hint="name the image with its registry")


async def distribution(call: Call) -> web.StreamResponse:
    """`GET /distribution/{name}/json`: asked of the registry, whatever is here."""
    _sound(call.ref("name"))
    return answer(await call.parts.fetch(call.engine.distribution, call.ref("name"), login(call)))


ROUTES: tuple[Route, ...] = (
    Route("POST", "/images/create", create),
    Route("POST", "/images/load", load),
    Route("POST", "/images/prune", prune, Version(1, 25)),
    Route("GET", "/images/json", listed),
    Route("GET", "/images/search", search),
    Route("GET", "/images/get", save),
    Route("GET", "/images/{name:.+}/get", save),
    Route("GET", "/images/{name:.+}/json", inspect),
    Route("GET", "/images/{name:.+}/history", history),
    Route("POST", "/images/{name:.+}/tag", tag),
    Route("POST", "/images/{name:.+}/push", push),
    Route("DELETE", "/images/{name:.+}", remove),
    Route("POST", "/commit", commit),
    Route("GET", "/distribution/{name:.+}/json", distribution, Version(1, 30)),
)
