"""What kafka-python's connections lacked: the last words before a hang-up, and sockets that are closed."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from kafka.net.selector import NetworkSelector

from wire.share import ShareConfig
from wire.share.channel import Channel
from wire.share.errors import UnavailableError
from wire.share.transport import drain


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_last_words_come_before_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    assert drain(ours) == (b"", None)
    theirs.sendall(b"you are not welcome")
    theirs.close()
    assert drain(ours) == (b"you are not welcome", None)
    data, end = drain(ours)
    assert data == b""
    assert "closed" in str(end)


def test_broken_socket_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    ours.close()
    data, end = drain(ours)
    assert (data, type(end).__name__) == (b"", "KafkaConnectionError")


@pytest.mark.parametrize("place", ["127.0.0.1:1", "no-such-host.invalid:9092"])
def test_reason_of_a_failed_bootstrap_is_told(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.share.channel._BOOTSTRAP_ROUND", 200)
    net = NetworkSelector()
    channel = Channel(net, ShareConfig(bootstrap_servers=place))
    with pytest.raises(UnavailableError) as caught:
        net.run(channel.bootstrap)
    assert place.partition(":")[0] in str(caught.value)
    assert "efused" in str(caught.value) or "known" in str(caught.value) or "resol" in str(caught.value)
    channel.close()
    net.close()
