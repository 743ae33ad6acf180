"""The broker's programs: a JDK, Apache Kafka's jars resolved once by Maven, and a class archive for a quick start."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import SetupError
from wire.process import locked

VERSION = "4.3.1"
JDK = 17
POM = Path(__file__).with_name("pom.xml")
STAMP = ".pom.sha256"
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a broker is run with: the Java program, the folder of jars, the class archive (which may not exist)."""

    java: Path
    libs: Path
    archive: Path

    def command(self, main: str, *arguments: str, heap: str = "512m", record: Path | None = None) -> list[str]:
        """Return the command line of one of Kafka's programs; `record` writes a class archive when it ends."""
        shared = f"-XX:ArchiveClassesAtExit={record}" if record else f"-XX:SharedArchiveFile={self.archive}"
        flags = [f"-Xmx{heap}", *_FLAGS]
        if record or self.archive.exists():
            flags += [shared, "-Xshare:auto", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]
        return [str(self.java), *flags, main, *arguments]

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment with the jars on the class path, in an order that never changes."""
        jars = os.pathsep.join(str(path) for path in sorted(self.libs.glob("*.jar")))
        found = {key: value for key, value in (os.environ if env is None else env).items() if key not in _FOREIGN}
        return {**found, "CLASSPATH": jars}


# The serial collector and the first compiler only: the broker is up in a third of the time and takes half the memory,
# which is what a broker that shares one machine with its workers needs. Log lines carry a time, warnings and up,
# and the server's own few lines about its life.
_FLAGS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
    "-Dorg.slf4j.simpleLogger.showThreadName=false",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server=info",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaConfig=warn",
)
# Options meant for somebody else's Java (a proxy agent, another heap) would change or break ours.
_FOREIGN = frozenset({"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "KAFKA_OPTS", "CLASSPATH"})


def resolve(cache: Path, *, progress: Progress | None = None, env: Mapping[str, str] | None = None) -> Runtime:
    """Find the JDK and make sure the jars are in the cache; the first time Maven fetches 54 MB.

    Raises `SetupError`: TAPE-8001 without a JDK 17 or newer, TAPE-8002 without Maven, TAPE-8004 when Maven fails.
    """
    env = os.environ if env is None else env
    java, version = find_java(env)
    root = cache / "kafka" / VERSION
    libs, stamp = root / "libs", hashlib.sha256(POM.read_bytes()).hexdigest()
    if not _fresh(libs, stamp):
        with locked(root / "lock", wait_s=900):
            if not _fresh(libs, stamp):
                _fetch(libs, stamp, progress or (lambda _: None), env)
    key = hashlib.sha256(f"{stamp} {version} {libs.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    return Runtime(java=java, libs=libs, archive=root / f"classes-{key}.jsa")


def find_java(env: Mapping[str, str]) -> tuple[Path, str]:
    """Return the Java program and what it says its version is. Raises `SetupError` (TAPE-8001)."""
    home = env.get("JAVA_HOME")
    beside = Path(home) / "bin" / "java" if home else None
    found = str(beside) if beside and beside.exists() else shutil.which("java", path=env.get("PATH", ""))
    if found is None:
        raise SetupError(f"no Java program on PATH and no JAVA_HOME; Apache Kafka {VERSION} needs JDK {JDK}")
    try:
        answer = subprocess.run([found, "-version"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"the Java program cannot be run: {error}", file=found) from error
    text = answer.stderr + answer.stdout
    match = re.search(r'version "(\d+)(?:\.(\d+))?', text)
    major = int(match[2] if match[1] == "1" and match[2] else match[1]) if match else 0
    if major < JDK:
        raise SetupError(f"Java {major or 'of an unknown version'} is too old; JDK {JDK} is needed", file=found)
    return Path(found), text


def _fresh(libs: Path, stamp: str) -> bool:
    try:
        return (libs / STAMP).read_text() == stamp
    except OSError:
        return False


def _fetch(libs: Path, stamp: str, progress: Progress, env: Mapping[str, str]) -> None:
    maven = shutil.which("mvn", path=env.get("PATH", ""))
    if maven is None:
        raise SetupError("Maven is needed once, to fetch the jars of Apache Kafka", code="TAPE-8002")
    progress(f"fetching Apache Kafka {VERSION} with Maven (54 MB, once)")
    with tempfile.TemporaryDirectory(dir=libs.parent, prefix=".resolve-") as temporary:
        pom, fresh = Path(temporary) / "pom.xml", Path(temporary) / "libs"
        shutil.copyfile(POM, pom)
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={fresh}", "-DincludeScope=runtime"]
        _run_maven([maven, "-B", "-ntp", "-f", str(pom), *goal], progress, env)
        if not any(fresh.glob(f"kafka_*-{VERSION}.jar")):
            raise SetupError("Maven ended well but brought no Kafka jar", code="TAPE-8004", file=str(POM))
        (fresh / STAMP).write_text(stamp)
        # A folder is complete or it is not there: the old one (an earlier pom) leaves, the new one takes its name.
        if libs.exists():
            libs.replace(Path(temporary) / "old")
        fresh.replace(libs)
    for archive in libs.parent.glob("classes-*.jsa"):
        archive.unlink(missing_ok=True)


def _run_maven(command: list[str], progress: Progress, env: Mapping[str, str]) -> None:
    last: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(env), stdin=subprocess.DEVNULL
    ) as maven:
        try:
            for line in maven.stdout or ():
                last.append(line.rstrip())
                if "Copying" in line:
                    progress(line.partition("Copying ")[2].split(" to ")[0].strip())
        except BaseException:
            maven.kill()
            raise
    if maven.returncode:
        errors = [line for line in last if "ERROR" in line] or list(last)
        raise SetupError(
            f"Maven could not resolve the broker's jars: {' | '.join(errors[:4])}",
            code="TAPE-8004",
            file=str(POM),
            hint="check the network, or Maven's mirror settings (~/.m2/settings.xml), and try again",
        )
