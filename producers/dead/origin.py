"""Where a dead record came from and why it is dead: what its headers say, in every dialect that is known.

Sources: Tickertape, `schemas.dead`; Spring for Apache Kafka, `KafkaHeaders` and `DeadLetterPublishingRecoverer`
(numbers are big-endian, an int's four bytes or a long's eight; with retry topics the original headers are appended, so
the first topic is the true one and the last place is this record's); Kafka Connect, `DeadLetterQueueReporter`
(KIP-298); share groups, `ShareGroupDLQStateManager` (KIP-1191); Kafka Streams, `ExceptionHandlerUtils` (KIP-1034). The
last three write text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from schemas.dead import DISPOSITION, HEADER, DeadLetter
from schemas.past import LINE

Headers = Sequence[tuple[str, bytes | None]]

SPRING, CONNECT, SHARE, STREAMS = "kafka_dlt-", "__connect.errors.", "__dlq.errors.", "__streams.errors."
FOREIGN = "foreign"
"""The failure class of what other systems wrote, and the kind of what is no job of ours."""


class Dialect(StrEnum):
    """Who wrote the headers."""

    TICKERTAPE = "tickertape"
    SPRING = "spring"
    CONNECT = "connect"
    SHARE = "share-group"
    STREAMS = "streams"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Origin:
    """The record that died, and of what. `target` is where it must go to be tried again."""

    dialect: Dialect
    target: str | None = None
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    failure: str = FOREIGN
    code: str = "unknown"
    message: str = ""
    detail: str | None = None
    attempts: int = 0
    who: str = ""
    time: datetime | None = None
    letter: DeadLetter | None = None
    line: str = ""
    cut: int = 0
    """Bytes of a record that was too large for its letter, which does not hold it."""
    wrong: str = ""
    """Why the place cannot be told, where a header says it in no way that its dialect has."""

    @property
    def place(self) -> str | None:
        """TOPIC/PARTITION/OFFSET of the record that died, or of the one that it was a copy of, where all of it is told.

        A worker that dies between a copy and the acknowledgement of its original may leave a letter for each.
        """
        if self.line:
            return self.line
        if self.topic is None or self.partition is None or self.offset is None:
            return None
        return f"{self.topic}/{self.partition}/{self.offset}"


def read(headers: Headers) -> Origin:
    """Return what the headers of a dead letter tell; of what nobody can read, the dialect is unknown."""
    for name, _ in reversed(headers):
        for prefix, reader in _READERS.items():
            if name.startswith(prefix):
                found = reader(headers)
                if found.dialect is not Dialect.TICKERTAPE:
                    return found
                return replace(found, line=_line(headers), cut=_number(_last(headers, HEADER).get("cut")) or 0)
    return Origin(Dialect.UNKNOWN)


def _line(headers: Headers) -> str:
    told = next((raw for name, raw in headers if name == LINE and raw), b"")
    return told.decode("utf-8", "replace")


def original(headers: Headers) -> list[tuple[str, bytes | None]]:
    """Return the headers that the record had before it died: without those that tell of its death."""
    told = tuple(_READERS)
    return [header for header in headers if not header[0].startswith(told) and header[0] != DISPOSITION]


def _tickertape(headers: Headers) -> Origin:
    found = _last(headers, HEADER)
    try:
        letter = DeadLetter.model_validate_json(found.get("json", b""))
    except ValueError:
        return _flat(found)
    return Origin(
        Dialect.TICKERTAPE, letter.topic, letter.topic, letter.partition, letter.offset,
        failure=letter.failure.failure, code=letter.failure.code, message=letter.failure.message,
        detail=letter.failure.detail, attempts=letter.attempts, who=letter.worker, time=letter.time, letter=letter,
    )  # fmt: skip


def _flat(found: dict[str, bytes]) -> Origin:
    """The flat texts, for a letter whose JSON a newer or an older writer made unreadable."""
    return _plain(
        Dialect.TICKERTAPE, found, failure=_text(found, "class") or "unknown", code=_text(found, "code") or "unknown",
        message=_text(found, "message"), attempts=_number(found.get("attempts")) or 0, who=_text(found, "worker"),
        time=_moment(_text(found, "time")),
    )  # fmt: skip


def _plain(dialect: Dialect, found: dict[str, bytes], **fields: Any) -> Origin:
    """An origin in a dialect that calls the place by its own name, and goes back to where it came from."""
    topic, prefix = _text(found, "topic") or None, _PREFIXES[dialect]
    partition, offset = _number(found.get("partition")), _number(found.get("offset"))
    wrong = _wrong(prefix, found, {"partition": partition, "offset": offset}, "a decimal number")
    return Origin(dialect, topic, topic, partition, offset, wrong=wrong, **fields)


def _spring(headers: Headers) -> Origin:
    found = _last(headers, SPRING)
    first = next((raw for name, raw in headers if name == f"{SPRING}original-topic" and raw), b"")
    name = _text(found, "exception-cause-fqcn") or _text(found, "exception-fqcn")
    sizes = {"original-partition": 4, "original-offset": 8, "original-timestamp": 8}
    told = {name: _binary(found.get(name), size) for name, size in sizes.items()}
    return Origin(
        Dialect.SPRING, first.decode("utf-8", "replace") or None, _text(found, "original-topic") or None,
        told["original-partition"], told["original-offset"], code=_short(name),
        message=_text(found, "exception-message"), detail=_text(found, "exception-stacktrace") or None,
        who=_text(found, "original-consumer-group"), time=_since_epoch(told["original-timestamp"]),
        wrong=_wrong(SPRING, found, told, "a big-endian integer"),
    )  # fmt: skip


def _connect(headers: Headers) -> Origin:
    found = _last(headers, CONNECT)
    task, stage = _text(found, "task.id"), _text(found, "stage")
    return _plain(
        Dialect.CONNECT, found, code=_short(_text(found, "exception.class.name")),
        message=_text(found, "exception.message") or (f"failed at {stage}" if stage else ""),
        detail=_text(found, "exception.stacktrace") or None,
        who=_text(found, "connector.name") + (f"/{task}" if task else ""),
    )  # fmt: skip


def _share(headers: Headers) -> Origin:
    found = _last(headers, SHARE)
    return _plain(
        Dialect.SHARE, found, code="rejected" if "reject" in _text(found, "message").lower() else "undelivered",
        message=_text(found, "message"), attempts=_number(found.get("delivery.count")) or 0, who=_text(found, "group"),
    )  # fmt: skip


def _streams(headers: Headers) -> Origin:
    found = _last(headers, STREAMS)
    return _plain(
        Dialect.STREAMS, found, code=_short(_text(found, "exception")), message=_text(found, "message"),
        detail=_text(found, "stacktrace") or None,
    )  # fmt: skip


_READERS: dict[str, Callable[[Headers], Origin]] = {
    HEADER: _tickertape,
    SPRING: _spring,
    CONNECT: _connect,
    SHARE: _share,
    STREAMS: _streams,
}
"""Who reads headers of which prefix; where a record died several times, the newest headers are the last."""


_PREFIXES = {
    Dialect.TICKERTAPE: HEADER,
    Dialect.CONNECT: CONNECT,
    Dialect.SHARE: SHARE,
    Dialect.STREAMS: STREAMS,
}


def _last(headers: Headers, prefix: str) -> dict[str, bytes]:
    return {name[len(prefix) :]: raw for name, raw in headers if raw is not None and name.startswith(prefix)}


def _text(found: dict[str, bytes], name: str) -> str:
    return found.get(name, b"").decode("utf-8", "replace")


def _number(raw: bytes | None) -> int | None:
    """Decimal text."""
    return int(raw) if raw and raw.isdigit() and len(raw) < 20 else None


def _binary(raw: bytes | None, size: int) -> int | None:
    """A big-endian integer of so many bytes."""
    found = int.from_bytes(raw, "big", signed=True) if raw and len(raw) == size else -1
    return found if found >= 0 else None


def _wrong(prefix: str, found: dict[str, bytes], told: dict[str, int | None], wanted: str) -> str:
    """Why numbers that headers hold cannot be told; empty where they can, or are not there."""
    for name, number in told.items():
        if number is None and found.get(name):
            return f"the header {prefix}{name} is not {wanted}: {found[name][:32]!r}"
    return ""


def _short(name: str) -> str:
    """The last part of a Java class's name: what people call it."""
    return name.replace("$", ".").rpartition(".")[2] or "unknown"


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _since_epoch(milliseconds: int | None) -> datetime | None:
    if milliseconds is None:
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None
