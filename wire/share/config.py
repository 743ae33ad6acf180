"""Settings of a share consumer: frozen, checked when made, secrets never in the repr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError
from .model import AcquireMode


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareConfig:
    """How a share consumer behaves. Times are in seconds.

    `security` holds kafka-python's own connection settings (security_protocol, sasl_*, ssl_*, proxy_url …), passed on
    as they are. A long poll lasts `max_wait`; since a session has one request in flight, an acknowledgement waits at
    most that long. `ack_linger` is how long an acknowledgement waits for a fetch to ride on when the session is free.
    When there are more leaders than records wanted, the leaders are asked in turn, each for `rotate_wait`.
    With `every_partition`, the member reads all partitions of its topics, not only the assigned ones, so that a dead
    member's partitions do not wait for the group to notice; for groups of very many members, turn it off (README.md).
    `max_locks` is the group's share.partition.max.record.locks, used for `window()` only.
    """

    bootstrap_servers: str | Sequence[str]
    client_id: str = "share-consumer"
    rack: str | None = None
    security: Mapping[str, Any] = field(default_factory=dict, repr=False)
    mode: AcquireMode = AcquireMode.RECORD_LIMIT
    every_partition: bool = True
    max_wait: float = 0.25
    rotate_wait: float = 0.05
    ack_linger: float = 0.003
    max_bytes: int = 32 << 20
    request_timeout: float = 30.0
    connect_timeout: float = 5.0
    backoff: float = 0.05
    backoff_max: float = 2.0
    max_locks: int = 2000
    check_crcs: bool = True

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the setting."""
        positive = ("max_wait", "rotate_wait", "max_bytes", "request_timeout", "connect_timeout", "backoff")
        for name in (*positive, "backoff_max", "max_locks"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)!r}")
        if self.ack_linger < 0:
            raise ConfigError(f"ack_linger must not be below 0, not {self.ack_linger!r}")
        if self.max_wait >= self.request_timeout:
            raise ConfigError("max_wait must be below request_timeout")
        if not self.bootstrap_servers:
            raise ConfigError("bootstrap_servers is empty")
        unknown = [name for name in self.security if not name.startswith(("security_", "sasl_", "ssl_", "proxy_"))]
        if unknown:
            raise ConfigError(f"not a security setting: {', '.join(sorted(unknown))}")
