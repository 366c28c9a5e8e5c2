"""The facade: every verb of wherry as one method that takes values and returns values.

Decides nothing itself: each method hands over to the module of its theme, imported when it is first used, so that a
cheap verb stays cheap. Knows no argv, no terminal, no exit code. Synchronous and safe to call from several threads.
Results have the shapes of Docker's Engine API (v1.43) wherever it has one; failures are `WherryError`.

`ref` is a name, an id, or an id's unique prefix. `filters` maps a filter's name to its values, as docker's
(`{"status": ["running"], "label": ["a=b"]}`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from wherry.model import Attachment, ImageRecord, Json, Limits, Place, ProgressEvent, RestartPolicy, RunOptions

from .house import House

if TYPE_CHECKING:
    import socket

    from wherry.engine.build.values import BuildEvent, BuildOptions, Built
    from wherry.errors import WherryError
    from wherry.image.inflate import Readable

    from .events import Tail
    from .listing import Listed
    from .logs import Follower
    from .notifying import Notify
    from .pods.features import Features
    from .pods.hooks import Hooks
    from .pods.values import Member, MemberOptions, Pod, PodOptions, Usage
    from .running import Running
    from .values import Check, ExecOptions, LogLine, RegistryLogin, Section

__all__ = ["Engine"]

Progress = Callable[[ProgressEvent], None]
Filters = Mapping[str, Sequence[str]]


class Engine:
    """One wherry. `warn` receives sentences that docker prints as "WARNING: ..."; None drops them."""

    def __init__(
        self, place: Place | None = None, warn: Callable[[str], None] | None = None, *, answer_first: bool = False
    ) -> None:
        """Open the wherry at `place` (None: by environment and user, see `config.place`). Touches nothing yet.

        `answer_first`: what nobody waits for (decision 11) is left until `catch_up`, which the caller promises.
        """
        self._house = House(place, warn, answer_first=answer_first)

    @property
    def place(self) -> Place:
        """Where this wherry lives."""
        return self._house.place

    @property
    def behind(self) -> bool:
        """Whether there is something for `catch_up`."""
        return self._house.behind

    def catch_up(self) -> None:
        """Do what was left until after the answer. What fails is found by the next sweep, as after a crash."""
        self._house.catch_up()

    def prepare(self) -> None:
        """Make the directories of the place, and read its settings once for all (see `reload`)."""
        self._house.prepare()
        _ = self._house.settings

    def preload(self) -> None:
        """Load what the life of a pod needs, before anybody waits for it."""
        from . import preload

        preload.preload(self._house)

    def trim(self) -> None:
        """Give memory that is free back to the kernel: for a daemon that has nothing to do just now."""
        import gc

        from wherry.kernel import shim

        gc.collect()
        shim.trim()

    def reload(self) -> None:
        """Read the settings again, for what is asked from now on."""
        self._house.reload()

    def close(self) -> None:
        """Close the database. Containers are not concerned."""
        self._house.close()

    # ---- containers: life ----

    def create(self, options: RunOptions, progress: Progress | None = None) -> str:
        """Make a container, not started; pulls as `options.pull` says. Returns its id (64 hex digits)."""
        from . import create

        return create.create(self._house, options, progress)

    def run(self, options: RunOptions, progress: Progress | None = None) -> Running:
        """Create and start. Detached: returns once started. Else the `Running` streams from the first byte on.

        A failure to start removes the container when `remove` is set, else leaves it created, as docker does; the
        error's `code` is 126, 127 or None (then 125 is docker's).
        """
        from . import start

        return start.run(self._house, options, progress)

    def start(
        self, ref: str, *, attach: bool = False, interactive: bool = False, notify: Notify | None = None
    ) -> Running:
        """Start a created or exited container; attached if asked. Starting a running one is no error. `notify`: where
        it may speak by sd_notify(3)."""
        from . import start

        return start.start(self._house, ref, attach=attach, interactive=interactive, notify=notify)

    def stop(self, ref: str, timeout: int | None = None, signal: str = "") -> None:
        """Stop: the stop signal, `timeout` seconds of grace (None: the container's, 10; -1: no limit), then KILL."""
        from . import stop

        stop.stop(self._house, ref, timeout, signal)

    def restart(self, ref: str, timeout: int | None = None, signal: str = "") -> None:
        """Stop if running, then start."""
        from . import stop

        stop.restart(self._house, ref, timeout, signal)

    def tell_restarted(self, ref: str) -> None:
        """The event of a restart, for a face that has stopped it and started it by itself."""
        from . import stop

        stop.tell_restarted(self._house, ref)

    def kill(self, ref: str, signal: str = "KILL") -> None:
        """Send a signal ("TERM", "SIGTERM", "15"). Conflict if it is not running."""
        from . import stop

        stop.kill(self._house, ref, signal)

    def pause(self, ref: str) -> None:
        """Freeze every process of the container."""
        from . import stop

        stop.pause(self._house, ref)

    def unpause(self, ref: str) -> None:
        """Thaw a paused container."""
        from . import stop

        stop.unpause(self._house, ref)

    def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove; a running one only with `force`; with `volumes` its anonymous volumes too."""
        from . import remove

        remove.remove(self._house, ref, force=force, volumes=volumes)

    def rename(self, ref: str, name: str) -> None:
        """Give a new name."""
        from . import containers

        containers.rename(self._house, ref, name)

    def update(self, ref: str, limits: Limits, restart: RestartPolicy | None = None) -> list[str]:
        """Change limits (fields not None) and the restart policy, of a running container at once. Returns warnings."""
        from . import update

        return update.update(self._house, ref, limits, restart)

    def wait(self, ref: str, condition: str = "not-running") -> int:
        """Block until "not-running", "next-exit" or "removed"; returns the exit code."""
        from . import stop

        return stop.wait(self._house, ref, condition)

    def attach(self, ref: str, *, stdin: bool = True) -> Running:
        """Join a running container's streams (from now on)."""
        from . import start

        return start.attach(self._house, ref, stdin=stdin)

    def exec(self, ref: str, options: ExecOptions) -> Running:
        """Start a process in a running container."""
        from . import execs

        return execs.start(self._house, ref, options)

    def finish(self, ref: str) -> None:
        """Settle a container that has exited: cleanup, restart policy, --rm. Idempotent; `internal cleanup ID`."""
        from . import cleanup

        cleanup.finish(self._house, ref)

    def health(self, ref: str) -> None:
        """Run one health check if one is due. What `internal health ID` runs."""
        from . import health

        health.check(self._house, ref)

    def keep(self, network: str) -> None:
        """Be the keeper of a network, until it is alone. What `internal network NAME` runs; does not return."""
        from . import keeping

        keeping.serve(self._house, network)

    # ---- containers: looking ----

    def containers(
        self, *, all: bool = False, filters: Filters | None = None, size: bool = False, last: int = 0
    ) -> list[Json]:
        """List containers, newest first, in the shape of docker's `GET /containers/json`.

        Id, Names ["/x"], Image, ImageID, Command (one string), Created (unix s), Ports [{IP, PrivatePort, PublicPort,
        Type}], Labels, State, Status ("Up 3 minutes (healthy)"), HostConfig.NetworkMode, NetworkSettings.Networks,
        Mounts; with `size` SizeRw and SizeRootFs. `last` n: the n newest in any state. Filters: id, name, label,
        exited, status, ancestor, before, since, volume, network, publish, expose, health.
        """
        from . import listing

        return listing.containers(self._house, all=all, filters=filters or {}, size=size, last=last)

    def listed(self, ids: Collection[str] | None = None) -> tuple[list[Listed], set[str]]:
        """For who keeps a list and follows `changes`: these (None: all) as they are now, and the ids of all."""
        from . import listing

        return listing.listed(self._house, ids)

    def container_id(self, ref: str) -> str:
        """The id of a container by its name, id, or an unambiguous prefix; NOT_FOUND."""
        return self._house.db.find(ref).id

    def runs(self, ref: str) -> bool:
        """Whether a container runs now, paused perhaps; NOT_FOUND."""
        from . import status

        return status.look(self._house, self._house.db.find(ref).id).running

    def inspect(self, ref: str, type: str = "", *, size: bool = False) -> Json:
        """Return docker's inspect object of a container, image, volume or network; `type` "": the first that is."""
        from . import inspection

        return inspection.inspect(self._house, ref, type, size=size)

    def bundle_config(self, ref: str) -> Json:
        """The OCI config.json that a container was last started by; {} before its first start."""
        from . import inspection

        return inspection.bundle_config(self._house, ref)

    def logs(
        self,
        ref: str,
        *,
        stdout: bool = True,
        stderr: bool = True,
        since: float = 0,
        until: float = 0,
        tail: int | None = None,
        follow: bool = False,
    ) -> Iterator[LogLine]:
        """Yield log lines (unix seconds; `tail` None: all), following until the container ends if asked."""
        from . import logs

        return logs.read(
            self._house, ref, stdout=stdout, stderr=stderr, since=since, until=until, tail=tail, follow=follow
        )

    def follow_logs(
        self, ref: str, *, stdout: bool = True, stderr: bool = True, since: float = 0, until: float = 0,
        tail: int | None = None,
    ) -> Follower:  # fmt: skip
        """The same for who cannot wait: `more()` gives the lines since the last time, None after the end."""
        from . import logs

        return logs.follow(self._house, ref, stdout=stdout, stderr=stderr, since=since, until=until, tail=tail)

    def top(self, ref: str, ps_args: Sequence[str] = ()) -> Json:
        """Return {"Titles": [...], "Processes": [[...], ...]} as `ps` shows the container's processes."""
        from . import stats

        return stats.top(self._house, ref, ps_args)

    def stats(self, ref: str) -> Json:
        """Return one sample in docker's stats shape (name, id, read, cpu_stats, memory_stats, pids_stats, networks,
        blkio_stats). `precpu_stats` is empty: the caller keeps the sample before. Zeros if it is not running."""
        from . import stats

        return stats.sample(self._house, ref)

    def diff(self, ref: str) -> list[Json]:
        """Return [{"Path": "/etc/x", "Kind": 0 changed | 1 added | 2 deleted}], sorted by path."""
        from . import diff

        return diff.changes(self._house, ref)

    def port(self, ref: str) -> dict[str, list[dict[str, str]]]:
        """Return {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}."""
        from . import inspection

        return inspection.ports(self._house, ref)

    def archive_stat(self, ref: str, path: str) -> Json:
        """Return docker's path stat: name, size, mode (Go's os.FileMode number), mtime (RFC 3339), linkTarget."""
        from . import archive

        return archive.stat(self._house, ref, path)

    def archive_get(self, ref: str, path: str) -> tuple[Json, Generator[bytes, None, None]]:
        """Return the path's stat and a tar stream of it (`cp` out of a container, running or not); `close` it."""
        from . import archive

        return archive.get(self._house, ref, path)

    def archive_put(
        self, ref: str, path: str, stream: BinaryIO | Iterable[bytes], *, archive_owner: bool = False
    ) -> None:
        """Extract an untrusted tar stream in the directory `path`. Owner root, or the archive's if asked."""
        from . import archive

        archive.put(self._house, ref, path, stream, archive_owner=archive_owner)

    def events(
        self, *, since: float = 0, until: float = 0, filters: Filters | None = None, follow: bool = True
    ) -> Iterator[Json]:
        """Yield docker's events (Type, Action, Actor{ID, Attributes}, time, timeNano, status, id, from, scope)."""
        from . import events

        return events.read(self._house, since=since, until=until, filters=filters or {}, follow=follow)

    def event_test(self, filters: Filters) -> Callable[[Json], bool]:
        """What of `changes` these filters let through; INVALID for one that is not known."""
        from . import events

        return events.test(filters)

    def explain(self, options: RunOptions) -> list[Section]:
        """Tell what `run` would do, section by section, without any effect on the host."""
        from . import explain

        return explain.run(self._house, options)

    # ---- pods ----

    def hook(self, hooks: Hooks) -> None:
        """From now on these have a say in the life of pods."""
        self._house.hooks = hooks

    def pod_features(self) -> Features:
        """What pods can be on this host, as it is set."""
        from .pods import features

        return features.of(self._house)

    def changes(self) -> Tail:
        """What happens from now on: `more()` gives the events (see `events`) since the last time."""
        from . import events

        return events.tail(self._house)

    def run_pod(self, options: PodOptions) -> str:
        """Make a pod and what it holds; its id. The same pod again is the same id: ready, or an EXISTS if it is not."""
        from .pods import sandbox

        return sandbox.run(self._house, options)

    def stop_pod(self, pod: str) -> None:
        """Stop its containers and give back what it holds. One that is not there, or not ready, is success."""
        from .pods import sandbox

        sandbox.stop(self._house, pod)

    def remove_pod(self, pod: str) -> None:
        """Stop it, remove its containers, forget it. One that is not there is success."""
        from .pods import sandbox

        sandbox.remove(self._house, pod)

    def pod(self, pod: str) -> Pod:
        """One pod by its id or an unambiguous prefix; NOT_FOUND."""
        from .pods import sandbox

        return sandbox.get(self._house, pod)

    def pods(self) -> list[Pod]:
        """All pods, newest first."""
        from .pods import sandbox

        return sandbox.every(self._house)

    def update_pod(self, pod: str, resources: Json, overhead: Json) -> None:
        """Change the limits of a pod's cgroup (OCI linux.resources; what is absent stays)."""
        from .pods import sandbox

        sandbox.update(self._house, pod, resources, overhead)

    def network_ready(self) -> str:
        """"" where a new pod could join the network now, else why not."""
        from .pods import network

        return network.ready(self._house)

    def create_member(self, pod: str, options: MemberOptions) -> str:
        """Make a container in a ready pod, not started; its id. `start`, `exec` and `attach` take it as any other.

        The same container again (pod, name, attempt) is the same id. The image must be there (NOT_FOUND)."""
        from .pods import member

        return member.create(self._house, pod, options)

    def stop_member(self, container: str, timeout: int) -> None:
        """The stop signal, `timeout` seconds of grace, then KILL; done when its end is settled. One that is not there
        is success."""
        from .pods import member

        member.stop(self._house, container, timeout)

    def remove_member(self, container: str) -> None:
        """Stop it at once if it runs, and forget it. One that is not there is success."""
        from .pods import member

        member.remove(self._house, container)

    def member(self, container: str) -> Member:
        """One container of a pod, by its id or an unambiguous prefix; NOT_FOUND."""
        from .pods import member

        return member.get(self._house, container)

    def members(self) -> list[Member]:
        """All containers of pods, newest first."""
        from .pods import member

        return member.every(self._house)

    def update_member(self, container: str, resources: Json, annotations: Mapping[str, str]) -> None:
        """Change limits (OCI linux.resources; what is absent stays), of a running one at once."""
        from .pods import member

        member.update(self._house, container, resources, annotations)

    def reopen_log(self, container: str) -> None:
        """Its log goes on in a new file at the same path: the kubelet has renamed the old one."""
        from .pods import member

        member.reopen_log(self._house, container)

    def checkpoint_member(self, container: str, location: str, timeout: int = 0) -> None:
        """Write an archive of a running container's processes (by criu) and of what it changed to the path `location`,
        in `timeout` seconds (0: ten minutes); it goes on."""
        from .pods import member

        member.checkpoint(self._house, container, location, timeout)

    def usage(self, ids: Sequence[str] = (), *, detailed: bool = False) -> dict[str, Usage]:
        """What pods and containers use now, by their ids (() all that run): one walk, cheap for a thousand. A pod's id
        also gives its containers. `detailed` is for metrics."""
        from .pods import usage

        return usage.of(self._house, ids, detailed=detailed)

    def pod_sockets(self, pod: str) -> list[tuple[socket.socket, str]]:
        """Non-blocking TCP sockets in a pod's network, each with the localhost that it can connect to (v4 first, then
        v6). The caller closes them."""
        from .pods import dial

        return dial.sockets(self._house, pod)

    # ---- images ----

    def pull(
        self,
        reference: str,
        platform: str = "",
        progress: Progress | None = None,
        *,
        all_platforms: bool = False,
    ) -> ImageRecord:
        """Fetch and unpack an image of a registry, or of `oci:DIR[:tag]`, `oci-archive:`, `docker-archive:`.

        `all_platforms`: keep a registry's index with the images of all platforms, so that it can be pushed.
        """
        from . import images, registries

        if all_platforms:
            return registries.pull_all(self._house, reference, progress)
        return images.pull(self._house, reference, platform, progress)

    def pull_as(
        self, reference: str, login: RegistryLogin | None, platform: str = "", progress: Progress | None = None
    ) -> ImageRecord:
        """Fetch and unpack an image of a registry with these credentials, or with none; none are looked up."""
        from . import images

        return images.pull_as(self._house, reference, login, platform, progress)

    def push_as(
        self, name: str, login: RegistryLogin | None, progress: Progress | None = None, *, all_tags: bool = False
    ) -> Iterator[Json]:
        """`push` with these credentials, or with none; none are looked up."""
        from . import images, registries

        known = images.credentials_of(name, login)
        return registries.push(self._house, name, progress, all_tags=all_tags, credentials=known)

    def distribution(self, name: str, login: RegistryLogin | None) -> Json:
        """What the registry of a name has there, asked with these credentials, or with none: its descriptor, and the
        platforms that it is for (docker's distribution object)."""
        from . import images, registries

        return registries.distribution(self._house, name, images.credentials_of(name, login))

    def image_records(self) -> list[ImageRecord]:
        """All images, each once."""
        return self._house.images.list()

    def image_record(self, ref: str) -> ImageRecord:
        """One image by a name, an id or an id's unambiguous prefix; NOT_FOUND."""
        return self._house.images.get(ref)

    def image_usage(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(bytes, inodes) on disk of all images, and of what containers wrote; layers are walked once."""
        from . import imageroom

        return imageroom.usage(self._house)

    def build(self, options: BuildOptions, progress: Callable[[BuildEvent], None] | None = None) -> Built:
        """Build an image from a Dockerfile. A step that fails is `StepFailed`."""
        from .build import solver

        return solver.build(self._house, options, progress)

    def builder_prune(self, *, all: bool = False, filters: Filters | None = None) -> Json:
        """Forget what builds remember: {"CachesDeleted": [ids], "SpaceReclaimed": bytes}. Without `all`, what an image
        shares stays. Filters: until, id, type."""
        from .build import pruning

        return pruning.prune(self._house, all=all, filters=filters or {})

    def pull_tags(self, name: str, platform: str = "", progress: Progress | None = None) -> Iterator[ImageRecord]:
        """Fetch the images of all tags of a repository, one by one."""
        from . import registries

        return registries.pull_tags(self._house, name, platform, progress)

    def push(self, name: str, progress: Progress | None = None, *, all_tags: bool = False) -> Iterator[Json]:
        """Send an image (all tags of a repository) to the registry of its name: Name, Tag, Digest, Size of each."""
        from . import registries

        return registries.push(self._house, name, progress, all_tags=all_tags)

    def login(self, server: str, user: str, secret: str) -> str:
        """Try and keep credentials; "": a helper keeps them, else the file where they are now unencrypted."""
        from . import registries

        return registries.login(self._house, server, user, secret)

    def login_try(self, server: str, user: str, secret: str) -> None:
        """Try credentials of a registry, and keep nothing. DENIED if they are not good."""
        from . import registries

        registries.login_try(self._house, server, user, secret)

    def login_again(self, server: str) -> bool | None:
        """Whether the credentials that are kept are still good; None where there are none."""
        from . import registries

        return registries.login_again(self._house, server)

    def logout(self, server: str) -> tuple[str, bool]:
        """Forget credentials: the registry's name, and whether there were any."""
        from . import registries

        return registries.logout(server)

    def logins(self) -> list[str]:
        """The registries that credentials are kept for."""
        from . import registries

        return registries.logins()

    def referrers(self, name: str, artifact_type: str = "") -> list[Json]:
        """What refers to an image in its registry (signatures, SBOMs): descriptors, as the registry lists them."""
        from . import registries

        return registries.referrers(self._house, name, artifact_type)

    def load(self, source: str, progress: Progress | None = None, stream: Readable | None = None) -> list[ImageRecord]:
        """Load every image of `oci:DIR[:tag]`, `oci-archive:FILE`, `docker-archive:FILE`, of a path whose kind is found
        out, or of the archive (packed or not) that `stream` gives; `source` is then what it is called."""
        from . import images

        return images.load(self._house, source, progress, stream)

    def save(self, refs: Sequence[str], target: str | int, form: str = "docker") -> None:
        """Write images to a path, or an archive to a descriptor. `form`: docker, docker-archive, docker-dir,
        oci-archive, oci-dir."""
        from . import images

        images.save(self._house, refs, target, form)

    def commit(
        self, ref: str, name: str = "", *, author: str = "", message: str = "", changes: Sequence[str] = (),
        pause: bool = True,
    ) -> ImageRecord:  # fmt: skip
        """Make an image of a container: what it changed on top of its image, and what it was asked as the config."""
        from . import authoring

        return authoring.commit(self._house, ref, name, author=author, message=message, changes=changes, pause=pause)

    def export(self, ref: str, out: Callable[[bytes], object]) -> None:
        """Give the tar of a container's root to `out`."""
        from . import authoring

        authoring.export(self._house, ref, out)

    def import_tar(
        self, stream: Readable, name: str = "", *, message: str = "", changes: Sequence[str] = (), platform: str = "",
        origin: str = "-",
    ) -> ImageRecord:  # fmt: skip
        """Make an image of one layer out of the tar, packed or not, that `stream` gives."""
        from . import authoring

        return authoring.import_tar(
            self._house, stream, name, message=message, changes=changes, platform=platform, origin=origin
        )

    def history(self, ref: str) -> list[Json]:
        """How an image came to be, newest first: Id, Created (unix s), CreatedBy, Tags, Size, Comment."""
        from . import authoring

        return authoring.history(self._house, ref)

    def untag(self, ref: str, names: Sequence[str] = ()) -> None:
        """Take names (all without any) from an image, which stays."""
        from . import images

        images.untag(self._house, ref, names)

    def images(self, *, all: bool = False, filters: Filters | None = None) -> list[Json]:
        """List images, newest first: Id, ParentId, RepoTags, RepoDigests, Created (unix s), Size, SharedSize, Labels,
        Containers. Filters: reference, dangling, label, before, since."""
        from . import images

        return images.listing(self._house, all=all, filters=filters or {})

    def inspect_image(self, ref: str) -> Json:
        """Return docker's image inspect object."""
        from . import images

        return images.inspect(self._house, ref)

    def remove_image(self, ref: str, *, force: bool = False) -> list[Json]:
        """Remove a name, and the image with its last one: [{"Untagged": name}, {"Deleted": id}]. Conflict if in use."""
        from . import images

        return images.remove(self._house, ref, force=force)

    def tag(self, source: str, target: str) -> None:
        """Give an image one more name."""
        from . import images

        images.tag(self._house, source, target)

    def image_prune(self, *, all: bool = False, filters: Filters | None = None) -> Json:
        """Remove unnamed (or all unused) images: {"ImagesDeleted": [...], "SpaceReclaimed": bytes}."""
        from . import images

        return images.prune(self._house, all=all, filters=filters or {})

    # ---- volumes ----

    def volume_create(
        self,
        name: str = "",
        *,
        driver: str = "local",
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Json:
        """Create a named (or anonymous) volume, or return the existing one of that name. docker's volume object."""
        from . import volumes

        return volumes.create(self._house, name, driver, labels or {}, options or {})

    def volume_list(self, filters: Filters | None = None) -> list[Json]:
        """List volumes by name: Name, Driver, Mountpoint, CreatedAt, Labels, Options, Scope.

        Filters: name, label, dangling.
        """
        from . import volumes

        return volumes.listing(self._house, filters or {})

    def volume_inspect(self, name: str) -> Json:
        """Return docker's volume object."""
        from . import volumes

        return volumes.inspect(self._house, name)

    def volume_remove(self, name: str, *, force: bool = False) -> None:
        """Remove an unused volume; `force` forgives a missing one."""
        from . import volumes

        volumes.remove(self._house, name, force=force)

    def volume_prune(self, *, all: bool = False, filters: Filters | None = None) -> Json:
        """Remove unused anonymous (or all unused) volumes: {"VolumesDeleted": [...], "SpaceReclaimed": bytes}."""
        from . import volumes

        return volumes.prune(self._house, all=all, filters=filters or {})

    def volume_resize(self, name: str, size: int, *, more: bool = False) -> int:
        """Make a driver's volume larger, in use or not, to `size` bytes or by so many `more`; the size that it has
        then."""
        from . import volumes

        return volumes.resize(self._house, name, size, more=more)

    def volume_snapshot(self, volume: str, name: str = "") -> Json:
        """Take a snapshot: Name, Volume, Driver, CreatedAt, Size, Options."""
        from . import volcopies

        return volcopies.snapshot(self._house, volume, name)

    def volume_snapshots(self, filters: Filters | None = None) -> list[Json]:
        """List snapshots of volumes, oldest first. Filters: name, volume, driver."""
        from . import volcopies

        return volcopies.listing(self._house, filters or {})

    def volume_snapshot_inspect(self, name: str) -> Json:
        """Return one snapshot, as it is listed."""
        from . import volcopies

        return volcopies.inspect(self._house, name)

    def volume_snapshot_remove(self, name: str, *, force: bool = False) -> None:
        """Remove a snapshot; volumes made of it stay. `force` forgives a missing one."""
        from . import volcopies

        volcopies.remove(self._house, name, force=force)

    def volume_restore(
        self, snapshot: str, new: str, *, labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Json:  # fmt: skip
        """Make a volume of a snapshot; `options` beside those of the volume that it was taken of. docker's object."""
        from . import volcopies

        return volcopies.restore(self._house, snapshot, new, labels=labels or {}, options=options or {})

    def volume_clone(
        self, volume: str, new: str, *, labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Json:  # fmt: skip
        """Make a volume with the content of another; `options` beside that one's. docker's object."""
        from . import volcopies

        return volcopies.clone(self._house, volume, new, labels=labels or {}, options=options or {})

    def volume_export(self, name: str, out: Callable[[bytes], object]) -> None:
        """Write a volume's content as a tar."""
        from . import voltar

        voltar.export(self._house, name, out)

    def volume_import(self, name: str, stream: BinaryIO, *, origin: str) -> None:
        """Unpack a tar, plain or packed, into a volume; `origin` is what failures call it."""
        from . import voltar

        voltar.import_(self._house, name, stream, origin)

    # ---- networks ----

    def network_create(
        self,
        name: str,
        *,
        driver: str = "bridge",
        subnets: Sequence[str] = (),
        gateways: Sequence[str] = (),
        ip_ranges: Sequence[str] = (),
        aux_addresses: Mapping[str, str] | None = None,
        internal: bool = False,
        attachable: bool = False,
        ipv4: bool = True,
        ipv6: bool = False,
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        ipam: str = "",
        ipam_options: Mapping[str, str] | None = None,
    ) -> str:
        """Create a network; returns its id. Each gateway, range and auxiliary address goes to the subnet that holds it.
        `ipam`: host-local ("", default), static or none."""
        from . import networks

        ranges = networks.Ranges(subnets, gateways, ip_ranges, aux_addresses or {})
        return networks.create(
            self._house, name, driver, ranges, options or {}, labels or {}, internal=internal, attachable=attachable,
            families=(ipv4, ipv6), ipam=(ipam, ipam_options or {}),
        )  # fmt: skip

    def network_connect(self, network: str, ref: str, wish: Attachment | None = None) -> None:
        """Let a container join one more network: at once if it runs, and at each start. `wish` has address, MAC,
        aliases and options; its network's name is not looked at."""
        from . import connect

        connect.connect(self._house, network, ref, wish or Attachment(network))

    def network_disconnect(self, network: str, ref: str, *, force: bool = False) -> None:
        """Let a container leave a network; `force`: also what a container that is gone has left on it."""
        from . import connect

        connect.disconnect(self._house, network, ref, force=force)

    def exposure(self) -> list[Json]:
        """Every published port of running containers, with who can reach it: Container, Name, Network, HostIp,
        HostPort, PrivatePort, Type, Reach [{"Who": "anyone" | "this host" | "network NAME" | "neighbours on LINK" |
        "anyone with a route", "Address", "Interface"}]; by a container's own address there is also "Port"."""
        from . import exposure

        return exposure.ports(self._house)

    def network_list(self, filters: Filters | None = None) -> list[Json]:
        """List networks in docker's inspect shape, without containers. Filters: name, id, driver, label, type."""
        from . import networks

        return networks.listing(self._house, filters or {})

    def network_inspect(self, name: str) -> Json:
        """Return docker's network object with its running containers."""
        from . import networks

        return networks.inspect(self._house, name)

    def network_remove(self, name: str, *, force: bool = False) -> None:
        """Remove a network that no container uses."""
        from . import networks

        networks.remove(self._house, name, force=force)

    def network_prune(self, filters: Filters | None = None) -> Json:
        """Remove unused networks: {"NetworksDeleted": [...]}."""
        from . import networks

        return networks.prune(self._house, filters or {})

    # ---- the whole ----

    def container_prune(self, filters: Filters | None = None) -> Json:
        """Remove stopped containers: {"ContainersDeleted": [...], "SpaceReclaimed": bytes}."""
        from . import system

        return system.container_prune(self._house, filters or {})

    def system_df(self) -> Json:
        """Return docker's `GET /system/df`: LayersSize, Images, Containers, Volumes (each with UsageData); and "Usage",
        the Size and what is Reclaimable of each kind, which adds up to ROOT."""
        from . import usage

        return usage.df(self._house)

    def system_check(self, *, quick: bool = False, repair: bool = False) -> Json:
        """Look whether everything is whole: {"Findings": [{Kind, Subject, Problem, Cure, Repaired}], "Leftovers": paths
        that the next sweep takes, "Counts": {...}}. `quick`: without reading blobs through."""
        from . import checks

        return checks.check(self._house, quick=quick, repair=repair)

    def system_prune(self, *, all: bool = False, volumes: bool = False, filters: Filters | None = None) -> Json:
        """Prune containers, networks, images and, if asked, volumes; the union of the four answers."""
        from . import system

        return system.prune(self._house, all=all, volumes=volumes, filters=filters or {})

    def system_reset(self) -> Json:
        """Remove everything of this wherry, running containers included; what went, in the keys of the prunes."""
        from . import system

        return system.reset(self._house)

    def gc(self) -> Json:
        """Sweep what crashes left. Returns what was swept: {"containers": [...], "netns": [...], ...}."""
        from . import gc

        return gc.sweep(self._house, thorough=True)

    def sweep(self) -> Json:
        """The part of `gc` that every create does first, the stops of pods that somebody began, and half of snapshots.
        Never fails; only a plugin of CNI can make it wait. For who is at work long."""
        from . import gc

        found = gc.sweep(self._house, thorough=False)
        return found | {"pods": gc.half_stopped(self._house), "snapshots": gc.half_made(self._house)}

    def boot(self) -> Iterator[tuple[str, WherryError | None]]:
        """After the host has come up: start what the restart policies want, each told by its name, with its failure."""
        from . import boot

        return boot.start_all(self._house)

    def halt(self) -> Iterator[tuple[str, WherryError | None]]:
        """Stop all that runs, as before the end of the host: restart policies stand. Each name with its error."""
        from . import boot

        return boot.stop_all(self._house)

    def install_units(self, directory: str) -> Iterator[str]:
        """Write the units for systemd that come with wherry into a directory; the path of each."""
        from . import units

        return units.install(directory)

    def unit(self, ref: str, *, notify: bool = False) -> str:
        """The text of a unit for systemd that runs this container. `notify`: which tells when it is ready."""
        from . import units

        return units.of_container(self._house, ref, notify=notify)

    def info(self) -> Json:
        """Return docker's info object, as far as it means something here."""
        from . import system

        return system.info(self._house)

    def version(self) -> Json:
        """Return docker's version object."""
        from . import system

        return system.version(self._house)

    def doctor(self) -> list[Check]:
        """Tell what the host lacks and what mends it."""
        from . import doctor

        return doctor.checks(self._house)

    def complete(self, what: str, prefix: str) -> list[str]:
        """Return names for shell completion; `what`: container, running, image, volume, snapshot, network,
        registry."""
        from . import listing

        return listing.complete(self._house, what, prefix)
