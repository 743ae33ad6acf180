"""Transports for kafka-python that do not wait for what can be done at once, and lose no answer and no socket.

The library's own queues every write for the next turn of its loop and reads in pieces of 4 KiB until the socket says
no. Small requests at a high rate, which is what a queue is made of, spend most of their time there. Here a write is
tried at once (a socket with room takes it), and a read that fills less than its buffer is the last one.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any

from kafka import errors as kafka_errors
from kafka.net.manager import KafkaConnectionManager
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from schemas.errors import AuthError

READ_BYTES = 1 << 18
CONNECT_S = 10.0


class EagerTransport(KafkaTCPTransport):  # type: ignore[misc]
    """kafka-python's transport with fewer turns of the loop and fewer system calls per request."""

    def write(self, data: bytes) -> None:
        """Send at once what the socket takes; the rest as the library does."""
        if self._writing or self._closed or not self._write or not data:
            super().write(data)
            return
        try:
            sent = self._sock.send(data)
        except OSError:  # full, interrupted or broken: the library's path tells which
            sent = 0
        self.last_write = time.monotonic()
        if sent < len(data):
            super().write(memoryview(data)[sent:] if sent else data)

    def _sock_recv(self) -> tuple[bytes, Exception | None]:
        return receive(self._sock, until_dry=False)


class SecureTransport(KafkaSSLTransport):  # type: ignore[misc]
    """kafka-python's TLS transport that hands over an answer even if the broker hung up right after it."""

    def _sock_recv(self) -> tuple[bytes, Exception | None]:
        return receive(self._sock, until_dry=True)  # bytes left in the TLS layer wake no selector


def receive(sock: socket.socket, *, until_dry: bool) -> tuple[bytes, Exception | None]:
    """Return what there is to read, or why there will never be more.

    What came before the end of a connection counts: a broker answers wrong credentials and hangs up.
    """
    received: list[bytes] = []
    trouble: Exception | None = None
    while True:
        try:
            data = sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            break
        except OSError as error:
            trouble = kafka_errors.KafkaConnectionError(error)
            break
        if not data:
            trouble = kafka_errors.KafkaConnectionError("the broker closed the connection")
            break
        received.append(data)
        if len(data) < READ_BYTES and not until_dry:
            break
    return b"".join(received), None if received else trouble


async def connect(
    net: Any, host: str, port: int, options: Sequence[tuple[int, int, int]], until: float
) -> socket.socket:
    """Return a connected socket of any address the host has. Raises KafkaConnectionError; leaves nothing open then."""
    trouble: Exception = OSError("the host has no address")
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise kafka_errors.KafkaConnectionError(f"{host}: {error.strerror}") from error
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            for option in options:
                sock.setsockopt(*option)
            if sock.connect_ex(address) not in {0, errno.EISCONN}:
                await net.wait_write(sock, timeout_at=until)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, os.strerror(code))
        except (OSError, kafka_errors.KafkaError) as error:
            sock.close()
            trouble = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise kafka_errors.KafkaConnectionError(f"{host}:{port}: {trouble}") from trouble


REFUSED = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.IllegalSaslStateError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.AuthorizationError,
    AuthError,
)
"""What a broker, or our own token file, answers when we are not let in."""


class EagerManager(KafkaConnectionManager):  # type: ignore[misc]
    """kafka-python's connection manager on the transports above.

    Refused credentials end a bootstrap at once: the library means to do that, but loses the reason on the way and
    tries until its deadline. The reason is told once, not for ever, so that mended credentials (a new token) are tried.
    """

    async def _connect(self, node: Any, conn: Any, **options: Any) -> None:
        await super()._connect(node, conn, **options)
        error = conn.init_future.exception
        if isinstance(error, REFUSED):
            self._auth_failures[node.node_id] = error

    def maybe_raise_auth_failure(self, node_id: Any) -> None:
        """Raise why the last connection to the node was refused, and forget it."""
        error = self._auth_failures.pop(node_id, None)
        if error is not None:
            raise error

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        if self.config["proxy_url"]:
            return await super()._build_transport(node, timeout_at)
        until = time.monotonic() + CONNECT_S if timeout_at is None else timeout_at
        sock = await connect(self._net, node.host, node.port, self.config["socket_options"], until)
        try:
            if not self.ssl_enabled:
                return EagerTransport(self._net, sock, host=node.host)
            tls = {key: value for key, value in self.config.items() if key.startswith("ssl_")}
            transport = SecureTransport(self._net, sock, host=node.host, **tls)
            sock = transport._sock
            await transport.handshake()
        except BaseException as error:
            sock.close()
            if not isinstance(error, Exception):
                raise
            raise kafka_errors.KafkaConnectionError(f"Handshake failed: {error}") from error
        return transport
