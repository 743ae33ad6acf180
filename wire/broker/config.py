"""The native broker's configuration: one text of properties per node, from a few facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Security:
    """How clients reach the broker; the default is an open door on loopback.

    `keystore` is one PEM file with the key and its certificates, `truststore` the PEM of the authority whose client
    certificates are taken; with `mutual` a client must show one. SCRAM `users` are stored when the broker is formatted.
    """

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    keystore: Path | None = None
    truststore: Path | None = None
    mutual: bool = False

    def properties(self) -> dict[str, str]:
        """Return the listener's properties."""
        found: dict[str, str] = {}
        if self.protocol.endswith("SSL"):
            found |= {"ssl.keystore.type": "PEM", "ssl.keystore.location": str(self.keystore)}
            if self.truststore is not None:
                found |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(self.truststore)}
            found["ssl.client.auth"] = "required" if self.mutual else "none"
        if self.mechanism is not None:
            found["sasl.enabled.mechanisms"] = self.mechanism
            found[f"{self.mechanism.lower()}.sasl.jaas.config"] = self._jaas()
        return {f"listener.name.client.{key}": value for key, value in found.items()}

    def _jaas(self) -> str:
        if self.mechanism == "PLAIN":
            users = " ".join(f'user_{name}="{password}"' for name, password in self.users.items())
            return f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
        if self.mechanism == "OAUTHBEARER":
            login = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"
            return f'{login} required unsecuredLoginStringClaim_sub="broker";'
        return "org.apache.kafka.common.security.scram.ScramLoginModule required;"

    def scram(self) -> list[str]:
        """Return the credentials to store when the broker is formatted."""
        if self.mechanism is None or not self.mechanism.startswith("SCRAM"):
            return []
        return [f"{self.mechanism}=[name={name},password={secret}]" for name, secret in self.users.items()]


@dataclass(frozen=True, slots=True)
class Ports:
    """Where one node listens: for clients, for the other brokers, for the other controllers."""

    client: int
    internal: int
    controller: int


def properties(
    node: int, ports: Mapping[int, Ports], *, data: Path, security: Security, extra: Mapping[str, str]
) -> dict[str, str]:
    """Return everything one node is started with.

    Small buffers and few threads, because it shares a machine with the workers; short share-group heartbeats, so that
    a worker's first lease comes at once; wide limits, so that the topics' and groups' own settings decide.
    """
    mine = ports[node]
    replicas = min(3, len(ports))
    voters = ",".join(f"{number}@{HOST}:{place.controller}" for number, place in sorted(ports.items()))
    reachable = {"CLIENT": mine.client, "INTERNAL": mine.internal}
    listeners = {**reachable, "CONTROLLER": mine.controller}
    return {
        "process.roles": "broker,controller",
        "node.id": str(node),
        "controller.quorum.voters": voters,
        "listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in listeners.items()),
        "advertised.listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in reachable.items()),
        "listener.security.protocol.map": f"CLIENT:{security.protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "INTERNAL",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(data),
        **_durability(replicas),
        **_SHARE,
        **_SMALL,
        **security.properties(),
        **extra,
    }


def _durability(replicas: int) -> dict[str, str]:
    least = str(max(1, replicas - 1))
    return {
        "auto.create.topics.enable": "false",
        "default.replication.factor": str(replicas),
        "min.insync.replicas": least,
        "offsets.topic.replication.factor": str(replicas),
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": str(replicas),
        "transaction.state.log.min.isr": least,
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": str(replicas),
        "share.coordinator.state.topic.min.isr": least,
        "share.coordinator.state.topic.num.partitions": "4",
    }


_SHARE = {
    "group.share.heartbeat.interval.ms": "1000",
    "group.share.min.heartbeat.interval.ms": "500",
    "group.share.session.timeout.ms": "10000",
    "group.share.min.session.timeout.ms": "6000",
    "group.share.assignment.interval.ms": "0",
    "group.share.initialize.retry.interval.ms": "1000",
    "group.share.min.record.lock.duration.ms": "1000",
    "group.share.max.record.lock.duration.ms": "3600000",
    "group.share.max.delivery.count.limit": "25",
    "group.share.max.partition.max.record.locks": "10000",
    "group.share.max.size": "1000",
    "group.share.max.share.sessions": "4000",
    "group.initial.rebalance.delay.ms": "0",
}
_SMALL = {
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "4",
    "log.cleaner.threads": "1",
    "log.cleaner.dedupe.buffer.size": str(16 << 20),
    "log.retention.check.interval.ms": "10000",
    "log.segment.delete.delay.ms": "5000",
    # A broker that was killed may come back only when its old session is over: the default makes that nine seconds.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "connections.max.idle.ms": "1800000",
}


def render(values: Mapping[str, str]) -> str:
    """Return the text of a properties file, with the escapes Java's reader wants."""
    return "".join(f"{key}={_escape(value)}\n" for key, value in values.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
