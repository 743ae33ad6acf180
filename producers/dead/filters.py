"""Which dead letters are meant: kind, tenant, class, code, text, age, model, attempts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from producers.dead.letter import TWIN, WAITING, Letter
from producers.dead.origin import FOREIGN
from schemas.errors import FailureClass, InvalidError

STATUSES = (WAITING, "redriven", "discarded", TWIN)
_ATTEMPTS = re.compile(r"(>=|<=|=|>|<)?\s*(\d{1,6})")
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    ">=": int.__ge__, "<=": int.__le__, "=": int.__eq__, ">": int.__gt__, "<": int.__lt__,
}  # fmt: skip


@dataclass(frozen=True)
class Filter:
    """A letter must match every part that is given. Raises `InvalidError` (TAPE-1010) when made of nonsense.

    `text` is a substring in any case, or a regular expression between slashes; it is looked for in the error's text and
    detail. `attempt` is a number, or a comparison such as `>=3`.
    """

    kinds: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    text: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None
    attempt: str | None = None
    jobs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {*FailureClass, FOREIGN}
        for name in self.classes:
            if name not in known:
                raise _wrong("--class", f"{name!r} is no failure class", f"use one of {', '.join(sorted(known))}")
        if self.attempt is not None and not _ATTEMPTS.fullmatch(self.attempt.strip()):
            raise _wrong("--attempt", f"{self.attempt!r} is no number of attempts", "use 3, '>=3' or '<2'")
        if self.since and self.until and self.since >= self.until:
            raise _wrong("--until", "nothing lies between --since and --until", "let --since be the earlier moment")
        _ = self._pattern

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        if self.text is None:
            return None
        inner = self.text[1:-1] if len(self.text) > 2 and self.text[0] == self.text[-1] == "/" else None
        try:
            return re.compile(re.escape(self.text) if inner is None else inner, re.IGNORECASE)
        except re.error as error:
            raise _wrong("--text", f"no regular expression: {error}", "mend it, or leave the slashes out") from None

    def takes(self, letter: Letter) -> bool:
        """Whether a letter is meant."""
        return (
            _in(letter.kind, self.kinds)
            and _in(str(letter.origin.failure), self.classes)
            and _in(letter.origin.code, self.codes)
            and (not self.jobs or letter.job in self.jobs or str(letter.place) in self.jobs)
            and (self.since is None or letter.died_at >= self.since)
            and (self.until is None or letter.died_at <= self.until)
            and self._attempts(letter)
            and self._text(letter)
            and _in(letter.tenant, self.tenants)
            and (self.model is None or self.model.lower() in letter.model.lower())
        )

    def told(self) -> dict[str, str]:
        """Return the filter as texts, for the plan's record of what was asked."""
        found: dict[str, str] = {}
        for name, value in (
            ("kind", self.kinds), ("tenant", self.tenants), ("class", self.classes), ("code", self.codes),
            ("job", self.jobs), ("text", self.text), ("since", self.since), ("until", self.until),
            ("model", self.model), ("attempt", self.attempt),
        ):  # fmt: skip
            if isinstance(value, tuple) and value:
                found[name] = ",".join(value)
            elif isinstance(value, datetime):
                found[name] = value.isoformat()
            elif isinstance(value, str):
                found[name] = value
        return found

    def _attempts(self, letter: Letter) -> bool:
        if self.attempt is None:
            return True
        match = _ATTEMPTS.fullmatch(self.attempt.strip())
        return match is not None and _COMPARE[match[1] or "="](letter.attempts, int(match[2]))

    def _text(self, letter: Letter) -> bool:
        if self._pattern is None:
            return True
        return any(self._pattern.search(text or "") for text in (letter.origin.message, letter.origin.detail))


def _in(value: str, wanted: tuple[str, ...]) -> bool:
    return not wanted or value in wanted


def _wrong(option: str, told: str, hint: str) -> InvalidError:
    return InvalidError(told, code="TAPE-1010", field=option, hint=hint)
