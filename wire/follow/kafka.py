"""The follower on Kafka: one link per feed, because a broker serves one connection's requests in turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container

from schemas.errors import InvalidError
from wire.follow.feed import Handover, HandoverFeed
from wire.follow.fetch import Fetcher, Piece
from wire.follow.offsets import ends, partitions, starts
from wire.follow.port import Feed, Received, Since
from wire.follow.span import committed, spans
from wire.kafka import Link
from wire.partition import partition_for
from wire.settings import Settings
from wire.share.decode import Decoder


class KafkaFollower:
    """A `Follower` on Kafka; `patience_s` is how long a feed endures without an answer from any broker."""

    def __init__(self, settings: Settings, *, patience_s: float = 30.0, name: str = "tape-follower") -> None:
        self._settings = settings
        self._patience_s = patience_s
        self._name = name

    def follow(
        self, topic: str, *, since: Since = "end", key: bytes | None = None, stop: threading.Event | None = None
    ) -> Feed:
        """Return the records from a point on, and those to come; see `Follower.follow`."""
        return self._open(topic, since, key, None, bounded=False, stop=stop)

    def read(
        self, topic: str, *, since: Since = "start", key: bytes | None = None, keys: Container[bytes] | None = None
    ) -> Feed:
        """Return the records from a point up to now; see `Follower.read`."""
        return self._open(topic, since, key, keys, bounded=True, stop=None)

    def _open(
        self,
        topic: str,
        since: Since,
        key: bytes | None,
        keys: Container[bytes] | None,
        *,
        bounded: bool,
        stop: threading.Event | None,
    ) -> Feed:
        link = Link(self._settings, name=self._name)
        try:
            parts = link.run(partitions, link, topic)
            if key is not None:
                parts = [partition_for(key, len(parts))]
            positions = link.run(starts, link, topic, parts, since)
            limits = link.run(ends, link, topic, parts) if bounded else None
            out: Handover[Piece] = Handover()
            fetcher = Fetcher(link, topic, positions, ends=limits, out=out, patience_s=self._patience_s)
            unpack = _unpacker(topic, keys if key is None else {key}, fetcher)
            link.net.call_soon_threadsafe(fetcher.look)
        except BaseException:
            link.close()
            raise
        return HandoverFeed(out, unpack=unpack, stop=stop, release=link.close)


def _unpacker(topic: str, keys: Container[bytes] | None, fetcher: Fetcher) -> Callable[[Piece], list[Received]]:
    decoder = Decoder()

    def unpack(piece: Piece) -> list[Received]:
        fetcher.taken(len(piece.data))
        runs = committed(spans(piece.data), piece.aborted, start=piece.start, end=piece.end)
        wanted = [(first, last, 1) for first, last in runs]
        found = decoder.decode(piece.data, topic, piece.partition, wanted, keys=keys)
        if found.error is not None:
            raise InvalidError(
                f"a batch cannot be read: {found.error}",
                code="TAPE-6007",
                topic=topic,
                partition=piece.partition,
                hint="follow from a later offset; then look at the broker's disk",
            )
        return [Received(*record[:7]) for record in found.records]

    return unpack
