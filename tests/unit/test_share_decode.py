"""Bytes to records: every codec, gaps, markers, damage, and batches that are read in pieces."""

from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Sequence
from typing import Any

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.record.util import calc_crc32c

from wire.share import compression
from wire.share.decode import Decoder, _codec
from wire.share.errors import CorruptError

HEADERS = [("a", b"1"), ("none", None), ("a", b"")]
ALL = [(0, 10_000, 1)]


def batch(values: Sequence[bytes | None], base: int = 0, headers: Any = HEADERS) -> bytes:
    builder = MemoryRecordsBuilder(2, 0, 1 << 20)
    for value in values:
        builder.append(1_700_000_000_123, b"k", value, headers)
    builder.close()
    return struct.pack(">q", base) + bytes(builder.buffer())[8:]


def patched(data: bytes, *, attributes: int, body: bytes | None = None) -> bytes:
    """The batch with other attributes and body, its length and checksum made right."""
    head = bytearray(data[:61])
    rest = data[61:] if body is None else body
    struct.pack_into(">h", head, 21, attributes)
    struct.pack_into(">i", head, 8, 49 + len(rest))
    struct.pack_into(">I", head, 17, calc_crc32c(memoryview(bytes(head[21:]) + rest)))
    return bytes(head) + rest


def snappy_literals(data: bytes) -> bytes:
    """A bare snappy block of literals."""
    size, out = len(data), bytearray()
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    for at in range(0, len(data), 60):
        piece = data[at : at + 60]
        out.append((len(piece) - 1) << 2)
        out += piece
    return bytes(out)


def xerial(data: bytes) -> bytes:
    half = len(data) // 2
    blocks = [snappy_literals(piece) for piece in (data[:half], data[half:])]
    return b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1) + b"".join(struct.pack(">i", len(b)) + b for b in blocks)


def stream_zstd(data: bytes) -> bytes:
    """As Java writes it: a stream without its size in the header."""
    made = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return made.compress(data) + made.flush()


CODECS = {
    "none": (0, bytes),
    "gzip": (1, gzip.compress),
    "snappy": (2, snappy_literals),
    "snappy in frames": (2, xerial),
    "lz4": (3, lz4.frame.compress),
    "zstd": (4, stream_zstd),
}


@pytest.mark.parametrize("plain", [False, True], ids=["c codec", "plain codec"])
@pytest.mark.parametrize("name", CODECS)
def test_every_codec(name: str, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if plain:
        monkeypatch.setitem(sys.modules, "aiokafka.record._crecords", None)
    code, squeeze = CODECS[name]
    data = batch([b"one", None, b"three" * 100], base=7)
    data = patched(data, attributes=code, body=squeeze(data[61:]))
    decoder = Decoder()
    assert decoder.codec == ("kafka-python" if plain else "aiokafka")
    found = decoder.decode(memoryview(data), "jobs", 3, [(7, 9, 4)])
    assert [r.value for r in found.records] == [b"one", None, b"three" * 100]
    assert found.records[0] == ("jobs", 3, 7, b"k", b"one", tuple(HEADERS), 1_700_000_000_123, 4)
    assert found[1:] == ([], [], None)


KEYS = st.one_of(st.none(), st.sampled_from([b"", b"a", b"b", b"k" * 200]))


@pytest.mark.parametrize("plain", [False, True], ids=["c codec", "plain codec"])
@given(st.lists(KEYS, min_size=1, max_size=30), st.sets(KEYS.filter(lambda key: key is not None)), st.data())
def test_those_of_some_keys_only(
    plain: bool, keys: list[bytes | None], wanted: set[bytes], draw: st.DataObject
) -> None:
    builder = MemoryRecordsBuilder(2, 0, 1 << 20)
    for number, key in enumerate(keys):
        value = draw.draw(st.sampled_from([None, b"", b"v" * 20_000]))
        builder.append(1_700_000_000_000 + number * 1_000_000, key, value, HEADERS[: number % 4])
    builder.close()
    data = bytes(builder.buffer())
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            patch.setitem(sys.modules, "aiokafka.record._crecords", None)
        last = draw.draw(st.integers(0, len(keys) - 1))
        whole = Decoder().decode(data, "jobs", 0, [(0, last, 1)])
        found = Decoder().decode(data, "jobs", 0, [(0, last, 1)], keys=wanted)
    assert found.records == [record for record in whole.records if record.key in wanted]
    assert found[1:] == ([], [], None)
    beyond = Decoder().decode(data, "jobs", 0, [(0, len(keys), 1)], keys=wanted)
    assert (beyond.corrupt, type(beyond.error)) == ([len(keys)], CorruptError)


def test_damage_is_seen_where_some_keys_are_wanted() -> None:
    data = batch([b"one", b"two"])
    broken = patched(data, attributes=0, body=data[61:] + b"\0")
    found = Decoder().decode(broken, "jobs", 0, [(0, 1, 1)], keys={b"k"})
    assert (found.records, found.corrupt, type(found.error)) == ([], [0, 1], CorruptError)


@given(st.sets(st.integers(0, 29)), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_just_the_acquired_with_their_counts(offsets: set[int], sizes: list[int]) -> None:
    data, base = b"", 0
    for size in sizes:
        data += batch([b"%d" % (base + index) for index in range(size)], base)
        base += size
    acquired = [(offset, offset, offset % 3 + 1) for offset in sorted(offsets)]
    found = Decoder().decode(data, "jobs", 0, acquired)
    assert [(r.offset, r.delivery_count) for r in found.records] == [(o, c) for o, _, c in acquired if o < base]
    assert all(r.value == b"%d" % r.offset for r in found.records)
    assert found.gaps == []
    assert sorted(found.corrupt) == [o for o in sorted(offsets) if o >= base]  # never called a gap: it may be a record


def test_holes_and_markers_are_gaps() -> None:
    marker = patched(batch([b"\0\0\0\0\0\0"], 5), attributes=0x20)
    data = batch([b"a", b"b"], 0) + marker + batch([b"c"], 8)
    found = Decoder().decode(data, "jobs", 0, [(0, 8, 1)])
    assert [r.offset for r in found.records] == [0, 1, 8]
    assert found.gaps == [2, 3, 4, 5, 6, 7]
    assert found.error is None


def test_wrong_checksum_is_told_and_the_rest_read() -> None:
    data = bytearray(batch([b"a", b"b"], 0) + batch([b"c"], 2))
    data[70] ^= 0xFF
    found = Decoder().decode(bytes(data), "jobs", 0, [(1, 2, 1)])
    assert [r.offset for r in found.records] == [2]
    assert found.corrupt == [1]
    assert "jobs[0]@0-1: the checksum is wrong" in str(found.error)


def test_checksum_may_be_left_unchecked() -> None:
    data = bytearray(batch([b"a"]))
    data[17] ^= 0xFF
    assert len(Decoder(check_crcs=False).decode(bytes(data), "jobs", 0, ALL[:1]).records) == 1


def test_cut_batch_is_not_a_gap() -> None:
    data = batch([b"a"], 0) + batch([b"b", b"c"], 1)[:-1]
    found = Decoder().decode(data, "jobs", 0, [(0, 2, 1)])
    assert [r.offset for r in found.records] == [0]
    assert (found.gaps, found.corrupt) == ([], [1, 2])
    assert "not among the bytes sent" in str(found.error)


def test_old_format_and_nonsense_are_refused() -> None:
    old = bytearray(batch([b"a"]))
    old[16] = 1
    assert "format 1" in str(Decoder().decode(bytes(old), "jobs", 0, [(0, 0, 1)]).error)
    data = batch([b"a"])
    broken = patched(data, attributes=0, body=b"\x7f" * 10)
    assert Decoder().decode(broken, "jobs", 0, [(0, 0, 1)]).corrupt == [0]
    unknown = patched(data, attributes=7)
    assert "codec 7" in str(Decoder().decode(unknown, "jobs", 0, [(0, 0, 1)]).error)
    squashed = patched(data, attributes=1)
    assert "codec 1" in str(Decoder().decode(squashed, "jobs", 0, [(0, 0, 1)]).error)


def test_batch_read_in_pieces_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch([b"%d" % index for index in range(10)])
    decoder = Decoder()
    made: list[int] = []
    make = decoder._make
    monkeypatch.setattr(decoder, "_make", lambda plain: (made.append(1), make(plain))[1])
    seen = [decoder.decode(data, "jobs", 0, [(at, at + 1, 1)]).records[0].offset for at in range(0, 10, 2)]
    assert seen == [0, 2, 4, 6, 8]
    assert len(made) == 1
    assert decoder._kept == {}  # the last piece lets go of it


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(CorruptError, match="zstandard is needed"):
        compression.decompress(compression.ZSTD, b"")


def test_installed_snappy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fast:
        @staticmethod
        def uncompress(data: bytes) -> bytes:
            return b"fast:" + data

    compression._snappy_decoder.cache_clear()
    monkeypatch.setitem(sys.modules, "snappy", Fast)
    assert compression.decompress(compression.SNAPPY, b"x") == b"fast:x"
    compression._snappy_decoder.cache_clear()


@pytest.mark.parametrize(
    ("block", "plain"),
    [
        (b"\x0a\x00a\x15\x01", b"a" * 10),  # a one-byte-offset copy that overlaps what it writes
        (b"\x06\x08abc\x0a\x03\x00", b"abcabc"),  # two-byte offset
        (b"\x06\x08abc\x0b\x03\x00\x00\x00", b"abcabc"),  # four-byte offset
        (b"\x46\xf0\x45" + b"x" * 70, b"x" * 70),  # a literal whose length takes a byte
    ],
)
def test_snappy_copies(block: bytes, plain: bytes) -> None:
    assert compression.snappy_block(block) == plain


@pytest.mark.parametrize("block", [b"\x05\x08abc", b"\x06\x08abc\x0a\x09\x00", b"\x06\x08abc\x0a\x00\x00"])
def test_bad_snappy_is_corrupt(block: bytes) -> None:
    with pytest.raises(CorruptError):
        compression.decompress(compression.SNAPPY, block)


def test_codec_is_found() -> None:
    assert _codec()[1] == "aiokafka"
