"""Kafka share groups (KIP-932, KIP-1206, KIP-1222) for Python, on kafka-python's connection manager.

See README.md in this folder. `ShareConsumer` speaks to a broker, `MemoryShareConsumer` is its deterministic twin,
`ShareAdmin` describes groups.
"""

from .config import ShareConfig
from .consumer import ShareConsumer
from .errors import ShareError
from .memory import MemoryLog, MemoryShareConsumer
from .model import AckType, AcquireMode, Listener, OffsetRange, Record

__all__ = [
    "AckType",
    "AcquireMode",
    "Listener",
    "MemoryLog",
    "MemoryShareConsumer",
    "OffsetRange",
    "Record",
    "ShareConfig",
    "ShareConsumer",
    "ShareError",
]
