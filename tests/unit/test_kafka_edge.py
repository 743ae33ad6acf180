"""The edge to Kafka: connection arguments, errors, properties, offsets of fetched bytes, hand-overs."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import errors as kafka_errors
from kafka.record.default_records import DefaultRecordBatchBuilder

from schemas.errors import AuthError, InvalidError, TapeError, UnavailableError
from wire.broker.config import Ports, Security, properties, render
from wire.broker.jars import Runtime
from wire.broker.port import owner
from wire.follow.feed import Handover, HandoverFeed
from wire.follow.span import Span, committed, spans
from wire.kafka import Link, TokenFile, connection, mapped
from wire.settings import Settings
from wire.transport import receive


@pytest.mark.parametrize(
    ("settings", "lacking"),
    [
        ({"kafka_security": "SASL_SSL"}, "TAPE_KAFKA_MECHANISM"),
        ({"kafka_security": "SASL_PLAINTEXT", "kafka_mechanism": "PLAIN"}, "TAPE_KAFKA_USERNAME"),
        ({"kafka_security": "SASL_PLAINTEXT", "kafka_mechanism": "OAUTHBEARER"}, "TAPE_KAFKA_TOKEN_FILE"),
    ],
)
def test_a_security_setting_without_its_partner_is_named(settings: dict[str, Any], lacking: str) -> None:
    with pytest.raises(InvalidError) as caught:
        connection(Settings(**settings))
    assert (caught.value.code, caught.value.place["field"]) == ("TAPE-1007", lacking)


def test_a_token_is_read_again_at_every_connect(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one\n")
    provider = connection(
        Settings(kafka_security="SASL_PLAINTEXT", kafka_mechanism="OAUTHBEARER", kafka_token_file=path)
    )["sasl_oauth_token_provider"]
    assert isinstance(provider, TokenFile)
    assert provider.token() == "one"
    path.write_text("two")
    assert (provider.token(), provider.extensions()) == ("two", {})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (kafka_errors.SaslAuthenticationFailedError("no"), "TAPE-4001"),
        (kafka_errors.UnsupportedSaslMechanismError("no"), "TAPE-4001"),
        (kafka_errors.TopicAuthorizationFailedError("t"), "TAPE-4003"),
        (kafka_errors.UnknownTopicOrPartitionError("t"), "TAPE-2004"),
        (kafka_errors.InvalidTopicError("t"), "TAPE-2004"),
        (kafka_errors.MessageSizeTooLargeError(), "TAPE-1006"),
        (kafka_errors.TopicAlreadyExistsError("t"), "TAPE-3001"),
        (kafka_errors.IncompatibleBrokerVersion("old"), "TAPE-5005"),
        (kafka_errors.InvalidConfigurationError("x"), "TAPE-1007"),
        (kafka_errors.KafkaConnectionError("gone"), "TAPE-5001"),
        (ValueError("what"), "TAPE-5001"),
    ],
)
def test_errors_are_mapped(error: Exception, code: str) -> None:
    found = mapped(error, topic="t")
    assert (found.code, found.place) == (code, {"topic": "t"})
    assert "Error" not in found.message.split(":")[0]


def test_our_own_errors_pass_and_the_rest_is_what_the_caller_says() -> None:
    own = AuthError("no")
    assert mapped(own) is own
    assert mapped(kafka_errors.NotEnoughReplicasError("x"), code="TAPE-5003").code == "TAPE-5003"


def test_properties_of_one_and_of_three_nodes(tmp_path: Path) -> None:
    one = properties(1, {1: Ports(1, 2, 3)}, data=tmp_path, security=Security(), extra={"log.dirs": "mine"})
    assert one["controller.quorum.voters"] == "1@127.0.0.1:3"
    assert one["offsets.topic.replication.factor"] == one["min.insync.replicas"] == "1"
    assert one["log.dirs"] == "mine"
    three = {number: Ports(number, 10 + number, 20 + number) for number in (1, 2, 3)}
    two = properties(2, three, data=tmp_path, security=Security(), extra={})
    assert two["controller.quorum.voters"] == "1@127.0.0.1:21,2@127.0.0.1:22,3@127.0.0.1:23"
    assert two["listeners"] == "CLIENT://127.0.0.1:2,INTERNAL://127.0.0.1:12,CONTROLLER://127.0.0.1:22"
    assert (two["share.coordinator.state.topic.replication.factor"], two["min.insync.replicas"]) == ("3", "2")


def test_passwords_are_not_shown() -> None:
    security = Security("SASL_PLAINTEXT", "SCRAM-SHA-256", users={"alice": "hunter2"})
    assert "hunter2" not in repr(security)
    assert security.scram() == ["SCRAM-SHA-256=[name=alice,password=hunter2]"]
    assert Security().scram() == Security("SASL_PLAINTEXT", "PLAIN", users={"a": "b"}).scram() == []
    assert render({"a": "b\\c\nd"}) == "a=b\\\\c\\nd\n"


def test_foreign_java_options_are_left_out(tmp_path: Path) -> None:
    runtime = Runtime(Path("java"), tmp_path, tmp_path / "none.jsa")
    assert runtime.environment({"JAVA_TOOL_OPTIONS": "-Xmx9g", "HOME": "/h"}) == {"HOME": "/h", "CLASSPATH": ""}
    assert not any("SharedArchiveFile" in flag for flag in runtime.command("Main"))
    assert any("ArchiveClassesAtExit" in flag for flag in runtime.command("Main", record=tmp_path / "new.jsa"))


def test_the_owner_of_a_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert f"(pid {os.getpid()})" in (owner(server.getsockname()[1]) or "")
    assert owner(1) is None
    assert owner(1, proc=Path("/nowhere")) is None


def batch(base: int, count: int, *, producer: int = -1) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=producer >= 0,
        producer_id=producer,
        producer_epoch=0,
        base_sequence=0,
        batch_size=1 << 20,
    )
    for number in range(count):
        builder.append(number, 0, b"k", b"v", [])
    data = bytearray(builder.build())
    data[:8] = base.to_bytes(8, "big")
    return bytes(data)


def test_spans_are_read_from_headers_and_a_cut_batch_is_left_out() -> None:
    data = batch(5, 3) + batch(8, 2, producer=7)
    assert list(spans(data)) == [Span(5, 7, -1, False, False), Span(8, 9, 7, True, False)]
    assert list(spans(data[:-1])) == [Span(5, 7, -1, False, False)]
    assert list(spans(b"")) == list(spans(b"\0" * 100)) == []


def test_aborted_transactions_and_their_markers_are_left_out() -> None:
    found = [
        Span(0, 1, 1, True, False),  # aborted
        Span(2, 3, 2, True, False),  # committed, meanwhile
        Span(4, 4, 1, True, True),  # the marker that aborts
        Span(5, 6, 1, True, False),  # the same producer's next one
        Span(7, 7, 2, True, True),
        Span(8, 9, -1, False, False),
    ]
    assert committed(found, [(1, 0)], start=0, end=None) == [(2, 3), (5, 6), (8, 9)]
    assert committed(found, [(1, 0), (1, 5)], start=3, end=9) == [(3, 3), (8, 8)]


@given(st.integers(0, 30), st.integers(0, 30), st.lists(st.integers(1, 4), max_size=8))
def test_runs_cover_exactly_what_is_wanted(start: int, length: int, sizes: list[int]) -> None:
    found, at = [], 0
    for size in sizes:
        found.append(Span(at, at + size - 1, -1, False, False))
        at += size
    runs = committed(found, [], start=start, end=start + length)
    covered = [offset for first, last in runs for offset in range(first, last + 1)]
    assert covered == [offset for offset in range(at) if start <= offset < start + length]


def feed(source: Handover[list[int]], stop: threading.Event | None = None) -> tuple[Any, list[str]]:
    ended: list[str] = []
    return HandoverFeed(source, unpack=lambda item: item, stop=stop, release=lambda: ended.append("x")), ended


def test_a_feed_gives_what_is_left_after_the_end_and_ends_once() -> None:
    source: Handover[list[int]] = Handover()
    source.put([1])
    source.put([])
    source.put([2, 3])
    source.finish()
    found, ended = feed(source)
    assert list(found) == [[1], [2, 3]]
    assert found.poll() == []
    found.close()
    assert ended == ["x"]


def test_a_feed_raises_what_ended_it_after_what_is_left() -> None:
    source: Handover[list[int]] = Handover()
    source.put([1])
    source.finish(UnavailableError("gone"))
    found, ended = feed(source)
    assert next(found) == [1]
    with pytest.raises(TapeError, match="gone"):
        next(found)
    assert ended == ["x"]
    assert list(found) == []


def test_a_feed_waits_no_longer_than_asked() -> None:
    found, ended = feed(Handover())
    assert found.poll(0) == found.poll(0.01) == []
    with found:
        pass
    assert ended == ["x"]


def test_a_stopped_feed_ends() -> None:
    stop = threading.Event()
    found, ended = feed(Handover(), stop)
    threading.Timer(0.01, stop.set).start()
    assert list(found) == []
    assert ended == ["x"]


def test_what_came_before_the_end_of_a_connection_counts() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        with theirs:
            assert receive(ours, until_dry=False) == (b"", None)
            theirs.sendall(b"refused")
        assert receive(ours, until_dry=True) == (b"refused", None)
        data, error = receive(ours, until_dry=False)
        assert data == b""
        assert isinstance(error, kafka_errors.KafkaConnectionError)
    assert isinstance(receive(ours, until_dry=False)[1], kafka_errors.KafkaConnectionError)


class Some:
    """A connection manager of three brokers, of which some do not answer."""

    def __init__(self, down: set[int]) -> None:
        self.down, self.refused, self.cluster = down, list[int](), self

    def brokers(self) -> list[int]:
        return [1, 2, 3]

    def least_loaded_node(self) -> int:
        return next((node for node in self.brokers() if node not in self.refused), 1)

    async def get_connection(self, node: int) -> None:
        if node in self.down:
            self.refused.append(node)
            raise kafka_errors.KafkaConnectionError(f"{node} refused")

    async def send(self, request: Any, *, node_id: int, **_: Any) -> tuple[Any, int]:
        return request, node_id


def test_any_broker_will_do_when_one_is_down() -> None:
    link = Link.__new__(Link)
    link.manager = Some({1, 2})  # type: ignore[assignment]
    assert asyncio.run(link.ask("which?")) == ("which?", 3)
    link.manager = Some({1, 2, 3})  # type: ignore[assignment]
    with pytest.raises(kafka_errors.KafkaConnectionError):
        asyncio.run(link.ask("which?"))
    link.manager = Some({1})  # type: ignore[assignment]
    with pytest.raises(kafka_errors.KafkaConnectionError):
        asyncio.run(link.ask("you", 1))
