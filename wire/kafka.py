"""The road to Kafka: connection arguments from settings, one thread that owns the sockets, errors mapped once.

`Link` carries every request that is not a lease: admin calls, publishing, following. It is built on kafka-python's
connection manager, so SASL, TLS, metadata and reconnects are that library's, and one process needs few threads.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kafka import errors as kafka_errors
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.net.selector import NetworkSelector
from kafka.protocol.metadata import ApiVersionsRequest, FindCoordinatorRequest

from schemas.errors import AuthError, ConflictError, InvalidError, NotFoundError, TapeError, UnavailableError
from wire.settings import Settings
from wire.transport import REFUSED, EagerManager

T = TypeVar("T")

# What matters of the library's log reaches its callers as our errors; without this Python prints every retry.
logging.getLogger("kafka").addHandler(logging.NullHandler())

RECEIVE_BYTES = 128 << 20
"""The largest answer taken from a broker; kafka-python's own default of 1 MB cuts large fetches off."""

PAUSE_S = 0.05

SHARE_KEYS = (76, 78, 79)
"""ShareGroupHeartbeat, ShareFetch, ShareAcknowledge: what a broker must speak to be our queue."""


class TokenFile(AbstractTokenProvider):  # type: ignore[misc]
    """An OAUTHBEARER token read from a file at every connect, so a rotated token is taken up without a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def token(self) -> str:
        """Return the token. Raises `AuthError` (TAPE-4001) when the file cannot be read."""
        try:
            return self._path.read_text().strip()
        except OSError as error:
            raise AuthError(
                f"the token file cannot be read: {error.strerror}",
                code="TAPE-4001",
                file=str(self._path),
                hint="check TAPE_KAFKA_TOKEN_FILE",
            ) from error

    def extensions(self) -> dict[str, str]:
        """Return no SASL extensions."""
        return {}


def connection(settings: Settings) -> dict[str, Any]:
    """Return the connection arguments for any client of kafka-python.

    Raises `InvalidError` (TAPE-1007) when a security setting lacks its partner.
    """
    given: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_servers,
        "security_protocol": settings.kafka_security,
        "reconnect_backoff_max_ms": 1_000,
        "receive_message_max_bytes": RECEIVE_BYTES,
    }
    if settings.kafka_security.endswith("SSL"):
        given |= {
            "ssl_cafile": _text(settings.kafka_ca),
            "ssl_certfile": _text(settings.kafka_cert),
            "ssl_keyfile": _text(settings.kafka_key),
        }
    if settings.kafka_security.startswith("SASL"):
        given |= _sasl(settings)
    return given


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _sasl(settings: Settings) -> dict[str, Any]:
    if settings.kafka_mechanism is None:
        raise _lacking("KAFKA_MECHANISM", "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER")
    if settings.kafka_mechanism == "OAUTHBEARER":
        if settings.kafka_token_file is None:
            raise _lacking("KAFKA_TOKEN_FILE", "the file that holds the token")
        return {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": TokenFile(settings.kafka_token_file)}
    if settings.kafka_username is None or settings.kafka_password is None:
        raise _lacking("KAFKA_USERNAME and TAPE_KAFKA_PASSWORD", "the account at the broker")
    return {
        "sasl_mechanism": settings.kafka_mechanism,
        "sasl_plain_username": settings.kafka_username,
        "sasl_plain_password": settings.kafka_password.get_secret_value(),
    }


def _lacking(name: str, what: str) -> InvalidError:
    return InvalidError(
        f"TAPE_{name} is not set, but the broker's security asks for it",
        code="TAPE-1007",
        field=f"TAPE_{name.split(maxsplit=1)[0]}",
        hint=f"set it to {what}",
    )


_MAP: tuple[tuple[tuple[type[Exception], ...], type[TapeError], str], ...] = (
    ((kafka_errors.AuthorizationError,), AuthError, "TAPE-4003"),
    (REFUSED, AuthError, "TAPE-4001"),
    ((kafka_errors.UnknownTopicOrPartitionError, kafka_errors.UnknownTopicIdError), NotFoundError, "TAPE-2004"),
    ((kafka_errors.InvalidTopicError,), InvalidError, "TAPE-2004"),
    ((kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError), InvalidError, "TAPE-1006"),
    ((kafka_errors.TopicAlreadyExistsError,), ConflictError, "TAPE-3001"),
    ((kafka_errors.UnsupportedVersionError,), UnavailableError, "TAPE-5005"),
    (
        (
            kafka_errors.InvalidConfigurationError,
            kafka_errors.InvalidPartitionsError,
            kafka_errors.InvalidReplicationFactorError,
            kafka_errors.InvalidRequestError,
            kafka_errors.PolicyViolationError,
        ),
        InvalidError,
        "TAPE-1007",
    ),
)


def mapped(error: BaseException, *, code: str = "TAPE-5001", **place: Any) -> TapeError:
    """Return our error for one of kafka-python's; `code` is the answer for everything not mapped by its type.

    One of ours is returned as it is.
    """
    if isinstance(error, TapeError):
        return error
    text = str(error).removeprefix("[Error ") or type(error).__name__
    for kinds, kind, known in _MAP:
        if isinstance(error, kinds):
            return kind(f"{type(error).__name__.removesuffix('Error')}: {text}", code=known, **place)
    return UnavailableError(f"{type(error).__name__.removesuffix('Error')}: {text}", code=code, **place)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a broker says about itself: its cluster, how many brokers it knows, whether share groups are on."""

    id: str
    brokers: int
    share: bool


class Link:
    """A connection to the cluster with one thread that owns its sockets.

    >>> with Link(settings) as link: link.call(MetadataRequest(...))     # doctest: +SKIP
    """

    def __init__(self, settings: Settings, *, name: str = "tape", timeout_s: float | None = None) -> None:
        """Connect. Raises `AuthError` (TAPE-4001) at once, `UnavailableError` (TAPE-5001) after the timeout."""
        self.timeout_s = settings.kafka_timeout_s if timeout_s is None else timeout_s
        self.url = settings.kafka_url
        arguments = connection(settings)
        if settings.kafka_security.endswith("SSL"):
            _check_tls(settings, self.timeout_s)
        self.net = NetworkSelector(client_id=name, slow_task_threshold_secs=0)
        self.manager = EagerManager(self.net, client_id=name, **arguments)
        self.manager.cluster.config["allow_auto_create_topics"] = False
        self.closed = False
        self.net.start()
        self.thread: threading.Thread = self.net._io_thread
        try:
            self.manager.bootstrap(self.timeout_s * 1000)
        except BaseException as error:
            self.close()
            if not isinstance(error, Exception):
                raise
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> TapeError:
        found = mapped(error, url=self.url)
        if found.code != "TAPE-5001":
            return found
        return UnavailableError(f"no broker answered within {self.timeout_s:g} s", url=self.url)

    def run(self, work: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run a coroutine function on the link's thread and wait for it, with kafka's errors mapped."""
        try:
            found: T = self.net.run(work, *args)
        except Exception as error:
            raise mapped(error, url=self.url) from error
        return found

    async def ask(self, request: Any, node: int | str | None = None, timeout_s: float | None = None) -> Any:
        """Send one request to a node (or the least loaded one) and await its answer; on the link's thread only."""
        target = await self._reachable() if node is None else node
        await self.manager.get_connection(target)
        limit = None if timeout_s is None else timeout_s * 1000
        return await self.manager.send(request, node_id=target, request_timeout_ms=limit)

    async def _reachable(self) -> int | str | None:
        """Return a node that takes connections: with one of several brokers down, any other will do."""
        for _ in self.manager.cluster.brokers():
            target = self.manager.least_loaded_node()
            try:
                await self.manager.get_connection(target)
            except (kafka_errors.KafkaConnectionError, kafka_errors.NodeNotReadyError):
                continue  # it is not chosen again for a while
            return target  # type: ignore[no-any-return]
        return self.manager.least_loaded_node()  # type: ignore[no-any-return]

    def call(self, request: Any, node: int | str | None = None, timeout_s: float | None = None) -> Any:
        """Send one request and wait for its answer. Raises the mapped error."""
        return self.run(self.ask, request, node, self.timeout_s if timeout_s is None else timeout_s)

    def describe(self) -> Cluster:
        """Ask a broker what it is."""
        answer = self.call(ApiVersionsRequest(client_software_name="tape", client_software_version="1"))
        keys = {entry.api_key for entry in answer.api_keys}
        share = {entry.name: entry.max_version_level for entry in answer.finalized_features or ()}
        cluster = self.manager.cluster
        return Cluster(
            id=str(cluster.cluster_id or ""),
            brokers=len(cluster.brokers()),
            share=keys.issuperset(SHARE_KEYS) and share.get("share.version", 0) > 0,
        )

    def coordinator(self, key: str, kind: int = 0) -> int:
        """Return the node that coordinates a group (kind 0) or a share partition (kind 2).

        Waits while the internal topic behind it is being made. Raises `UnavailableError` (TAPE-5001), `AuthError`.
        """
        return self.run(self._coordinator, key, kind)

    async def _coordinator(self, key: str, kind: int) -> int:
        until = time.monotonic() + self.timeout_s
        while True:
            answer = await self.ask(FindCoordinatorRequest(key=key, key_type=kind, coordinator_keys=[key]))
            found = answer.coordinators[0] if answer.coordinators else answer
            if not found.error_code:
                return int(found.node_id)
            error = kafka_errors.for_code(found.error_code)(found.error_message)
            if not isinstance(error, kafka_errors.RetriableError) or time.monotonic() >= until:
                raise mapped(error, group=key)
            await self.net.sleep(PAUSE_S)

    def close(self) -> None:
        """Close the sockets and end the thread; may be called twice."""
        if self.closed:
            return
        self.closed = True
        with contextlib.suppress(Exception):
            self.net.run(self._close_sockets)
        self.net.close()

    async def _close_sockets(self) -> None:
        self.manager.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_tls(settings: Settings, timeout_s: float) -> None:
    # kafka-python retries a failed handshake until its deadline and forgets why. One handshake of our own, with one
    # request after it (TLS 1.3 refuses a client's certificate only then), tells wrong certificates from a dead broker.
    host, _, port = settings.kafka_servers[0].rpartition(":")
    try:
        context = ssl.create_default_context(cafile=_text(settings.kafka_ca))
        if settings.kafka_cert is not None:
            context.load_cert_chain(str(settings.kafka_cert), _text(settings.kafka_key))
    except (OSError, ssl.SSLError) as error:
        raise InvalidError(
            f"a TLS file cannot be used: {error}",
            code="TAPE-1007",
            field="TAPE_KAFKA_CA",
            hint="give PEM files in TAPE_KAFKA_CA, TAPE_KAFKA_CERT and TAPE_KAFKA_KEY",
        ) from error
    hello = struct.pack(">ihhih", 10, 18, 0, 1, -1)  # ApiVersions v0, without a client id
    try:
        with (
            socket.create_connection((host, int(port)), timeout=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            secure.sendall(hello)
            if not secure.recv(4):
                raise ssl.SSLError("the broker closed the connection: it wants another certificate or protocol")
    except (ssl.SSLError, ConnectionResetError) as error:
        raise AuthError(
            f"TLS with the broker failed: {error}",
            code="TAPE-4001",
            url=settings.kafka_url,
            hint="check TAPE_KAFKA_SECURITY, _CA, _CERT and _KEY",
        ) from error
    except OSError:
        return  # no broker there at all: the connection itself says so, after trying the other addresses
