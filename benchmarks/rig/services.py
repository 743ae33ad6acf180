"""What the systems need: the peers' environment, Redis, RabbitMQ, Apache Kafka; started when first asked for.

Everything listens on loopback, on free ports, with its data in a folder that goes with the run; the kernel ends the
services when the benchmark ends, however it ends.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from benchmarks.rig.kinds import NAMES, TOPICS
from schemas.topics import Names, Topic, groups, topics
from wire.broker import NativeBroker
from wire.process import Process, free_port, spawn, stop, tail, wait_until
from wire.settings import Settings
from wire.topics import ensure

ROOT = Path(__file__).resolve().parents[2]
PINS = ROOT / "benchmarks" / "requirements-peers.txt"
HOST = "127.0.0.1"
START_S = 60.0
ONE = "one."
"""The prefix of the topics with a single partition."""


class MissingError(Exception):
    """Something a system needs is not on this machine."""


def environment(cache: Path) -> Path:
    """Return the folder of the peers' commands; made once for every version of the pins.

    Raises `MissingError` when the packages cannot be installed.
    """
    mark = hashlib.sha256(PINS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache / f"bench-peers-{mark}"
    if not (folder / "complete").exists():
        print(f"installing the peers into {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", "-r", str(PINS)]
        if subprocess.run(pip, check=False).returncode:
            raise MissingError(f"{PINS.name} could not be installed")
        (folder / "complete").touch()
    return folder / "bin"


class Services:
    """The brokers of one run. A context manager: at its end nothing runs any more."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.versions: dict[str, str] = {}
        self._processes: dict[str, list[Process]] = {}
        self._kafka: NativeBroker | None = None
        self._settings: Settings | None = None
        self._urls: dict[str, str] = {}

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        for processes in self._processes.values():
            for process in reversed(processes):
                stop(process)
        if self._kafka is not None:
            self._kafka.stop()

    def pids(self, name: str) -> list[int]:
        """Return the first processes of a service that runs."""
        if name == "kafka" and self._kafka is not None:
            return [node.pid for node in self._kafka.status().nodes if node.pid]
        return [process.pid for process in self._processes.get(name, [])]

    def url(self, name: str) -> str:
        """Return where a service is, started if need be. Raises `MissingError`."""
        if name not in self._urls:
            self._urls[name] = {"redis": self._redis, "rabbit": self._rabbit, "kafka": self._broker}[name]()
        return self._urls[name]

    def settings(self, prefix: str = "tape.") -> Settings:
        """Return what Tickertape's processes are given."""
        home = self.folder / "home"
        url = self.url("kafka")
        return Settings(home=home, kafka_url=url, prefix=prefix, store_url=f"dir:{home}/store", log_level="warning")

    def _run(self, name: str, command: list[str], port: int, env: dict[str, str] | None = None) -> None:
        log = self.folder / f"{name}.log"
        process = spawn(command, log=log, env=env, tie=True)
        self._processes.setdefault(name, []).append(process)
        if not wait_until(lambda: _answers(port), deadline_s=START_S, process=process):
            raise MissingError(f"{name} did not start: {tail(log, 3)}")

    def _redis(self) -> str:
        server = shutil.which("redis-server")
        if server is None:
            raise MissingError("redis-server is not installed")
        port, data = free_port(), self.folder / "redis"
        data.mkdir()
        durable = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        self._run("redis", [server, "--bind", HOST, "--port", str(port), "--dir", str(data), *durable], port)
        told = subprocess.run([server, "--version"], capture_output=True, text=True, check=False).stdout
        self.versions["Redis"] = _found(r"v=([\d.]+)", told)
        return f"redis://{HOST}:{port}/0"

    def _rabbit(self) -> str:
        # Debian's wrapper in the path insists on its own user and folders; the real script lies beside.
        server = shutil.which("rabbitmq-server", path=f"/usr/lib/rabbitmq/bin:{os.environ.get('PATH', '')}")
        mapper = shutil.which("epmd")
        if server is None or mapper is None:
            raise MissingError("rabbitmq-server (with Erlang's epmd) is not installed")
        data = self.folder / "rabbit"
        data.mkdir()
        port, names, distribution = free_port(), free_port(), free_port()
        # Erlang's name server outlives the broker that starts one, so it gets one of ours.
        self._run("rabbit", [mapper, "-address", HOST, "-port", str(names)], names)
        env = os.environ | {
            "HOME": str(data),
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(names),
            "RABBITMQ_NODENAME": "bench@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(data),
            "RABBITMQ_LOG_BASE": str(data),
            "RABBITMQ_PID_FILE": str(data / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        self._run("rabbit", [server], port, env)
        log = self.folder / "rabbit.log"
        wait_until(lambda: "completed with" in log.read_text(), deadline_s=START_S)
        self.versions["RabbitMQ"] = _found(r"RabbitMQ ([\d.]+)", log.read_text())
        return f"amqp://guest:guest@{HOST}:{port}/%2f"

    def _broker(self) -> str:
        self._kafka = NativeBroker(self.folder / "home", self.cache, port=free_port())
        status = self._kafka.start(tie=True)
        self.versions["Apache Kafka"] = status.version
        for prefix, partitions in (("tape.", 8), (ONE, 1)):
            names = Names(prefix)
            settings = Settings(kafka_url=status.url, prefix=prefix)
            wanted = [self._stamped(topic, names) for topic in topics(names, TOPICS, partitions)]
            ensure(settings, wanted, groups(names, NAMES))
        return status.url

    @staticmethod
    def _stamped(topic: Topic, names: Names) -> Topic:
        # The broker's clock says when an outcome was in the log, so the worker cannot flatter itself.
        if topic.name != names.events:
            return topic
        return Topic(topic.name, topic.partitions, {**topic.configs, "message.timestamp.type": "LogAppendTime"})

    def topic(self, name: str, partitions: int) -> None:
        """Make a topic for a peer on Kafka."""
        ensure(Settings(kafka_url=self.url("kafka")), [Topic(name, partitions)])

    def kinds(self) -> Path:
        """Return a folder that makes the benchmark's kinds known to a worker that has it on its path."""
        info = self.folder / "site" / "tickertape_bench-0.dist-info"
        if not info.exists():
            info.mkdir(parents=True)
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tickertape-bench\nVersion: 0\n")
            lines = [f"{name} = benchmarks.rig.kinds:{name}\n" for name in NAMES]
            (info / "entry_points.txt").write_text("[tickertape.kinds]\n" + "".join(lines))
        return info.parent


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else "unknown"
