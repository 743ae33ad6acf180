"""Job and event identities: deterministic where a repeat must be recognised, time-ordered otherwise."""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from json.encoder import encode_basestring_ascii

from schemas.errors import InvalidError

JOBS = uuid.UUID("5a0c6f5e-6f0b-5d0e-9a63-9d1f6f1c9a10")
"""Namespace of job ids that come from an idempotency key, and of ids that come from a CloudEvents source and id."""


def uuid7() -> str:
    """Return a new UUIDv7 (RFC 9562 §5.7): 48 bits of milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & ((1 << 48) - 1)) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def job_id(tenant: str, key: str | None) -> str:
    """Return the id of a new job: UUIDv5 of tenant and idempotency key, or a UUIDv7 without a key (DESIGN §4)."""
    return uuid7() if key is None else derived_id(tenant, key)


def derived_id(*parts: str) -> str:
    """Return the one id that these parts always give, so that readers can drop a repeat."""
    # What uuid.uuid5 gives, in a third of its time: every event has such an id. JSON: no two lists of parts read alike.
    listed = ", ".join(map(encode_basestring_ascii, parts))
    digest = hashlib.sha1(JOBS.bytes + f"[{listed}]".encode(), usedforsecurity=False).digest()
    value = bytearray(digest[:16])
    value[6] = value[6] & 0x0F | 0x50
    value[8] = value[8] & 0x3F | 0x80
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


SUBJECT = "ce_subject"
"""The header that names a job in its envelope."""
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


def checked(job: str, *, field: str = SUBJECT) -> str:
    """Return `job` if it can be a job's id: what is safe in a path, a URL and a log line, at most 128 characters.

    Ids come from strangers and become names in the store. Raises `InvalidError` (TAPE-1004) that names `field`.
    """
    if not _SAFE.fullmatch(job):
        told = "is empty" if not job else "has more than 128 characters"
        if job and len(job) <= 128:
            told = "has other characters than A-Z a-z 0-9 . _ : -, or begins with a mark"
        hint = None if field == SUBJECT else "give the id that `tape submit` printed; `tape jobs` lists them"
        raise InvalidError(f"the job's id {told}", code="TAPE-1004", field=field, hint=hint)
    return job
