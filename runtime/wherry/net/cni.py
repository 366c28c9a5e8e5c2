"""A CNI runtime (specification 1.1.0, section 3): runs lists of plugins and remembers what it ran.

Decides where a plugin type is found (our own launchers first, then the CNI directories), which version a list is spoken
in, what each call gets and what its result must look like. Refuses to know what any plugin does, and how one is run
(plugincall.py).
What ADD was given and what it answered (in the shape of 1.1.0) is kept in STATE/cni/results, so that DEL and CHECK need
nothing but names.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.kernel import files
from wherry.model import Json, Place
from wherry.net import cniresult, launchers, netns, plugincall
from wherry.net.cniconf import flag

__all__ = ["Cni", "Joined"]

_TIMEOUT = 60.0  # seconds for one plugin
_WITH_CHECK = (0, 4, 0)  # since then DEL gets prevResult, too
_WITH_GC = (1, 1, 0)
_INCOMPATIBLE = 1  # section 5: the code of a version that a plugin does not know
_ID = r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*"  # specification, CNI_CONTAINERID
_TYPE = r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*"


class Joined(NamedTuple):
    """One attachment as remembered: everything that DEL and CHECK need."""

    conflist: Json
    container_id: str
    netns: str
    ifname: str
    args: Mapping[str, str] = {}
    capabilities: Mapping[str, object] = {}
    result: Json | None = None

    @property
    def network(self) -> str:
        """The name of the network."""
        return str(self.conflist.get("name", ""))


class Cni:
    """Verbs on lists of plugins. Results are those that the last plugin printed."""

    def __init__(self, place: Place, timeout: float = _TIMEOUT) -> None:
        self._place = place
        self._timeout = timeout
        self._results = os.path.join(place.state, "cni", "results")
        self._own = os.path.join(place.root, "cni-bin")
        self._gates = os.path.join(place.state, "cni", "gates")
        self._spoken: dict[tuple[str, bool], frozenset[str]] = {}

    def add(self, conflist: Json, container_id: str, netns_path: str, ifname: str = "eth0", *,
            args: Mapping[str, str] | None = None, capabilities: Mapping[str, object] | None = None) -> Json:
        """Attach; the result has the shape of 1.1.0. When a plugin refuses, the whole list is undone (DEL), and its
        error is the one that is told."""
        agreed = self._agreed(conflist)
        wish = Joined(agreed, _checked_id(container_id), netns_path, ifname, args or {}, capabilities or {})
        with self._gate(wish.network, fcntl.LOCK_SH), self._locked(wish.network, container_id, ifname) as lock:
            return self._add(wish, lock)

    def _add(self, wish: Joined, lock: int) -> Json:
        self._refuse_second(wish, lock)
        for plugin in _plugins(wish.conflist):  # what cannot be called could not be undone either
            self.find(str(plugin.get("type", "")), ours="wherry" in wish.conflist)
        self._remember(wish)  # before the first plugin: a crash in the middle still leaves DEL what it needs
        result: Json = {}
        try:
            for plugin in _plugins(wish.conflist):
                told = self._call("ADD", wish, plugin, result, lock) or {}
                result = _checked_result(told, plugin, wish.conflist)
        except WherryError as refused:
            try:
                self._undo(wish, lock)
                self._unlock(wish)
            except WherryError as second:
                refused.add_note(f"and while undoing it: {second.message}")
            raise
        self._remember(wish._replace(result=result))
        return result

    def delete(self, conflist: Json | None, container_id: str, netns_path: str = "", ifname: str = "eth0", *,
               network: str = "") -> None:
        """Detach; done already, or never done, is success. What was remembered of ADD goes before `conflist`."""
        name = network or str((conflist or {}).get("name", ""))
        unknown = conflist is None or not cniresult.candidates(conflist)  # it never was attached by us
        if unknown and self.recall(name, container_id, ifname) is None:
            return
        with self._locked(name, container_id, ifname) as lock:
            joined = self.recall(name, container_id, ifname)
            if joined is None and conflist is None:
                return
            known = joined or Joined(self._agreed(conflist or {}), _checked_id(container_id), netns_path, ifname)
            self._undo(known._replace(netns=netns_path or known.netns), lock)
            self._unlock(known)

    def check(self, network: str, container_id: str, ifname: str = "eth0") -> None:
        """Ask every plugin whether the attachment still is as ADD left it (raises when not)."""
        joined = self.recall(network, container_id, ifname)
        if joined is None or joined.result is None:
            raise WherryError(Kind.NOT_FOUND, f"container {container_id[:12]} is not attached to network {network}")
        if flag(joined.conflist, "disableCheck") or _version(joined.conflist) < _WITH_CHECK:
            return
        for plugin in _plugins(joined.conflist):
            self._call("CHECK", joined, plugin, joined.result)

    def collect(self, conflist: Json, valid: Sequence[tuple[str, str]] | None = None) -> None:
        """GC: let the plugins drop what belongs to no (container id, interface) of `valid`; None: the remembered.
        Each plugin gets its turn; the first failure is raised at the end. No ADD goes on meanwhile: what it made could
        not be told from what is to go."""
        if flag(conflist, "disableGC"):
            return
        agreed = self._agreed(conflist)
        if _version(agreed) < _WITH_GC:
            return
        nobody = Joined(agreed, "", "", "")
        with self._gate(nobody.network, fcntl.LOCK_EX):
            known = self._known(nobody.network) if valid is None else valid
            listed = [{"containerID": cid, "ifname": ifname} for cid, ifname in known]
            extra = {"cni.dev/valid-attachments": listed, "cni.dev/attachments": listed}  # the text had both names
            _each([lambda plugin=plugin: self._call("GC", nobody, {**plugin, **extra}, None)  # type: ignore[misc]
                   for plugin in _plugins(agreed)])

    def _known(self, network: str) -> list[tuple[str, str]]:
        return [(joined.container_id, joined.ifname) for joined in self.remembered() if joined.network == network]

    def status(self, conflist: Json) -> None:
        """STATUS: raises when a plugin could not serve an ADD now."""
        agreed = self._agreed(conflist)
        if _version(agreed) >= _WITH_GC:
            nobody = Joined(agreed, "", "", "")
            for plugin in _plugins(agreed):
                self._call("STATUS", nobody, plugin, None)

    def version(self, plugin_type: str, *, ours: bool = True) -> Json:
        """What the plugin says of itself. `ours` as for `find`."""
        config = {"cniVersion": "1.1.0", "name": "version", "type": plugin_type}
        joined = Joined({**config, "wherry": {}} if ours else config, "", "", "")
        return self._call("VERSION", joined, config, None) or {}

    def spoken(self, plugin_type: str, *, ours: bool = True) -> frozenset[str]:
        """The versions that a plugin knows. One that fails at VERSION is older than the verb (0.2.0)."""
        if (plugin_type, ours) not in self._spoken:
            try:
                told = self.version(plugin_type, ours=ours).get("supportedVersions")
            except WherryError as error:
                if error.kind in (Kind.PRECONDITION, Kind.INVALID):  # it is not there
                    raise
                told = None
            self._spoken[plugin_type, ours] = frozenset(map(str, told if isinstance(told, list) else ["0.1.0"]))
        return self._spoken[plugin_type, ours]

    def _agreed(self, conflist: Json) -> Json:
        """The list in one version: the newest that it allows, we speak and, where it allows several, its plugins do."""
        told = cniresult.candidates(conflist)
        if not told:
            raise WherryError(
                Kind.UNSUPPORTED, f'network "{conflist.get("name", "")}" is written for CNI {_told(conflist)}, '
                f"which wherry does not speak", hint=f"cniVersion: one of {', '.join(cniresult.VERSIONS)}")
        if len(told) > 1:
            ours = "wherry" in conflist
            known = [self.spoken(str(plugin.get("type", "")), ours=ours) for plugin in _plugins(conflist)]
            told = [version for version in told if all(version in versions for versions in known)] or told[:1]
        return conflist if conflist.get("cniVersion") == told[0] else {**conflist, "cniVersion": told[0]}

    def recall(self, network: str, container_id: str, ifname: str = "eth0") -> Joined | None:
        """What is remembered of one attachment."""
        return self._read(os.path.join(self._results, _file_name(network, container_id, ifname)))

    def remembered(self) -> list[Joined]:
        """All attachments known."""
        try:
            names = sorted(os.listdir(self._results))
        except FileNotFoundError:
            return []
        found = (self._read(os.path.join(self._results, name)) for name in names if name.endswith(".json"))
        return [joined for joined in found if joined is not None]

    @contextlib.contextmanager
    def at_rest(self, network: str) -> Iterator[tuple[list[Json], bool]]:
        """The records of the network's attachments, which nobody changes meanwhile; and whether there are others, which
        are being made or unmade at this moment."""
        with contextlib.ExitStack() as held:
            records, busy = [], False
            for known in self.remembered():
                if known.network == network:
                    try:
                        path = self._lock_path(network, known.container_id, known.ifname)
                        still = os.fstat(held.enter_context(files.flock(path, 0))).st_nlink
                    except WherryError:
                        still = 0
                    if not still:  # as in `_locked`: its name may be another attachment's by now
                        busy = True
                        continue
                    now = self.recall(network, known.container_id, known.ifname)
                    if now is None:
                        self._unlock(known)
                    elif now.result is not None:
                        records.append(_record(now))
            yield records, busy

    def tidy(self) -> None:
        """Remove what a killed ADD or DEL left beside the records: half of a record, a lock of no attachment."""
        names = os.listdir(self._results) if os.path.isdir(self._results) else []
        for stem in {name.rpartition(".")[0].removesuffix(".json") for name in names}:
            path = os.path.join(self._results, stem)
            if os.path.exists(f"{path}.json") and f"{stem}.json.new" not in names:
                continue
            with contextlib.suppress(WherryError), files.flock(f"{path}.lock", 0) as fd:
                if not os.fstat(fd).st_nlink:
                    continue
                for ending in ("json.new", *(() if os.path.exists(f"{path}.json") else ("lock",))):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(f"{path}.{ending}")

    def find(self, plugin_type: str, *, ours: bool = True) -> tuple[str, str]:
        """(executable, CNI_PATH): our own launchers first, then the directories of the host; for a list that is not
        `ours` the other way round, for its keys are those of the plugins that its author installed."""
        if not re.fullmatch(_TYPE, plugin_type):
            raise WherryError(Kind.INVALID, f'"{plugin_type}" is not a CNI plugin type')
        directories = sorted(self._search, key=lambda path: (path == self._own) != ours)
        if plugin_type in launchers.PLUGINS and not os.path.exists(os.path.join(self._own, plugin_type)):
            launchers.provide(self._own, anew=True)
        for directory in directories:
            path = os.path.join(directory, plugin_type)
            if os.access(path, os.X_OK) and os.path.isfile(path):
                return path, ":".join(directories)
        raise WherryError(Kind.PRECONDITION, f'CNI plugin "{plugin_type}" is not installed',
                          hint=f"looked in {', '.join(directories)}")

    @cached_property
    def _search(self) -> list[str]:
        own = launchers.provide(self._own)
        return ([own] if own else []) + list(self._place.cni_bin)

    @contextlib.contextmanager
    def _gate(self, network: str, operation: int) -> Iterator[None]:
        """Shared by the ADDs of a network, alone a GC's."""
        os.makedirs(self._gates, mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(self._gates, _checked_id(network)), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, operation)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _locked(self, network: str, container_id: str, ifname: str) -> Iterator[int]:
        """One ADD or DEL at a time for an attachment. The plugins inherit the lock: when the runtime is killed, its
        ADD goes on, and a DEL that did not wait for it would leave what it makes later."""
        os.makedirs(self._results, mode=0o700, exist_ok=True)
        path = self._lock_path(network, container_id, ifname)
        while True:
            with files.flock(path, self._timeout) as fd:
                if os.fstat(fd).st_nlink:  # else: the attachment went while we waited, and its lock with it
                    try:
                        yield fd
                    finally:
                        fcntl.flock(fd, fcntl.LOCK_UN)  # a daemon that a plugin left has inherited it, too
                    return

    def _lock_path(self, network: str, container_id: str, ifname: str) -> str:
        return os.path.join(self._results, _file_name(network, container_id, ifname).removesuffix("json") + "lock")

    def _unlock(self, joined: Joined) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._lock_path(joined.network, joined.container_id, joined.ifname))

    def _refuse_second(self, wish: Joined, lock: int) -> None:
        """A runtime must not ADD twice; undoing that would cut the first. Half an ADD (a crash) is undone."""
        known = self.recall(wish.network, wish.container_id, wish.ifname)
        if known is not None and known.result is not None:
            raise WherryError(Kind.CONFLICT, f"{wish.ifname} of container {wish.container_id[:12]} is attached to "
                                             f"network {wish.network} already", hint="detach it first")
        if known is not None:
            self._undo(known, lock)

    def _undo(self, joined: Joined, lock: int) -> None:
        gone = joined if netns.exists(joined.netns) else joined._replace(netns="")  # section 2, DEL: it may have gone
        previous = joined.result if _version(joined.conflist) >= _WITH_CHECK else None

        def undo(plugin: Json) -> None:
            try:
                self._call("DEL", gone, plugin, previous, lock)
            except plugincall.Refused as refused:
                # who does not know our version has not done anything for an ADD that failed
                if joined.result is not None or refused.number != _INCOMPATIBLE:
                    raise

        _each([lambda plugin=plugin: undo(plugin)  # type: ignore[misc]
               for plugin in reversed(_plugins(joined.conflist))])
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._results, _file_name(joined.network, joined.container_id, joined.ifname)))

    def _call(self, verb: str, joined: Joined, plugin: Json, previous: Json | None, *locks: int) -> Json | None:
        path, search = self.find(str(plugin.get("type", "")), ours="wherry" in joined.conflist)
        environment = {"PATH": os.environ.get("PATH", os.defpath), "CNI_COMMAND": verb, "CNI_PATH": search,
                       "CNI_CONTAINERID": joined.container_id, "CNI_NETNS": joined.netns, "CNI_IFNAME": joined.ifname,
                       "CNI_ARGS": ";".join(f"{key}={value}" for key, value in joined.args.items())}
        config = _plugin_config(joined, plugin, previous)
        given = json.dumps(config).encode()
        own = launchers.program(path) if os.path.dirname(path) == self._own else launchers.linked(path)
        code, out, err = plugincall.within(own, path, environment, given) if own else plugincall.run(
            path, environment, given, self._timeout, locks)
        what = f'CNI plugin "{plugin["type"]}", {verb}'
        if code:
            refused = plugincall.refusal(what, code, out, err)
            raise refused if verb == "VERSION" else self._versions(refused, joined, plugin)
        if verb not in ("ADD", "VERSION"):
            return None
        return plugincall.answer(what, out, err)

    def _versions(self, refused: plugincall.Refused, joined: Joined, plugin: Json) -> plugincall.Refused:
        """A refusal of our version, with what the plugin would speak: probed only now."""
        if refused.number != _INCOMPATIBLE:
            return refused
        name = str(plugin["type"])
        try:
            known = self.spoken(name, ours="wherry" in joined.conflist)
            hint = f"it speaks {', '.join(sorted(known, key=cniresult.number))}"
        except WherryError:
            hint = refused.hint
        message = f'CNI plugin "{name}" does not know version {_told(joined.conflist)} of network {joined.network}'
        told = plugincall.Refused(refused.kind, f"{message}: {refused.message}", hint=hint)
        told.number = refused.number
        return told

    def _remember(self, joined: Joined) -> None:
        os.makedirs(self._results, mode=0o700, exist_ok=True)
        path = os.path.join(self._results, _file_name(joined.network, joined.container_id, joined.ifname))
        temporary = f"{path}.new"  # whoever writes it holds the attachment's lock
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as stream:
            stream.write(json.dumps(_record(joined)))  # whole: `dump` would go the slow way, piece by piece
        os.replace(temporary, path)

    def _read(self, path: str) -> Joined | None:
        """None where there is no record, or none that is whole: what it was of is known to GC as nobody's."""
        try:
            with open(path, encoding="utf-8") as stream:
                record = json.load(stream)
            return Joined(record["conflist"], record["containerId"], record["netns"], record["ifname"], record["args"],
                          record["capabilities"], record["result"])
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return None


def _record(joined: Joined) -> Json:
    return {"conflist": joined.conflist, "containerId": joined.container_id, "netns": joined.netns,
            "ifname": joined.ifname, "args": dict(joined.args), "capabilities": dict(joined.capabilities),
            "result": joined.result}


def _plugins(conflist: Json) -> list[Json]:
    plugins = conflist.get("plugins")
    if not isinstance(plugins, list) or not plugins or not all(isinstance(plugin, dict) for plugin in plugins):
        raise WherryError(Kind.INVALID, f'network "{conflist.get("name", "")}" lists no CNI plugins')
    return plugins


def _plugin_config(joined: Joined, plugin: Json, previous: Json | None) -> Json:
    """The configuration of one call, as derived in section 3 ("Deriving execution configuration")."""
    config = {key: value for key, value in plugin.items() if key != "capabilities"}
    config["cniVersion"] = _told(joined.conflist)
    config["name"] = joined.network
    declared = plugin.get("capabilities") or {}
    given = {key: value for key, value in joined.capabilities.items() if declared.get(key)}
    if given:
        config["runtimeConfig"] = given
    if previous:
        config["prevResult"] = cniresult.written(previous, _told(joined.conflist))
    return config


def _told(conflist: Json) -> str:
    return str(conflist.get("cniVersion") or "0.1.0")


def _each(steps: Sequence[Callable[[], object]]) -> None:
    """All of them; the first failure is raised when each had its turn."""
    problems: list[WherryError] = []
    for step in steps:
        try:
            step()
        except WherryError as problem:
            problems.append(problem)
    if problems:
        raise problems[0]


def _checked_result(told: Json, plugin: Json, conflist: Json) -> Json:
    """The result in the shape of 1.1.0, which all after us read; a plugin that gives nothing is a broken one."""
    result: Json = {}
    with contextlib.suppress(ValueError, TypeError, AttributeError, LookupError):
        result = cniresult.read(told, _told(conflist))
    if not told or not result or not cniresult.usable(result):
        raise WherryError(Kind.UNAVAILABLE, f'network "{conflist.get("name", "")}": its plugins gave no usable result '
                                            f'("{plugin.get("type", "")}")')
    return result


def _version(conflist: Json) -> tuple[int, ...]:
    return cniresult.number(_told(conflist))


def _checked_id(container_id: str) -> str:
    if not re.fullmatch(_ID, container_id):
        raise WherryError(Kind.INVALID, f'"{container_id}" is not a CNI container id')
    return container_id


def _file_name(network: str, container_id: str, ifname: str) -> str:
    parts = (network, _checked_id(container_id), ifname)
    if not all(part and "/" not in part and "\0" not in part for part in parts):
        raise WherryError(Kind.INVALID, f'bad attachment "{network}" of "{ifname}"')
    return f"{network},{container_id},{ifname}.json"
