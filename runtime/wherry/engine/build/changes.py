"""Instructions that change a config and no file, one by one: what `commit --change` and `import --change` take. Pure.

Decides which may stand alone. What each does is a build's (drafts.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from wherry.image.dockerfile import Instruction, parse, refuse
from wherry.image.instructions import Workdir, meaning
from wherry.model import Json

from .drafts import SETS, Draft, Words, apply, joined
from .stages import expanded

__all__ = ["changed"]

_ALONE = tuple(sorted({*(kind.__name__.upper() for kind in SETS), "WORKDIR"} - {"ARG", "MAINTAINER", "SHELL"}))


def changed(config: Json, changes: Sequence[str]) -> Json:
    """docker's config object with these instructions carried out, in order."""
    draft = Draft({"config": config})
    words = Words("\\", {}, {})
    for change in changes:
        for at in _parsed(change):
            step = meaning(at)
            if isinstance(step.says, Workdir):
                path = expanded(at, step.says.path, draft.values, words.escape)
                draft = draft.with_config(WorkingDir=joined(draft.workdir, path))
            else:
                draft = apply(draft, step, words)
    return draft.config


def _parsed(change: str) -> Sequence[Instruction]:
    found = parse(change, "--change").instructions
    for at in found:
        if at.word not in _ALONE:
            refuse(at, f"{at.word} is not a valid change command", f"one of {', '.join(_ALONE)}")
    return found
