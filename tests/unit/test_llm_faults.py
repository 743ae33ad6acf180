"""Foreign exceptions: each becomes the error that says what to do next."""

from __future__ import annotations

import errno

import pytest

from schemas.errors import FailureClass, JobError, NotFoundError, TapeError
from workers.llm.faults import classify


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class SafetensorError(Exception):
    """As safetensors names it."""


@pytest.mark.parametrize(
    ("raised", "code", "failure"),
    [
        (MemoryError(), "TAPE-6003", "resource"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "TAPE-6003", "resource"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "TAPE-6003", "resource"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), "TAPE-6003", "resource"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "TAPE-6003", "resource"),
        (FloatingPointError("overflow"), "TAPE-6009", "permanent"),
        (ModuleNotFoundError("No module named 'peft'", name="peft"), "TAPE-8003", "invalid"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.json"), "TAPE-2003", "invalid"),
        (SafetensorError("header too large"), "TAPE-1009", "invalid"),
        (OSError(errno.ENOSPC, "No space left on device"), "TAPE-6001", "transient"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "TAPE-6001", "transient"),
        (ConnectionError("gone"), "TAPE-6001", "transient"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "TAPE-6001", "permanent"),
        (ValueError("no"), "TAPE-6001", "permanent"),
    ],
)
def test_every_exception_has_a_code_and_a_class(raised: BaseException, code: str, failure: str) -> None:
    found = classify(raised)
    assert (found.code, found.failure) == (code, FailureClass(failure))
    assert isinstance(found, TapeError)


def test_our_own_pass_through_and_texts_stay_short() -> None:
    ours = JobError("diverged", code="TAPE-6009")
    assert classify(ours) is ours
    assert len(classify(ValueError("x" * 9_000 + "\nsecond line")).message) < 600
    assert classify(KeyError()).message == "KeyError: KeyError"
    missing = classify(FileNotFoundError(errno.ENOENT, "No such file", "x.json"))
    assert isinstance(missing, NotFoundError) and missing.place == {"file": "x.json"}
