"""Tables, times and sizes as docker prints them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.cli import human
from wherry.cli.app import App, Stdio
from wherry.cli.commands.events import line
from wherry.cli.commands.image import one_row_a_name
from wherry.cli.commands.ps import COLUMNS, DEFAULT
from wherry.cli.commands.stats import row_of
from wherry.cli.commands.system import tree, usage
from wherry.cli.table import aligned, filters, show
from wherry.errors import WherryError
from wherry.model import Json

AGES = [
    (0.2, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (121, "2 minutes"),
    (3600, "About an hour"), (5400, "2 hours"), (86400, "24 hours"), (3 * 86400, "3 days"), (14 * 86400, "2 weeks"),
    (70 * 86400, "2 months"), (800 * 86400, "2 years"),
]  # fmt: skip


@pytest.mark.parametrize(("seconds", "says"), AGES)
def test_ages(seconds: float, says: str) -> None:
    assert human.ago(seconds) == says


def test_sizes() -> None:
    assert [human.size(n) for n in (0, 999, 1000, 4_260_000, 1_500_000_000)] == ["0B", "999B", "1kB", "4.26MB", "1.5GB"]
    assert [human.memory(n) for n in (0, 1023, 1 << 20, 2_040_000)] == ["0B", "1023B", "1MiB", "1.945MiB"]


@given(st.integers(0, 10**20))
def test_every_size_is_short(number: int) -> None:
    assert len(human.size(number)) <= 8
    assert len(human.memory(number)) <= 10
    assert "e" not in human.size(number)
    assert "e+" not in human.memory(number)


PORTS: list[tuple[list[dict[str, object]], str]] = [
    ([], ""),
    ([{"PrivatePort": 80, "Type": "tcp"}], "80/tcp"),
    ([{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}], "0.0.0.0:8080->80/tcp"),
    ([{"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}], "[::]:8080->80/tcp"),
    (
        [{"IP": "0.0.0.0", "PrivatePort": 80 + n, "PublicPort": 8080 + n, "Type": "tcp"} for n in range(3)],
        "0.0.0.0:8080-8082->80-82/tcp",
    ),
    (
        [{"PrivatePort": 9, "Type": "udp"}, {"PrivatePort": 8, "Type": "udp"}, {"PrivatePort": 9, "Type": "tcp"}],
        "9/tcp, 8-9/udp",
    ),
]


@pytest.mark.parametrize(("rows", "says"), PORTS)
def test_ports(rows: list[dict[str, object]], says: str) -> None:
    assert human.ports(rows) == says


def test_columns_are_three_apart_and_ten_wide() -> None:
    lines = aligned([["CONTAINER ID", "IMAGE", "NAMES"], ["0123456789ab", "alpine", "web"]])
    assert lines == ["CONTAINER ID   IMAGE     NAMES", "0123456789ab   alpine    web"]


@given(st.lists(st.lists(st.text(alphabet="ab ", max_size=15), min_size=3, max_size=3), min_size=1, max_size=5))
def test_cells_of_a_column_start_together(rows: list[list[str]]) -> None:
    lines = aligned(rows)
    widths = [max(10, *(len(row[at]) + 3 for row in rows)) for at in (0, 1)]
    for row, text in zip(rows, lines, strict=True):
        assert text[: widths[0]].rstrip() == row[0].rstrip()
        assert text[sum(widths) :] == row[2]


CONTAINER: Json = {
    "Id": "ab" * 32,
    "Names": ["/web"],
    "Image": "alpine:3",
    "ImageID": "sha256:" + "1" * 64,
    "Command": "sh -c 'sleep 1000; true'",
    "Created": 1_700_000_000,
    "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}],
    "Labels": {"app": "web"},
    "State": "running",
    "Status": "Up 3 minutes",
    "NetworkSettings": {"Networks": {"bridge": {}}},
    "Mounts": [{"Type": "volume", "Name": "data"}, {"Type": "bind", "Source": "/srv/a/very/long/path"}],
    "SizeRw": 12,
    "SizeRootFs": 4_260_000,
}


def shown(rows: list[Json], **values: Any) -> str:
    out = io.StringIO()
    app = App({}, Stdio(io.StringIO(), out, io.StringIO()), "/")
    show(app, rows, COLUMNS, DEFAULT, {"format": None, "quiet": False, "no_trunc": False, **values})
    return out.getvalue()


def test_ps_prints_dockers_table() -> None:
    head, row = shown([CONTAINER]).splitlines()
    assert head.split("   ")[0] == "CONTAINER ID"
    assert head.endswith("NAMES")
    assert row.startswith('abababababab   alpine:3   "sh -c \'sleep 1000; …"')
    assert row.endswith("Up 3 minutes   0.0.0.0:8080->80/tcp   web")
    assert shown([]).split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]


FORMATS = [
    ("{{.ID}} {{.Names}}", "abababababab web\n"),
    ("table {{.Names}}\\t{{.State}}", "NAMES     STATE\nweb       running\n"),
    ('table {{.Names}}\\t{{.Label "my.app"}}', "NAMES     APP\nweb       \n"),
    ("{{.Size}}|{{.Mounts}}|{{.LocalVolumes}}|{{.Networks}}|{{.Labels}}",
     "12B (virtual 4.26MB)|data,/srv/a/very/lo…|1|bridge|app=web\n"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "says"), FORMATS)
def test_ps_formats(form: str, says: str) -> None:
    assert shown([CONTAINER], format=form) == says


def test_ps_quiet_and_json() -> None:
    assert shown([CONTAINER], quiet=True) == "abababababab\n"
    assert shown([CONTAINER], quiet=True, no_trunc=True) == "ab" * 32 + "\n"
    assert shown([CONTAINER], format="json").startswith('{"ID":"abababababab","Image":"alpine:3",')
    assert shown([], quiet=True) == ""


def test_filters_are_known_ones() -> None:
    assert filters({"filter": ("a=1", "a=2=3", "b=")}, ("a", "b")) == {"a": ["1", "2=3"], "b": [""]}
    for text in ("a", "c=1", "=x"):
        with pytest.raises(WherryError, match="--filter"):
            filters({"filter": (text,)}, ("a", "b"))


def test_an_image_has_a_line_for_each_name() -> None:
    rows = one_row_a_name(
        [{"Id": "sha256:1", "RepoTags": ["a:1", "reg:5000/b:2"]}, {"Id": "sha256:2", "RepoTags": []}], True
    )
    assert [(r["Repository"], r["Tag"]) for r in rows] == [("a", "1"), ("reg:5000/b", "2"), ("<none>", "<none>")]


def test_stats_count_as_docker() -> None:
    def sample(cpu: int, host: int) -> Json:
        return {
            "id": "x", "name": "/web", "pids_stats": {"current": 3},
            "cpu_stats": {"cpu_usage": {"total_usage": cpu}, "system_cpu_usage": host, "online_cpus": 2},
            "memory_stats": {"usage": 3 << 20, "limit": 8 << 20, "stats": {"inactive_file": 1 << 20}},
            "networks": {"eth0": {"rx_bytes": 1000, "tx_bytes": 2000}, "eth1": {"rx_bytes": 500, "tx_bytes": 0}},
            "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 5000}, {"op": "write", "value": 1}]},
        }  # fmt: skip

    row = row_of(sample(2_000, 100_000), sample(1_000, 90_000))
    assert row == {
        "ID": "x", "Name": "web", "CPUPerc": "20.00%", "MemUsage": "2MiB / 8MiB", "MemPerc": "25.00%",
        "NetIO": "1.5kB / 2kB", "BlockIO": "5kB / 1B", "PIDs": "3",
    }  # fmt: skip
    assert row_of({"id": "x"}, {})["CPUPerc"] == "0.00%"


def test_df_counts_what_could_go() -> None:
    rows = usage({
        "LayersSize": 300,
        "Images": [{"Size": 100, "Containers": 1}, {"Size": 200, "Containers": 0}],
        "Containers": [{"SizeRw": 10, "State": "running"}, {"SizeRw": 30, "State": "exited"}],
        "Volumes": [{"UsageData": {"Size": 50, "RefCount": 0}}],
        "Usage": {
            "Images": {"Size": 300, "Reclaimable": 200}, "Containers": {"Size": 40, "Reclaimable": 30},
            "Local Volumes": {"Size": 50, "Reclaimable": 50}, "Build Cache": {"Size": 0, "Reclaimable": 0},
        },
    })  # fmt: skip
    assert [(r["TotalCount"], r["Active"], r["Size"], r["Reclaimable"]) for r in rows] == [
        ("2", "1", "300B", "200B (67%)"),
        ("2", "1", "40B", "30B (75%)"),
        ("1", "0", "50B", "50B (100%)"),
        ("0", "0", "0B", "0B"),
    ]


def test_info_is_a_tree_without_what_is_empty() -> None:
    found = {"A": 1, "B": {"C": True, "D": ""}, "E": [], "F": ["x", "y"], "G": [{"H": 1}]}
    assert list(tree(found)) == ["A: 1", "B:", " C: true", "F: x y", "G:", "  H: 1"]


def test_an_event_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    import time

    time.tzset()
    event = {"Type": "container", "Action": "start", "timeNano": 1_700_000_000_000_000_001,
             "Actor": {"ID": "abc", "Attributes": {"name": "web", "image": "alpine"}}}  # fmt: skip
    assert line(event) == "2023-11-14T22:13:20.000000001Z container start abc (image=alpine, name=web)"
