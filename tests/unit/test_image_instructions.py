"""What `commit --change` does to a config: docker's instructions, one by one, and what is refused."""

from __future__ import annotations

import pytest

from wherry.engine.build.changes import changed as apply
from wherry.errors import Kind, WherryError

BASE = {"Cmd": ["old"], "Entrypoint": ["e"], "Env": ["PATH=/bin", "A=1"], "Labels": {"a": "1"}, "WorkingDir": "/w"}


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ('CMD ["a", "b c"]', "Cmd", ["a", "b c"]),
        ("CMD echo $HOME  now", "Cmd", ["/bin/sh", "-c", "echo $HOME  now"]),
        ("cmd [not json]", "Cmd", ["/bin/sh", "-c", "[not json]"]),
        ('ENTRYPOINT ["/x"]', "Entrypoint", ["/x"]),
        ("ENTRYPOINT []", "Entrypoint", None),
        ("ENV A=2 B='x y' C=\"z\\\"q\"", "Env", ["PATH=/bin", "A=2", "B=x y", 'C=z"q']),
        ("ENV A two words", "Env", ["PATH=/bin", "A=two words"]),
        ("EXPOSE 80 53/udp 8000-8002/tcp", "ExposedPorts",
         {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}}),
        ('LABEL b="2 3" c=', "Labels", {"a": "1", "b": "2 3", "c": ""}),
        ("ONBUILD RUN make", "OnBuild", ["RUN make"]),
        ("USER 33:33", "User", "33:33"),
        ('VOLUME ["/a b", "/c"]', "Volumes", {"/a b": {}, "/c": {}}),
        ("VOLUME /a /b", "Volumes", {"/a": {}, "/b": {}}),
        ("WORKDIR sub/../deep", "WorkingDir", "/w/deep"),
        ("WORKDIR /abs", "WorkingDir", "/abs"),
        ("STOPSIGNAL SIGRTMIN+3", "StopSignal", "SIGRTMIN+3"),
        ("HEALTHCHECK NONE", "Healthcheck", {"Test": ["NONE"]}),
        ("HEALTHCHECK --interval=1m30s --retries=3 CMD curl -f x", "Healthcheck",
         {"Test": ["CMD-SHELL", "curl -f x"], "Interval": 90_000_000_000, "Retries": 3}),
        ('HEALTHCHECK CMD ["a", "b"]', "Healthcheck", {"Test": ["CMD", "a", "b"]}),
    ],
)  # fmt: skip
def test_an_instruction(line: str, key: str, value: object) -> None:
    assert apply(BASE, [line]).get(key) == value
    assert BASE["Env"] == ["PATH=/bin", "A=1"]  # nothing is changed in place


def test_an_entrypoint_drops_the_command_that_was_for_the_old_one() -> None:
    assert "Cmd" not in apply(BASE, ['ENTRYPOINT ["/x"]'])
    assert apply(BASE, ["CMD new", 'ENTRYPOINT ["/x"]'])["Cmd"] == ["/bin/sh", "-c", "new"]
    assert apply(BASE, ["ENV X=1\nUSER me"])["User"] == "me"  # several lines in one change


def test_a_shell_of_the_image_is_used() -> None:
    assert apply({"Shell": ["/bin/ash", "-ec"]}, ["CMD x"])["Cmd"] == ["/bin/ash", "-ec", "x"]


@pytest.mark.parametrize(
    "line",
    ["RUN make", "COPY a b", "FROM x", "CMD", "EXPOSE 99999", "EXPOSE 9-8", "EXPOSE x/tcp", "ENV A", "ENV A=1 B",
     "LABEL =x", "ONBUILD FROM x", "ONBUILD ONBUILD RUN x", "STOPSIGNAL no such", "HEALTHCHECK maybe",
     "HEALTHCHECK CMD",
     "HEALTHCHECK --interval=soon CMD x", "HEALTHCHECK --nope=1 CMD x", 'ENV A="open', 'VOLUME [""]'],
)  # fmt: skip
def test_what_is_refused(line: str) -> None:
    with pytest.raises(WherryError) as caught:
        apply(BASE, [line])
    assert caught.value.kind is Kind.INVALID
