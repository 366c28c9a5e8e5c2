"""The program `wherry-csi`: serve, or check. Decides what its command line says; the work is done elsewhere."""

from __future__ import annotations

import argparse
import os
import resource
import sys
from collections.abc import Mapping, Sequence

from .config import DEFAULT_CONFIG, DEFAULT_ENDPOINT, SPECS, Config, ConfigError, make
from .errors import CsiError

__all__ = ["main", "parser"]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="wherry-csi",
        description="A CSI driver for volumes on this node's own disks, true to their sizes.",
        epilog="Without a command it serves.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="FILE", help=f"default: {DEFAULT_CONFIG}, if no --pool is given")
    common.add_argument(
        "--pool", action="append", default=[], metavar="[NAME=]DIR", help="a directory to keep volumes in; repeatable"
    )
    verbs = top.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    serve = verbs.add_parser("serve", parents=[common], help="serve the spec's calls on a unix socket")
    serve.add_argument("--endpoint", metavar="unix:///PATH", help=f"default: $CSI_ENDPOINT, or {DEFAULT_ENDPOINT}")
    serve.add_argument("--node-id", metavar="NAME", help="default: the host's name")
    serve.add_argument("--idle", type=float, metavar="SECONDS", help="leave after so long without a call; 0: never")
    serve.add_argument(
        "--controller-publish", action="store_true", default=None, help="declare and keep ControllerPublishVolume"
    )
    serve.add_argument("--max-volumes", type=int, metavar="N", help="volumes that may be published to this node")
    serve.add_argument(
        "--expand-on-node", action="store_true", default=None, help="volumes are grown by their node"
    )
    serve.add_argument("--spec", choices=SPECS, help="declare no capability newer than this version of the spec")
    check = verbs.add_parser("check", parents=[common], help="compare records, files and kernel; works beside a driver")
    check.add_argument("--json", action="store_true", help="a JSON list of complaints")
    return top


def main(argv: Sequence[str] | None = None, env: Mapping[str, str] = os.environ) -> int:
    """The exit code: 0, 1 for what went wrong (a sentence on stderr), 2 for a wrong command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in ("serve", "check", "-h", "--help"):
        words.insert(0, "serve")
    given = parser().parse_args(words)
    try:
        config = make(_flags(given), given.config, env, os.uname().nodename, given.pool)
        return _serve(config) if given.verb == "serve" else _check(config, given.json)
    except (ConfigError, CsiError) as error:
        return _fail(str(error))


def _flags(given: argparse.Namespace) -> dict[str, object]:
    names = ("endpoint", "node_id", "idle", "controller_publish", "max_volumes", "spec", "expand_on_node")
    return {name: getattr(given, name, None) for name in names}


def _serve(config: Config) -> int:
    from .life import Life
    from .pools import PoolHeld
    from .server import serve

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a walk holds one descriptor for each level of a tree
    try:
        serve(config, Life(config))
    except PoolHeld as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"cannot serve {config.endpoint}: {error.strerror or error}")
    return 0


def _check(config: Config, as_json: bool) -> int:
    from .check import report

    return report(config, as_json, sys.stdout)


def _fail(sentence: str) -> int:
    print(f"wherry-csi: {sentence}", file=sys.stderr)
    return 1
