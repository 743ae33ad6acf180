"""The meeting point of the two threads: what happens when they meet badly."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from wire.share import Listener, OffsetRange, Record, ShareError
from wire.share.decode import Decoded, Decoder
from wire.share.errors import SessionLostError
from wire.share.mailbox import Chunk, Mailbox

TIP = (uuid.UUID(int=1), 0)


class Losing(Decoder):
    """The session is lost just while the owner decodes."""

    mailbox: Mailbox

    def decode(self, data: Any, topic: str, partition: int, acquired: Any) -> Decoded:
        self.mailbox.lose(SessionLostError("gone"), node=1)
        return Decoded([Record(topic, partition, 0, None, b"x", (), 0, 1)], [], [], None)


class Log(Listener):
    def __init__(self) -> None:
        self.lost: list[OffsetRange] = []

    def on_lost(self, ranges: Sequence[OffsetRange], error: ShareError) -> None:
        self.lost += ranges


def test_session_lost_while_decoding_gives_no_records() -> None:
    decoder, log = Losing(), Log()
    mailbox = decoder.mailbox = Mailbox(decoder, log, None)
    mailbox.deliver([Chunk(TIP, 1, "jobs", b"", [(0, 0, 1)])])
    assert mailbox.outstanding() == 1
    assert mailbox.take(5) == []
    assert mailbox.outstanding() == 0
    assert log.lost == []  # nobody ever saw them


def test_decoded_but_unseen_records_go_silently_and_seen_ones_do_not() -> None:
    class Two(Decoder):
        def decode(self, data: Any, topic: str, partition: int, acquired: Any) -> Decoded:
            return Decoded([Record(topic, partition, at, None, b"x", (), 0, 1) for at in (0, 1)], [], [], None)

    log = Log()
    mailbox = Mailbox(Two(), log, None)
    mailbox.deliver([Chunk(TIP, 1, "jobs", b"", [(0, 1, 1)])])
    (seen,) = mailbox.take(1)
    assert seen.offset == 0
    mailbox.lose(SessionLostError("gone"), node=2)
    assert mailbox.outstanding() == 2
    mailbox.lose(SessionLostError("gone"), tip=TIP)
    assert log.lost == [("jobs", 0, 0, 1)]
    assert mailbox.take(1) == []
    assert mailbox.demand == 1


def test_old_records_are_shed_and_young_ones_kept() -> None:
    class One(Decoder):
        def decode(self, data: Any, topic: str, partition: int, acquired: Any) -> Decoded:
            return Decoded([Record(topic, partition, at, None, b"x", (), 0, 1) for at in (0, 1)], [], [], None)

    mailbox = Mailbox(One(), Log(), None)
    mailbox.lock_timeout = 10.0
    chunk = Chunk(TIP, 1, "jobs", b"", [(0, 1, 1)])
    mailbox.deliver([chunk])
    (seen,) = mailbox.take(1)
    mailbox.shed(chunk.at + 4.9)
    assert not mailbox.leases.queued()
    mailbox.shed(chunk.at + 5.1)
    assert mailbox.leases.take(1) == {TIP: {1: 2}}
    assert mailbox.leases.holds(seen)
    assert mailbox.take(1) == []
