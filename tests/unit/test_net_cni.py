"""The CNI runtime against small real plugins (scripts): chains, memory, deadlines, bad answers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.wherry import until
from wherry.errors import Kind, WherryError
from wherry.kernel import files
from wherry.model import Place
from wherry.net import cni, launchers
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
    *((f"echo '{{{told}}}'\n", "no usable result") for told in (
        '"ips": 5', '"ips": [{"address": null}]', '"ips": [{"address": "10.0.0.2/24", "gateway": 7}]',
        '"interfaces": [{"name": ["eth0"], "sandbox": "/n"}]', '"routes": [{}]', '"dns": []',
        '"ips": [], "dns": {"nameservers": [1]}', '"cniVersion": "0.2.0", "ip4": {"ip": "x", "routes": 5}')),
    (f"echo '{'[' * 5000}'\n", "printed no CNI result"), ("kill -9 $$\n", "signal 9"),
    ("echo '{\"code\": 1e999, \"msg\": \"x\"}'; exit 1\n", "exit code 1"),
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


def test_children_that_keep_the_pipes_of_a_plugin_are_killed_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path, timeout=0.6)
    bench.plugin("gone", f"[ $CNI_COMMAND = DEL ] && exit 0\nsleep 30 & echo $! > {tmp_path}/pid; echo '{{}}'\n")
    with pytest.raises(WherryError, match="in time"):
        bench.cni.add(chain("gone"), "c1", "/none")
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z", 5)


def test_a_daemon_that_a_plugin_leaves_is_in_nobody_s_way(tmp_path: Path) -> None:
    """The reference's dhcp is served by one. It inherits what the plugin had, the attachment's lock too."""
    bench = Bench(tmp_path, timeout=0.6)
    daemon = f"setsid sleep 30 < /dev/null > /dev/null 2>&1 & echo $! > {tmp_path}/pid"
    bench.plugin("one", f"[ $CNI_COMMAND = DEL ] && exit 0\n{daemon}\necho '{{\"ips\": null, \"dns\": {{}}}}'\n")
    try:
        bench.cni.add(chain("one"), "c1", "/none")
        bench.cni.delete(None, "c1", network="net")
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert bench.cni.remembered() == []


def test_unknown_plugins_and_names_are_refused(bench: Bench) -> None:
    with pytest.raises(WherryError, match='"absent" is not installed') as caught:
        bench.cni.add(chain("absent"), "c1", "/none")
    assert caught.value.kind is Kind.PRECONDITION
    for bad in ("../one", "", "a/b"):
        with pytest.raises(WherryError):
            bench.cni.find(bad)
        with pytest.raises(WherryError):
            bench.cni.add(chain("absent"), bad, "/none")


def test_who_comes_back_to_an_installation_has_its_launchers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def provided() -> str:
        launchers._texts.cache_clear()
        launchers._digest.cache_clear()
        return Path(launchers.provide(str(tmp_path)) or "", "bridge").read_text()

    ours = provided()
    with monkeypatch.context() as other:
        other.setattr(sys, "executable", "/other/python")
        assert provided().startswith("#!/other/python ")
    assert provided() == ours


def test_our_own_plugins_come_first_and_speak_for_themselves(bench: Bench) -> None:
    bench.plugin("bridge", "exit 9\n")
    path, search = bench.cni.find("bridge")
    assert path == str(bench.path / "root" / "cni-bin" / "bridge")
    assert search.split(":") == [str(bench.path / "root" / "cni-bin"), str(bench.path / "bin")]
    assert bench.cni.version("bridge")["supportedVersions"][-1] == "1.1.0"
    assert bench.cni.version("host-local")["cniVersion"] == "1.1.0"


def test_a_list_of_the_host_gets_the_hosts_plugins_first(bench: Bench) -> None:
    bench.plugin("bridge", f"echo '{RESULT}'\n")
    assert bench.cni.add(chain("bridge"), "c1", "/none") == json.loads(RESULT)
    assert bench.cni.find("portmap", ours=False)[0] == str(bench.path / "root" / "cni-bin" / "portmap")


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


def test_what_a_kill_left_beside_the_records_goes(bench: Bench) -> None:
    bench.plugin("one", f"echo '{RESULT}'\n")
    bench.cni.add(chain("one"), "c1", "/none")
    results = bench.path / "state" / "cni" / "results"
    kept = sorted(path.name for path in results.iterdir())
    for name in ("net,c1,eth0.json.new", "net,c2,eth0.json.new", "net,c2,eth0.lock", "net,c3,eth0.lock"):
        (results / name).touch()
    with open(results / "net,c3,eth0.lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        bench.cni.tidy()
    assert sorted(path.name for path in results.iterdir()) == sorted([*kept, "net,c3,eth0.lock"])


def test_a_lock_whose_name_went_while_we_waited_guards_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attachment goes, and one of the same name comes, between our open(2) and our flock(2)."""
    bench.plugin("one", f"echo '{RESULT}'\n")
    bench.cni.add(chain("one"), "c1", "/none")
    with bench.cni.at_rest("net") as (records, busy):
        assert ([record["containerId"] for record in records], busy) == (["c1"], False)

    @contextlib.contextmanager
    def late(path: str, timeout: float) -> Iterator[int]:
        with files.flock(path, timeout) as fd:
            os.replace(f"{path}.next", path)
            yield fd

    lock = bench.path / "state" / "cni" / "results" / "net,c1,eth0.lock"
    lock.with_name("net,c1,eth0.lock.next").touch()
    monkeypatch.setattr(cni, "files", types.SimpleNamespace(flock=late))
    with bench.cni.at_rest("net") as (records, busy):
        assert (records, busy) == ([], True)
    assert lock.exists()


# ---- versions ----


def speaks(*versions: str) -> str:
    told = json.dumps({"cniVersion": versions[-1], "supportedVersions": list(versions)})
    return f"[ $CNI_COMMAND = VERSION ] && echo '{told}' && exit 0\n"


@pytest.mark.parametrize("version", ["0.2.0", "0.3.1", "0.4.0", "1.0.0"])
def test_a_plugin_reads_and_writes_the_version_of_its_list(bench: Bench, version: str) -> None:
    """Section 3: prevResult in the list's version; what is kept and told has the shape of 1.1.0."""
    told = {"cniVersion": version} | (
        {"ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1"}} if version == "0.2.0" else
        {"ips": [{"version": "4", "address": "10.0.0.2/24", "gateway": "10.0.0.1"}]} if version < "1" else
        {"ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}]})  # fmt: skip
    for name in ("one", "two"):
        bench.plugin(name, f"echo '{json.dumps(told)}'\n")
    conflist = {**chain("one", "two"), "cniVersion": version}
    result = bench.cni.add(conflist, "c1", "/none")
    wanted = {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}]}
    assert {key: value for key, value in result.items() if value} == wanted
    known = bench.cni.recall("net", "c1")
    assert known is not None
    assert known.result == result
    assert bench.config("two")["cniVersion"] == version
    assert bench.config("two")["prevResult"] == told
    bench.cni.check("net", "c1")
    bench.cni.delete(None, "c1", network="net")
    assert ("CHECK one" in bench.lines()) == (version >= "0.4.0"), "CHECK came with 0.4.0"
    assert bench.config("one").get("prevResult") == (told if version >= "0.4.0" else None), "and DEL's prevResult"


def test_the_newest_version_that_the_list_and_its_plugins_know_is_spoken(bench: Bench) -> None:
    bench.plugin("new", speaks("0.4.0", "1.0.0", "1.1.0") + f"echo '{RESULT}'\n")
    bench.plugin("old", speaks("0.3.1", "0.4.0", "1.0.0") + f"echo '{RESULT}'\n")
    bench.cni.add({**chain("new", "old"), "cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.0.0", "1.1.0", "5.0.0"]},
                  "c1", "/none")  # fmt: skip
    assert bench.config("old")["cniVersion"] == "1.0.0"
    assert "cniVersions" not in bench.config("old")
    bench.cni.add({**chain("new"), "cniVersions": ["0.4.0"]}, "c2", "/none")
    assert bench.config("new")["cniVersion"] == "1.1.0"


def test_a_list_of_one_version_probes_nobody(bench: Bench) -> None:
    bench.plugin("one", f"echo '{RESULT}'\n")
    bench.cni.add(chain("one"), "c1", "/none")
    assert bench.lines() == ["ADD one"]


def test_a_version_that_a_plugin_does_not_know_is_one_sentence(bench: Bench) -> None:
    bench.plugin("old", speaks("0.3.1", "0.4.0") + "[ $CNI_COMMAND = DEL ] && exit 0\n"
                 'echo \'{"code":1,"msg":"incompatible CNI versions","details":"config is 1.1.0"}\'; exit 1\n')
    with pytest.raises(WherryError, match=r'"old" does not know version 1.1.0 of network net: .*incomp') as caught:
        bench.cni.add(chain("old"), "c1", "/none")
    assert caught.value.kind is Kind.UNSUPPORTED
    assert caught.value.hint == "it speaks 0.3.1, 0.4.0"
    assert bench.cni.remembered() == []


def test_who_refuses_every_verb_with_that_code_is_undone_as_well(bench: Bench) -> None:
    """DEL and VERSION too: it did nothing, so there is nothing to take back."""
    bench.plugin("one", f"echo '{RESULT}'\n")
    bench.plugin("odd", 'echo \'{"code":1,"msg":"incompatible CNI versions"}\'; exit 1\n')
    with pytest.raises(WherryError, match='"odd" does not know version') as caught:
        bench.cni.add(chain("one", "odd"), "c1", "/none")
    assert caught.value.hint == "it speaks 0.1.0"
    assert not getattr(caught.value, "__notes__", [])
    assert [line for line in bench.lines() if "DEL" in line] == ["DEL odd", "DEL one"]
    assert bench.cni.remembered() == []


def test_a_version_that_nobody_knows_is_refused_before_anything_is_called(bench: Bench) -> None:
    bench.plugin("one", f"echo '{RESULT}'\n")
    unknown = {**chain("one"), "cniVersion": "7.0.0"}
    with pytest.raises(WherryError, match=r'"net" is written for CNI 7.0.0, which wherry does not speak') as caught:
        bench.cni.add(unknown, "c1", "/none")
    assert caught.value.kind is Kind.UNSUPPORTED
    bench.cni.delete(unknown, "c1")  # it was never attached: DEL of anything succeeds
    assert not bench.log.exists()


def test_a_plugin_older_than_the_verb_version_speaks_0_1_0(bench: Bench) -> None:
    bench.plugin("ancient", "exit 1\n")
    assert bench.cni.spoken("ancient") == {"0.1.0"}


# ---- bad input: the error is one sentence, and nothing is left ----


def test_a_missing_plugin_is_told_before_the_first_is_called(bench: Bench) -> None:
    bench.plugin("one", f"echo '{RESULT}'\n")
    with pytest.raises(WherryError, match='"absent" is not installed'):
        bench.cni.add(chain("one", "absent"), "c1", "/none")
    assert not bench.log.exists()
    assert bench.cni.remembered() == []
    bench.cni.delete(chain("one"), "c1")


HALF = {
    "rubbish": "echo hello; exit 0\n", "an odd result": "echo '{\"ips\": [{\"addr\": 1}]}'\n",
    "an odd route": "echo '{\"routes\": [1]}'\n", "half an answer": "echo '{\"ips\": ['\n", "death": "kill -9 $$\n",
    "a hang": "sleep 30\n", "a bare exit": "echo why >&2; exit 7\n", "no answer": "exit 0\n",
    "an error of its own": 'echo \'{"code":999,"msg":"mine"}\'; exit 1\n',
    "an error that is none": 'echo \'{"msg":"x"}\'; exit 1\n',
}  # fmt: skip


@pytest.mark.parametrize("body", HALF.values(), ids=HALF.keys())
def test_whatever_a_plugin_does_half_way_the_list_is_undone(tmp_path: Path, body: str) -> None:
    bench = Bench(tmp_path, timeout=1)
    for name in ("first", "last"):
        bench.plugin(name, f"[ $CNI_COMMAND = DEL ] && exec rm -f {tmp_path}/{name}\ntouch {tmp_path}/{name}\n"
                     f"echo '{RESULT}'\n")
    bench.plugin("odd", f"[ $CNI_COMMAND = DEL ] && exec rm -f {tmp_path}/made\ntouch {tmp_path}/made\n{body}")
    with pytest.raises(WherryError, match="odd") as caught:
        bench.cni.add(chain("first", "odd", "last"), "c1", "/none")
    assert "\n" not in caught.value.message
    assert not getattr(caught.value, "__notes__", []), "the undo went well"
    assert bench.cni.remembered() == []
    assert not [name for name in ("first", "made", "last") if (tmp_path / name).exists()]
    assert not [path.name for path in (tmp_path / "state/cni/results").iterdir()]


def test_a_plugins_stderr_is_in_the_hint(bench: Bench) -> None:
    bench.plugin("loud", "echo 'netlink: no such device' >&2\n"
                 '[ $CNI_COMMAND = DEL ] || { echo \'{"code":11,"msg":"again","details":"later"}\'; exit 1; }\n')
    with pytest.raises(WherryError) as caught:
        bench.cni.add(chain("loud"), "c1", "/none")
    assert caught.value.hint == "later; netlink: no such device"
    assert caught.value.kind is Kind.UNAVAILABLE


def test_del_of_a_namespace_that_is_gone_names_none(bench: Bench) -> None:
    """Section 2, DEL: CNI_NETNS may be absent, and a runtime tells no path that leads nowhere."""
    bench.plugin("one", f'echo "$CNI_COMMAND netns=$CNI_NETNS" >> {bench.path}/seen; echo \'{RESULT}\'\n')
    bench.cni.add(chain("one"), "c1", f"{bench.path}/gone")
    bench.cni.delete(None, "c1", network="net")
    seen = (bench.path / "seen").read_text().splitlines()
    assert seen == [f"ADD netns={bench.path}/gone", "DEL netns="]


# ---- the other verbs ----


def test_gc_tells_who_is_valid_and_asks_each_plugin_whatever_one_says(bench: Bench) -> None:
    bench.plugin("one", '[ $CNI_COMMAND = GC ] && echo \'{"code":100,"msg":"not now"}\' && exit 1\n'
                 f"echo '{RESULT}'\n")
    bench.plugin("two", f"echo '{RESULT}'\n")
    bench.cni.add(chain("one", "two"), "c1", "/none", "eth3")
    with pytest.raises(WherryError, match='"one", GC: not now'):
        bench.cni.collect(chain("one", "two"))
    assert bench.lines()[-2:] == ["GC one", "GC two"]
    assert bench.config("two")["cni.dev/valid-attachments"] == [{"containerID": "c1", "ifname": "eth3"}]


@pytest.mark.parametrize("more", [{"disableGC": True}, {"disableGC": "true"}, {"cniVersion": "1.0.0"}])
def test_gc_is_not_called_where_it_is_switched_off_or_unknown(bench: Bench, more: dict[str, Any]) -> None:
    bench.plugin("one", "exit 9\n")
    bench.cni.collect({**chain("one"), **more})
    assert not bench.log.exists()


def test_no_gc_comes_between_an_add_and_its_answer(bench: Bench) -> None:
    """What that ADD makes is in no list of valid attachments that was written before it began."""
    begun = bench.path / "begun"
    bench.plugin("slow", f"[ $CNI_COMMAND = ADD ] && touch {begun} && sleep 0.5\necho '{RESULT}'\n")
    with ThreadPoolExecutor(1) as pool:
        added = pool.submit(bench.cni.add, chain("slow"), "c1", "/none")
        while not begun.exists():
            time.sleep(0.01)
        bench.cni.collect(chain("slow"))
        assert added.done()
    assert bench.config("slow")["cni.dev/valid-attachments"] == [{"containerID": "c1", "ifname": "eth0"}]


def test_check_is_not_called_where_it_is_switched_off(bench: Bench) -> None:
    bench.plugin("one", f"echo '{RESULT}'\n")
    for cid, value in (("c1", True), ("c2", "true")):
        bench.cni.add({**chain("one"), "disableCheck": value}, cid, "/none")
        bench.cni.check("net", cid)
    assert bench.lines() == ["ADD one", "ADD one"]
    with pytest.raises(WherryError, match="not attached"):
        bench.cni.check("net", "c3")


def test_status_is_the_first_plugin_that_cannot(bench: Bench) -> None:
    bench.plugin("one", "exit 0\n")
    bench.plugin("two", 'echo \'{"code":50,"msg":"no addresses left"}\'; exit 1\n')
    bench.cni.status(chain("one"))
    with pytest.raises(WherryError, match='"two", STATUS: no addresses left'):
        bench.cni.status(chain("one", "two"))


def test_a_record_that_a_power_cut_halved_stops_nobody(bench: Bench) -> None:
    bench.plugin("one", f"echo '{RESULT}'\n")
    bench.cni.add(chain("one"), "c1", "/none")
    (record,) = (bench.path / "state/cni/results").glob("*.json")
    record.write_bytes(record.read_bytes()[:40])
    assert bench.cni.remembered() == []
    bench.cni.delete(chain("one"), "c1")
    assert bench.lines()[-1] == "DEL one"
    assert not record.exists()
