"""Transactions: records and a group's offsets, all or nothing; the port, its implementation on Kafka, the twin."""

from wire.transact.intake import Intake
from wire.transact.kafka import KafkaTransactor
from wire.transact.memory import MemoryTransactor
from wire.transact.port import Member, Outgoing, Transactor

__all__ = ["Intake", "KafkaTransactor", "Member", "MemoryTransactor", "Outgoing", "Transactor"]
