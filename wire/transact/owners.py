"""What a group has read and who read it: the road by which partitions change hands without a record counting twice.

Each owner notes its transactional id beside the offsets it commits. Offsets that a transaction wrote but did not end
cannot be read, and an owner that was only frozen could end it after somebody else took its partitions over. Both are
settled by opening the noted name once: that aborts what it has open, or waits until it is written.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from kafka import errors as kafka_errors
from kafka.protocol.consumer import OffsetFetchRequest

from wire.kafka import Link, mapped
from wire.settings import Settings
from wire.transact.kafka import KafkaTransactor

Place = tuple[str, int]
PAUSE_S = 0.02


def fence(settings: Settings, link: Link, group: str, places: Collection[Place], *, keep: str) -> set[str]:
    """End what the last owners of these partitions may have open, all but `keep`; return their names.

    Raises `UnavailableError`, `AuthError`.
    """
    if not places:
        return set()
    found = {part.metadata for _, part in _fetch(link, group, places, stable=False) if part.metadata} - {keep}
    for name in found:
        KafkaTransactor(settings, name).close()
    return found


def committed(link: Link, group: str, places: Collection[Place]) -> dict[Place, int]:
    """Return the offsets to go on from, once no transaction is open on them; what has none is left out.

    Raises `UnavailableError` (TAPE-5001) when one stays open for longer than the link's timeout, `AuthError`.
    """
    if not places:
        return {}
    found = _fetch(link, group, places, stable=True)
    return {place: part.committed_offset for place, part in found if part.committed_offset >= 0}


def _fetch(link: Link, group: str, places: Collection[Place], *, stable: bool) -> list[tuple[Place, Any]]:
    """Ask for a group's offsets until the group answers, and where `stable`, until none of them is in a transaction."""
    topics: dict[str, list[int]] = {}
    for topic, partition in places:
        topics.setdefault(topic, []).append(partition)
    kind = OffsetFetchRequest.OffsetFetchRequestGroup
    asked = [kind.OffsetFetchRequestTopics(name=name, partition_indexes=parts) for name, parts in topics.items()]
    request = OffsetFetchRequest(
        groups=[kind(group_id=group, topics=asked)], require_stable=stable, min_version=8, max_version=8
    )
    until = time.monotonic() + link.timeout_s
    while True:
        [answer] = link.call(request, link.coordinator(group)).groups
        found = [((topic.name, part.partition_index), part) for topic in answer.topics for part in topic.partitions]
        codes = [part.error_code for _, part in found] if stable else []
        wrong = answer.error_code or next(filter(None, codes), 0)
        if not wrong:
            return found
        error = kafka_errors.for_code(wrong)(group)
        if not isinstance(error, kafka_errors.RetriableError) or time.monotonic() >= until:
            raise mapped(error, group=group)
        time.sleep(PAUSE_S)
