"""Everything that can go wrong between a share group and its consumer: one root, stable codes, a way out.

ShareError                    root: code, retryable, hint
├── ConfigError               a setting makes no sense                          SHARE-CONFIG
├── ClosedError               the consumer was closed                           SHARE-CLOSED
├── DeadlineError           the deadline of a blocking call passed            SHARE-TIMEOUT
├── UnavailableError          no broker answers; tried again by itself          SHARE-UNAVAILABLE
├── RequestError              the broker refused a request with some other code SHARE-REQUEST
├── CorruptError              a record batch cannot be read                     SHARE-CORRUPT
├── AcknowledgeError          acknowledgements were refused (says which)        SHARE-ACK
├── LeaseLostError            the record is no longer ours to acknowledge       SHARE-LEASE
│   └── SessionLostError      the broker dropped the session or restarted       SHARE-SESSION
└── FatalError                nothing will help but a person                    SHARE-FATAL
    ├── AuthenticationError   credentials refused                               SHARE-AUTHN
    ├── AuthorizationError    the group or a topic is not allowed to us         SHARE-AUTHZ
    └── UnsupportedError      broker too old, or share groups are off           SHARE-UNSUPPORTED
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import kafka.errors as foreign

from .model import OffsetRange


class ShareError(Exception):
    """The root: every error of this package is one of these."""

    code: ClassVar[str] = "SHARE"
    retryable: ClassVar[bool] = False
    hint: ClassVar[str] = ""


class ConfigError(ShareError, ValueError):
    """A setting makes no sense."""

    code = "SHARE-CONFIG"
    hint = "see ShareConfig for what each setting means"


class ClosedError(ShareError):
    """The consumer was closed."""

    code = "SHARE-CLOSED"
    hint = "make a new consumer"


class DeadlineError(ShareError, TimeoutError):
    """The deadline of a blocking call passed."""

    code = "SHARE-TIMEOUT"
    retryable = True
    hint = "allow more time, or look at the broker's health"


class UnavailableError(ShareError):
    """No broker answers; the consumer keeps trying by itself."""

    code = "SHARE-UNAVAILABLE"
    retryable = True
    hint = "check bootstrap_servers and that the broker runs"


class RequestError(ShareError):
    """The broker refused a request with a code that has no class of its own."""

    code = "SHARE-REQUEST"
    hint = "the broker's log says more"

    def __init__(self, message: str, errno: int = -1) -> None:
        super().__init__(message)
        self.errno = errno


class CorruptError(ShareError):
    """A record batch cannot be read: bad checksum, unknown format or codec."""

    code = "SHARE-CORRUPT"
    hint = "the records come again when their locks expire; install the codec that is missing, or look at the producer"


class LeaseLostError(ShareError):
    """The record is no longer ours: its lock expired, moved, or was already settled."""

    code = "SHARE-LEASE"
    hint = "stop the work; the record is or will be with another consumer"

    def __init__(self, message: str, ranges: Sequence[OffsetRange] = ()) -> None:
        super().__init__(message)
        self.ranges = tuple(ranges)


class SessionLostError(LeaseLostError):
    """The broker dropped the share session, restarted, or stopped leading the partition."""

    code = "SHARE-SESSION"


class AcknowledgeError(ShareError):
    """Some acknowledgements were refused: `failures` pairs each range of offsets with its cause."""

    code = "SHARE-ACK"
    hint = "the records of these ranges will be delivered again"

    def __init__(self, failures: Sequence[tuple[OffsetRange, ShareError]]) -> None:
        first = f"{failures[0][0]}: {failures[0][1]}" if failures else "none"
        super().__init__(f"{len(failures)} range(s) were not acknowledged, first {first}")
        self.failures = tuple(failures)


class FatalError(ShareError):
    """Nothing will help but a person: `poll` raises it until the consumer is closed."""

    code = "SHARE-FATAL"


class AuthenticationError(FatalError):
    """The broker refused the credentials."""

    code = "SHARE-AUTHN"
    hint = "check the security_protocol, sasl_* and ssl_* settings"


class AuthorizationError(FatalError):
    """The group or a topic is not allowed to this principal."""

    code = "SHARE-AUTHZ"
    hint = "grant READ on the group and READ and DESCRIBE on its topics"


class UnsupportedError(FatalError):
    """The broker is too old for share groups with renewal, or has them switched off."""

    code = "SHARE-UNSUPPORTED"
    hint = "Apache Kafka 4.2 or newer is needed, with the feature share.version=1 (kafka-features.sh)"


GROUP_AUTHORIZATION_FAILED, TOPIC_AUTHORIZATION_FAILED, CLUSTER_AUTHORIZATION_FAILED = 30, 29, 31
UNSUPPORTED_VERSION, INVALID_REQUEST, INVALID_GROUP_ID, GROUP_ID_NOT_FOUND = 35, 42, 24, 69
COORDINATOR_LOADING, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR = 14, 15, 16
UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, FENCED_LEADER_EPOCH = 3, 6, 74
UNKNOWN_TOPIC_ID, INCONSISTENT_TOPIC_ID = 100, 103
UNKNOWN_MEMBER_ID, FENCED_MEMBER_EPOCH, STALE_MEMBER_EPOCH, UNRELEASED_INSTANCE_ID = 25, 110, 113, 111
GROUP_MAX_SIZE_REACHED, INVALID_RECORD_STATE = 81, 121
SHARE_SESSION_NOT_FOUND, INVALID_SHARE_SESSION_EPOCH, SHARE_SESSION_LIMIT_REACHED = 122, 123, 133

COORDINATOR_MOVED = frozenset({COORDINATOR_LOADING, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR})
NO_ANSWER = frozenset({7, 13})  # REQUEST_TIMED_OUT, NETWORK_EXCEPTION
LEADER_MOVED = frozenset(
    {
        UNKNOWN_TOPIC_OR_PARTITION,
        NOT_LEADER_OR_FOLLOWER,
        FENCED_LEADER_EPOCH,
        UNKNOWN_TOPIC_ID,
        INCONSISTENT_TOPIC_ID,
        5,  # LEADER_NOT_AVAILABLE
        9,  # REPLICA_NOT_AVAILABLE
        56,  # KAFKA_STORAGE_ERROR
        76,  # UNKNOWN_LEADER_EPOCH
    }
)
SESSION_LOST = frozenset({SHARE_SESSION_NOT_FOUND, INVALID_SHARE_SESSION_EPOCH, SHARE_SESSION_LIMIT_REACHED})
AUTHORIZATION = frozenset({GROUP_AUTHORIZATION_FAILED, TOPIC_AUTHORIZATION_FAILED, CLUSTER_AUTHORIZATION_FAILED})


def from_code(errno: int, message: str | None = None, *, place: str = "") -> ShareError:
    """The typed error for a broker's error code; `place` names what was asked for."""
    name = getattr(foreign.for_code(errno), "message", None) or f"error {errno}"
    text = ": ".join(part for part in (place, name, message) if part)
    for codes, kind in _BY_CODE:
        if errno in codes:
            return kind(text)
    return RequestError(text, errno)


_BY_CODE: tuple[tuple[frozenset[int], type[ShareError]], ...] = (
    (AUTHORIZATION, AuthorizationError),
    (frozenset({UNSUPPORTED_VERSION}), UnsupportedError),
    (SESSION_LOST | LEADER_MOVED, SessionLostError),
    (frozenset({INVALID_RECORD_STATE}), LeaseLostError),
    (COORDINATOR_MOVED | NO_ANSWER, UnavailableError),
)


def from_exception(exc: BaseException, *, place: str = "") -> ShareError:
    """The typed error for an exception of kafka-python or of the standard library."""
    if isinstance(exc, ShareError):
        return exc
    text = f"{place}: {exc}" if place else str(exc)
    for kinds, kind in _BY_CLASS:
        if isinstance(exc, kinds):
            return kind(text)
    if isinstance(exc, foreign.BrokerResponseError):
        return from_code(exc.errno, str(exc), place=place)
    if isinstance(exc, foreign.KafkaError | OSError):
        return UnavailableError(text)
    return RequestError(text)


_BY_CLASS: tuple[tuple[tuple[type[BaseException], ...], type[ShareError]], ...] = (
    (
        (
            foreign.SaslAuthenticationFailedError,
            foreign.UnsupportedSaslMechanismError,
            foreign.IllegalSaslStateError,
        ),
        AuthenticationError,
    ),
    ((foreign.AuthorizationError,), AuthorizationError),
    ((foreign.IncompatibleBrokerVersion, foreign.UnsupportedVersionError), UnsupportedError),
)
