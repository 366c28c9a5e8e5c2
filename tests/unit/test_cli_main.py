"""The frame of the CLI: exit codes, sentences, help, laziness, many calls in one process."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest

from wherry.cli.app import App, Stdio
from wherry.cli.clicks import Lazy, Verb
from wherry.cli.main import guarded, internal_verb, main
from wherry.cli.menu import Entry
from wherry.cli.tree import ROOT
from wherry.errors import Kind, WherryError

TOP = Path(__file__).resolve().parents[2]


@dataclass
class Recorder:
    """Stands where the engine is and notes what it is asked; answers and failures are set by the test."""

    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        def called(*args: Any, **named: Any) -> Any:
            self.calls.append((name, args, named))
            answer = self.answers.get(name)
            if isinstance(answer, BaseException):
                raise answer
            return answer(*args) if callable(answer) else answer

        return called


def told(*argv: str, engine: Recorder | None = None, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line."""
    out, err = io.StringIO(), io.StringIO()
    app = App(env or {}, Stdio(io.StringIO(), out, err), "/")
    app._engine = engine  # type: ignore[assignment]
    return guarded(app, list(argv)), out.getvalue(), err.getvalue()


def verbs(group: Lazy = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Verb, Entry]]:
    """Every command there is."""
    context = click.Context(group)
    for name, entry in group.entries.items():
        found = group.get_command(context, name)
        if isinstance(found, Lazy):
            yield from verbs(found, (*path, name))
        else:
            assert isinstance(found, Verb)
            yield (*path, name), found, entry


ALL = list(verbs())


def test_the_verbs_of_the_issue_are_there() -> None:
    wanted = (
        "run create start stop restart kill pause unpause rm exec attach logs ps inspect top stats cp diff rename "
        "update wait port events pull images rmi tag info version doctor gc completion"
    )
    paths = {path for path, _, _ in ALL}
    assert {(name,) for name in wanted.split()} <= paths
    groups = {"volume": "create ls inspect rm prune", "network": "create ls inspect rm", "system": "df prune"}
    for group, subs in groups.items():
        assert {(group, sub) for sub in subs.split()} <= paths


@pytest.mark.parametrize(("path", "verb", "entry"), ALL, ids=lambda v: " ".join(v) if type(v) is tuple else "")
@pytest.mark.filterwarnings("error")
def test_every_command_explains_itself(path: tuple[str, ...], verb: Verb, entry: Entry) -> None:
    code, out, err = told(*path, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: wherry {' '.join(path)}")
    assert entry.help
    assert not entry.help.endswith(".")
    if path[0] != "internal":
        assert "Examples:" in out, "man-style help has examples"
        assert len(verb.examples.strip()) > 0


@pytest.mark.parametrize(("path", "verb", "entry"), ALL, ids=lambda v: " ".join(v) if type(v) is tuple else "")
def test_wrong_usage_is_one_sentence_and_125(path: tuple[str, ...], verb: Verb, entry: Entry) -> None:
    code, out, err = told(*path, "--no-such-flag")
    assert (code, out) == (125, "")
    assert err.splitlines()[0] == "wherry: no such option '--no-such-flag'"
    assert err.splitlines()[1].startswith(f"  hint: see wherry {' '.join(path)} --help")


def test_bare_wherry_is_help_and_commands_are_in_sections() -> None:
    code, out, _ = told()
    assert code == 0
    for title in ("Common Commands:", "Management Commands:", "Commands:"):
        assert title in out
    assert "internal" not in out
    assert told("--help")[1] == out


def test_unknown_commands_get_the_nearest_name() -> None:
    assert told("rnu") == (125, "", 'wherry: "rnu" is not a command of wherry\n  hint: did you mean wherry run?\n')
    assert "wherry volume --help" in told("volume", "xyzzy")[2]


def test_bad_values_are_taught_and_125() -> None:
    code, _, err = told("create", "-m", "lots", "alpine")
    assert code == 125
    assert err.splitlines()[0] == 'wherry: invalid value "lots" for --memory: not a size'
    assert err.splitlines()[1].startswith("  hint: --memory takes ")


CODES = [
    (("run", "x"), "run", None, 125),
    (("run", "x"), "run", 127, 127),
    (("create", "x"), "create", None, 1),
    (("exec", "c", "x"), "exec", 126, 126),
    (("exec", "c", "x"), "exec", None, 1),
    (("rename", "c", "dd"), "rename", None, 1),
]


@pytest.mark.parametrize(("argv", "verb", "given", "code"), CODES)
def test_failures_of_the_engine(argv: tuple[str, ...], verb: str, given: int | None, code: int) -> None:
    engine = Recorder({verb: WherryError(Kind.CONFLICT, "it failed", hint="do this", code=given)})
    assert told(*argv, engine=engine) == (code, "", "wherry: it failed\n  hint: do this\n")


def test_several_objects_are_all_tried() -> None:
    def remove(ref: str) -> None:
        if ref == "b":
            raise WherryError(Kind.NOT_FOUND, "no such container: b")

    engine = Recorder({"remove": remove})
    assert told("rm", "-f", "aa", "b", "cc", engine=engine) == (0, "aa\ncc\n", "wherry: no such container: b\n")
    assert told("rm", "aa", "b", "cc", engine=engine)[0] == 1
    assert engine.calls[0] == ("remove", ("aa",), {"force": True, "volumes": False})


def test_values_reach_the_engine() -> None:
    engine = Recorder({"update": [], "wait": 3, "volume_create": {"Name": "data"}, "network_create": "ab" * 32})
    told("stop", "-t", "3", "-s", "int", "web", engine=engine)
    told("kill", "web", engine=engine)
    told("update", "-m", "64m", "--restart", "always", "web", engine=engine)
    assert told("wait", "web", engine=engine)[1] == "3\n"
    assert told("volume", "create", "--label", "a=b", "data", engine=engine)[1] == "data\n"
    told("network", "create", "--subnet", "10.9.0.0/24", "back", engine=engine)
    names = [name for name, _, _ in engine.calls]
    assert names == ["stop", "kill", "update", "wait", "volume_create", "network_create"]
    asked = {name: (args, named) for name, args, named in engine.calls}
    assert asked["stop"][0] == ("web", 3, "SIGINT")
    assert asked["kill"][0] == ("web", "KILL")
    assert asked["update"][0][1].memory == 64 << 20
    assert asked["update"][0][2].name == "always"
    assert asked["network_create"][1]["subnets"] == ("10.9.0.0/24",)


def test_update_of_nothing_is_refused() -> None:
    code, _, err = told("update", "web", engine=Recorder())
    assert code == 1
    assert "nothing to change" in err


def test_inspect_prints_what_it_found_and_what_it_did_not() -> None:
    def inspect(ref: str, _kind: str) -> dict[str, Any]:
        if ref == "no":
            raise WherryError(Kind.NOT_FOUND, "no such object: no")
        return {"Id": ref, "State": {"Status": "running"}}

    engine = Recorder({"inspect": inspect})
    code, out, err = told("inspect", "a", "no", engine=engine)
    assert (code, json.loads(out)) == (1, [{"Id": "a", "State": {"Status": "running"}}])
    assert err == "wherry: no such object: no\n"
    assert told("inspect", "-f", "{{.State.Status}}", "a", "b", engine=engine)[1] == "running\nrunning\n"
    assert "no field .Stat" in told("inspect", "-f", "{{.Stat}}", "a", engine=engine)[2]


def test_prune_asks_and_without_a_terminal_refuses() -> None:
    code, _, err = told("container", "prune", engine=Recorder())
    assert code == 1
    assert "WARNING! This will remove all stopped containers." in err
    engine = Recorder({"container_prune": {"ContainersDeleted": ["abc"], "SpaceReclaimed": 1500}})
    out = told("container", "prune", "-f", engine=engine)[1]
    assert out == "Deleted Containers:\nabc\n\nTotal reclaimed space: 1.5kB\n"


def test_run_refuses_a_terminal_that_is_none() -> None:
    engine = Recorder()
    assert told("run", "-it", "alpine", engine=engine) == (
        1,
        "",
        "wherry: the input device is not a TTY\n  hint: leave -t out to pipe input\n",
    )
    assert not engine.calls


def test_bugs_are_sentences_and_debug_shows_where() -> None:
    engine = Recorder({"kill": ValueError("odd")})
    engine.answers["info"] = RuntimeError("odd")
    code, _, err = told("info", engine=engine)
    assert code == 1
    assert "internal error: RuntimeError: odd" in err
    assert "Traceback" not in err
    assert "Traceback" in told("--debug", "info", engine=engine)[2]


def test_interrupts_and_broken_pipes_are_quiet() -> None:
    assert told("info", engine=Recorder({"info": KeyboardInterrupt()}))[0] == 130
    assert told("info", engine=Recorder({"info": BrokenPipeError()})) == (141, "", "")


def test_completion_scripts_and_answers() -> None:
    for shell in ("bash", "zsh", "fish"):
        code, out, _ = told("completion", shell)
        assert code == 0
        assert "_WHERRY_COMPLETE" in out
    assert told("completion", "tcsh")[0] == 1

    def complete(words: str, at: int, engine: Recorder | None = None) -> list[str]:
        env = {"_WHERRY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        return [item.partition(",")[2] for item in told(env=env, engine=engine)[1].splitlines()]

    assert complete("wherry sto", 1) == ["stop"]
    every = ["clone", "create", "export", "import", "inspect", "ls", "prune", "resize", "restore", "rm", "snapshot"]
    assert complete("wherry volume ", 2) == every
    assert "--memory-swap" in complete("wherry run --mem", 2)
    engine = Recorder({"complete": ["web", "web2"]})
    assert complete("wherry stop w", 2, engine) == ["web", "web2"]
    assert engine.calls[0][1] == ("container", "w")
    complete("wherry volume restore m", 3, engine)
    assert engine.calls[1][1] == ("snapshot", "m")


def test_the_first_command_s_name_may_be_left_out() -> None:
    engine = Recorder({"volume_snapshot": {"Name": "monday"}, "volume_snapshots": [], "volume_resize": 7})
    for words in (("data",), ("create", "data"), ("data", "monday"), ("create", "ls", "x-1")):
        assert told("volume", "snapshot", *words, engine=engine)[:2] == (0, "monday\n")
    asked = [args for name, args, _ in engine.calls if name == "volume_snapshot"]
    assert asked == [("data", ""), ("data", ""), ("data", "monday"), ("ls", "x-1")]
    assert told("volume", "snapshot", "ls", "-q", engine=engine)[0] == 0
    assert told("volume", "snapshot", engine=engine)[0] == 0  # the help
    told("volume", "resize", "data", "+1g", engine=engine)
    assert engine.calls[-1] == ("volume_resize", ("data", 1 << 30), {"more": True})


def test_internal_needs_no_click() -> None:
    assert internal_verb(["--root", "/r", "--state=/s", "internal", "cleanup", "abc"]) == (
        {"root": "/r", "state": "/s"},
        "cleanup",
        "abc",
    )
    for argv in (
        ["internal"],
        ["internal", "cleanup"],
        ["run", "internal", "cleanup"],
        ["--root"],
        ["internal", "x", "y"],
    ):
        assert internal_verb(argv) is None


def test_many_calls_in_one_process_share_nothing(tmp_path: Path) -> None:
    before = {name: os.environ.get(name) for name in os.environ}
    first = told("run", "-x")
    assert [told("run", "-x") for _ in range(3)] == [first] * 3
    assert told("--root", str(tmp_path), "volume")[0] == 0
    assert {name: os.environ.get(name) for name in os.environ} == before
    out = io.StringIO()
    assert main(["--help"], {}, Stdio(io.StringIO(), out, io.StringIO())) == 0
    assert out.getvalue().startswith("Usage: wherry")


HEAVY = ("requests", "rich", "pyroute2", "zstandard", "asyncio", "http.client", "email", "ssl", "tarfile", "hypothesis")
HOT = ("run", "exec", "ps", "stop", "rm", "--help")
PROBE = """
import sys
from wherry.cli.main import main
main([{verb!r}, "--help"])
if {engine}:
    import wherry.engine.engine
print("\\n".join(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("verb", HOT)
def test_hot_verbs_import_little(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    env = {**os.environ, "PYTHONPATH": str(TOP / "runtime")}
    code = PROBE.format(verb=verb, engine=verb != "--help")
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}\n{code}"],
                          env=env, capture_output=True, text=True, check=True)  # fmt: skip
    modules = set(done.stderr.split())
    print(f"{verb}: {len(modules)} modules, heavy: {sorted(modules & set(HEAVY))}")
    assert not modules & set(HEAVY)
    assert len(modules) < 260
    commands = {m for m in modules if m.startswith("wherry.cli.commands.")}
    assert len(commands) <= (0 if verb == "--help" else 1)


def test_the_manual_is_what_the_commands_say() -> None:
    from wherry.cli.manual import manual

    assert (TOP / "docs/cli.md").read_text() == manual(), "run python -m wherry.cli.manual > docs/cli.md"
