"""Many containers come and go, and nothing is left: the counts are WHERRY_CHURN's (scripts/soak: 1000)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import audit
from helpers.registry import free_port
from helpers.wherry import Wherry

CYCLES = int(os.environ.get("WHERRY_CHURN", "15"))
ABREAST = 3

Cycle = Callable[[Wherry, str, str], None]


def attached(wherry: Wherry, image: str, name: str) -> None:
    assert wherry.out("run", "--rm", "--name", name, image, "echo", name) == name


def no_network(wherry: Wherry, image: str, name: str) -> None:
    wherry("run", "--rm", "--network", "none", "--name", name, image, "true")


def detached(wherry: Wherry, image: str, name: str) -> None:
    wherry("run", "-d", "--name", name, image, "sleep", "1000")
    wherry("exec", name, "true")
    wherry("rm", "-f", name)


def published(wherry: Wherry, image: str, name: str) -> None:
    wherry("run", "-d", "--name", name, "-p", f"127.0.0.1:{free_port()}:80", image, "sleep", "1000")
    wherry("stop", "-t", "0", name)
    wherry("rm", name)


def with_volume(wherry: Wherry, image: str, name: str) -> None:
    wherry("run", "--rm", "--network", "none", "--name", name, "-v", "/data", "--tmpfs", "/scratch", image,
           "sh", "-c", "echo x >/data/x && echo x >/scratch/x")  # fmt: skip


def failing(wherry: Wherry, image: str, name: str) -> None:
    assert wherry("run", "--rm", "--name", name, image, "no-such-command", check=False).returncode == 127


CYCLES_OF: dict[str, Cycle] = {
    cycle.__name__: cycle for cycle in (attached, no_network, detached, published, with_volume, failing)
}


@pytest.mark.seconds(60 + 10 * CYCLES)
def test_nothing_is_left_after_many_containers(wherry: Wherry, busybox: str) -> None:
    for kind, cycle in CYCLES_OF.items():  # what is made once (image, network) is made now
        cycle(wherry, busybox, wherry.name(f"warm-{kind.replace('_', '-')}"))
    before, files = audit.take(wherry.mark), audit.files_below(wherry.root, wherry.state)
    kinds = itertools.cycle(CYCLES_OF.values())
    with ThreadPoolExecutor(ABREAST) as pool:
        jobs = [pool.submit(next(kinds), wherry, busybox, wherry.name(str(number))) for number in range(CYCLES)]
        for job in jobs:
            job.result()
    assert not wherry.containers()
    leaks = audit.settle(before, wherry.mark)
    grown = sorted(audit.files_below(wherry.root, wherry.state) - files)
    assert not leaks + grown, "\n".join(leaks + grown)
