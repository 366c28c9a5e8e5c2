"""docs/api.yaml tells what is served: every route and no other, every word of the query that its module reads."""

from __future__ import annotations

import inspect
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from wherry.daemon.docker import build
from wherry.daemon.docker.call import Route
from wherry.daemon.docker.gate import NEWEST
from wherry.daemon.docker.server import ROUTES

TOP = Path(__file__).resolve().parents[2]
DESCRIPTION: dict[str, Any] = yaml.safe_load((TOP / "docs" / "api.yaml").read_text())
READ = re.compile(r'call\.(?:text|texts|flag|number|seconds)\("([^"]+)"|call\.(filters)\(')
#: read by a loop over names
BESIDE = {"attach": {"stdout", "stderr"}, "logs": {"stdout", "stderr"},
          "build": {"buildargs", "labels", *build._LIMITS}}  # fmt: skip


def _path(route: Route) -> str:
    return route.path.replace(":.+}", "}")


def _declared(route: Route) -> set[str]:
    found = DESCRIPTION["paths"][_path(route)][route.method.lower()].get("parameters", [])
    whole = [DESCRIPTION["components"]["parameters"][one["$ref"].rpartition("/")[2]] if "$ref" in one else one
             for one in found]  # fmt: skip
    return {one["name"] for one in whole if one["in"] == "query"}


def test_every_route_and_no_other() -> None:
    told = {(method.upper(), path) for path, one in DESCRIPTION["paths"].items() for method in one}
    assert told == {(route.method, _path(route)) for route in ROUTES}
    assert DESCRIPTION["info"]["version"] == str(NEWEST)


def test_every_word_of_a_query() -> None:
    declared: dict[str, set[str]] = defaultdict(set)
    for route in ROUTES:
        declared[inspect.unwrap(route.serve).__module__] |= _declared(route)
    for module, words in declared.items():
        read = {a or b for a, b in READ.findall(inspect.getsource(sys.modules[module]))}
        assert words == read | BESIDE.get(module.rpartition(".")[2], set()), module


def test_whatever_is_referred_to_is_there() -> None:
    for ref in set(re.findall(r"\$ref: '?#/components/(\w+)/(\w+)", (TOP / "docs" / "api.yaml").read_text())):
        assert ref[1] in DESCRIPTION["components"][ref[0]], ref
