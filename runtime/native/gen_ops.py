"""Generates wherry/oci/_ops.py from ops.def and plan.h: names, sides and templates, for the pure planner.

Numbers are not copied: they come from the compiler, through kernel/shim.py. Run by `make generate`; a test asserts that
the committed file equals what this prints.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "wherry" / "oci" / "_ops.py"

HEAD = '''"""The plan's vocabulary for the pure planner.

Generated from native/ops.def by native/gen_ops.py: do not edit.
"""

from __future__ import annotations

from typing import Final

__all__ = ["FLAGS", "OPS"]

'''


def operations(text: str) -> list[tuple[str, str, str]]:
    """(name, sides such as "HC", template) in the table's order."""
    found = re.findall(r'^OP\((\w+),\s*([HCM|]+),\s*"([^"]*)"\)', text, re.MULTILINE)
    return [(name, sides.replace("|", ""), template) for name, sides, template in found]


def flags(text: str) -> list[str]:
    """Flag names of plan.h without their prefix."""
    return re.findall(r"^\s*WH_F_(\w+)\s*=", text, re.MULTILINE)


def render() -> str:
    ops = operations((HERE / "ops.def").read_text())
    names = flags((HERE / "plan.h").read_text())
    lines = [
        HEAD,
        "#: name -> (sides that may carry it, template for people)\n",
        "OPS: Final[dict[str, tuple[str, str]]] = {\n",
    ]
    lines += [f'    "{name}": ("{sides}", "{template}"),\n' for name, sides, template in ops]
    lines += ["}\n\nFLAGS: Final[frozenset[str]] = frozenset({\n"]
    lines += [f'    "{name}",\n' for name in names]
    return "".join([*lines, "})\n"])


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(TARGET.read_text() != render())
    TARGET.write_text(render())
