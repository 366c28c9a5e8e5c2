"""critest, the CRI's upstream conformance program: run against a socket, its report read."""

from __future__ import annotations

from pathlib import Path

from .csisanity import Report, read
from .gotools import CRITEST, tool
from .ociruntime import Space

__all__ = ["DIGEST", "critest"]

#: pulls an image by a digest that nobody can make again: the one case that needs the world's registry
DIGEST = "public image with digest"
SECONDS = 420


def critest(space: Space, socket: Path, place: Path, *words: str, skip: str = DIGEST, focus: str = "") -> Report:
    """Run all of it, or what `focus` (a regular expression) names, as the socket's only user. `place`: for its report.

    Benchmarks are among the cases and never run: they are not counted as skipped.
    """
    place.mkdir(parents=True, exist_ok=True)
    report = place / "junit.xml"
    chosen = [f"--ginkgo.skip={skip}"] * bool(skip) + [f"--ginkgo.focus={focus}"] * bool(focus)
    done = space.run(
        tool("critest", CRITEST), f"--runtime-endpoint=unix://{socket}", f"--ginkgo.junit-report={report}",
        "--ginkgo.no-color", "--ginkgo.seed=1", *chosen, *words, timeout=SECONDS, check=False,
    )  # fmt: skip
    (place / "critest.log").write_text(done.stdout + done.stderr)
    assert report.exists(), f"critest: exit {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
    found = read(report)
    return found._replace(skipped=[line for line in found.skipped if "benchmark" not in line])
