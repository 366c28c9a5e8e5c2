"""What a docker client is told of a failure: the sentences that clients look for, whatever ours are."""

from __future__ import annotations

import json

import pytest

from wherry.daemon.docker import gate, requests
from wherry.errors import Kind, WherryError


@pytest.mark.parametrize(
    ("kind", "ours", "dockers", "status"),
    [
        (Kind.NOT_FOUND, "no such container: one", "No such container: one", 404),
        (Kind.CONFLICT, "port 127.0.0.1:80/tcp is in use: container abc publishes it",
         "driver failed programming external connectivity: Bind for 127.0.0.1:80 failed: port is already allocated: "
         "container abc publishes it", 409),
        (Kind.CONFLICT, "volume v is in use by [abc]", "remove v: volume is in use - [abc]", 409),
        (Kind.CONFLICT, "network n is in use by one",
         "error while removing network: network n has active endpoints: one", 409),
        (Kind.INVALID, "a volume v is in use by chance", "a volume v is in use by chance", 400),
    ],
)  # fmt: skip
def test_words(kind: Kind, ours: str, dockers: str, status: int) -> None:
    answer = gate.failed(WherryError(kind, ours))
    assert isinstance(answer.body, bytes)
    assert (answer.status, json.loads(answer.body)) == (status, {"message": dockers})


def test_a_name_that_is_nothing() -> None:
    assert requests.create({"Image": "a"}, "", "").name == ""
    assert requests.create({"Image": "a"}, "/one", "").name == "one"
    with pytest.raises(WherryError, match="Invalid container name"):
        requests.create({"Image": "a"}, "/", "")
