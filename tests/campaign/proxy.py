"""A TCP proxy that misbehaves when told to: late, slow, deaf in one direction, cut in the middle, busy, or gone."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["pass", "refuse", "hang", "deaf", "mute", "busy"]
BUSY = b"HTTP/1.1 503 Slow Down\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
PIECE = 65_536


@dataclass(eq=False)
class Proxy:
    """Stands before a service. Set the attributes at any time; connections that are open obey them too.

    `mode`: `pass`; `refuse` (nobody there, open connections are reset); `hang` (no byte goes either way); `deaf` (the
    service hears nothing); `mute` (its answers are lost); `busy` (every HTTP request gets a 503 with Retry-After).
    What is held back goes through later, as TCP does after a partition. `delay_s` is added to every piece, `rate` is
    bytes a second; of the next `cuts` connections each ends after `cut_after` bytes of answers.
    """

    target: int
    mode: Mode = "pass"
    delay_s: float = 0.0
    rate: float = 0.0
    cuts: int = 0
    cut_after: int = 0
    cut: int = 0
    refused: int = 0
    port: int = 0
    _open: set[socket.socket] = field(default_factory=set)

    def __enter__(self) -> Proxy:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()

    def drop(self) -> None:
        """Reset every open connection."""
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def set(self, mode: Mode) -> None:
        """Behave so from now on."""
        self.mode = mode
        if mode in {"refuse", "busy"}:
            self.drop()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.mode == "refuse":
                self.refused += 1
                client.close()
                continue
            threading.Thread(target=self._handle, args=(client,), daemon=True).start()

    def _handle(self, client: socket.socket) -> None:
        if self.mode == "busy":
            self.refused += 1
            with suppress(OSError), client:
                client.settimeout(2.0)
                client.recv(PIECE)
                client.sendall(BUSY)
                time.sleep(0.05)
            return
        limit = None
        if self.cuts > 0:
            self.cuts, limit = self.cuts - 1, self.cut_after
        try:
            service = socket.create_connection(("127.0.0.1", self.target), timeout=5)
        except OSError:
            client.close()
            return
        service.settimeout(None)
        self._open |= {client, service}
        other = threading.Thread(target=self._pump, args=(client, service, "deaf", None), daemon=True)
        other.start()
        self._pump(service, client, "mute", limit)
        other.join()
        self._open -= {client, service}
        client.close()
        service.close()

    def _pump(self, source: socket.socket, sink: socket.socket, lost: str, limit: int | None) -> None:
        passed = 0
        try:
            while piece := source.recv(PIECE):
                if self.delay_s:
                    time.sleep(self.delay_s)
                if self.rate:
                    time.sleep(len(piece) / self.rate)
                while self.mode in {"hang", lost}:
                    time.sleep(0.05)
                if limit is not None and passed + len(piece) > limit:
                    sink.sendall(piece[: max(0, limit - passed)])
                    self.cut += 1
                    break
                sink.sendall(piece)
                passed += len(piece)
        except OSError:
            pass
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
