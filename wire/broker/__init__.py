"""The native broker: Apache Kafka on this machine without a container."""

from wire.broker.config import Security
from wire.broker.jars import Runtime, resolve
from wire.broker.native import BrokerStatus, NativeBroker, NodeStatus

__all__ = ["BrokerStatus", "NativeBroker", "NodeStatus", "Runtime", "Security", "resolve"]
