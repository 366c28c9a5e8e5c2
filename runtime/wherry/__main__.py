"""`python -m wherry`: the command line; what monitors call (`internal`) is short-cut there, before click."""

from __future__ import annotations

from wherry.cli.main import entry

if __name__ == "__main__":
    entry()
