"""Containers of pods, through the engine: what they see, what they may, their logs, their end."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.wherry import Wherry, until
from wherry.engine import devices, preparing, start
from wherry.engine.engine import Engine
from wherry.engine.pods import starting
from wherry.engine.pods.values import IdMap, Member, MemberOptions, PodMount, PodOptions, PodSecurity
from wherry.engine.values import ExecOptions
from wherry.errors import Kind, WherryError
from wherry.model import ATTACH_EXIT, ATTACH_STDERR, ATTACH_STDOUT, Limits, Place

MAPS = (IdMap(0, 1 << 20, 1 << 16),)
DOCKERS = 0xA80425FB  # the mask of docker's 14 capabilities


@dataclasses.dataclass
class Node:
    """One wherry with an image, whose pods share the host's network unless asked otherwise."""

    engine: Engine
    wherry: Wherry
    image: str
    tmp: Path
    numbers: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(1))

    def pod(self, **asked: Any) -> str:
        number = next(self.numbers)
        options = {"network": "host", "cgroup_parent": f"{self.wherry.cgroup}/pods", **asked}
        return self.engine.run_pod(PodOptions(f"pod{number}", "default", f"uid{number}", **options))

    def make(self, pod: str, *command: str, **asked: Any) -> str:
        name = f"c{next(self.numbers)}"
        options = {"image": self.image, "log": f"{self.tmp}/logs/{name}/0.log", **asked}
        return self.engine.create_member(pod, MemberOptions(name, command=command, **options))

    def script(self, pod: str, text: str, **asked: Any) -> str:
        return self.make(pod, "sh", "-c", text, **asked)

    def ended(self, container: str) -> Member:
        return until(lambda: (m := self.engine.member(container)).state == "exited" and m)  # type: ignore[no-any-return]

    def log(self, container: str) -> list[str]:
        """"stdout F text" of each line."""
        with open(self.engine.member(container).options.log, encoding="utf-8") as file:
            return [line.rstrip("\n").partition(" ")[2] for line in file]

    def says(self, pod: str, text: str, **asked: Any) -> str:
        """Run a script to its end; its standard output."""
        container = self.script(pod, text, **asked)
        self.engine.start(container)
        end = self.ended(container)
        assert end.code == 0, (end, self.log(container))
        return "\n".join(line.partition(" F ")[2] for line in self.log(container))

    def output(self, container: str, *command: str, **asked: Any) -> tuple[int, bytes]:
        running = self.engine.exec(container, ExecOptions(command, **asked))
        output = b""
        while (frame := running.read()) is not None and frame[0] != ATTACH_EXIT:
            output += frame[1] if frame[0] in (ATTACH_STDOUT, ATTACH_STDERR) else b""
        return running.wait().code, output


@pytest.fixture
def node(wherry: Wherry, tmp_path: Path, busybox: str) -> Iterator[Node]:
    place = Place(str(wherry.root), str(wherry.state), str(wherry.config))
    engine = Engine(place)
    image = engine.load(busybox)[0].id
    made = Node(engine, wherry, image, tmp_path)
    yield made
    for pod in engine.pods():
        engine.remove_pod(pod.id)
    assert engine.members() == []
    engine.close()


def lines(text: str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def refused(kind: Kind, part: str, call: Any, *args: Any, **asked: Any) -> None:
    with pytest.raises(WherryError) as caught:
        call(*args, **asked)
    assert caught.value.kind is kind, caught.value
    assert part in caught.value.message


# ---- life


def test_a_life(node: Node) -> None:
    pod = node.pod()
    asked = {"labels": {"a": "b"}, "annotations": {"c": "d"}}
    container = node.script(pod, "echo out; echo err >&2; exit 3", **asked)
    made = node.engine.member(container)
    assert (made.state, made.started, made.pid, made.pod, made.image_id) == ("created", 0.0, 0, pod, node.image)
    assert (made.options.labels, made.options.annotations) == ({"a": "b"}, {"c": "d"})
    before = time.time()
    node.engine.start(container)
    end = node.ended(container)
    assert (end.code, end.reason, end.message) == (3, "Error", "")
    assert before <= end.started <= end.finished <= time.time()
    assert sorted(node.log(container)) == ["stderr F err", "stdout F out"]
    refused(Kind.CONFLICT, "has ended", node.engine.start, container)
    node.engine.remove_member(container)
    refused(Kind.NOT_FOUND, "no such container", node.engine.member, container)
    for verb in (node.engine.remove_member, lambda ref: node.engine.stop_member(ref, 1)):
        verb(container)


def test_the_same_again_is_the_same(node: Node) -> None:
    pod = node.pod()
    options = MemberOptions("same", node.image, command=("true",))
    first = node.engine.create_member(pod, options)
    assert node.engine.create_member(pod, options) == first
    assert node.engine.create_member(pod, options._replace(attempt=1)) != first


def test_what_it_is_made_of(node: Node) -> None:
    """command replaces the entrypoint and drops the cmd, args replace the cmd; the last word of an env counts."""
    pod = node.pod(hostname="ignored")
    text = node.says(pod, 'echo "$A $HOSTNAME"; pwd', env=("A=1", "A=2"), workdir="/new/dir")
    assert text.splitlines() == [f"2 {os.uname().nodename}", "/new/dir"]
    container = node.engine.create_member(pod, MemberOptions("args", node.image, args=("echo", "args")))
    assert node.engine.member(container).options.args == ("echo", "args")
    refused(Kind.NOT_FOUND, "no such image", node.make, pod, "true", image="sha256:" + "0" * 64)
    refused(Kind.INVALID, "working directory", node.make, pod, "true", workdir="relative")


def test_a_start_that_fails(node: Node) -> None:
    container = node.make(node.pod(), "no-such-command")
    with pytest.raises(WherryError, match="executable file not found"):
        node.engine.start(container)
    end = node.engine.member(container)
    assert (end.state, end.code, end.reason) == ("exited", 128, "StartError")
    assert "no-such-command" in end.message
    assert end.finished > 0


def test_stop_kills_who_does_not_listen(node: Node) -> None:
    pod = node.pod()
    deaf = node.script(pod, "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    node.engine.start(deaf)
    until(lambda: node.log(deaf))
    begun = time.monotonic()
    node.engine.stop_member(deaf, 1)
    assert 1 <= time.monotonic() - begun < 4
    assert (node.engine.member(deaf).state, node.engine.member(deaf).code) == ("exited", 137)
    at_once = node.script(pod, "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    node.engine.start(at_once)
    until(lambda: node.log(at_once))
    begun = time.monotonic()
    node.engine.stop_member(at_once, 0)
    assert time.monotonic() - begun < 1
    asked = node.script(pod, "trap 'exit 7' USR1; echo ready; while :; do sleep 0.05; done", stop_signal="SIGUSR1")
    node.engine.start(asked)
    until(lambda: node.log(asked))
    node.engine.stop_member(asked, 5)
    assert node.engine.member(asked).code == 7


def test_a_pod_that_is_not_ready_refuses(node: Node) -> None:
    pod = node.pod()
    made = node.make(pod, "true")
    node.engine.stop_pod(pod)
    refused(Kind.CONFLICT, "not ready", node.engine.start, made)
    refused(Kind.CONFLICT, "not ready", node.make, pod, "true")
    refused(Kind.NOT_FOUND, "no such pod", node.make, "0" * 64, "true")
    assert node.engine.member(made).state == "created"


# ---- users and rights


def test_users_and_groups(node: Node) -> None:
    pod = node.pod()

    def ids(**asked: Any) -> str:
        return node.says(pod, "id -u; id -g; id -G", security=PodSecurity(**asked)).replace("\n", " / ")

    assert ids() == "0 / 0 / 0"
    assert ids(user="1000") == "1000 / 0 / 0"
    assert ids(user="1000", group=50, groups=(7, 50, 8)) == "1000 / 50 / 50 7 8"
    made = node.engine.member(node.make(pod, "true", security=PodSecurity(user="1000", group=5, groups=(9,))))
    assert (made.uid, made.gid, made.gids) == (1000, 5, (5, 9))
    refused(Kind.INVALID, "without a user", node.make, pod, "true", security=PodSecurity(group=5))
    refused(Kind.INVALID, "no matching entries", node.make, pod, "true", security=PodSecurity(user="nobody-here"))
    refused(Kind.INVALID, "out of range", node.make, pod, "true", security=PodSecurity(user="1", groups=(1 << 31,)))


def status(node: Node, pod: str, **asked: Any) -> dict[str, int]:
    found = lines(node.says(pod, "grep -E 'Cap|NoNew|Seccomp:' /proc/self/status", security=PodSecurity(**asked)))
    return {key: int(value, 16) for key, value in found.items()}


def test_capabilities(node: Node) -> None:
    pod = node.pod()
    have = int(lines(Path("/proc/self/status").read_text())["CapBnd"], 16)
    plain = status(node, pod)
    assert plain["CapEff"] == plain["CapBnd"] == DOCKERS & have
    assert plain["CapAmb"] == plain["CapInh"] == plain["NoNewPrivs"] == plain["Seccomp"] == 0
    assert status(node, pod, cap_drop=("ALL",), cap_add=("NET_ADMIN",))["CapEff"] == 1 << 12
    assert status(node, pod, cap_add=("all",))["CapEff"] == have
    assert status(node, pod, cap_add=("CHOWN",), cap_drop=("CAP_CHOWN",))["CapEff"] == DOCKERS & have & ~1
    raised = status(node, pod, user="1000", cap_ambient=("NET_BIND_SERVICE",))
    assert raised["CapEff"] == raised["CapAmb"] == 1 << 10
    assert status(node, node.pod(privileged=True), privileged=True)["CapEff"] == have


def test_confinement(node: Node, tmp_path: Path) -> None:
    pod = node.pod()
    found = status(node, pod, seccomp="default", no_new_privileges=True)
    assert (found["Seccomp"], found["NoNewPrivs"]) == (2, 1)
    profile = tmp_path / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    text = node.says(pod, "mkdir /tmp/x 2>&1 || true", security=PodSecurity(seccomp=str(profile)))
    assert "quota" in text.lower()
    profile.write_text("{")
    refused(Kind.INVALID, "decoding", node.make, pod, "true", security=PodSecurity(seccomp=str(profile)))
    refused(Kind.INVALID, "No such file", node.make, pod, "true", security=PodSecurity(seccomp=f"{tmp_path}/none"))
    refused(Kind.INVALID, "no absolute path", node.make, pod, "true", security=PodSecurity(seccomp="localhost/x"))
    if not node.engine._house.facts.apparmor:
        refused(Kind.PRECONDITION, "AppArmor", node.make, pod, "true", security=PodSecurity(apparmor="mine"))


def test_paths(node: Node) -> None:
    pod = node.pod()
    assert node.says(pod, "wc -c < /proc/keys; echo 1 2>&- > /proc/sys/vm/drop_caches || echo denied") == "0\ndenied"
    hidden = PodSecurity(masked_paths=("/etc/passwd",), readonly_paths=("/srv",), readonly_root=True)
    script = "wc -c < /etc/passwd; touch /x 2>&- || echo root; touch /etc/hosts 2>&- || echo hosts"
    assert node.says(pod, script, security=hidden).split() == ["0", "root", "hosts"]
    script = "test -w /proc/sys && wc -c < /proc/kallsyms | grep -v '^0$'; ls /dev | wc -l"
    text = node.says(node.pod(privileged=True), script, security=PodSecurity(privileged=True))
    refused(Kind.INVALID, "privileged", node.make, pod, "true", security=PodSecurity(privileged=True))
    assert int(text.splitlines()[-1]) > 15


def test_devices(node: Node) -> None:
    pod = node.pod()
    mine = ("/dev/zero", "/dev/mine", "r")
    text = node.says(pod, "stat -c '%t:%T %a' /dev/mine; head -c1 /dev/mine | wc -c", devices=(mine,))
    assert text.splitlines() == ["1:5 666", "1"]
    refused(Kind.INVALID, "no device", node.make, pod, "true", devices=(("/dev/none", "/dev/none", "rwm"),))


# ---- mounts


def test_binds(node: Node, tmp_path: Path) -> None:
    pod = node.pod()
    (tmp_path / "file").write_text("content\n")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    mounts = (
        PodMount("/deep/er/file", f"{tmp_path}/link"),
        PodMount("/deep", f"{tmp_path}/made/here", readonly=False),
        PodMount("/ro", f"{tmp_path}/made", readonly=True),
    )
    script = "cat /deep/er/file; touch /deep/new; touch /ro/x 2>&- || echo ro; grep ' /deep ' /proc/self/mountinfo"
    text = node.says(pod, script, mounts=mounts)
    assert "content" in text
    assert "ro" in text.splitlines()
    assert (tmp_path / "made" / "here" / "new").exists()
    assert "nosuid" not in text
    for bad in (PodMount("relative", str(tmp_path)), PodMount("/", str(tmp_path)), PodMount("/x", "relative")):
        refused(Kind.INVALID, "", node.make, pod, "true", mounts=(bad,))
    rro = PodMount("/x", str(tmp_path), recursive_readonly=True)
    refused(Kind.INVALID, "requires readonly", node.make, pod, "true", mounts=(rro,))
    slave = rro._replace(readonly=True, propagation="rslave")
    refused(Kind.INVALID, "private propagation", node.make, pod, "true", mounts=(slave,))


def test_recursive_read_only(node: Node, tmp_path: Path) -> None:
    pod = node.pod()
    inner = tmp_path / "tree" / "inner"
    inner.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", inner], check=True)
    try:
        script = "touch /t/inner/x 2>/dev/null && echo written || echo refused"
        plain = PodMount("/t", f"{tmp_path}/tree", readonly=True)
        assert node.says(pod, script, mounts=(plain,)) == "written"
        assert node.says(pod, script, mounts=(plain._replace(recursive_readonly=True),)) == "refused"
    finally:
        subprocess.run(["umount", inner], check=True)


def test_propagation(node: Node, tmp_path: Path) -> None:
    pod = node.pod(privileged=True)
    shared, private = tmp_path / "shared", tmp_path / "private"
    for path, kind in ((shared, "--make-shared"), (private, "--make-private")):
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
        subprocess.run(["mount", kind, path], check=True)
        (path / "on").mkdir()
    try:
        for word, part in (("rshared", "is not a shared mount"), ("rslave", "is not a shared or slave mount")):
            bad = PodMount("/m", str(private), propagation=word)
            refused(Kind.PRECONDITION, part, node.make, pod, "true", mounts=(bad,))
        slave = node.make(pod, "sleep", "60", mounts=(PodMount("/m", str(shared), propagation="rslave"),))
        both = node.make(pod, "sleep", "60", mounts=(PodMount("/m", str(shared), propagation="rshared"),),
                         security=PodSecurity(privileged=True))
        plain = node.make(pod, "sleep", "60", mounts=(PodMount("/m", str(shared)),))
        for container in (slave, both, plain):
            node.engine.start(container)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", shared / "on"], check=True)
        (shared / "on" / "late").touch()
        seen = [node.output(c, "ls", "/m/on")[1] for c in (slave, both, plain)]
        subprocess.run(["umount", shared / "on"], check=True)
        assert seen == [b"late\n", b"late\n", b""]
        assert node.output(both, "mount", "-t", "tmpfs", "tmpfs", "/m/on")[0] == 0
        assert os.path.ismount(shared / "on")
        assert node.output(both, "umount", "/m/on")[0] == 0
    finally:
        for container in node.engine.members():
            node.engine.stop_member(container.id, 0)
        for path in (shared, private):
            subprocess.run(["umount", "-R", path], check=True)


def test_an_image_as_a_volume(node: Node) -> None:
    pod = node.pod()
    whole = PodMount("/img", "", readonly=True, image=node.image)
    script = "cmp /bin/busybox /img/bin/busybox; touch /img/x 2>&- || echo read-only; /img/bin/busybox echo runs"
    assert node.says(pod, script, mounts=(whole,)) == "read-only\nruns"
    part = whole._replace(source="bin")
    assert node.says(pod, "cmp /bin/busybox /img/busybox && echo same", mounts=(part,)) == "same"
    refused(Kind.NOT_FOUND, "there is no none", node.make, pod, "true", mounts=(part._replace(source="none"),))
    refused(Kind.INVALID, "leads out", node.make, pod, "true", mounts=(part._replace(source="../x"),))
    refused(Kind.INVALID, "must be read-only", node.make, pod, "true", mounts=(part._replace(readonly=False),))


# ---- namespaces


def test_a_pod_shares(node: Node) -> None:
    pod = node.pod(pid="pod")
    first = node.script(pod, "echo 1 > /dev/shm/x; sleep 60", security=PodSecurity(pid="pod"))
    node.engine.start(first)
    until(lambda: node.output(first, "cat", "/dev/shm/x")[1] == b"1\n")
    script = "cat /dev/shm/x; for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; done"
    text = node.says(pod, script, security=PodSecurity(pid="pod"))
    assert text.startswith("1\n")
    assert "sleep 60" in text
    assert "sleep 60" not in node.says(pod, script)
    target = node.says(pod, script, security=PodSecurity(pid=f"target:{first}"))
    assert "sleep 60" in target
    other = node.pod()
    refused(Kind.INVALID, "another pod", node.make, other, "true", security=PodSecurity(pid=f"target:{first}"))
    assert f"{os.getpid()}" in node.says(other, "ls -d /proc/[0-9]*", security=PodSecurity(pid="host"))


def test_a_user_namespace(node: Node, tmp_path: Path) -> None:
    pod = node.pod(uids=MAPS, gids=MAPS)
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "mine").touch()
    mount = PodMount("/v", str(volume), uids=MAPS, gids=MAPS)
    script = """cat /proc/self/uid_map; touch /v/new /rw /dev/shm/new
    stat -c %u / /bin/busybox /v/mine /v/new /rw /dev/shm /dev/shm/new /etc/hosts; echo >> /etc/hosts"""
    words = node.says(pod, script, mounts=(mount,)).split()
    assert words[:3] == ["0", str(1 << 20), str(1 << 16)]
    assert words[3:] == ["0"] * 8
    assert (volume / "new").stat().st_uid == 0  # mapped back
    container = node.make(pod, "sleep", "60")
    node.engine.start(container)
    code, text = node.output(container, "sh", "-c", "id -u; cat /proc/self/uid_map; touch /by-exec && ls -ln /by-exec")
    assert (code, text.split()[:4]) == (0, b"0 0 1048576 65536".split())
    assert Path(f"/proc/{node.engine.member(container).pid}/root/by-exec").stat().st_uid == 1 << 20


# ---- exec and logs


def test_exec(node: Node) -> None:
    pod = node.pod()
    who = PodSecurity(user="1234", groups=(77,))
    container = node.make(pod, "sleep", "60", env=("A=b",), workdir="/tmp", security=who)
    node.engine.start(container)
    code, text = node.output(container, "sh", "-c", "id -u; id -G; echo $A; pwd; exit 5")
    assert (code, text.decode().split()) == (5, ["1234", "0", "77", "b", "/tmp"])


def test_a_log_goes_on_in_a_new_file(node: Node) -> None:
    pod = node.pod()
    script = "i=0; while [ $i -lt 4000 ]; do echo $i; i=$((i+1)); [ $((i%100)) != 0 ] || sleep 0.02; done"
    container = node.script(pod, script)
    path = Path(node.engine.member(container).options.log)
    node.engine.start(container)
    for number in range(5):
        time.sleep(0.1)
        path.rename(f"{path}.{number}")
        node.engine.reopen_log(container)
    node.ended(container)
    files = [*(Path(f"{path}.{number}") for number in range(5)), path]
    found = [line.split()[3] for file in files for line in file.read_text().splitlines()]
    assert found == [str(number) for number in range(4000)]
    assert all(file.stat().st_mode & 0o777 == 0o640 for file in files)
    refused(Kind.CONFLICT, "not running", node.engine.reopen_log, container)


def test_long_lines_come_in_parts(node: Node) -> None:
    container = node.script(node.pod(), "head -c 40000 /dev/zero | tr '\\0' x; echo; echo end")
    node.engine.start(container)
    node.ended(container)
    kinds = [line.split()[1] for line in node.log(container)]
    assert kinds == ["P", "P", "F", "F"]
    told = [line.data for line in node.engine.logs(container)]
    assert b"".join(told) == b"x" * 40000 + b"\nend\n"


def test_hostile_log_paths(node: Node, tmp_path: Path) -> None:
    pod = node.pod()
    secret = tmp_path / "secret"
    secret.write_text("safe")
    (tmp_path / "link.log").symlink_to(secret)
    container = node.script(pod, "echo no", log=f"{tmp_path}/link.log")
    with pytest.raises(WherryError):
        node.engine.start(container)
    assert node.engine.member(container).reason == "StartError"
    assert secret.read_text() == "safe"
    for bad in ("relative", f"{tmp_path}/../x", f"{tmp_path}/a\nb"):
        refused(Kind.INVALID, "log path", node.make, pod, "true", log=bad)
    quiet = node.script(pod, "echo nothing", log="")
    node.engine.start(quiet)
    assert node.ended(quiet).code == 0


def test_no_link_below_a_pods_log_directory_is_followed(node: Node, tmp_path: Path) -> None:
    """A pod that writes to the node's /var/log could send another's log anywhere."""
    real, victim = tmp_path / "disk", tmp_path / "victim"
    (real / "pods").mkdir(parents=True)
    victim.mkdir()
    (tmp_path / "log").symlink_to(real)  # the administrator's
    directory = f"{tmp_path}/log/pods/p"
    pod = node.pod(log_directory=directory)
    good = node.script(pod, "echo one; while [ ! -e /go ]; do sleep 0.1; done; echo two", log=f"{directory}/c/0.log")
    node.engine.start(good)
    assert node.engine.member(good).options.log == f"{directory}/c/0.log"
    until(lambda: node.log(good) == ["stdout F one"])
    (real / "pods/p/c").rename(real / "pods/p/old")
    (real / "pods/p/c").symlink_to(victim)
    refused(Kind.PRECONDITION, "cannot be opened anew", node.engine.reopen_log, good)
    node.output(good, "touch", "/go")
    assert node.ended(good).code == 0
    assert (real / "pods/p/old/0.log").read_text().splitlines()[-1].endswith("two")
    for log in ("c/1.log", "c/deep/1.log"):
        bad = node.script(pod, "echo no", log=f"{directory}/{log}")
        refused(Kind.PRECONDITION, "log directory", node.engine.start, bad)
    assert list(victim.iterdir()) == []


def test_standard_input_once(node: Node) -> None:
    pod = node.pod()
    container = node.make(pod, "cat", stdin=True, stdin_once=True)
    node.engine.start(container)
    running = node.engine.attach(container)
    running.write(b"hello\n")
    running.eof()
    assert node.ended(container).code == 0
    running.close()
    assert node.log(container) == ["stdout F hello"]


# ---- limits


def test_limits_that_this_host_lacks_are_dropped(node: Node) -> None:
    resources = {"cpu": {"shares": 512, "quota": 50000, "period": 100000}, "memory": {"limit": 64 << 20}}
    container = node.make(node.pod(), "sleep", "60", resources=resources, oom_score_adj=-999)
    node.engine.start(container)
    made = node.engine.member(container)
    assert made.state == "running"
    node.engine.update_member(container, {"memory": {"limit": 128 << 20}, "unified": {"memory.high": "max"}}, {})
    kept = node.engine.member(container).options.resources
    assert kept["memory"] == {"limit": 128 << 20}
    assert kept["cpu"]["shares"] == 512
    bad = {"unified": {"cgroup.kill": "1"}}
    refused(Kind.INVALID, "no file of a controller", node.engine.update_member, container, bad, {})


def test_usage(node: Node) -> None:
    pod = node.pod()
    busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    script = f"head -c 300000 /dev/zero > /file; {busy}; echo done; exec sleep 60"
    container = node.script(pod, script)
    node.engine.start(container)
    until(lambda: node.log(container))
    idle = node.make(pod, "true")
    found = node.engine.usage()
    assert set(found) == {pod, container}
    used = found[container]
    assert (used.cpu_ns or 0) > 1_000_000
    assert (used.memory or 0) > 4096
    assert used.pids == 1
    assert used.disk is not None
    assert 300000 <= used.disk[0] < 400000
    assert used.disk[1] >= 2
    assert os.path.ismount(used.disk_at)
    assert set(used.pressure["cpu"]["some"]) == {"avg10", "avg60", "avg300", "total"}
    assert (found[pod].cpu_ns or 0) >= (used.cpu_ns or 0)
    assert set(node.engine.usage([container, idle])) == {container}
    details = node.engine.usage([pod], detailed=True)[container].details
    assert details["processes"] == 1
    assert details["descriptors"] >= 3


# ---- the other verbs


def test_docker_like_verbs_see_them_and_spare_them(node: Node) -> None:
    pod = node.pod()
    container = node.make(pod, "sleep", "60", labels={"app": "x"})
    ended = node.make(pod, "true")
    for one in (container, ended):
        node.engine.start(one)
    node.ended(ended)
    shown = node.engine.inspect(container)
    assert shown["State"]["Running"]
    assert shown["LogPath"] == node.engine.member(container).options.log
    assert shown["HostConfig"]["NetworkMode"] == f"pod:{pod}"
    assert [row["Id"] for row in node.engine.containers(filters={"label": ["app=x"]})] == [container]
    assert node.engine.container_prune() == {"ContainersDeleted": [], "SpaceReclaimed": 0}
    node.engine.gc()
    assert {member.id for member in node.engine.members()} == {container, ended}
    refused(Kind.CONFLICT, "has ended", node.engine.start, ended)
    refused(Kind.CONFLICT, "keep their names", node.engine.rename, container, "mine")
    refused(Kind.CONFLICT, "is of a pod", node.engine.update, container, Limits(cpu_shares=5))
    refused(Kind.CONFLICT, "joins no other network", node.engine.network_connect, "bridge", container)
    other = node.wherry("run", "-d", node.image, "sleep", "60").stdout.strip()
    refused(Kind.NOT_FOUND, "no such container", node.engine.member, other)


def test_a_device_by_cdi(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edits = {
        "deviceNodes": [{"path": "/dev/mine", "hostPath": "/dev/zero"}], "env": ["VENDOR=here"],
        "mounts": [{"hostPath": str(tmp_path), "containerPath": "/vendor"}],
    }  # fmt: skip
    spec = {"cdiVersion": "0.8.0", "kind": "vendor.com/gadget", "devices": [{"name": "one", "containerEdits": edits}]}
    (tmp_path / "vendor.json").write_text(json.dumps(spec))
    monkeypatch.setattr(devices, "_CDI_DIRS", (str(tmp_path),))
    pod = node.pod()
    script = "stat -c %t:%T /dev/mine; echo $VENDOR; ls /vendor/vendor.json"
    text = node.says(pod, script, cdi=("vendor.com/gadget=one",))
    assert text.split() == ["1:5", "here", "/vendor/vendor.json"]
    refused(Kind.NOT_FOUND, "unresolvable CDI device", node.make, pod, "true", cdi=("vendor.com/gadget=two",))


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "stage", [(starting, "_namespaces"), (starting, "_cgroup"), (preparing, "make_way"), (start, "_spawn"),
              (start, "_write_life"), (start, "_write_state")], ids=lambda stage: stage[1],
)  # fmt: skip
def test_every_step_of_a_start_is_taken_back(
    node: Node, monkeypatch: pytest.MonkeyPatch, stage: tuple[Any, str], late: bool
) -> None:
    container = node.make(node.pod(), "sleep", "60")
    real = getattr(*stage)

    def broken(*args: Any, **named: Any) -> Any:
        if late:
            real(*args, **named)
        raise WherryError(Kind.INTERNAL, "broken on purpose")

    monkeypatch.setattr(*stage, broken)
    with pytest.raises(WherryError, match="on purpose"):
        node.engine.start(container)
    monkeypatch.undo()
    found = node.engine.member(container)
    assert (found.state, found.code, found.reason) == ("exited", 128, "StartError")
    assert not (node.wherry.state / "c" / container).exists()
