"""Publishing: the port, its implementation on Kafka, and the twin in memory."""

from wire.publish.kafka import KafkaPublisher
from wire.publish.memory import MemoryPublisher
from wire.publish.port import Headers, Publisher, Sent

__all__ = ["Headers", "KafkaPublisher", "MemoryPublisher", "Publisher", "Sent"]
