"""The rules of the house as tests: layers, third-party fences, banned calls, generated code, lint, types, lengths.

Reads the source by AST; runs nothing of wherry but its imports.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
RUNTIME, CNI, CSI, NATIVE = TOP / "runtime", TOP / "cni", TOP / "csi", TOP / "runtime" / "native"
BASE = {"digest", "errors", "model", "terminal"}

#: a room and the rooms that it may import, beside itself and the base (docs/layers.md)
LAYERS = {
    "cli": {"engine"},
    "daemon": {"engine"},
    "ocicli": {"engine", "container", "oci", "kernel"},  # a face without policy: bundles only (docs/decisions/0009)
    "engine": {"container", "image", "net", "volume", "oci", "kernel"},
    "container": {"oci", "kernel"},
    "image": {"oci", "kernel"},
    "net": {"oci", "kernel"},
    "volume": {"oci", "kernel"},
    "oci": set(),
    "kernel": set(),
    "digest": set(),
    "errors": set(),
    "model": set(),
    "terminal": set(),
    "__init__": {"engine"},  # the public API
    "__main__": {"cli"},
    "boot": {"cli", "ocicli", "engine", "net", "warm"},
    "warm": {"cli", "ocicli", "engine", "container", "oci", "kernel", "net"},
}
#: kernel/facts.py measures what oci/facts.py declares: plain data that the pure planner reads
EXCEPTIONS = {("kernel", "wherry.oci.facts")}

#: a third-party or costly module and the path prefixes (below runtime/ or cni/) that may import it
FENCES = {
    "click": ("wherry/cli/",),
    "rich": ("wherry/cli/",),
    "requests": ("wherry/image/transport.py",),
    "urllib3": ("wherry/image/transport.py",),
    "sqlite3": ("wherry/engine/db.py",),
    "cffi": ("wherry/kernel/",),
    "prctl": ("wherry/kernel/process.py",),
    "pyroute2": ("wherry_cni/", "wherry/net/"),
    "grpc": ("wherry_csi/", "csi_spec/", "wherry/volume/csi.py", "wherry/daemon/"),
    "google": ("wherry_csi/", "csi_spec/", "wherry/volume/csi.py", "wherry/daemon/"),
    "csi_spec": ("wherry_csi/", "csi_spec/", "wherry/volume/csi.py"),
    "aiohttp": ("wherry/daemon/",),
    "zstandard": ("wherry/image/",),
    "dns": ("wherry/net/",),
    "isal": ("wherry/image/",),
    "jeepney": ("wherry/container/systemd.py",),
    "wherry.kernel._shim": ("wherry/kernel/",),
    "wherry.kernel._seccomp": ("wherry/kernel/",),
}
#: SECURITY: paths of images, containers and requests are handles (openat2), walked by descriptor
BANNED = {
    "tarfile.open": "unpack through the confined helper",
    "extractall": "unpack through the confined helper",
    "shutil.rmtree": "kernel/files.remove_tree walks by descriptor and never crosses a mount",
    "shutil.copytree": "follows what it should not",
    "os.system": "a shell",
    "os.popen": "a shell",
    "os.fork": "the helper is spawned, a big process never forks",
    "pickle.load": "runs what it reads",
    "pickle.loads": "runs what it reads",
    "tempfile.mktemp": "a race",
}
#: whose whole work is to fork: small, single-threaded
FORKS = ("wherry/warm/server.py",)
#: read or measured by hot verbs never at import: they load at the edge, where they are used
HEAVY = ("requests", "rich", "pyroute2", "zstandard", "isal", "asyncio", "http.client", "email", "prctl", "jeepney",
         "dns", "grpc", "google", "aiohttp")
HOT = {
    "run": "wherry.cli.commands.run",
    "exec": "wherry.cli.commands.exec",
    "ps": "wherry.cli.commands.ps",
    "stop, rm": "wherry.cli.commands.life",
    "logs": "wherry.cli.commands.logs",
    "inspect": "wherry.cli.commands.inspect",
    "cleanup (monitor)": "wherry.engine.engine",
    "cni bridge": "wherry_cni.bridge",
}


def sources() -> list[Path]:
    """All modules that are shipped."""
    rooms = (RUNTIME / "wherry", CNI / "wherry_cni", CSI / "wherry_csi", CSI / "csi_spec")
    return sorted(path for room in rooms for path in room.rglob("*.py"))


def relative(path: Path) -> str:
    """wherry/engine/db.py, wherry_cni/bridge.py, wherry_csi/node.py."""
    return str(path.relative_to(next(top for top in (CNI, CSI, RUNTIME) if top in path.parents)))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import, lazy and type-only ones too."""
    package = relative(path).removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def room(module: str) -> str:
    """The room of an absolute module name: wherry.engine.db -> engine."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_layers_import_only_downwards() -> None:
    wrong = []
    for path in sources():
        own = relative(path).removesuffix(".py").split("/")[1]
        for line, module in imports(path):
            if not module.startswith("wherry.") or not relative(path).startswith("wherry/"):
                continue
            there = room(module)
            known = there in LAYERS and there != "__init__"
            allowed = LAYERS[own] | BASE | {own}
            excepted = any(own == who and (module + ".").startswith(what + ".") for who, what in EXCEPTIONS)
            package_itself = (own, module) in {(who, what.rpartition(".")[0]) for who, what in EXCEPTIONS}
            if known and there not in allowed and not excepted and not package_itself:
                wrong.append(f"{relative(path)}:{line}: {own} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_plugins_share_no_import_with_wherry() -> None:
    wrong = [
        f"{relative(path)}:{line}: {module}"
        for path in sources()
        for line, module in imports(path)
        if (own := relative(path).split("/")[0]) != "wherry"
        if module.split(".")[0] in {"wherry", "wherry_cni", "wherry_csi"} - {own}
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("fenced", FENCES)
def test_third_party_fences(fenced: str) -> None:
    wrong = [
        f"{relative(path)}:{line}: {module}"
        for path in sources()
        if not relative(path).startswith(FENCES[fenced])
        for line, module in imports(path)
        if (module + ".").startswith(fenced + ".")
    ]
    assert not wrong, "\n".join(wrong)


def calls(path: Path) -> Iterator[tuple[int, str, ast.Call]]:
    """(line, dotted name, call) of every call."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


def test_banned_calls() -> None:
    wrong = []
    for path in sources():
        for line, name, node in calls(path):
            why = BANNED.get(name) or BANNED.get(name.rpartition(".")[2])
            if name.startswith("subprocess.") and any(word.arg == "shell" for word in node.keywords):
                why = "a shell"
            if why and not (name == "os.fork" and relative(path) in FORKS):
                wrong.append(f"{relative(path)}:{line}: {name}: {why}")
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_decides() -> None:
    texts = {relative(path): path.read_text() for path in sources()}
    wrong = [name for name, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert not wrong, f"no docstring: {wrong}"


def test_no_global_mutable_state() -> None:
    """`global` in a function is state that a second call in the same process would see."""
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Global)
    ]
    assert not wrong, wrong


def test_no_unfinished_work() -> None:
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
    wrong = [
        f"{path.relative_to(TOP)}:{number}: {line.strip()}"
        for path in [*sources(), *NATIVE.glob("*.[ch]"), *(TOP / "scripts").rglob("*"), *(TOP / "docs").rglob("*.md")]
        if path.is_file() and "__pycache__" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_generated_vocabulary_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, "gen_ops.py", "--check"], cwd=NATIVE, check=False)
    assert done.returncode == 0, "run: make -C runtime/native generate"


def test_the_csi_descriptor_is_the_protos(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    from google.protobuf import descriptor_pb2

    out = tmp_path / "csi.binpb"
    tool("grpc_tools.protoc", f"-I{CSI}/csi_spec", f"--descriptor_set_out={out}", f"--pyi_out={tmp_path}", "csi.proto")
    made, kept = (
        descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()) for path in (out, CSI / "csi_spec" / "csi.binpb")
    )
    assert made == kept, "csi/csi_spec/__init__.py says how to write it"
    names = [f"class {kind}(" for kind in re.findall(r"^class (\w+)\(", (tmp_path / "csi_pb2.pyi").read_text(), re.M)]
    types = (CSI / "csi_spec" / "csi_pb2.pyi").read_text()
    assert not [name for name in names if name not in types]


@pytest.mark.parametrize(("room", "name"), [("cri", "api"), ("nri", "api"), ("nri", "ttrpc")])
def test_the_daemons_descriptors_are_the_protos(tmp_path: Path, room: str, name: str) -> None:
    pytest.importorskip("grpc_tools")
    from google.protobuf import descriptor_pb2

    place, out = RUNTIME / "wherry" / "daemon" / room, tmp_path / f"{name}.binpb"
    tool("grpc_tools.protoc", f"-I{place}", f"--descriptor_set_out={out}", f"--pyi_out={tmp_path}", f"{name}.proto")
    made, kept = (
        descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()) for path in (out, place / f"{name}.binpb")
    )
    assert made == kept, f"wherry/daemon/{room}/__init__.py says how to write it"
    names = re.findall(r"^class \w+\(", (tmp_path / f"{name}_pb2.pyi").read_text(), re.M)
    types = (place / f"{name}_pb2.pyi").read_text()
    assert not [name for name in names if name not in types]


def python_lengths() -> dict[str, int]:
    """Lines of every function, its docstring not counted."""
    found = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                body = node.body[1:] if ast.get_docstring(node) else node.body
                first = body[0].lineno if body else node.end_lineno
                found[f"{relative(path)}:{node.name}"] = node.end_lineno - first + 2
    return found


def c_lengths() -> dict[str, int]:
    """Lines of every C function, from its header, which starts in column 0, to its closing brace there."""
    found = {}
    for path in NATIVE.glob("*.c"):
        start, name = 0, ""
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.match(r"[a-zA-Z].*\)\s*\{?$", line) and not line.startswith(("typedef", "struct {", "enum")):
                header = re.search(r"(\w+)\(", line)
                start, name = number, header[1] if header else "?"
            elif line == "}" and start:
                found[f"{path.name}:{name}"] = number - start + 1
                start = 0
    return found


def test_functions_stay_small() -> None:
    python, c = python_lengths(), c_lengths()
    ordered = sorted(python.values())
    median, p90 = statistics.median(ordered), ordered[int(len(ordered) * 0.9)]
    longest = sorted(python, key=lambda name: -python[name])[:5]
    print(f"\n{len(python)} functions: median {median:.0f} lines, p90 {p90}")
    print(f"longest: {[(name, python[name]) for name in longest]}")
    print(f"{len(c)} C functions: median {statistics.median(c.values()):.0f}, longest {max(c.values())}")
    assert median <= 10
    assert p90 <= 30
    assert not {name: length for name, length in c.items() if length > 80}
    assert not {name: length for name, length in python.items() if length > 60}


@pytest.mark.parametrize("verb", HOT)
def test_hot_verbs_load_nothing_heavy(verb: str) -> None:
    """Prints how long the import takes; asserts only what does not depend on the machine."""
    program = (
        f"import sys, time; before = time.perf_counter(); import {HOT[verb]}\n"
        "print(round((time.perf_counter() - before) * 1000, 1), len(sys.modules),"
        f" [name for name in {HEAVY!r} if name in sys.modules])"
    )
    path = {"PYTHONPATH": f"{RUNTIME}:{CNI}:{CSI}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=path)
    assert done.returncode == 0, done.stderr
    print(f"\n{verb}: {done.stdout.strip()} (ms, modules, heavy ones)")
    heavy = set(ast.literal_eval(done.stdout.split(" ", 2)[2])) - ({"pyroute2"} if verb.startswith("cni") else set())
    assert not heavy or verb.startswith("cni")


def tool(*words: str) -> None:
    """Run a tool of this Python's environment in the top directory."""
    done = subprocess.run([sys.executable, "-m", *words], cwd=TOP, capture_output=True, text=True, check=False)
    if "No module named " + words[0] in done.stderr:
        pytest.skip(f"{words[0]} is not installed")
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    tool("ruff", "check", "--quiet", ".")


def test_mypy_strict() -> None:
    tool("mypy")
