"""`python -m wherry`: the command line; what monitors call (`internal`) is short-cut there, before click."""

from __future__ import annotations

import sys

from wherry.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
