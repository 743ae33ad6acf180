"""The follower in memory: the same feeds on a log that lives in this process."""

from __future__ import annotations

import threading
from collections.abc import Container, Mapping
from datetime import datetime

from wire.follow.feed import Handover, HandoverFeed
from wire.follow.port import Feed, Received, Since, milliseconds, unknown
from wire.partition import partition_for
from wire.share.memory import MemoryLog


class MemoryFollower:
    """A `Follower` on a log in memory."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    def follow(
        self, topic: str, *, since: Since = "end", key: bytes | None = None, stop: threading.Event | None = None
    ) -> Feed:
        """Return the records from a point on, and those to come; see `Follower.follow`."""
        out: Handover[list[Received]] = Handover()
        with self._log.changed:
            positions = self._positions(topic, since, key)
            keys = None if key is None else {key}
            release = self._log.subscribe(lambda: self._pass_on(topic, positions, keys, out))
            self._pass_on(topic, positions, keys, out)
        return HandoverFeed(out, unpack=_same, stop=stop, release=release)

    def read(
        self, topic: str, *, since: Since = "start", key: bytes | None = None, keys: Container[bytes] | None = None
    ) -> Feed:
        """Return the records from a point up to now; see `Follower.read`."""
        out: Handover[list[Received]] = Handover()
        with self._log.changed:
            self._pass_on(topic, self._positions(topic, since, key), keys if key is None else {key}, out)
        out.finish()
        return HandoverFeed(out, unpack=_same, stop=None, release=_nothing)

    def _positions(self, topic: str, since: Since, key: bytes | None) -> dict[int, int]:
        count = self._log.partitions(topic)
        if not count:
            raise unknown(topic)
        wanted = range(count) if key is None else [partition_for(key, count)]
        return {part: self._start(topic, part, since) for part in wanted}

    def _start(self, topic: str, part: int, since: Since) -> int:
        if since == "end":
            return self._log.end(topic, part)
        if isinstance(since, Mapping):
            return since.get(part, 0)
        if isinstance(since, datetime):
            moment = milliseconds(since)
            entries = self._log.read(topic, part)
            return next((entry.offset for entry in entries if entry.timestamp_ms >= moment), len(entries))
        return 0

    def _pass_on(
        self, topic: str, positions: dict[int, int], keys: Container[bytes] | None, out: Handover[list[Received]]
    ) -> None:
        with self._log.changed:
            for part, offset in positions.items():
                entries = self._log.read(topic, part, offset)
                positions[part] = offset + len(entries)
                batch = [Received(topic, *entry) for entry in entries if keys is None or entry.key in keys]
                if batch:
                    out.put(batch)


def _same(batch: list[Received]) -> list[Received]:
    return batch


def _nothing() -> None:
    return None
