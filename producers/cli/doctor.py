"""`tape doctor`: what is missing here, and how to get it."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import typer

from producers.cli.exits import Exit
from producers.cli.shell import Shell
from schemas.errors import TapeError

LLM = ("torch", "transformers", "peft", "safetensors", "accelerate")
FAST = {"crc32c": "record checksums are 4 times slower without it", "lz4": "lz4 records cannot be read"}
LOW_DISK, NO_DISK = 10 << 30, 1 << 30
PROBE_S = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result: `ok`, `warn` (works, with less) or `fail` (does not work)."""

    check: str
    status: str
    found: str
    way_out: str = ""


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(context: typer.Context) -> int:
    """Check this machine, the broker and the store; exit code 69 when broker or store do not answer, else 1."""
    shell: Shell = context.obj
    failed = set()
    rows = []
    for group, probe in CHECKS:
        for finding in probe(shell):
            rows.append(asdict(finding))
            if finding.status == "fail":
                failed.add(group)
    shell.output.rows(rows, ("check", "status", "found", "way_out"))
    if not failed:
        shell.output.note("all is well")
        return Exit.OK
    return Exit.UNAVAILABLE if failed & {"broker", "store"} else Exit.FAILURE


def python(_shell: Shell) -> Iterator[Finding]:
    """The interpreter and the packages."""
    version = ".".join(map(str, sys.version_info[:3]))
    fine = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if fine else "fail", version, "" if fine else "use Python 3.11 or newer")
    for name, why in FAST.items():
        if find_spec(name) is None:
            yield Finding(name, "warn", f"missing: {why}", f"pip install {name}")
    missing = [name for name in LLM if find_spec(name) is None]
    if missing:
        told = f"missing: {', '.join(missing)}"
        yield Finding("models", "warn", f"{told}; no model work here", "pip install 'tickertape[llm]'")
    else:
        yield Finding("models", "ok", "the llm extra is installed")


def native(shell: Shell) -> Iterator[Finding]:
    """What the native broker and store are made of; not needed with services elsewhere."""
    from wire.broker.jars import VERSION, find_java

    try:
        program, text = find_java(os.environ)
        version = text.partition('version "')[2].partition('"')[0]
        yield Finding("jdk", "ok", f"{version} ({program})")
    except TapeError as error:
        yield Finding("jdk", "warn", error.message, error.hint)
    jars = shell.settings.cache / "kafka" / VERSION / "libs"
    maven = shutil.which("mvn")
    if any(jars.glob("kafka_*.jar")):
        yield Finding("kafka", "ok", f"Apache Kafka {VERSION} is in the cache")
    elif maven:
        yield Finding("kafka", "ok", f"Apache Kafka {VERSION} is fetched at the first start with {maven}")
    else:
        yield Finding("kafka", "warn", "no Maven to fetch Apache Kafka with", "apt-get install maven")


def broker(shell: Shell) -> Iterator[Finding]:
    """Whether the broker answers, has share groups, and its topics are as they should be."""
    from wire.kafka import Link

    settings = shell.settings
    try:
        with Link(settings, name="tape-doctor", timeout_s=min(PROBE_S, settings.kafka_timeout_s)) as link:
            cluster = link.describe()
    except TapeError as error:
        yield Finding("broker", "fail", f"{settings.kafka_url}: {error.code} {error.message}", error.hint)
        return
    brokers = "1 broker" if cluster.brokers == 1 else f"{cluster.brokers} brokers"
    yield Finding("broker", "ok", f"{settings.kafka_url}: {brokers}")
    if cluster.share:
        yield Finding("share groups", "ok", "on")
    else:
        yield Finding("share groups", "fail", "off", "use Apache Kafka 4.2 or newer with share.version=1")
    try:
        yield _topics(shell)
    except TapeError as error:
        yield Finding("topics", "fail", f"{error.code} {error.message}", error.hint)


def _topics(shell: Shell) -> Finding:
    from producers.cli.topics import planned

    plan = planned(shell, [])
    if plan.pending:
        what = f"{len(plan.pending)} differences, e.g. {plan.pending[0].name}"
        return Finding("topics", "fail", what, "tape topics apply")
    if plan.drift:
        what = f"{len(plan.drift)} differences that are not mended, e.g. {plan.drift[0].name}"
        return Finding("topics", "warn", what, "tape topics ls")
    return Finding("topics", "ok", f"{len(plan.topics)} topics and {len(plan.groups)} groups are as they should be")


def store(shell: Shell) -> Iterator[Finding]:
    """Whether the store takes an object and gives it back."""
    from schemas.ids import uuid7
    from wire.blobs import open_store

    url = shell.settings.store_url
    name = f".doctor/{uuid7()}"
    try:
        blobs = open_store(shell.settings)
        blobs.create(name, b"doctor")
        same = blobs.read(name) == b"doctor"
        blobs.delete(name)
    except TapeError as error:
        yield Finding("store", "fail", f"{url}: {error.code} {error.message}", error.hint)
        return
    yield Finding("store", "ok" if same else "fail", f"{url}: written, read back and deleted")


def disk(shell: Shell) -> Iterator[Finding]:
    """Room where broker, store and caches live."""
    for name, path in (("home", shell.settings.home), ("cache", shell.settings.cache)):
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        status = "fail" if free < NO_DISK else "warn" if free < LOW_DISK else "ok"
        found = f"{path}: {free / (1 << 30):.1f} GiB free"
        yield Finding(f"disk ({name})", status, found, "" if status == "ok" else "free some space")
        if not os.access(there, os.W_OK):
            yield Finding(f"disk ({name})", "fail", f"{there} cannot be written", "mend its permissions")
    yield from _secret(shell.settings.home / "profile.json")


def _secret(path: Path) -> Iterator[Finding]:
    if path.exists():
        private = stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        found = "only its owner reads it" if private else "others can read it, and it may hold a secret"
        yield Finding(
            "profile", "ok" if private else "warn", f"{path}: {found}", "" if private else f"chmod 600 {path}"
        )


CHECKS: tuple[tuple[str, Callable[[Shell], Iterator[Finding]]], ...] = (
    ("python", python),
    ("native", native),
    ("broker", broker),
    ("store", store),
    ("disk", disk),
)
"""The checks in their order, each with the group that decides the exit code."""
