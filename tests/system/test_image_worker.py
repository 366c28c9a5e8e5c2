"""The process that inflates layers: what it can't do, what it says of damaged data, and that its death harms nobody."""

from __future__ import annotations

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import threading

import pytest
import zstandard

from image_support import entry, helper_factory, sha, tar
from wherry.errors import Kind, WherryError
from wherry.image.snapshot import layer_path
from wherry.image.unpack import Unpacker, pipe
from wherry.image.worker import Worker, verdict

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
SILENT = lambda _done, _total: None  # noqa: E731

ATTEMPTS = {
    "open": "os.open('/etc/passwd', os.O_RDONLY)",
    "create": "os.open('/tmp/x', os.O_CREAT | os.O_WRONLY)",
    "mkdir": "os.mkdir('/tmp/wherry-worker-test')",
    "listdir": "os.listdir('/')",
    "socket": "socket.socket()",
    "connect by a socket that it has": "pair[0].sendmsg([b'x'])",
    "fork": "os.fork()",
    "exec": "os.execv('/bin/true', ['true'])",
    "kill": "os.kill(os.getppid(), 0)",
    "unshare": "shim.unshare(0x20000)",
    "mount": "shim.umount2('/proc')",
    "chdir": "os.chdir('/')",
    "memfd": "os.memfd_create('x')",
    "dup another's": "shim.pidfd_getfd(0, 0)",
    "setuid": "os.setuid(1)",
    "nice": "os.setpriority(os.PRIO_PROCESS, 0, 1)",
}


def test_it_can_do_nothing_but_compute():
    """Every attempt works before the filter or fails otherwise than by it; all fail by it afterwards, threads don't."""
    code = "import os, socket, sys, threading\nfrom wherry.kernel import shim\n"
    code += "pair = socket.socketpair()\nshim.only_compute()\n"
    for name, attempt in ATTEMPTS.items():
        code += f"try:\n {attempt}\n print({name!r}, 'was allowed')\n"
        code += "except PermissionError as e:\n assert e.errno == 1\n"
    code += "done = []\nt = threading.Thread(target=lambda: done.append(1)); t.start(); t.join(); print(done)\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (run.stdout, run.returncode) == ("[1]\n", 0), run.stderr


def test_the_attempts_are_no_accident():
    """The control: without the filter a few of the same calls succeed."""
    for name in ("open", "listdir", "socket", "memfd", "kill"):
        subprocess.run([sys.executable, "-c", f"import os, socket; {ATTEMPTS[name]}"], check=True, timeout=60)


def through(worker: Worker, data: bytes, algorithm: str = "sha256", most: int = 1 << 20) -> tuple[bytes, str]:
    """(inflated bytes, digest in hex) of packed ones that fit into a pipe."""
    (packed, feed), (result, inflated), (report, told) = pipe(), pipe(), pipe()
    worker.begin(algorithm, most, packed, inflated, told)
    for fd in (packed, inflated, told):
        os.close(fd)
    try:
        os.write(feed, data)
        os.close(feed)
        out = b""
        while part := os.read(result, 1 << 20):
            out += part
        return out, verdict(report)
    finally:
        os.close(result)
        os.close(report)


@pytest.fixture
def worker():
    """One, with what it leaves behind looked at."""
    before = set(os.listdir("/proc/self/fd"))
    found = Worker()
    yield found
    pid = found._pid
    found.close()
    assert not pid or not os.path.exists(f"/proc/{pid}")
    assert set(os.listdir("/proc/self/fd")) == before


PLAIN = b"wherry " * 9999
PACKED = {
    "plain": PLAIN,
    "gzip": gzip.compress(PLAIN),
    "two members": gzip.compress(PLAIN[:5000]) + gzip.compress(PLAIN[5000:]),
    "zeros behind": gzip.compress(PLAIN) + bytes(512),
    "zstd": zstandard.compress(PLAIN),
    "two frames": zstandard.compress(PLAIN[:5000]) + zstandard.compress(PLAIN[5000:]),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_it_inflates_and_hashes(worker, name, algorithm):
    assert through(worker, PACKED[name], algorithm) == (PLAIN, hashlib.new(algorithm, PLAIN).hexdigest())


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (gzip.compress(PLAIN)[:-9], Kind.INVALID, "damaged"),
        (gzip.compress(PLAIN)[:20] + b"\xff" * 99, Kind.INVALID, "damaged"),
        (gzip.compress(PLAIN)[:-4] + b"\0\0\0\0", Kind.INVALID, "damaged"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 99, Kind.INVALID, "damaged"),
        (gzip.compress(bytes(2 << 20)), Kind.INVALID, "inflates to more than 1048576 bytes"),
    ],
)  # fmt: skip
def test_it_says_what_is_wrong(worker, data, kind, words):
    with pytest.raises(WherryError, match=words) as caught:
        through(worker, data)
    assert caught.value.kind is kind
    assert through(worker, PACKED["gzip"])[0] == PLAIN  # and goes on with the next


def test_many_at_once(worker):
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(through(worker, PACKED["gzip"])[0])) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [PLAIN] * 24


def test_its_death_is_told_and_the_next_layer_has_another(tmp_path):
    layer = tar(*[entry(f"f{i}", os.urandom(3000)) for i in range(300)])
    (tmp_path / "blob").write_bytes(layer)
    root, stop = tmp_path / "root", threading.Event()
    with Unpacker(str(root), helper=helper_factory(tmp_path)) as unpacker:
        with unpacker.stream(sha(layer), len(layer), stop) as stream:
            assert stream is not None
            stream.write(layer[:100_000])
            first = unpacker._worker._pid
            os.kill(first, signal.SIGKILL)
            stream.write(layer[100_000:])
            with pytest.raises(WherryError) as caught:
                stream.finish()
        assert caught.value.kind in (Kind.INTERNAL, Kind.INVALID)
        assert os.listdir(root / "layers") == []
        assert unpacker.unpack(str(tmp_path / "blob"), sha(layer), SILENT, stop)
        assert unpacker._worker._pid != first
    assert len(os.listdir(os.path.join(layer_path(str(root), sha(layer)), "fs"))) == 300
