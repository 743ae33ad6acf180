"""Settings, errors, messages, leaders, back-off: the small parts."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

import kafka.errors as foreign
import pytest
from kafka.net.selector import NetworkSelector

from wire.share import ShareConfig, messages
from wire.share import errors as e
from wire.share.channel import Alarm, Backoff, Channel, Leaders
from wire.share.model import Listener, OffsetRange

TOPIC = uuid.UUID(int=1)
TIP = (TOPIC, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_wait": 0},
        {"backoff_max": -1},
        {"ack_linger": -0.1},
        {"max_wait": 40.0},
        {"bootstrap_servers": []},
        {"security": {"api_version": 1}},
    ],
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(e.ConfigError):
        ShareConfig(**{"bootstrap_servers": "x", **wrong})  # type: ignore[arg-type]


def test_secrets_stay_out_of_the_repr() -> None:
    config = ShareConfig(bootstrap_servers="x", security={"sasl_plain_password": "hunter2"})
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (29, e.AuthorizationError),
        (30, e.AuthorizationError),
        (35, e.UnsupportedError),
        (122, e.SessionLostError),
        (123, e.SessionLostError),
        (133, e.SessionLostError),
        (6, e.SessionLostError),
        (100, e.SessionLostError),
        (121, e.LeaseLostError),
        (15, e.UnavailableError),
        (7, e.UnavailableError),
        (-1, e.RequestError),
        (9999, e.RequestError),
    ],
)
def test_codes_have_classes(code: int, kind: type[e.ShareError]) -> None:
    error = e.from_code(code, "because", place="here")
    assert type(error) is kind
    assert str(error).startswith("here: ")
    assert str(error).endswith("because")


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (foreign.SaslAuthenticationFailedError("x"), e.AuthenticationError),
        (foreign.UnsupportedSaslMechanismError("x"), e.AuthenticationError),
        (foreign.TopicAuthorizationFailedError("x"), e.AuthorizationError),
        (foreign.IncompatibleBrokerVersion("x"), e.UnsupportedError),
        (foreign.KafkaConnectionError("x"), e.UnavailableError),
        (foreign.RequestTimedOutError("x"), e.UnavailableError),
        (foreign.ShareSessionNotFoundError("x"), e.SessionLostError),
        (ConnectionResetError("x"), e.UnavailableError),
        (ZeroDivisionError("x"), e.RequestError),
        (e.ClosedError("x"), e.ClosedError),
    ],
)
def test_foreign_errors_have_classes(exc: Exception, kind: type[e.ShareError]) -> None:
    assert type(e.from_exception(exc, place="there")) is kind


def test_every_error_has_a_code_and_stands_in_the_tree() -> None:
    def below(kind: type[e.ShareError]) -> list[type[e.ShareError]]:
        return [kind, *[k for child in kind.__subclasses__() for k in below(child)]]

    kinds = below(e.ShareError)
    assert len({kind.code for kind in kinds}) == len(kinds)
    for kind in kinds[1:]:
        assert kind.code in (e.__doc__ or "")
        assert kind.__name__ in (e.__doc__ or "")


def test_acknowledge_error_names_the_first_range() -> None:
    span = OffsetRange("jobs", 1, 4, 9)
    assert "jobs[1]@4-9" in str(e.AcknowledgeError([(span, e.LeaseLostError("gone"))]))
    assert "0 range(s)" in str(e.AcknowledgeError([]))
    assert str(OffsetRange("jobs", 1, 4, 4)) == "jobs[1]@4"


def test_hooks_do_nothing_by_default() -> None:
    hooks = Listener()
    assert hooks.on_assigned([]) is None
    assert hooks.on_lost([], e.ClosedError()) is None
    assert hooks.on_fetch(0, 0, 0.0) is None
    assert hooks.on_ack(0, 1, None) is None
    assert hooks.on_error(e.ClosedError()) is None


def test_fetch_goes_over_the_wire_and_back() -> None:
    plan = messages.Fetch(
        group="g",
        member="m",
        epoch=3,
        max_wait_ms=250,
        max_bytes=1000,
        max_records=7,
        batch_size=7,
        mode=1,
        added=frozenset({(TOPIC, 1)}),
        forgotten=frozenset({(TOPIC, 2)}),
        acks={TIP: {4: 1, 5: 1, 6: 2, 9: 3}},
    )
    sent = messages.fetch(plan).encode(version=2)
    read = messages.ShareFetchRequest.decode(sent, version=2)
    assert (read.group_id, read.member_id, read.share_session_epoch) == ("g", "m", 3)
    assert (read.max_records, read.share_acquire_mode, read.is_renew_ack) == (7, 1, False)
    (topic,) = read.topics
    parts = {part.partition_index: part.acknowledgement_batches for part in topic.partitions}
    assert [(b.first_offset, b.last_offset, list(b.acknowledge_types)) for b in parts[0]] == [
        (4, 6, [1, 1, 2]),
        (9, 9, [3]),
    ]
    assert list(parts[1]) == []
    assert [list(t.partitions) for t in read.forgotten_topics_data] == [[2]]


def test_acknowledge_marks_renewals() -> None:
    sent = messages.acknowledge("g", "m", 5, {TIP: {1: 4}}, renew=True).encode(version=2)
    read = messages.ShareAcknowledgeRequest.decode(sent, version=2)
    assert read.is_renew_ack
    assert read.topics[0].partitions[0].acknowledgement_batches[0].acknowledge_types == [4]


def test_requests_insist_on_renewal_and_record_limit() -> None:
    from kafka.protocol.broker_version_data import BrokerVersionData

    old = BrokerVersionData(api_versions={78: (1, 1), 79: (1, 1)})
    for request in (
        messages.acknowledge("g", "m", 1, {}, renew=False),
        messages.fetch(
            messages.Fetch(
                group="g", member="m", epoch=0, max_wait_ms=1, max_bytes=1, max_records=1, batch_size=1, mode=1
            )
        ),
    ):
        with pytest.raises(foreign.IncompatibleBrokerVersion):
            old.api_version(request)


def answer(leader: int, epoch: int, code: int = 0) -> SimpleNamespace:
    part = SimpleNamespace(partition_index=0, leader_id=leader, leader_epoch=epoch)
    return SimpleNamespace(topics=[SimpleNamespace(error_code=code, topic_id=TOPIC, name="jobs", partitions=[part])])


def test_leaders_follow_the_newest_epoch() -> None:
    leaders = Leaders()
    assert leaders.of(TIP) is None
    assert leaders.update(answer(1, 5)) == []
    assert leaders.of(TIP) == 1
    assert not leaders.hint(TIP, 2, 4)
    assert not leaders.hint(TIP, 2, 5)
    assert not leaders.hint(TIP, -1, 6)
    assert leaders.of(TIP) == 1
    assert leaders.hint(TIP, 2, 6)
    assert leaders.of(TIP) == 2
    leaders.forget(TIP)
    assert leaders.of(TIP) is None
    assert leaders.hint(TIP, 2, 6)
    leaders.forget((TOPIC, 9))
    assert leaders.update(answer(0, 0, code=3)) == [(TOPIC, 3)]


def test_backoff_is_random_below_a_doubling_bound() -> None:
    backoff = Backoff(0.1, 1.0, rand=lambda: 1.0)
    assert [round(backoff.next(), 3) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.reset()
    assert backoff.next() == pytest.approx(0.1)
    assert all(0 <= Backoff(0.1, 1.0).next() <= 0.1 for _ in range(50))


def test_alarm_rings_latches_and_is_deaf_in_a_pause() -> None:
    net = NetworkSelector()
    alarm = Alarm(net)
    ran: list[str] = []

    async def waits() -> None:
        alarm.ring()
        await alarm.wait(None)
        ran.append("latched")
        net.call_later(0.001, alarm.ring)
        await alarm.wait(None)
        ran.append("rung")
        await alarm.wait(0.001)
        ran.append("timed out")
        net.call_later(0.001, alarm.ring)
        await alarm.pause(0.01)
        ran.append("paused")
        net.call_later(0.001, alarm.shut)
        await alarm.pause(60.0)
        await alarm.wait(None)
        ran.append("shut")

    net.run(waits)
    assert ran == ["latched", "rung", "timed out", "paused", "shut"]
    net.close()


def test_channel_knows_only_what_it_learned() -> None:
    net = NetworkSelector()
    channel = Channel(net, ShareConfig(bootstrap_servers="127.0.0.1:1"))

    async def asks() -> None:
        for node in (None, 7):
            with pytest.raises(e.UnavailableError, match="known"):
                await channel.send("session", node, messages.find_coordinator("g"))
        channel.learn([(7, "127.0.0.1", 1)])
        assert channel.knows(7)
        with pytest.raises(e.UnavailableError):
            await channel.send("session", 7, messages.find_coordinator("g"))
        channel.drop("session", 7)

    net.run(asks)
    channel.close()
    net.close()
