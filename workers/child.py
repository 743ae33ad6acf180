"""The child process of a slot: `python -m workers.child FD KIND ...`, started and fed by `workers.process`.

It speaks JSON messages over an inherited socket (length-prefixed frames, never pickle), runs one job at a time in its
main thread and stays warm between jobs, so a model that was loaded for one job is there for the next.
"""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from opentelemetry import trace

from schemas.codec import parse
from schemas.errors import TapeError
from schemas.outcome import Failed, Failure, Verdict
from wire import telemetry
from wire.blobs import open_store
from wire.process import die_with_parent
from wire.settings import Settings
from workers.context import Context
from workers.guard import Guarded, Guards
from workers.kinds import Kind, load
from workers.llm.gauge import Gauge
from workers.oom import offer
from workers.runner import call


class Child:
    """Reads messages in one thread and runs jobs in the main one."""

    def __init__(self, connection: Connection, settings: Settings, kinds: Sequence[str] = ()) -> None:
        self._connection = connection
        self._settings = settings
        self._jobs: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._sending = threading.Lock()
        self._guards = Guards()
        self._store = Guarded(self._guards.of("store"), lambda: open_store(settings), told=self._tell)
        self._well: set[str] = set()
        self._current: dict[str, Any] = {"job": "", "run": 0}
        self._kinds: dict[str, Kind] = {}
        for name in kinds:
            with suppress(TapeError):  # its job will meet the error, and tell
                self._kinds |= load([name])

    def serve(self) -> None:
        """Run jobs until the parent closes the socket, or has closed it before it heard the verdict."""
        threading.Thread(target=self._receive, name="receive", daemon=True).start()
        self._send({"type": "ready"})
        while (message := self._jobs.get()) is not None:
            self._current = {"job": message["job"], "run": message["run"]}
            verdict = self._run(message)
            try:
                self._send({"type": "verdict", "verdict": verdict.model_dump(mode="json")})
            except OSError:
                return  # whoever asked is gone

    def _receive(self) -> None:
        try:
            while True:
                message = json.loads(self._connection.recv_bytes())
                if message["type"] == "cancel":
                    self._cancelled.set()
                else:
                    self._cancelled.clear()
                    self._jobs.put(message)
        except (EOFError, OSError):
            self._jobs.put(None)

    def _send(self, message: dict[str, Any], run: dict[str, Any] | None = None) -> None:
        """Say something of a run: its own, whatever runs by now."""
        message |= run or self._current
        with self._sending:
            self._connection.send_bytes(json.dumps(message).encode())

    def _tell(self, dependency: str, error: TapeError | None) -> None:
        """Tell the worker what a call came to; that a dependency answers, only where that is news in this job."""
        if error is None and dependency in self._well:
            return
        (self._well.add if error is None else self._well.discard)(dependency)
        failure = Failure.of(error).model_dump(mode="json") if error else None
        self._send({"type": "call", "dependency": dependency, "failure": failure})

    def _run(self, message: dict[str, Any]) -> Verdict:
        self._well.clear()
        current = self._current
        tracer = trace.get_tracer("tickertape.slot")
        try:
            kind = self._kinds.get(message["kind"]) or load([message["kind"]])[message["kind"]]
            self._kinds[kind.name] = kind
            params = parse(kind.params, message["params"], kind=kind.name)
        except TapeError as error:
            return Failed(failure=Failure.of(error))
        with tracer.start_as_current_span(
            f"handle {kind.name}",
            context=telemetry.extract(message["carrier"]),
            attributes={"tape.job": message["job"], "tape.attempt": message["attempt"]},
        ):
            gauge = Gauge(watts=self._settings.cpu_watts, price=self._settings.price_per_hour)
            context = Context(
                job=message["job"],
                kind=kind.name,
                attempt=message["attempt"],
                worker=message["worker"],
                tenant=message["tenant"],
                cache=self._settings.cache,
                scratch=Path(message["scratch"]),
                open_store=lambda: self._store,
                report=lambda data: self._send({"type": "progress", "progress": data}, current),
                stopped=self._cancelled.is_set,
                deadline=time.monotonic() + message["timeout_s"] if message["timeout_s"] else None,
                labels=message["labels"],
                guards=self._guards,
                told=self._tell,
                spent=gauge.read,
            )
            verdict = call(kind, context, params)
        return verdict.model_copy(update={"usage": verdict.usage.model_copy(update=gauge.read())})


def main() -> None:
    """Serve the parent that started this process, and die with it."""
    die_with_parent()
    offer()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    settings = Settings.load()
    provider = telemetry.configure(settings, "slot")
    os.dup2(2, 1)  # what a library prints is log, and is seen at once: the process may not live to flush it
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    child = Child(Connection(int(sys.argv[1])), settings, sys.argv[2:])
    try:
        child.serve()
    finally:
        if provider is not None:
            provider.shutdown()


if __name__ == "__main__":
    main()
