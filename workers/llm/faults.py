"""What torch, transformers and the operating system raise, as errors of our tree; needs none of them to do it."""

from __future__ import annotations

import errno

from schemas.errors import FailureClass, InvalidError, JobError, NotFoundError, SetupError, TapeError

MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
    "std::bad_alloc",
)
ACCELERATOR_TEXTS = ("cuda error", "cudnn", "cublas", "nccl", "hip error")
OURS = (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, NotImplementedError)


def classify(exc: BaseException) -> TapeError:
    """Map any exception met while a model is loaded, trained or asked to an error with a code and a failure class.

    Memory → TAPE-6003 (resource); divergence → TAPE-6009; a broken safetensors file → TAPE-1009; a missing package →
    TAPE-8003; a missing file → TAPE-2003; a full disk or a failing accelerator → TAPE-6001 (transient); what will fail
    in the same way again → TAPE-6001 (permanent). An error of our own passes through as it is.
    """
    if isinstance(exc, TapeError):
        return exc
    name, text = type(exc).__name__, str(exc).strip()
    first = text.splitlines()[0][:500] if text else name
    if isinstance(exc, MemoryError) or name == "OutOfMemoryError" or _mentions(text, MEMORY_TEXTS):
        return JobError(f"the model ran out of memory: {first}", code="TAPE-6003")
    return _missing(exc, first) or _broken(exc, first) or JobError(f"{name}: {first}", failure=_class(exc, text))


def _mentions(text: str, parts: tuple[str, ...]) -> bool:
    return any(part in text.lower() for part in parts)


def _missing(exc: BaseException, first: str) -> TapeError | None:
    if isinstance(exc, ModuleNotFoundError):
        hint = "install the llm extra: `pip install 'tickertape[llm]'`"
        return SetupError(f"the Python package {exc.name} is missing", code="TAPE-8003", hint=hint)
    if isinstance(exc, FileNotFoundError):
        return NotFoundError(first, code="TAPE-2003", file=exc.filename)
    return None


def _broken(exc: BaseException, first: str) -> TapeError | None:
    if isinstance(exc, FloatingPointError):
        return JobError(f"the numbers left the finite range: {first}", code="TAPE-6009")
    if type(exc).__name__ == "SafetensorError":
        return InvalidError(f"the safetensors file is broken: {first}", code="TAPE-1009")
    if isinstance(exc, OSError) and exc.errno in {errno.ENOSPC, errno.EDQUOT}:
        return JobError(f"the disk is full: {first}", hint="free some space", failure=FailureClass.TRANSIENT)
    return None


def _class(exc: BaseException, text: str) -> FailureClass:
    """Say whether a failure without a code of its own will come again: errors of code do, those of a device may not."""
    lasting = isinstance(exc, OURS) or (isinstance(exc, RuntimeError) and not _mentions(text, ACCELERATOR_TEXTS))
    return FailureClass.PERMANENT if lasting else FailureClass.TRANSIENT
