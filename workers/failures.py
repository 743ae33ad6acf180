"""Whatever a job raised, as an error of our tree: the table `schemas.foreign` applied, without its packages."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from schemas.errors import (
    AuthError,
    ConflictError,
    InvalidError,
    JobError,
    NotFoundError,
    SetupError,
    TapeError,
    TimeoutExceeded,
    UnavailableError,
)
from schemas.foreign import FOREIGN, Row
from schemas.outcome import Failure
from schemas.past import TEXT

MESSAGE = 500
"""Characters of a foreign text that are kept; the traceback has the whole."""
SEARCHED = 4_000
DEPTH = 8
FAMILIES: dict[str, type[TapeError]] = {
    "1": InvalidError,
    "2": NotFoundError,
    "3": ConflictError,
    "4": AuthError,
    "5": UnavailableError,
    "6": JobError,
    "7": TimeoutExceeded,
    "8": SetupError,
}
OWNERS = {
    "TAPE-2004": "broker", "TAPE-4001": "broker", "TAPE-5001": "broker", "TAPE-5003": "broker", "TAPE-5005": "broker",
    "TAPE-4002": "store", "TAPE-5002": "store", "TAPE-5006": "store",
}  # fmt: skip
"""Codes that name the dependency they are about."""
REFUSED = frozenset({"TAPE-4001", "TAPE-4002", "TAPE-4004"})
"""Codes of credentials that were refused: those of this worker, and nobody knows about the others'."""


def classify(error: BaseException) -> TapeError:
    """Return the error of our tree that tells what `error` means; one of our own is returned as it is.

    The place holds what is known of it: `file`, `host`, `dependency`, `status`, `retry_after` (seconds), and
    `device="suspect"` where the machine rather than the job is to blame.
    """
    if isinstance(error, TapeError):
        return error
    row, culprit = match(error)
    if isinstance(culprit, TapeError):
        return FAMILIES[culprit.code[5]](
            culprit.message, code=culprit.code, hint=culprit.hint, failure=culprit.failure, **culprit.place
        )
    entry = row.entry
    told = _told(error) if row.code in ("TAPE-6001", "TAPE-6014") else f"{entry.meaning}: {_told(error)}"
    return FAMILIES[row.code[5]](told, code=row.code, hint=entry.hint, failure=entry.failure, **_place(culprit, row))


def match(error: BaseException) -> tuple[Row, BaseException]:
    """Return the row that decides, and the exception it is about: `error` or one of its causes."""
    first = _row(error)
    if first.general:
        for cause in _causes(error):
            if isinstance(cause, TapeError):
                return first, cause
            if not (row := _row(cause)).general:
                return row, cause
    return first, error


def suspect(failure: Failure) -> bool:
    """Whether the machine's device, rather than the job, is to blame."""
    return failure.place.get("device") == "suspect"


def dependency(failure: Failure) -> str | None:
    """Return the name of the dependency that a failure is about, as far as it tells; breakers are named so."""
    named = failure.place.get("dependency") or OWNERS.get(failure.code)
    if named is None and failure.code in ("TAPE-4004", "TAPE-5007", "TAPE-5008") and failure.place.get("host"):
        named = f"host:{failure.place['host']}"
    return str(named) if named is not None else None


_NOISE = (
    (re.compile(r"https?://\S+|(?:[A-Za-z]:)?(?:[\\/][\w.@~+-]+){2,}[\\/]?"), "<path>"),
    (re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.I), "<id>"),
    (re.compile(r"\b0x[0-9a-f]+\b|\b(?=[a-f]*\d)[0-9a-f]{8,}\b", re.I), "<hex>"),
    (re.compile(r"[-+]?\d+(?:[.,:]\d+)*(?:e[-+]?\d+)?", re.I), "<n>"),
    (re.compile(r"\s+"), " "),
)


def fingerprint(code: str, message: str) -> str:
    """Return what two failures of the same origin have in common: the code, and the text without what varies.

    Paths, addresses, ids, hexadecimal and other numbers are taken out. The text is cut where a job's past cuts it, so
    that an old failure and a new one compare.
    """
    text = message[:TEXT]
    for noise, stands in _NOISE:
        text = noise.sub(stands, text)
    return f"{code} {text.strip().casefold()[: TEXT // 2]}"


_SECRET = (
    (re.compile(r"(\w+://)(?:[^\s/@]*@)?([^\s/?#'\"]*)[^\s'\"]*"), r"\1\2"),
    (re.compile(r"\b(bearer|basic)\s+\S+", re.I), r"\1 <hidden>"),
    (re.compile(r"(\w*(?:key|token|secret|password|signature))['\"]?\s*[:=]\s*\S+", re.I), r"\1=<hidden>"),
    (re.compile(r"\b(?=[\w+=-]*\d)(?=[\w+=-]*[A-Za-z])[\w+=-]{16,}"), "<hidden>"),
    (re.compile(r"\s+"), " "),
)
CAUSE = 160
"""Characters of a cause."""


def cause(failure: Failure) -> str:
    """Return the code and the text of a failure for people who see no job of it: short, and without what may be secret.

    Of addresses the host stays; what is called a key, a token or the like is left out, and so are long words of letters
    and digits.
    """
    text = failure.message[:SEARCHED]
    for secret, stands in _SECRET:
        text = secret.sub(stands, text)
    told = f"{failure.code} {text.strip()}"
    return told if len(told) <= CAUSE else told[: CAUSE - 1] + "…"


def _row(error: BaseException) -> Row:
    names = _names(type(error))
    text = _text(error)
    return next(row for row in FOREIGN if _fits(row, error, names, text))


def _fits(row: Row, error: BaseException, names: tuple[str, ...], text: str) -> bool:
    if not any(fnmatchcase(name, row.exception) for name in names):
        return False
    if row.field and _value(error, row.field) not in row.values:
        return False
    return not row.text or re.search(row.text, text, re.IGNORECASE) is not None


def _names(kind: type[BaseException]) -> tuple[str, ...]:
    """Return how a class and those it inherits from are called in the table."""
    return tuple(_name(one) for one in kind.__mro__ if issubclass(one, BaseException))


def _name(kind: type) -> str:
    package = kind.__module__.partition(".")[0]
    return kind.__name__ if package == "builtins" else f"{package}.{kind.__name__}"


def _value(error: BaseException, field: str) -> str | None:
    if field == "errno":
        number = getattr(error, "errno", None)
        return errno.errorcode.get(number) if isinstance(number, int) else None
    if field == "status":
        status = _status(error)
        return None if status is None else str(status)
    value = getattr(error, field, None)
    return None if value is None else str(value)


def _status(error: BaseException) -> int | None:
    found = (getattr(error, "status_code", None), getattr(error, "status", None), getattr(error, "code", None))
    for value in (getattr(_response(error), "status_code", None), getattr(_response(error), "status", None), *found):
        if isinstance(value, int) and 400 <= value < 600:
            return int(value)
    return None


def _response(error: BaseException) -> Any:
    return getattr(error, "response", None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield what an exception was raised from, nearest first; a context that was only at hand is no cause."""
    queue, seen = [error], {id(error)}
    while queue and len(seen) <= DEPTH:
        current = queue.pop(0)
        members = current.exceptions if isinstance(current, BaseExceptionGroup) else ()
        for cause in (current.__cause__, getattr(current, "reason", None), *members):
            if isinstance(cause, BaseException) and id(cause) not in seen:
                seen.add(id(cause))
                queue.append(cause)
                yield cause


def _text(error: BaseException) -> str:
    try:
        return str(error)[:SEARCHED].strip()
    except Exception:  # a foreign __str__ may itself be broken
        return ""


def _told(error: BaseException) -> str:
    lines = _text(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:MESSAGE]}" if lines else type(error).__name__


def _place(error: BaseException, row: Row) -> dict[str, Any]:
    place: dict[str, Any] = {"status": _status(error), "host": _host(error), "retry_after": _retry_after(error)}
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes) and place["status"] is None:
        place["file"] = os.fsdecode(error.filename)
    if row.exception.startswith("minio."):
        place["dependency"] = "store"
    if row.suspect:
        place["device"] = "suspect"
    return place


def _host(error: BaseException) -> str | None:
    for path in ("pool.host", "request.url.host", "host"):
        found: Any = error
        for part in path.split("."):
            try:
                found = getattr(found, part, None)
            except Exception:  # httpx raises where a request was never set
                found = None
        if isinstance(found, str) and found:
            return found
    url = getattr(error, "url", None)
    return _hostname(url) if isinstance(url, str) else None


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _retry_after(error: BaseException) -> float | None:
    """Return the seconds a response asks to wait: a number, or a date seen from the response's own date (RFC 9110)."""
    headers: Any = getattr(_response(error), "headers", None) or getattr(error, "headers", None)
    if not hasattr(headers, "get"):
        return None
    raw = str(headers.get("Retry-After") or "").strip()
    try:
        if raw.replace(".", "", 1).isdecimal():
            seconds = float(raw)
        else:
            sent = headers.get("Date")
            since = parsedate_to_datetime(str(sent)) if sent else datetime.now(UTC)
            seconds = (parsedate_to_datetime(raw) - since).total_seconds()
    except (ValueError, TypeError):
        return None
    return seconds if seconds > 0 and math.isfinite(seconds) else None
