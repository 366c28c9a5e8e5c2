"""The CNI runtime against small real plugins (scripts): chains, memory, deadlines, bad answers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import Kind, WherryError
from wherry.model import Place
from wherry.net.cni import Cni

RESULT = '{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/24"}]}'
LOG = ('printf "%s %s %s %s\\n" "$CNI_COMMAND" "$0" "$CNI_CONTAINERID" "$CNI_ARGS" >> {log}\n'
       "cat > {log}.$(basename $0)\n")


class Bench:
    def __init__(self, path: Path, timeout: float = 20) -> None:
        self.path, self.log = path, path / "log"
        (path / "bin").mkdir()
        place = Place(root=str(path / "root"), state=str(path / "state"), cni_bin=(str(path / "bin"),))
        self.cni = Cni(place, timeout)

    def plugin(self, name: str, body: str) -> None:
        script = self.path / "bin" / name
        script.write_text("#!/bin/sh\n" + LOG.format(log=self.log) + body)
        script.chmod(0o755)

    def lines(self) -> list[str]:
        return [" ".join([words[0], Path(words[1]).name]) for line in self.log.read_text().splitlines()
                if (words := line.split())]

    def config(self, name: str) -> Any:
        return json.loads(Path(f"{self.log}.{name}").read_text())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def chain(*types: str, **more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": name, **more} for name in types]}


def test_add_goes_forward_with_results_and_del_backward(bench: Bench) -> None:
    bench.plugin("one", f"echo '{RESULT}'\n")
    bench.plugin("two", f"echo '{RESULT}'\n")
    conflist = chain("one", "two", capabilities={"portMappings": True, "ips": False})
    result = bench.cni.add(conflist, "c1", "/none", "eth0", args={"K": "V"},
                           capabilities={"portMappings": [1], "ips": ["x"]})
    assert result == json.loads(RESULT)
    assert "prevResult" not in bench.config("one")
    assert bench.config("two")["prevResult"] == result
    assert bench.config("two")["runtimeConfig"] == {"portMappings": [1]}
    assert "capabilities" not in bench.config("two")
    bench.cni.check("net", "c1")
    bench.cni.delete(None, "c1", network="net")
    assert bench.config("one")["prevResult"] == result
    bench.cni.delete(None, "c1", network="net")  # nothing is remembered: nothing is called
    assert bench.lines() == ["ADD one", "ADD two", "CHECK one", "CHECK two", "DEL two", "DEL one"]
    assert "K=V" in bench.log.read_text()


def test_a_refusal_undoes_the_whole_list_and_keeps_its_words(bench: Bench) -> None:
    bench.plugin("one", f"echo '{RESULT}'\n")
    bench.plugin("two", "[ $CNI_COMMAND = DEL ] && exit 0\n"
                        'echo \'{"code":51,"msg":"pool is full","details":"d"}\'; exit 1\n')
    with pytest.raises(WherryError, match='"two", ADD: pool is full') as caught:
        bench.cni.add(chain("one", "two"), "c1", "/none")
    assert caught.value.kind is Kind.EXHAUSTED
    assert caught.value.hint == "d"
    assert bench.lines() == ["ADD one", "ADD two", "DEL two", "DEL one"]
    assert bench.cni.remembered() == []


def test_a_failed_undo_is_noted_and_remembered_for_a_later_del(bench: Bench) -> None:
    bench.plugin("one", "echo broken >&2; exit 3\n")
    with pytest.raises(WherryError, match="exit code 3") as caught:
        bench.cni.add(chain("one"), "c1", "/none")
    assert "broken" in caught.value.hint
    assert caught.value.__notes__
    assert [joined.container_id for joined in bench.cni.remembered()] == ["c1"]
    bench.plugin("one", "exit 0\n")
    bench.cni.delete(None, "c1", network="net")
    assert bench.cni.remembered() == []


@pytest.mark.parametrize(("body", "word"), [
    ("echo hello\n", "printed no CNI result"), ("echo '[]'\n", "printed no CNI result"), ("", "no usable result"),
    ("echo '{\"ips\": 5}'\n", "no usable result"), ("kill -9 $$\n", "signal 9"),
    ("[ $CNI_COMMAND = DEL ] || head -c 3000000 /dev/zero\n", "more than"),
])
def test_bad_answers_name_the_plugin(bench: Bench, body: str, word: str) -> None:
    bench.plugin("odd", body)
    with pytest.raises(WherryError, match=word) as caught:
        bench.cni.add(chain("odd"), "c1", "/none")
    assert caught.value.kind is Kind.UNAVAILABLE


def test_a_plugin_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    bench = Bench(tmp_path, timeout=0.6)
    bench.plugin("slow", f"[ $CNI_COMMAND = DEL ] && exit 0\nsleep 30 & echo $! > {tmp_path}/pid; wait\n")
    start = time.monotonic()
    with pytest.raises(WherryError, match="in time"):
        bench.cni.add(chain("slow"), "c1", "/none")
    assert time.monotonic() - start < 10
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the plugin's child lives on")


def test_unknown_plugins_and_names_are_refused(bench: Bench) -> None:
    with pytest.raises(WherryError, match='"absent" is not installed') as caught:
        bench.cni.add(chain("absent"), "c1", "/none")
    assert caught.value.kind is Kind.PRECONDITION
    for bad in ("../one", "", "a/b"):
        with pytest.raises(WherryError):
            bench.cni.find(bad)
        with pytest.raises(WherryError):
            bench.cni.add(chain("absent"), bad, "/none")


def test_our_own_plugins_come_first_and_speak_for_themselves(bench: Bench) -> None:
    bench.plugin("bridge", "exit 9\n")
    path, search = bench.cni.find("bridge")
    assert path == str(bench.path / "root" / "cni-bin" / "bridge")
    assert search.split(":") == [str(bench.path / "root" / "cni-bin"), str(bench.path / "bin")]
    assert bench.cni.version("bridge")["supportedVersions"][-1] == "1.1.0"
    assert bench.cni.version("host-local")["cniVersion"] == "1.1.0"


def test_a_second_add_is_refused_without_cutting_the_first_and_half_an_add_is_undone(bench: Bench) -> None:
    bench.plugin("one", f"echo '{RESULT}'\n")
    bench.cni.add(chain("one"), "c1", "/none")
    with pytest.raises(WherryError, match="attached to network net already") as caught:
        bench.cni.add(chain("one"), "c1", "/none")
    assert caught.value.kind is Kind.CONFLICT
    assert bench.lines() == ["ADD one"]
    record = bench.path / "state" / "cni" / "results" / "net,c1,eth0.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "result": None}))  # killed in the middle
    bench.cni.add(chain("one"), "c1", "/none")
    assert bench.lines() == ["ADD one", "DEL one", "ADD one"]


def test_del_waits_for_the_add_of_a_runtime_that_was_killed(bench: Bench) -> None:
    """The plugin goes on without its caller; what it makes late must not outlive the DEL."""
    made, begun = bench.path / "made", bench.path / "begun"
    bench.plugin("late", f"[ $CNI_COMMAND = DEL ] && exec rm -f {made}\ntouch {begun}; sleep 0.7; touch {made}\n")
    program = "import json, sys; from wherry.model import Place; from wherry.net.cni import Cni\n"
    program += "root, state, bin, conflist = sys.argv[1:]\n"
    program += "Cni(Place(root=root, state=state, cni_bin=(bin,))).add(json.loads(conflist), 'c1', '/none')"
    places = [str(bench.path / part) for part in ("root", "state", "bin")]
    with subprocess.Popen([sys.executable, "-c", program, *places, json.dumps(chain("late"))]) as runtime:
        while not begun.exists():
            time.sleep(0.01)
        runtime.kill()
    bench.cni.delete(None, "c1", network="net")
    time.sleep(1)
    assert not made.exists()
    assert not list((bench.path / "state" / "cni" / "results").iterdir())


def test_a_del_of_our_own_plugin_needs_no_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decision 8: the same call with the same answer, and the same words when it refuses."""
    ipam = {"type": "host-local", "dataDir": str(bench.path / "leases"), "ranges": [[{"subnet": "10.9.0.0/24"}]]}
    own = chain("host-local", ipam=ipam)
    assert bench.cni.add(own, "c1", "/none")["ips"][0]["address"] == "10.9.0.2/24"
    lease = bench.path / "leases" / "net" / "10.9.0.2"
    assert lease.exists()
    monkeypatch.setattr(subprocess, "Popen", None)
    bench.cni.delete(None, "c1", network="net")
    assert not lease.exists()
    with pytest.raises(WherryError, match="IPAM plugin \"absent\" is not in CNI_PATH") as caught:
        bench.cni.delete(chain("bridge", ipam={"type": "absent"}), "c2", "/none")
    assert caught.value.kind is Kind.INVALID
