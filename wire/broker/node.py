"""One native Kafka node: its folder, its properties, formatting, starting and stopping it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import SetupError
from wire.broker.config import Ports, render
from wire.broker.jars import Runtime
from wire.process import Process, alive, load_state, save_state, spawn, stop, tail


@dataclass(frozen=True, slots=True)
class Node:
    """A broker and controller in one process, under a folder of its own."""

    id: int
    folder: Path
    ports: Ports

    @property
    def data(self) -> Path:
        """Where the records lie."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """What the process writes."""
        return self.folder / "broker.log"

    @property
    def properties(self) -> Path:
        """What the process is started with."""
        return self.folder / "server.properties"

    @property
    def _state(self) -> Path:
        return self.folder / "process.json"

    def process(self) -> Process | None:
        """Return the running process, or None; a state file left by a crash does not count."""
        found = load_state(self._state)
        return found[0] if found is not None and alive(found[0]) else None

    def write(self, values: dict[str, str]) -> None:
        """Write the properties, for the owner's eyes only: they may hold passwords."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.properties.touch(mode=0o600)
        self.properties.write_text(render(values))

    def formatted(self) -> bool:
        """Tell whether the data folder belongs to a cluster."""
        return (self.data / "meta.properties").exists()

    def format(self, runtime: Runtime, cluster: str, scram: list[str]) -> None:
        """Prepare the data folder for a cluster. Raises `SetupError` (TAPE-8004) with what the tool said."""
        users = [part for credential in scram for part in ("--add-scram", credential)]
        arguments = ("format", "--ignore-formatted", "-t", cluster, "-c", str(self.properties), *users)
        answer = subprocess.run(
            runtime.command("kafka.tools.StorageTool", *arguments, heap="128m"),
            env=runtime.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if answer.returncode:
            said = _telling(answer.stderr + answer.stdout)
            raise SetupError(
                f"the broker's data folder could not be formatted: {said}",
                code="TAPE-8004",
                file=str(self.data),
                hint="remove the folder if its records are not needed",
            )

    def start(self, runtime: Runtime, *, tie: bool, record: Path | None = None) -> Process:
        """Start the process and remember it at once, so that it is found again whatever happens next."""
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        command = runtime.command("kafka.Kafka", str(self.properties), record=record)
        process = spawn(command, log=self.log, env=runtime.environment(), tie=tie)
        save_state(self._state, process)
        return process

    def stop(self, grace_s: float) -> bool:
        """End the process if it runs; returns whether it went by itself."""
        process = self.process()
        went = True if process is None else stop(process, grace_s=grace_s)
        self._state.unlink(missing_ok=True)
        return went

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        process = self.process()
        if process is not None:
            stop(process, grace_s=0)

    def last_words(self) -> str:
        """Return the log's last lines that tell why it ended."""
        return _telling(tail(self.log, 200))


def _telling(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("\tat ")]
    errors = [line for line in lines if "ERROR" in line or "FATAL" in line or "Exception" in line]
    return " | ".join((errors or lines)[-4:])
