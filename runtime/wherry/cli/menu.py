"""The tree of commands, one table a group: where each command lives and what it does. Imports no command, nor click."""

import importlib
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """One row of a group: where the command lives (module:attribute) and what it does, in one line."""

    where: str
    help: str
    section: str = "Commands"
    hidden: bool = False


def load(entry: Entry) -> Any:
    """Import what a row names: a `Command`, or a click group."""
    module, _, attribute = entry.where.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), attribute)


COMMON, MANAGE, REST = "Common Commands", "Management Commands", "Commands"

CONTAINER = {
    "attach": Entry("commands.attach:attach", "Attach to a running container's streams"),
    "commit": Entry("commands.archive:commit", "Make an image of what a container changed"),
    "cp": Entry("commands.cp:cp", "Copy files between a container and the host"),
    "create": Entry("commands.run:create", "Create a container without starting it"),
    "diff": Entry("commands.look:diff", "Show what a container changed in its filesystem"),
    "exec": Entry("commands.exec:exec_", "Run a command in a running container"),
    "export": Entry("commands.archive:export", "Write a container's root file system as a tar"),
    "inspect": Entry("commands.inspect:container", "Show containers in full"),
    "kill": Entry("commands.life:kill", "Send a signal to containers"),
    "logs": Entry("commands.logs:logs", "Show the log of a container"),
    "ls": Entry("commands.ps:ps", "List containers"),
    "pause": Entry("commands.life:pause", "Freeze containers"),
    "port": Entry("commands.look:port", "List the published ports of a container"),
    "prune": Entry("commands.prune:container", "Remove all stopped containers"),
    "rename": Entry("commands.life:rename", "Rename a container"),
    "restart": Entry("commands.life:restart", "Stop and start containers"),
    "rm": Entry("commands.life:rm", "Remove containers"),
    "run": Entry("commands.run:run", "Create and start a container from an image"),
    "start": Entry("commands.attach:start", "Start stopped containers"),
    "stats": Entry("commands.stats:stats", "Show what containers use"),
    "stop": Entry("commands.life:stop", "Stop containers"),
    "top": Entry("commands.look:top", "List the processes of a container"),
    "unpause": Entry("commands.life:unpause", "Thaw paused containers"),
    "update": Entry("commands.life:update", "Change limits and restart policy of containers"),
    "wait": Entry("commands.life:wait", "Wait for containers to end and print their exit codes"),
}

IMAGE = {
    "build": Entry("commands.build:build", "Build an image from a Dockerfile"),
    "history": Entry("commands.archive:history", "Show the steps that made an image"),
    "import": Entry("commands.archive:import_", "Make an image of a root file system's tar"),
    "inspect": Entry("commands.inspect:image", "Show images in full"),
    "load": Entry("commands.archive:load", "Load images from an archive or a directory"),
    "ls": Entry("commands.image:images", "List images"),
    "prune": Entry("commands.prune:image", "Remove unused images"),
    "pull": Entry("commands.image:pull", "Fetch an image from a registry, a layout or an archive"),
    "push": Entry("commands.registry:push", "Send an image to a registry"),
    "referrers": Entry("commands.registry:referrers", "List what refers to an image in its registry"),
    "rm": Entry("commands.image:rmi", "Remove images"),
    "save": Entry("commands.archive:save", "Write images into an archive or a directory"),
    "tag": Entry("commands.image:tag", "Give an image one more name"),
    "untag": Entry("commands.archive:untag", "Take names away from an image, and keep it"),
}

BUILDER = {
    "build": Entry("commands.build:build", "Build an image from a Dockerfile"),
    "prune": Entry("commands.build:prune", "Remove the build cache"),
}

VOLUME = {
    "clone": Entry("commands.volume:clone", "Create a volume with the content of another"),
    "create": Entry("commands.volume:create", "Create a volume"),
    "export": Entry("commands.volume:export", "Write a volume's content as a tar"),
    "import": Entry("commands.volume:import_", "Unpack a tar into a volume"),
    "inspect": Entry("commands.inspect:volume", "Show volumes in full"),
    "ls": Entry("commands.volume:ls", "List volumes"),
    "prune": Entry("commands.prune:volume", "Remove unused volumes"),
    "resize": Entry("commands.volume:resize", "Make a volume larger"),
    "restore": Entry("commands.volume:restore", "Create a volume of a snapshot"),
    "rm": Entry("commands.volume:rm", "Remove volumes"),
    "snapshot": Entry("tree:SNAPSHOT_GROUP", "Take and manage snapshots of volumes"),
}

SNAPSHOT = {
    "create": Entry("commands.volume:snapshot", "Take a snapshot of a volume (the word may be left out)"),
    "inspect": Entry("commands.volume:snapshot_inspect", "Show snapshots in full"),
    "ls": Entry("commands.volume:snapshot_ls", "List snapshots"),
    "rm": Entry("commands.volume:snapshot_rm", "Remove snapshots"),
}

NETWORK = {
    "connect": Entry("commands.network:connect", "Let a container join a network"),
    "create": Entry("commands.network:create", "Create a network"),
    "disconnect": Entry("commands.network:disconnect", "Let a container leave a network"),
    "inspect": Entry("commands.inspect:network", "Show networks in full"),
    "ls": Entry("commands.network:ls", "List networks"),
    "prune": Entry("commands.prune:network", "Remove unused networks"),
    "rm": Entry("commands.network:rm", "Remove networks"),
}

SYSTEM = {
    "boot": Entry("commands.system:boot", "Start what restart policies want after the host came up"),
    "check": Entry("commands.system:check", "Look whether everything stored is whole"),
    "df": Entry("commands.system:df", "Show how much disk wherry uses"),
    "events": Entry("commands.events:events", "Show events as they happen"),
    "halt": Entry("commands.system:halt", "Stop all containers, as before the end of the host"),
    "info": Entry("commands.system:info", "Show this wherry and its host"),
    "install-units": Entry("commands.system:install_units", "Write the units for systemd"),
    "prune": Entry("commands.prune:system", "Remove what nothing uses"),
    "reset": Entry("commands.prune:reset", "Remove everything of this wherry"),
}

WARM = {
    "install": Entry("commands.warm:install", "Let systemd keep the warm process's socket"),
    "status": Entry("commands.warm:status", "Show the warm process, or why there is none"),
    "stop": Entry("commands.warm:stop", "End the warm process"),
}

CNI = {
    "install": Entry("commands.cni:install", "Put our CNI plugins into a directory"),
    "uninstall": Entry("commands.cni:uninstall", "Take our CNI plugins out of a directory"),
}

GENERATE = {
    "systemd": Entry("commands.system:systemd", "Print a unit for systemd that runs a container"),
}

INTERNAL = {
    "cleanup": Entry("commands.internal:cleanup", "Settle a container that has ended"),
    "health": Entry("commands.internal:health", "Run one health check"),
    "network": Entry("commands.internal:network", "Answer DNS on a network and keep its firewall rules"),
}


def _moved(table: dict[str, Entry], names: str, section: str) -> dict[str, Entry]:
    return {name: Entry(table[name].where, table[name].help, section) for name in names.split()}


TOP = {
    **_moved(CONTAINER, "run exec", COMMON),
    "ps": Entry("commands.ps:ps", "List containers", COMMON),
    **_moved(IMAGE, "build pull push", COMMON),
    "images": Entry("commands.image:images", "List images", COMMON),
    "login": Entry("commands.registry:login", "Log in to a registry", COMMON),
    "logout": Entry("commands.registry:logout", "Log out of a registry", COMMON),
    "version": Entry("commands.system:version", "Show the versions of wherry and its host", COMMON),
    **_moved(SYSTEM, "info", COMMON),
    "doctor": Entry("commands.system:doctor", "Tell what the host lacks, and what mends it", COMMON),
    "builder": Entry("tree:BUILDER_GROUP", "Manage builds", MANAGE),
    "cni": Entry("tree:CNI_GROUP", "Lend our CNI plugins to other runtimes", MANAGE),
    "container": Entry("tree:CONTAINER_GROUP", "Manage containers", MANAGE),
    "generate": Entry("tree:GENERATE_GROUP", "Write what other programs need", MANAGE),
    "image": Entry("tree:IMAGE_GROUP", "Manage images", MANAGE),
    "network": Entry("tree:NETWORK_GROUP", "Manage networks", MANAGE),
    "system": Entry("tree:SYSTEM_GROUP", "Manage this wherry", MANAGE),
    "volume": Entry("tree:VOLUME_GROUP", "Manage volumes", MANAGE),
    "warm": Entry("tree:WARM_GROUP", "Manage the process that makes short commands quick", MANAGE),
    **_moved(CONTAINER, "attach commit", REST),
    "completion": Entry("commands.completion:completion", "Print the completion script of a shell"),
    **_moved(CONTAINER, "cp create diff", REST),
    **_moved(SYSTEM, "events", REST),
    **_moved(CONTAINER, "export", REST),
    "gc": Entry("commands.system:gc", "Sweep what crashes left behind"),
    **_moved(IMAGE, "history import", REST),
    "inspect": Entry("commands.inspect:inspect", "Show containers, images, volumes and networks in full"),
    **_moved(CONTAINER, "kill", REST),
    **_moved(IMAGE, "load", REST),
    **_moved(CONTAINER, "logs pause port", REST),
    "ports": Entry("commands.ports:ports", "List all published ports, and who can reach them"),
    **_moved(CONTAINER, "rename restart rm", REST),
    "rmi": Entry("commands.image:rmi", "Remove images"),
    **_moved(IMAGE, "save", REST),
    **_moved(CONTAINER, "start stats stop", REST),
    **_moved(IMAGE, "tag", REST),
    **_moved(CONTAINER, "top unpause", REST),
    **_moved(IMAGE, "untag", REST),
    **_moved(CONTAINER, "update wait", REST),
    "internal": Entry("tree:INTERNAL_GROUP", "What monitors call", hidden=True),
}
GROUPS = {"builder": BUILDER, "cni": CNI, "container": CONTAINER, "generate": GENERATE, "image": IMAGE,
          "network": NETWORK, "system": SYSTEM, "volume": VOLUME, "warm": WARM}  # fmt: skip
