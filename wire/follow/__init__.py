"""Following a topic without a group: the port, its implementation on Kafka, and the twin in memory."""

from wire.follow.kafka import KafkaFollower
from wire.follow.memory import MemoryFollower
from wire.follow.port import Feed, Follower, Received, Since

__all__ = ["Feed", "Follower", "KafkaFollower", "MemoryFollower", "Received", "Since"]
