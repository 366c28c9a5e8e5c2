"""Streams that break off are refused whatever they are packed by; whole ones come out as they went in."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random

import pytest
import zstandard

from wherry.image.inflate import broken_streams, inflate
from wherry.image.streams import Stream

DATA = os.urandom(200_000) + bytes(300_000) + b"text " * 20_000


def frames(*parts: bytes) -> bytes:
    packer = zstandard.ZstdCompressor(level=3, write_content_size=False, write_checksum=True)
    return b"".join(packer.compress(part) for part in parts)


WHOLE = {
    "gzip": gzip.compress(DATA, 6, mtime=0), "gzip, members": gzip.compress(DATA[:999]) + gzip.compress(DATA[999:]),
    "zstd": zstandard.ZstdCompressor().compress(DATA), "zstd, frames": frames(DATA[:999], DATA[999:]), "plain": DATA,
    "bzip2": bz2.compress(DATA), "xz": lzma.compress(DATA),
}  # fmt: skip


@pytest.mark.parametrize("form", WHOLE)
def test_what_is_whole_comes_out(form: str) -> None:
    assert b"".join(inflate(io.BytesIO(WHOLE[form]))) == DATA
    with Stream(io.BytesIO(WHOLE[form]), "it") as stream:
        assert stream.read(1 << 30) == DATA
        assert stream.at == len(DATA)


@pytest.mark.parametrize("form", ["gzip", "zstd", "zstd, frames", "bzip2", "xz"])
def test_what_breaks_off_is_refused(form: str) -> None:
    whole, chance = WHOLE[form], random.Random(7)
    cuts = {chance.randrange(4, len(whole)) for _ in range(100)} - {
        len(frames(DATA[:999]))
    }  # where a frame ends, it may
    for cut in cuts:
        with pytest.raises(broken_streams()):
            list(inflate(io.BytesIO(whole[:cut])))
