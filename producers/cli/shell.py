"""What every command is given: settings, output, a client."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from producers.cli.output import Output

if TYPE_CHECKING:
    from producers.client import Client
    from producers.ports import Ports
    from wire.blobs import Blobs
    from wire.settings import Settings


@dataclass
class Shell:
    """One run of `tape`: the options that stand before (or anywhere among) a command's own."""

    output: Output = field(default_factory=Output)
    given: dict[str, Any] = field(default_factory=dict)
    debug: bool = False
    ports: Ports | None = None

    @cached_property
    def settings(self) -> Settings:
        """The settings: option > environment > profile > default. Raises `InvalidError` (TAPE-1007)."""
        from wire.settings import Settings

        return Settings.load(**self.given)

    @property
    def blobs(self) -> Blobs:
        """The store: that of the ports we were given, else the one that the settings name."""
        if self.ports is not None:
            return self.ports.blobs
        from wire.blobs import open_store

        return open_store(self.settings)

    @contextmanager
    def client(self, *, broker: bool = True) -> Iterator[Client]:
        """Open a client with telemetry, and close both in the end; without `broker`, nobody needs to listen there."""
        from producers.client import Client

        with self.quiet(broker=broker), Client(settings=self.settings, ports=self.ports) as client:
            yield client

    @contextmanager
    def quiet(self, *, broker: bool = True) -> Iterator[None]:
        """Set telemetry up with quiet logs, and shut it down in the end.

        Raises `UnavailableError` (TAPE-5001) at once where a `broker` is needed and none listens.
        """
        if self.ports is not None:  # whoever embeds us has set up logs and traces
            yield
            return
        if broker:
            self.refused()
        from wire.telemetry import configure

        level = "info" if self.debug else "error"
        provider = configure(self.settings.model_copy(update={"log_level": level}), "client")
        try:
            yield
        finally:
            if provider is not None:
                provider.shutdown()

    def refused(self) -> None:
        """Raise `UnavailableError` (TAPE-5001) at once where nobody listens at any of the broker's addresses.

        A client waits for a broker that is just starting; a person at a terminal would rather know.
        """
        from schemas.errors import UnavailableError

        for server in self.settings.kafka_servers:
            host, _, port = server.rpartition(":")
            try:
                socket.create_connection((host, int(port)), timeout=2).close()
                return
            except (ConnectionRefusedError, socket.gaierror) as error:
                reason = error.strerror
            except OSError:
                return  # slow is not refused: the client's own timeout decides
        raise UnavailableError(f"no broker there: {reason}", code="TAPE-5001", url=self.settings.kafka_url)

    def environment(self) -> dict[str, str]:
        """Return the environment for a child process, with the options given here in it."""
        return {**os.environ, **{f"TAPE_{key.upper()}": str(value) for key, value in self.given.items() if value}}
