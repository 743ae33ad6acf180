"""Transactions: records and a group's offsets, all or nothing; the ports, what they are on Kafka, and the twins."""

from wire.transact.intake import KafkaIntake
from wire.transact.kafka import KafkaTransactor
from wire.transact.memory import MemoryIntake, MemoryTransactor
from wire.transact.port import Intake, Member, Outgoing, Transactor

__all__ = ["Intake", "KafkaIntake", "KafkaTransactor", "Member", "MemoryIntake", "MemoryTransactor", "Outgoing",
           "Transactor"]  # fmt: skip
