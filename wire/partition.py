"""Which partition a key belongs to: Kafka's own rule, so that every client, in any language, agrees.

Source: Apache Kafka, `Utils.murmur2` and the default partitioner: the 32-bit hash with its sign bit cleared, modulo
the number of partitions.
"""

from __future__ import annotations

import struct
from functools import lru_cache

_SEED, _M = 0x9747B28C, 0x5BD1E995
_MASK = 0xFFFFFFFF


def partition_for(key: bytes, partitions: int) -> int:
    """Return the partition, of `partitions`, that holds the records of this key."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


@lru_cache(maxsize=16_384)  # a job has several events, all under one key
def murmur2(data: bytes) -> int:
    """Return the 32-bit murmur2 hash as Kafka computes it, unsigned."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for (k,) in struct.iter_unpack("<I", data[:whole]):
        k = (k * _M) & _MASK  # noqa: PLW2901 - the algorithm mixes each word in place
        h = (h * _M ^ (k ^ (k >> 24)) * _M) & _MASK
    rest = data[whole:]
    if rest:
        h = ((h ^ int.from_bytes(rest, "little")) * _M) & _MASK
    h = ((h ^ (h >> 13)) * _M) & _MASK
    return h ^ (h >> 15)
