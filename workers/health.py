"""The health endpoint: `/live`, `/ready` and `/busy` as JSON, for an orchestrator's probes, and `/metrics` as text."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from schemas.errors import ConflictError

Probe = Callable[[], tuple[bool, dict[str, Any]]]
Page = Callable[[], tuple[str, bytes]]
"""Gives a content type and the content."""


class Health:
    """Answers probes from a thread of its own: 200 when the probe holds, 503 when not, 404 for other paths.

    Port 0 takes a free one, see `port`. Raises `ConflictError` (TAPE-3003) when the port is taken.
    """

    def __init__(
        self,
        probes: dict[str, Probe],
        *,
        pages: dict[str, Page] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        known = sorted([*probes, *(pages or {})])

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.strip("/")
                if pages and name in pages:
                    self._answer(200, *pages[name]())
                    return
                probe = probes.get(name)
                good, body = probe() if probe else (False, {"error": "no such probe", "probes": known})
                data = json.dumps({"ok": good, **body}).encode()
                self._answer(200 if good else 503 if probe else 404, "application/json", data)

            def _answer(self, status: int, kind: str, data: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Probes come every few seconds: nobody wants them in the log."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise ConflictError(
                f"the health endpoint cannot listen: {error.strerror}", code="TAPE-3003", host=host, port=port,
                hint="choose another --health-port, or 0 for a free one",
            ) from error  # fmt: skip
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Start answering."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
