"""A native Apache Kafka on this machine: no container, one command, the same addresses every time."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from schemas.errors import ConflictError, InvalidError, SetupError, TapeError, UnavailableError
from wire.broker.config import HOST, Ports, Security, properties
from wire.broker.jars import VERSION, Progress, Runtime, resolve
from wire.broker.node import Node
from wire.broker.port import owner
from wire.kafka import Link
from wire.process import Process, alive, free_port, locked, tail, wait_until
from wire.settings import Settings

START_S = 60.0


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node: whether it runs, as which process, where clients reach it, where its log is."""

    id: int
    running: bool
    pid: int | None
    port: int
    log: Path


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """The native broker: whether every node runs, the address for clients, and each node."""

    running: bool
    url: str
    cluster: str | None
    version: str
    home: Path
    nodes: tuple[NodeStatus, ...]


class NativeBroker:
    """Apache Kafka in KRaft mode under a data folder: one node, or three to rehearse failures with.

    >>> broker = NativeBroker(settings.home, settings.cache)      # doctest: +SKIP
    >>> broker.start().url                                        # doctest: +SKIP
    '127.0.0.1:9092'
    """

    def __init__(
        self,
        home: Path,
        cache: Path,
        *,
        nodes: int = 1,
        port: int | None = None,
        security: Security | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the broker; nothing is touched yet.

        `port` is where it must listen (in use, or running on another: TAPE-3003); without it 9092 is taken if free,
        and the same again later. `extra` are further properties of the broker.
        """
        self.folder = home.absolute() / "kafka"
        self.cache = cache
        self.size = nodes
        self.port = port
        self.security = security or Security()
        self.extra = dict(extra or {})

    def start(self, *, tie: bool = False, progress: Progress | None = None) -> BrokerStatus:
        """Start every node that does not run and wait until they answer; does nothing when all do.

        With `tie` the processes end when the calling thread ends. The first start fetches the jars and formats the
        data folder. Raises `SetupError` (TAPE-8001, 8002, 8004) or `ConflictError` (TAPE-3003); nothing is left
        running then, nor after Ctrl-C.
        """
        runtime = resolve(self.cache, progress=progress)
        self._train(runtime, progress)
        with locked(self.folder / "lock", wait_s=START_S * 2):
            cluster, nodes = self._layout()
            stopped = [node for node in nodes if node.process() is None]
            started: list[Node] = []
            try:
                for node in stopped:
                    self._prepare(node, nodes, cluster, runtime)
                for node in stopped:
                    started.append(node)
                    node.start(runtime, tie=tie)
                self._await(nodes)
            except BaseException:
                for node in started:
                    node.stop(grace_s=0)
                raise
        return self.status()

    def stop(self, *, grace_s: float = 15.0) -> bool:
        """End every node, politely for `grace_s` seconds; returns whether all went by themselves."""
        if not self.folder.exists():
            return True
        with locked(self.folder / "lock", wait_s=START_S * 2):
            found = self._load()
            nodes = found[1] if found else []
            # At once, not in turn: the last node of a cluster cannot say goodbye to controllers that are gone.
            with ThreadPoolExecutor(max(1, len(nodes))) as pool:
                return all(list(pool.map(lambda node: node.stop(grace_s), nodes)))

    def status(self) -> BrokerStatus:
        """Tell what runs, from the processes themselves."""
        found = self._load()
        cluster, nodes = found if found else (None, [])
        rows = []
        for node in nodes:
            process = node.process()
            rows.append(
                NodeStatus(node.id, process is not None, process.pid if process else None, node.ports.client, node.log)
            )
        return BrokerStatus(
            running=bool(rows) and all(row.running for row in rows),
            url=",".join(f"{HOST}:{row.port}" for row in rows),
            cluster=cluster,
            version=VERSION,
            home=self.folder,
            nodes=tuple(rows),
        )

    def logs(self, lines: int = 50, node: int = 1) -> str:
        """Return the last lines of a node's log; empty when it has none."""
        return tail(self._node(node).log, lines) if self._load() else ""

    def start_node(self, node: int, *, tie: bool = False) -> None:
        """Start one node of a cluster again and wait until it answers."""
        runtime = resolve(self.cache)
        found = self._node(node)
        if found.process() is None:
            self._ports_free(found.ports.client)
            process = found.start(runtime, tie=tie)
            self._listening(found, process)

    def stop_node(self, node: int, *, grace_s: float = 15.0) -> bool:
        """End one node politely: it hands its leaderships over first."""
        return self._node(node).stop(grace_s)

    def kill_node(self, node: int) -> None:
        """End one node with SIGKILL, as a crash would."""
        self._node(node).kill()

    def _node(self, number: int) -> Node:
        found = self._load()
        for node in found[1] if found else []:
            if node.id == number:
                return node
        raise InvalidError(f"there is no node {number}", code="TAPE-1010", file=str(self.folder))

    def _load(self) -> tuple[str, list[Node]] | None:
        try:
            found = json.loads((self.folder / "cluster.json").read_text())
            return str(found["cluster"]), [self._place(int(key), Ports(**it)) for key, it in found["ports"].items()]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidError(
                f"the broker's description cannot be read: {error}",
                code="TAPE-1007",
                file=str(self.folder / "cluster.json"),
                hint="remove the folder if its records are not needed",
            ) from error

    def _place(self, number: int, ports: Ports) -> Node:
        return Node(number, self.folder / f"node-{number}", ports)

    def _layout(self) -> tuple[str, list[Node]]:
        found = self._load()
        if found is None:
            cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
            return self._save(cluster, [self._place(number, self._choose(number)) for number in self._numbers()])
        cluster, nodes = found
        if len(nodes) != self.size:
            raise InvalidError(
                f"this folder holds a cluster of {len(nodes)} nodes, not {self.size}",
                code="TAPE-1007",
                file=str(self.folder),
                hint="use another home, or remove the folder if its records are not needed",
            )
        if any(node.process() is not None for node in nodes):
            if self.port not in (None, nodes[0].ports.client):
                raise ConflictError(
                    f"the broker of this home runs already, on port {nodes[0].ports.client}",
                    code="TAPE-3003", port=self.port, hint="stop it first, or take another home",
                )  # fmt: skip
            return cluster, nodes
        fresh = []
        for node in nodes:  # clients know the addresses, so they stay unless others are asked for; the inner ones move
            client = node.ports.client if self.port is None else self.port + node.id - 1
            self._ports_free(client)
            ports = Ports(client, free_port(node.ports.internal), free_port(node.ports.controller))
            fresh.append(self._place(node.id, ports))
        return self._save(cluster, fresh)

    def _numbers(self) -> range:
        return range(1, self.size + 1)

    def _choose(self, number: int) -> Ports:
        if self.port is not None:
            client = self.port + number - 1
            self._ports_free(client)
        else:
            client = free_port(9092) if number == 1 else free_port()
        return Ports(client, free_port(), free_port())

    def _ports_free(self, port: int) -> None:
        try:
            free_port(port, strict=True)
        except ConflictError as error:
            who = owner(port)
            raise ConflictError(
                f"port {port} is in use" + (f" by {who}" if who else ""), code="TAPE-3003", port=port
            ) from error

    def _save(self, cluster: str, nodes: list[Node]) -> tuple[str, list[Node]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"cluster": cluster, "ports": {node.id: asdict(node.ports) for node in nodes}}, indent=1)
        temporary = self.folder / ".cluster.json"
        temporary.write_text(text)
        temporary.replace(self.folder / "cluster.json")
        return cluster, nodes

    def _prepare(self, node: Node, nodes: list[Node], cluster: str, runtime: Runtime) -> None:
        ports = {other.id: other.ports for other in nodes}
        node.write(properties(node.id, ports, data=node.data, security=self.security, extra=self.extra))
        if not node.formatted():
            node.format(runtime, cluster, self.security.scram())

    def _await(self, nodes: list[Node]) -> None:
        for node in nodes:
            process = node.process()
            if process is None:
                raise _not_started(node)
            self._listening(node, process)
        self._answers(nodes)

    def _listening(self, node: Node, process: Process) -> None:
        def taken() -> bool:
            with suppress(ConflictError):
                free_port(node.ports.client, strict=True)
                return False
            return True

        if not wait_until(taken, deadline_s=START_S, every_s=0.02, process=process) or not alive(process):
            raise _not_started(node)

    def _answers(self, nodes: list[Node]) -> None:
        # An open port is not a broker yet. Ready means: all nodes are registered, share groups are on, and the
        # group coordinator (whose topic is made by the first question) has an address.
        url = ",".join(f"{HOST}:{node.ports.internal}" for node in nodes)
        last: list[TapeError] = []

        def ready() -> bool:
            try:
                with Link(Settings(kafka_url=url), name="tape-ready", timeout_s=5) as link:
                    known = link.describe()
                    if known.brokers == len(nodes) and not known.share:
                        raise SetupError("the broker's share groups are off", code="TAPE-8004", url=url)
                    link.coordinator("tape-ready")
                    return known.brokers == len(nodes)
            except UnavailableError as error:
                last[:] = [error]
                return False

        if not wait_until(ready, deadline_s=START_S, every_s=0.05, process=nodes[0].process()):
            raise _not_started(nodes[0]) from (last[0] if last else None)

    def _train(self, runtime: Runtime, progress: Progress | None) -> None:
        # Run once to the end with the JVM recording the classes it loads; every later start maps them from a file
        # and is up in half the time. Only an optimisation, so a failure is not one.
        if runtime.archive.exists():
            return
        if progress is not None:
            progress("preparing a class archive for quick starts (once)")
        with suppress(TapeError, OSError), locked(runtime.archive.parent / "lock", wait_s=60):
            if runtime.archive.exists():
                return
            with tempfile.TemporaryDirectory(dir=runtime.archive.parent, prefix=".train-") as temporary:
                trainer = NativeBroker(Path(temporary), self.cache)
                archive = trainer._record(runtime, Path(temporary) / "classes.jsa")
                shutil.move(archive, runtime.archive)

    def _record(self, runtime: Runtime, archive: Path) -> Path:
        """Run the broker once and write the archive of its classes. Raises `SetupError` (TAPE-8004)."""
        cluster, nodes = self._layout()
        try:
            for node in nodes:
                self._prepare(node, nodes, cluster, runtime)
                node.start(runtime, tie=True, record=archive)
            self._await(nodes)
        finally:
            for node in nodes:
                node.stop(grace_s=30)
        return archive


def _not_started(node: Node) -> SetupError:
    words = node.last_words()
    return SetupError(f"the broker did not start: {words or 'its log is empty'}", code="TAPE-8004", file=str(node.log))
