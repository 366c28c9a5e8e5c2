"""`build`: stages in threads of their own, steps by the cache or by doing them, and the image at the end.

Decides the order: a stage waits for another only where it begins or copies from it; the first failure ends all. What
the steps do is the other modules'. A step's key is made of the layers below it, of what it says once variables are
expanded, and of the contents of what it reads: whoever gets to the same key gets the same layer.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TYPE_CHECKING

from wherry.digest import hexdigest
from wherry.engine import images, users
from wherry.engine.house import House
from wherry.errors import Kind, WherryError
from wherry.image.dockerfile import parse, refuse
from wherry.image.instructions import Copy, Run, Step, Workdir, meaning
from wherry.image.patterns import has_glob, read_ignore
from wherry.model import Json, Platform, ProgressEvent

from . import adding, context, drafts, running, stages
from .copying import Item, Order, Writer, facts, gather, write
from .drafts import Draft, Words
from .stages import Plan, Stage, expanded
from .telling import Teller, Vertex
from .trees import Tree
from .values import BuildEvent, BuildOptions, Built, CanceledError, StepFailed
from .work import Work

if TYPE_CHECKING:
    from wherry.image.author import NewLayer

__all__ = ["build"]

_VERSION = 1  # of the meaning of keys
_KEPT = ("architecture", "author", "config", "created", "history", "os", "os.version", "variant")


def build(house: House, options: BuildOptions, listen: Callable[[BuildEvent], None] | None) -> Built:
    """The verb."""
    from wherry.engine import gc

    house.prepare()
    gc.sweep(house, thorough=False)
    house.images.blobs.ensure()
    teller = Teller(listen)
    # The lease: nothing is swept while layers are made that no image and no remembered step names yet.
    with (
        house.images.blobs.lease(),
        Work(house, options.epoch, no_cache=options.no_cache) as work,
        context.opened(work, options) as found,
    ):
        with teller.step(f"[internal] load build definition from {found.name}") as vertex:
            vertex.say("note", f"transferring dockerfile: {len(found.dockerfile.encode())}B done")
            plan = _plan(options, found)
        return _Solver(house, work, options, teller, plan, found.tree).run()


def _target_platform(options: BuildOptions) -> Platform:
    from wherry.image.manifest import host_platform

    return images.platform(options.platform) or host_platform()


def _plan(options: BuildOptions, found: context.Context) -> Plan:
    from wherry.image.manifest import host_platform

    platform = stages.global_platform(host_platform(), _target_platform(options))
    return stages.plan(parse(found.dockerfile, found.name), options.args, platform, options.target)


class _Solver:
    """One build that is under way."""

    def __init__(  # noqa: PLR0917  # what a build consists of
        self, house: House, work: Work, options: BuildOptions, teller: Teller, plan: Plan, tree: Tree
    ) -> None:
        from wherry.image.manifest import host_platform

        self.house, self.work, self.options, self.teller, self.plan = house, work, options, teller, plan
        self.context = tree
        self.platform = _target_platform(options)
        known = {**stages.global_platform(host_platform(), self.platform), **plan.args}
        self.words = Words(plan.file.escape, options.args, known)
        self.results: dict[int, Future[Draft]] = {number: Future() for number in plan.needed}
        self.turns = threading.Semaphore(max(os.cpu_count() or 1, 2))  # commands at a time

    def run(self) -> Built:
        """All needed stages, then the image."""
        threads = [
            threading.Thread(target=self._stage, args=(number,), name=f"stage-{number}") for number in self.results
        ]
        try:
            for thread in threads:
                thread.start()
            wait(self.results.values(), return_when=FIRST_EXCEPTION)
            self._raise_first()
            return self._export(self.results[self.plan.needed[-1]].result())
        finally:
            self._end(threads)

    def _raise_first(self) -> None:
        """The failure that the others followed from."""
        failed = [future.exception() for future in self.results.values() if future.done() and future.exception()]
        for error in sorted(failed, key=lambda error: isinstance(error, CanceledError)):
            assert error is not None
            raise error

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        self.work.stop.set()
        while any(thread.is_alive() for thread in threads):
            self._kill()
            for thread in threads:
                if thread.ident is not None:
                    thread.join(0.2)

    def _kill(self) -> None:
        from wherry.engine import stop

        for cid in list(self.work.live):
            with contextlib.suppress(WherryError, FileNotFoundError):  # it ends by itself at this moment
                stop.kill(self.house, cid, "KILL")

    # ---- stages

    def _stage(self, number: int) -> None:
        future = self.results[number]
        try:
            future.set_result(self._built(self.plan.stages[number]))
        except BaseException as error:  # whoever waits for it raises it
            future.set_exception(error)

    def _built(self, stage: Stage) -> Draft:
        draft = self._base(stage)
        triggers = self._triggers(stage, draft)
        draft = draft.with_config(OnBuild=None)
        number = 1
        for step in (*triggers, *stage.steps):
            self.work.check()
            number += isinstance(step.says, Run | Copy | Workdir)
            draft = self._step(stage, draft, step, number)
        return draft

    def _base(self, stage: Stage) -> Draft:
        if stage.base is not None:
            return self.results[stage.base].result()._replace(commanded=False)
        if stage.image == "scratch":
            return drafts.empty(self.platform)
        with self.teller.step(stages.title(self.plan, stage, 1, None)) as vertex:
            draft, vertex.cached = self._image(stage.image, stage.platform, vertex), True
            return draft

    def _image(self, name: str, platform: str, vertex: Vertex) -> Draft:
        from wherry.image.author import layers_of
        from wherry.image.reference import is_source

        if is_source(name):
            raise WherryError(Kind.INVALID, f"{name}: a Dockerfile names images, not places of this machine",
                              hint="load it first: wherry load")  # fmt: skip
        policy = "always" if self.options.pull else "missing"

        def progress(event: ProgressEvent) -> None:
            self.work.check()
            vertex.progress(event)

        found = images.find(self.house, name, policy, platform or self.options.platform, progress)
        self.house.images.use(found)
        self.house.images.ensure_unpacked(found, vertex.progress)  # a sweep may just have been before we said that
        document = self.house.images.config_json(found)
        return Draft({key: value for key, value in document.items() if key in _KEPT}, tuple(layers_of(found)))

    def _triggers(self, stage: Stage, draft: Draft) -> list[Step]:
        """The ONBUILD instructions that the base left for us."""
        found = []
        for text in draft.config.get("OnBuild") or ():
            held = parse(str(text), f"ONBUILD of {stage.image}").instructions[0]
            found.append(meaning(held, self.words.escape))
        return found

    # ---- steps

    def _step(self, stage: Stage, draft: Draft, step: Step, number: int) -> Draft:
        does = _DOERS.get(type(step.says))
        if does is None:
            return drafts.apply(draft, step, self.words)
        title = stages.title(self.plan, stage, number, step)
        vertex: Vertex | None = None
        try:
            with self.teller.step(title) as vertex:
                return does(self, stage, draft, step, vertex)
        except CanceledError:
            raise
        except WherryError as error:
            lines = self.plan.file.lines if step.at.file == self.plan.file.name else ()
            raise StepFailed(error, title, step.at, lines, vertex.tail if vertex else ()) from error

    def _remembered(
        self, vertex: Vertex, parts: Json, make: Callable[[], tuple[Json, NewLayer | None]]
    ) -> tuple[NewLayer | None, str]:
        """A step by its key's parts; `make` does it, and gives the parts of what was really done."""

        def made() -> tuple[str, NewLayer | None]:
            done, layer = make()
            return self._key(done), layer

        what, vertex.cached = self.work.remembered(self._key(parts), parts["step"], made)
        return what.layer, what.created

    def _key(self, parts: Json) -> str:
        import json

        whole = {"version": _VERSION, "epoch": self.options.epoch, **parts}
        return hexdigest("sha256", json.dumps(whole, sort_keys=True).encode())

    def _run(self, stage: Stage, draft: Draft, step: Step, vertex: Vertex) -> Draft:
        assert isinstance(step.says, Run)
        sources = running.Sources(
            lambda name: self._tree(stage, step, name), lambda name: list(self._origin(stage, step, name).diff_ids),
            {secret.id: secret for secret in self.options.secrets},
        )  # fmt: skip
        network = step.says.network or self.options.network
        task = running.task(draft, step, self.words, network, sources)
        parts: Json = {"step": "RUN", "below": draft.diff_ids, "facts": task.facts}

        def make() -> tuple[Json, NewLayer | None]:
            with self.turns:
                return parts, running.execute(self.work, draft, task, sources, vertex.output, self.options)

        layer, created = self._remembered(vertex, parts, make)
        return drafts.with_layer(draft, layer, _run_line(draft, task), created)

    def _workdir(self, _stage: Stage, draft: Draft, step: Step, vertex: Vertex) -> Draft:
        """Made where it is missing; it is the user's that is set by then, as BuildKit's."""
        assert isinstance(step.says, Workdir)
        path = drafts.joined(draft.workdir, expanded(step.at, step.says.path, draft.values, self.words.escape))
        parts: Json = {"step": "WORKDIR", "below": draft.diff_ids, "path": path, "user": draft.text("User")}

        def make() -> tuple[Json, NewLayer | None]:
            owner = self._owner(step, draft, draft.text("User")) if draft.text("User") else None
            return parts, self.work.changed(draft, lambda root: os.close(Writer(root, owner).folder(path)))[0]

        layer, created = self._remembered(vertex, parts, make)
        return drafts.with_layer(draft.with_config(WorkingDir=path), layer, f"WORKDIR {path}", created)

    def _copy(self, stage: Stage, draft: Draft, step: Step, vertex: Vertex) -> Draft:
        says = step.says
        assert isinstance(says, Copy)
        with contextlib.ExitStack() as held:
            order = self._order(stage, draft, step, says, held)
            below = [] if says.link else draft.diff_ids
            parts: Json = {"step": step.at.word, "below": below, "facts": facts(order), "link": says.link}

            def make() -> tuple[Json, NewLayer | None]:
                layer, done = self.work.changed(draft, lambda root: write(root, order), alone=says.link)
                return {**parts, "facts": facts(done)}, layer

            layer, created = self._remembered(vertex, parts, make)
        line = f"{step.at.word} {' '.join((*step.at.flags, step.at.text))}"
        return drafts.with_layer(draft, layer, line, created)

    def _order(self, stage: Stage, draft: Draft, step: Step, says: Copy, held: contextlib.ExitStack) -> Order:
        def word(text: str) -> str:
            return expanded(step.at, text, draft.values, self.words.escape)

        sources, target = [word(text) for text in says.sources], word(says.target)
        into = target.endswith(("/", "/.")) or target == "."
        if len(sources) > 1 and not into:
            refuse(step.at, f"When using {step.at.word} with more than one source file, the destination must be a "
                   "directory and end with a /")  # fmt: skip
        owner = self._owner(step, draft, word(says.chown)) if says.chown else None
        exclude = read_ignore("\n".join(word(text) for text in says.exclude))
        tree = held.enter_context(self._tree(stage, step, says.origin))
        documents = adding.documents(self.work, says, sources, lambda text: self._document(draft, step, text))
        items: list[Item] = []
        for source in sources:
            if source in documents:
                items += gather(held.enter_context(documents[source]), "/*")
            elif says.add:
                items += adding.sources(self.work, step, tree, source, exclude, held)
            else:
                items += gather(tree, source, exclude, parents=says.parents)
            if not items and not has_glob(source):
                refuse(step.at, f'failed to calculate checksum: "{posixpath.join("/", source)}": not found',
                       f"it is not in {tree.what}, or .dockerignore hides it")  # fmt: skip
        if not items:
            refuse(step.at, "no source files were specified: nothing matches")
        into = into or len(items) > 1 or any(item.parents for item in items)
        return Order(tuple(items), drafts.joined(draft.workdir, target), into, owner, _mode(step, word(says.chmod)))

    def _document(self, draft: Draft, step: Step, text: str) -> str:
        from wherry.image.variables import BadVariable, expand_text

        try:
            return expand_text(text, draft.values, self.words.escape)
        except BadVariable as error:
            refuse(step.at, f"failed to process the here-document: {error}")

    def _owner(self, step: Step, draft: Draft, text: str) -> tuple[int, int]:
        """docker's --chown: a number alone is user and group; a name has the group of its passwd entry."""
        user, colon, group = text.partition(":")
        if user.isascii() and user.isdigit() and (not colon or (group.isascii() and group.isdigit())):
            text = f"{user}:{group or user}"
            found = users.resolve(text, (), b"", b"")
            return found.uid, found.gid
        with self.work.view(draft) as root:
            try:
                found = users.lookup(root, text)
            except WherryError as error:
                refuse(step.at, error.message)
        return found.uid, found.gid

    # ---- where things come from

    def _origin(self, stage: Stage, step: Step, name: str) -> Draft:
        """What --from means: a stage before, or an image."""
        number = self.plan.origin(name, stage.number)
        if number is not None and number in self.results:  # a trigger's may be none that the file speaks of
            return self.results[number].result()
        if name.isdigit() or name == "scratch":
            refuse(step.at, f"invalid from flag value {name}: no such stage", "a stage before this one, or an image")
        with self.teller.step(f"[internal] load {name}") as vertex:
            return self._image(name, "", vertex)

    @contextlib.contextmanager
    def _tree(self, stage: Stage, step: Step, name: str) -> Iterator[Tree]:
        if not name:
            yield self.context
            return
        with self.work.tree(self._origin(stage, step, name), f"--from={name}") as tree:
            yield tree

    # ---- the end

    def _export(self, draft: Draft) -> Built:
        if self.options.labels:
            draft = draft.with_config(Labels={**(draft.config.get("Labels") or {}), **self.options.labels})
        self._warn_unused()
        if self.options.output:
            with self.teller.step("exporting to client directory") as vertex:
                adding.export(self.work, draft, self.options.output)
                vertex.say("note", f"copying files to {self.options.output} done")
            return Built("")
        if self.options.tar >= 0:
            with self.teller.step("exporting to client tarball"):
                adding.export_tar(self.work, draft, self.options.tar)
            return Built("")
        return self._store(draft)

    def _store(self, draft: Draft) -> Built:
        from wherry.engine import events
        from wherry.image.author import add_image
        from wherry.image.reference import Reference

        with self.teller.step("exporting to image") as vertex:
            self.work.unpacked(draft, vertex.progress)
            document = {**draft.document, "created": self._created(draft)}
            record = add_image(self.house.images, document, draft.layers, self.options.tags)
            vertex.say("note", f"writing image {record.id} done")
            names = tuple(str(Reference.parse(tag)) for tag in self.options.tags)
            for name in names:
                vertex.say("note", f"naming to {name} done")
        events.emit(self.house, "image", "build", record.id, {"name": (names or (record.id,))[0]})
        return Built(record.id, names)

    def _created(self, draft: Draft) -> str:
        """As the latest step; where there was none, as the base: what changed nothing has the same id."""
        if self.options.epoch is not None:
            return self.work.now()
        return str(draft.document.get("created") or self.work.now())

    def _warn_unused(self) -> None:
        declared = {
            name for step in self._steps() for name, _ in getattr(step.says, "pairs", ()) if step.at.word == "ARG"
        }
        ours = {*declared, *self.plan.args, *drafts.PROXIES, "SOURCE_DATE_EPOCH"}
        unused = sorted(name for name in self.options.args if name not in ours and name not in self.words.known)
        if unused:
            self.house.warn(f"One or more build-args {unused} were not consumed")

    def _steps(self) -> Iterator[Step]:
        for stage in self.plan.stages:
            yield from stage.steps


_Doer = Callable[[_Solver, Stage, Draft, Step, Vertex], Draft]
_DOERS: Mapping[type, _Doer] = {Copy: _Solver._copy, Run: _Solver._run, Workdir: _Solver._workdir}


def _run_line(draft: Draft, task: running.Task) -> str:
    """docker's line of history, the ARGs in scope first."""
    args = [f"{name}={value}" for name, value in draft.args.items() if name not in draft.env]
    return " ".join(["RUN", *([f"|{len(args)}", *args] if args else []), *task.words])


def _mode(step: Step, text: str) -> int | None:
    if not text:
        return None
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        refuse(step.at, f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777")
    return mode
