"""What looks like somebody's own data: addresses and numbers of a certain form, and of the right check digit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

_ISSUERS = re.compile(r"4|5[1-5]|2[2-7]|3[47068]|6[05]|62")


def _card(text: str) -> bool:
    """Whether a number begins as one of an issuer's and its digits check (ISO/IEC 7812-1)."""
    digits = [int(letter) for letter in reversed(text) if letter.isdigit()]
    total = sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return total % 10 == 0 and len(set(digits)) > 1 and _ISSUERS.match(text) is not None


def _iban(text: str) -> bool:
    """Whether an account number checks (ISO 13616, ISO/IEC 7064 mod 97-10)."""
    letters = re.sub(r"\s", "", text)
    return 15 <= len(letters) <= 34 and int("".join(str(int(one, 36)) for one in letters[4:] + letters[:4])) % 97 == 1


def _any(_: str) -> bool:
    return True


KINDS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "email": (re.compile(r"\b[A-Za-z0-9][\w.+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,24}\b"), _any),
    "iban": (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _iban),
    "card": (re.compile(r"\b(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{5})\b"), _card),
    "ssn": (re.compile(r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b"), _any),
    "phone": (
        re.compile(r"(?<![\w.])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,4}\d{2,4}|\(\d{3}\) ?\d{3}-\d{4})\b"),
        _any,
    ),
}
"""Every kind: its form, and whether what has that form is one."""
_DIGITS = re.compile(r"\d(?:[ .()-]{0,2}\d){6}")
"""In every number of the forms above: one search for most texts, and not four."""


def personal(text: str) -> Iterator[tuple[str, str]]:
    """Yield what looks personal in a text, kind and words."""
    if "@" not in text and _DIGITS.search(text) is None:
        return
    for kind, (form, holds) in KINDS.items():
        for found in form.finditer(text):
            if holds(found[0]):
                yield kind, found[0]


def masked(text: str) -> str:
    """Return a text with `[email]` and the like where something personal was."""
    for kind, (form, holds) in KINDS.items():
        text = form.sub(lambda found, kind=kind, holds=holds: f"[{kind}]" if holds(found[0]) else found[0], text)  # type: ignore[misc]
    return text
