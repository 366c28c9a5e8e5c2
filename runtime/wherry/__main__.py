"""`python -m wherry`: the CLI; `internal VERB ID` goes straight to the engine, for monitors wait for it."""

from __future__ import annotations

import sys


def _internal(argv: list[str]) -> int:
    from wherry.engine.engine import Engine
    from wherry.errors import WherryError

    verbs = {"cleanup": Engine.finish, "health": Engine.health}
    if len(argv) != 2 or argv[0] not in verbs:
        sys.stderr.write("usage: wherry internal cleanup|health ID\n")
        return 2
    engine = Engine()
    try:
        verbs[argv[0]](engine, argv[1])
    except WherryError as error:
        sys.stderr.write(f"wherry: {error}\n")
        return 1
    finally:
        engine.close()
    return 0


def main() -> int:
    """Dispatch."""
    if sys.argv[1:2] == ["internal"]:
        return _internal(sys.argv[2:])
    from wherry.cli.main import entry

    return int(entry() or 0)


if __name__ == "__main__":
    sys.exit(main())
