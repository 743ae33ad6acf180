"""kafka-python's connection manager with three of its habits mended; everything else is the library's.

- What a broker said before it hung up is read: refused credentials are answered and then hung up on.
- A refusal of credentials ends the attempts instead of being retried until the deadline.
- A socket that could not be connected is closed instead of left to the garbage collector.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from typing import Any

from kafka import errors as foreign
from kafka.net.manager import KafkaConnectionManager
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

_CHUNK = 1 << 18
_REFUSED = (
    foreign.SaslAuthenticationFailedError,
    foreign.UnsupportedSaslMechanismError,
    foreign.IllegalSaslStateError,
    foreign.AuthorizationError,
)
_LATER = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def drain(sock: socket.socket) -> tuple[bytes, Exception | None]:
    """All there is to read now; an end of the connection is told only when nothing came before it."""
    pieces: list[bytes] = []
    end: Exception | None = None
    while True:
        try:
            piece = sock.recv(_CHUNK)
        except _LATER:
            break
        except OSError as exc:
            end = foreign.KafkaConnectionError(exc)
            break
        if not piece:
            end = foreign.KafkaConnectionError("the broker closed the connection")
            break
        pieces.append(piece)
    return b"".join(pieces), None if pieces else end


class PlainTransport(KafkaTCPTransport):  # type: ignore[misc]
    """A TCP transport that reads to the end."""

    def _sock_recv(self) -> tuple[bytes, Exception | None]:
        return drain(self._sock)


class TlsTransport(KafkaSSLTransport):  # type: ignore[misc]
    """A TLS transport that reads to the end."""

    def _sock_recv(self) -> tuple[bytes, Exception | None]:
        return drain(self._sock)


class Connections(KafkaConnectionManager):  # type: ignore[misc]
    """The connections of one consumer; `last_failure` is why the latest attempt to connect failed, if it did."""

    last_failure: BaseException | None = None

    async def _connect(self, node: Any, conn: Any, **options: Any) -> None:
        await super()._connect(node, conn, **options)
        self.last_failure = conn.init_future.exception
        if isinstance(self.last_failure, _REFUSED):
            self._auth_failures[node.node_id] = self.last_failure

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        if self.config["proxy_url"]:
            return await super()._build_transport(node, timeout_at)
        until = time.monotonic() + 10.0 if timeout_at is None else timeout_at
        sock = await self._reach(node.host, node.port, until)
        if not self.ssl_enabled:
            return PlainTransport(self._net, sock, host=node.host)
        transport = None
        try:
            tls = {key: value for key, value in self.config.items() if key.startswith("ssl_")}
            transport = TlsTransport(self._net, sock, host=node.host, **tls)
            await transport.handshake()
        except Exception as exc:
            (sock if transport is None else transport._sock).close()
            raise foreign.KafkaConnectionError(f"TLS handshake with {node.host}:{node.port} failed: {exc}") from exc
        return transport

    async def _reach(self, host: str, port: int, until: float) -> socket.socket:
        """A connected socket to the first of the host's addresses that answers."""
        failure: Exception = OSError("no address")
        try:
            places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as exc:
            raise foreign.KafkaConnectionError(f"{host}: {exc}") from exc
        for family, kind, protocol, _, address in places:
            sock = socket.socket(family, kind, protocol)
            try:
                await self._open(sock, address, until)
            except BaseException as exc:
                sock.close()
                if not isinstance(exc, Exception):
                    raise
                failure = exc
            else:
                return sock
        raise foreign.KafkaConnectionError(f"{host}:{port}: {failure}") from failure

    async def _open(self, sock: socket.socket, address: Any, until: float) -> None:
        sock.setblocking(False)
        for option in self.config["socket_options"]:
            sock.setsockopt(*option)
        if sock.connect_ex(address) == 0:
            return
        await self._net.wait_write(sock, timeout_at=until)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
