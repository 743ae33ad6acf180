"""Decompress record batches of every codec Kafka knows. Libraries are loaded when first met.

gzip needs nothing, lz4 and zstd need `lz4` and `zstandard`. Snappy is decoded by `cramjam` or `snappy` when one is
installed, else by a plain (slow, correct) decoder here.
"""

from __future__ import annotations

import gzip
import importlib
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

from .errors import CorruptError

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
_XERIAL = b"\x82SNAPPY\x00"


def decompress(codec: int, data: bytes | memoryview) -> bytes:
    """The plain bytes of a batch's records. Raises CorruptError."""
    try:
        if codec == GZIP:
            return gzip.decompress(data)
        if codec == SNAPPY:
            return _snappy_stream(bytes(data))
        if codec == LZ4:
            return bytes(_module("lz4.frame").decompress(bytes(data)))
        if codec == ZSTD:
            reader = _module("zstandard").ZstdDecompressor().stream_reader(bytes(data), read_across_frames=True)
            return bytes(reader.read())
    except CorruptError:
        raise
    except Exception as exc:  # each library has an error class of its own
        raise CorruptError(f"compressed batch (codec {codec}): {exc}") from exc
    raise CorruptError(f"unknown compression codec {codec}")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise CorruptError(f"the package {name.partition('.')[0]} is needed to read this batch") from exc


def _snappy_stream(data: bytes) -> bytes:
    """Java clients frame snappy in blocks with a 16-byte header; librdkafka sends one bare block."""
    inflate = _snappy_decoder()
    if not data.startswith(_XERIAL):
        return inflate(data)
    blocks, at = [], 16
    while at < len(data):
        (size,) = struct.unpack_from(">i", data, at)
        at += 4
        blocks.append(inflate(data[at : at + size]))
        at += size
    return b"".join(blocks)


@cache
def _snappy_decoder() -> Callable[[bytes], bytes]:
    for name, attribute in (("cramjam.snappy", "decompress_raw"), ("snappy", "uncompress")):
        try:
            function = getattr(importlib.import_module(name), attribute)
        except (ImportError, AttributeError):
            continue
        return lambda block: bytes(function(block))
    return snappy_block


def snappy_block(data: bytes) -> bytes:
    """One bare snappy block, decoded in plain Python. Raises CorruptError."""
    size, at = _varint(data, 0)
    out = bytearray()
    end = len(data)
    while at < end:
        tag = data[at]
        at += 1
        kind = tag & 3
        if kind == 0:
            length, at = _literal(data, at, tag >> 2)
            out += data[at : at + length]
            at += length
            continue
        if kind == 1:
            length, back = ((tag >> 2) & 7) + 4, ((tag >> 5) << 8) | data[at]
            at += 1
        else:
            width = 2 if kind == 2 else 4
            length, back = (tag >> 2) + 1, int.from_bytes(data[at : at + width], "little")
            at += width
        _copy(out, back, length)
    if len(out) != size:
        raise CorruptError(f"snappy block of {len(out)} bytes, {size} were announced")
    return bytes(out)


def _literal(data: bytes, at: int, short: int) -> tuple[int, int]:
    if short < 60:
        return short + 1, at
    width = short - 59
    return int.from_bytes(data[at : at + width], "little") + 1, at + width


def _copy(out: bytearray, back: int, length: int) -> None:
    if not 0 < back <= len(out):
        raise CorruptError("snappy copy reaches before the block")
    while length > 0:  # a copy may overlap what it writes
        start = len(out) - back
        piece = out[start : start + min(length, back)]
        out += piece
        length -= len(piece)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
