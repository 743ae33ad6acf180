"""A native object store on this machine: no container, one command, the same address and credentials every time."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from schemas.errors import ConflictError, InvalidError, SetupError, TapeError
from wire.engine import HOST, MinIO, engine_named
from wire.process import (
    Process,
    alive,
    free_port,
    load_state,
    locked,
    save_state,
    spawn,
    stop,
    tail,
    wait_until,
)

BUCKET = "tickertape"
START_S = 60.0
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """A native store: whether it runs, as which process, and where it is reached (`url` is TAPE_STORE_URL)."""

    engine: str
    running: bool
    pid: int | None
    endpoint: str
    url: str
    access_key: str
    home: Path
    log: Path


class NativeStore:
    """MinIO or SeaweedFS under a data folder.

    >>> store = NativeStore(settings.home, settings.cache)      # doctest: +SKIP
    >>> store.start().url                                       # doctest: +SKIP
    's3+http://127.0.0.1:9000/tickertape'
    """

    def __init__(self, home: Path, cache: Path, *, engine: str = "minio", port: int | None = None) -> None:
        """Describe the store; nothing is touched yet.

        `port` is where it must listen (in use: TAPE-3003); without it, where it listened last or the engine's usual
        port if free. Raises `InvalidError` (TAPE-1010) for an unknown engine.
        """
        self.engine = engine_named(engine)
        self.folder = home.absolute() / self.engine.name
        self.cache = cache.expanduser()
        self.log = self.folder / "server.log"
        self._port = port
        self._state = self.folder / "state.json"

    def start(self, *, tie: bool = False) -> StoreStatus:
        """Start the store if it does not run, and wait until a signed write goes through.

        With `tie` it ends when the calling thread ends. Raises `SetupError` (TAPE-8003, 8004, 8005) or
        `ConflictError` (TAPE-3003); nothing is left running then.
        """
        program = self.engine.find(self.cache)
        with locked(self.folder / "lock", wait_s=START_S * 2):
            process, port = self._running()
            if process is not None:
                if self._port not in (None, port):
                    raise ConflictError(
                        f"the store runs already, on port {port}",
                        code="TAPE-3003",
                        port=port,
                        hint="stop it first: `tape store stop`",
                    )
                return self.status()
            # Another program may take a port between the look and the start: then choose again.
            for attempt in range(ATTEMPTS):
                if self._attempt(program, port, tie=tie, last=attempt + 1 == ATTEMPTS or self._port is not None):
                    break
        return self.status()

    def stop(self, *, grace_s: float | None = None) -> bool:
        """End the store, politely for `grace_s` seconds (the engine's own); returns whether it went by itself."""
        if not self.folder.exists():
            return True
        with locked(self.folder / "lock", wait_s=START_S * 2):
            process, _ = self._running()
            grace_s = self.engine.grace_s if grace_s is None else grace_s
            went = process is None or stop(process, grace_s=grace_s)
            self._tidy()
        return went

    def status(self) -> StoreStatus:
        """Tell what runs, from the process itself."""
        process, port = self._running()
        endpoint = f"{HOST}:{port or self._port or self.engine.port}"
        return StoreStatus(
            engine=self.engine.name,
            running=process is not None,
            pid=process.pid if process else None,
            endpoint=f"http://{endpoint}",
            url=f"s3+http://{endpoint}/{BUCKET}",
            access_key=self.credentials()[0],
            home=self.folder,
            log=self.log,
        )

    def logs(self, lines: int = 50) -> str:
        """Return the last lines of the store's log; empty when it has none."""
        return tail(self.log, lines)

    def build(self, progress: Callable[[str], None] | None = None) -> Path:
        """Get the store's program where it has to be built (MinIO); else tell where it is.

        Raises `SetupError` (TAPE-8003, TAPE-8005).
        """
        return (
            self.engine.build(self.cache, progress) if isinstance(self.engine, MinIO) else self.engine.find(self.cache)
        )

    def credentials(self) -> tuple[str, SecretStr]:
        """Return access and secret key, made at random once and kept in a file only its owner can read."""
        path = self.folder / "credentials.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        made = {"access_key": f"tape-{secrets.token_hex(6)}", "secret_key": secrets.token_urlsafe(30)}
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            if not path.exists():
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    json.dump(made, file)
                os.link(temporary, path)
        except FileExistsError:
            pass  # another command was first: its keys count
        finally:
            temporary.unlink(missing_ok=True)
        try:
            found = json.loads(path.read_text())
            return str(found["access_key"]), SecretStr(str(found["secret_key"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidError(
                "the store's credentials cannot be read", code="TAPE-1007", file=str(path), hint="restore the file"
            ) from error

    def profile(self) -> dict[str, Any]:
        """Return the settings that reach this store, secret in clear: for a file that only its owner can read."""
        access, secret = self.credentials()
        return {
            "store_url": self.status().url,
            "store_access_key": access,
            "store_secret_key": secret.get_secret_value(),
        }

    def _running(self) -> tuple[Process | None, int | None]:
        found = load_state(self._state)
        if found is None:
            return None, None
        process, extra = found
        port = extra.get("port")
        return (process if alive(process) else None), (port if isinstance(port, int) else None)

    def _attempt(self, program: Path, last_port: int | None, *, tie: bool, last: bool) -> bool:
        port = free_port(self._port or last_port or self.engine.port, strict=self._port is not None, host=HOST)
        access, secret = self.credentials()
        self._tidy()
        launch = self.engine.launch(program, self.folder, port=port, access=access, secret=secret.get_secret_value())
        process = spawn(launch.command, log=self.log, env={**os.environ, **launch.env}, tie=tie)
        try:
            save_state(self._state, process, port=port)
            if wait_until(lambda: self._answers(port), deadline_s=START_S, every_s=0.1, process=process):
                return True
            died = not alive(process)
        except BaseException:
            stop(process, grace_s=0)
            raise
        stop(process, grace_s=0)
        if died and not last:
            return False
        raise SetupError(
            f"{self.engine.name} {'ended while it started' if died else f'was not ready in {START_S:g} s'}: "
            f"{tail(self.log, 3)}",
            code="TAPE-8004",
            file=str(self.log),
            hint="read its log: `tape store logs`",
        )

    def _tidy(self) -> None:
        for path in self.engine.litter(self.folder):
            path.unlink(missing_ok=True)

    def _answers(self, port: int) -> bool:
        from wire.blobs.s3 import S3

        access, secret = self.credentials()
        try:
            store = S3.connect(
                f"{HOST}:{port}",
                BUCKET,
                credentials=(access, secret.get_secret_value()),
                secure=False,
                region="us-east-1",
                patient=False,
            )
            store.put(".ready", b"ready")
            store.delete(".ready")
        except TapeError:
            return False
        return True
