"""A parsed Dockerfile as stages: which there are, which of them the target needs, and from what each begins. Pure.

Decides what a name in FROM and --from means (a stage before it, by name or number, or an image) and the values of the
ARGs before the first FROM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from wherry.errors import Kind, WherryError
from wherry.image.dockerfile import Dockerfile, Instruction, refuse
from wherry.image.instructions import Arg, Copy, From, Run, Step, Workdir, meaning, run_mount
from wherry.image.variables import BadVariable, expand
from wherry.model import Platform

__all__ = ["Plan", "Stage", "expanded", "global_platform", "plan", "title"]


class Stage(NamedTuple):
    """One FROM and what follows. `base` is the number of the stage that it begins from, None for an image."""

    number: int
    name: str
    at: Instruction
    image: str
    platform: str
    steps: tuple[Step, ...]
    base: int | None

    @property
    def shown(self) -> str:
        """Its name in the progress."""
        return self.name or f"stage-{self.number}"


class Plan(NamedTuple):
    """What is to be built. `needed` are the numbers of the stages, the target last."""

    file: Dockerfile
    stages: tuple[Stage, ...]
    needed: tuple[int, ...]
    args: Mapping[str, str]  # those before the first FROM

    @property
    def target(self) -> Stage:
        """The stage that becomes the image."""
        return self.stages[self.needed[-1]]

    def origin(self, text: str, before: int) -> int | None:
        """The stage that --from means, None for an image."""
        return _number(self.stages[:before], text)


def expanded(at: Instruction, text: str, values: Mapping[str, str], escape: str) -> str:
    """A word with its variables; what cannot be expanded is an error of its line."""
    try:
        return expand(text, values, escape)
    except BadVariable as error:
        refuse(at, f"failed to process {text!r}: {error}")


def global_platform(build: Platform, target: Platform) -> dict[str, str]:
    """The ARGs that are there without being declared before FROM: BUILDPLATFORM, TARGETARCH and so on."""
    found: dict[str, str] = {}
    for prefix, one in (("BUILD", build), ("TARGET", target)):
        text = "/".join(part for part in one if part)
        found |= {f"{prefix}PLATFORM": text, f"{prefix}OS": one.os, f"{prefix}ARCH": one.architecture}
        found[f"{prefix}VARIANT"] = one.variant
    return found


def plan(file: Dockerfile, given: Mapping[str, str], platform: Mapping[str, str], target: str) -> Plan:
    """The stages of a file; `given` are the --build-args, `target` a stage's name or number ("": the last)."""
    steps = [meaning(at, file.escape) for at in file.instructions]
    first = next((n for n, step in enumerate(steps) if isinstance(step.says, From)), len(steps))
    values = _globals(steps[:first], given, platform, file.escape)
    if first == len(steps):
        refuse(steps[0].at, "no build stage in current context", "a Dockerfile begins with FROM")
    stages: list[Stage] = []
    for group in _groups(steps[first:]):
        stages.append(_stage(stages, group, values | dict(platform), file.escape))
    wanted = _target(stages, target)
    return Plan(file, tuple(stages), tuple(_needed(stages, wanted)), values)


def _globals(
    steps: Sequence[Step], given: Mapping[str, str], platform: Mapping[str, str], escape: str
) -> dict[str, str]:
    values: dict[str, str] = {}
    for step in steps:
        if not isinstance(step.says, Arg):
            refuse(
                step.at, f"no build stage in current context: {step.at.word} before FROM", "only ARG may come before"
            )
        for name, default in step.says.pairs:
            if name in given:
                values[name] = given[name]
            elif default is not None:
                values[name] = expanded(step.at, default, dict(platform) | values, escape)
    return values


def _groups(steps: Sequence[Step]) -> Iterator[list[Step]]:
    group: list[Step] = []
    for step in steps:
        if isinstance(step.says, From) and group:
            yield group
            group = []
        group.append(step)
    yield group


def _stage(before: Sequence[Stage], group: Sequence[Step], values: Mapping[str, str], escape: str) -> Stage:
    at, says = group[0]
    assert isinstance(says, From)
    image = expanded(at, says.image, values, escape)
    if not image:
        refuse(at, f"base name ({says.image}) should not be blank", "give the ARG a default, or --build-arg")
    number = _number(before, image, by_number=False)
    platform = expanded(at, says.platform, values, escape)
    if says.name and any(stage.name == says.name for stage in before):
        refuse(at, f"duplicate name {says.name}: a stage of this name is there already")
    return Stage(len(before), says.name, at, image, platform, tuple(group[1:]), number)


def _number(stages: Sequence[Stage], text: str, *, by_number: bool = True) -> int | None:
    """The latest stage of a name; a number counts where --from may have one."""
    for stage in reversed(stages):
        if stage.name and stage.name == text.lower():
            return stage.number
    if by_number and text.isascii() and text.isdigit() and int(text) < len(stages):
        return int(text)
    return None


def _target(stages: Sequence[Stage], target: str) -> int:
    if not target:
        return len(stages) - 1
    found = _number(stages, target)
    if found is None:
        names = ", ".join(stage.shown for stage in stages)
        raise WherryError(Kind.INVALID, f"target stage {target!r} could not be found", hint=f"stages: {names}")
    return found


def _needed(stages: Sequence[Stage], target: int) -> list[int]:
    """The target's and, of what it begins or copies from, the same; in the file's order."""
    found: set[int] = set()
    pending = [target]
    while pending:
        number = pending.pop()
        if number not in found:
            found.add(number)
            pending += _uses(stages, stages[number])
    return sorted(found)


def _uses(stages: Sequence[Stage], stage: Stage) -> list[int]:
    names = [name for step in stage.steps for name in _origins(step)]
    numbers = [_number(stages[: stage.number], name) for name in names]
    return [number for number in (stage.base, *numbers) if number is not None]


def _origins(step: Step) -> list[str]:
    """What a step copies or mounts from; a --mount's `from` holds no variable."""
    if isinstance(step.says, Copy):
        return [step.says.origin] if step.says.origin else []
    if isinstance(step.says, Run):
        mounts = [run_mount(step.at, text) for text in step.says.mounts]
        return [mount.origin for mount in mounts if mount.origin]
    return []


def title(plan: Plan, stage: Stage, number: int, step: Step | None) -> str:
    """BuildKit's name of a step: [builder 2/4] RUN make."""
    total = 1 + sum(isinstance(one.says, Run | Copy | Workdir) for one in stage.steps)
    name = f"{stage.shown} " if len(plan.stages) > 1 else ""
    what = f"FROM {stage.image}" if step is None else step.at.raw
    if step is not None and step.at.heredocs:
        what = f"{step.at.word} {' '.join((*step.at.flags, step.at.text))}"
    return f"[{name}{number}/{total}] {what}"
