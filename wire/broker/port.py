"""Who listens on a port: found in the kernel's tables where they can be read."""

from __future__ import annotations

from pathlib import Path


def owner(port: int, *, proc: Path = Path("/proc")) -> str | None:
    """Return the listener's name and pid, as in `java (pid 4711)`; None when it cannot be found out.

    Linux only; other people's processes are only seen by root.
    """
    inodes = _listeners(port, proc)
    if not inodes:
        return None
    for folder in proc.iterdir():
        if folder.name.isdigit() and _holds(folder / "fd", inodes):
            try:
                return f"{(folder / 'comm').read_text().strip()} (pid {folder.name})"
            except OSError:
                return f"pid {folder.name}"
    return None


def _listeners(port: int, proc: Path) -> set[str]:
    found = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found


def _holds(folder: Path, inodes: set[str]) -> bool:
    try:
        return any(str(link.readlink()) in inodes for link in folder.iterdir())
    except OSError:
        return False
