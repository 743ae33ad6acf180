"""Foreign exceptions: the one table that says what torch, S3, HTTP, pydantic and the system mean by what they raise.

`workers.failures.classify` reads it from the top; the first row that fits wins. A general row gives way where the cause
of the exception (`raise ... from`, urllib3's `reason`, the members of a group) fits a row that says more.
Sources: errno(3); AWS "S3 error responses"; RFC 9110 §15 and RFC 6585 (statuses); the texts of CUDA's
`cudaGetErrorString`, of NCCL, and of PyTorch's allocators.
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.errors import CODES, Code, FailureClass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one sort of exception means.

    `exception` is the name of a class or of one it inherits from: `PACKAGE.CLASS`, where PACKAGE is the first part of
    its module and `*` stands for anything; built-in ones have no package. `field` with `values` asks for an attribute:
    `errno` (by its symbol), `code` (of S3), `returncode`, `status` (of HTTP; also on a `response`). `text` is a regular
    expression that the exception's text holds, whatever the case.
    """

    exception: str
    code: str
    field: str = ""
    values: tuple[str, ...] = ()
    text: str = ""
    failure: FailureClass | None = None
    hint: str | None = None
    suspect: bool = False
    general: bool = False

    @property
    def entry(self) -> Code:
        """The code's meaning, severity and way out, with this row's class and hint in their place."""
        known = CODES[self.code]
        return Code(known.meaning, self.failure or known.failure, self.hint or known.hint, known.severity)

    @property
    def told(self) -> str:
        """Return what the row asks for, beside the class, in words."""
        parts = [f"{self.field} {', '.join(self.values)}"] if self.field else []
        parts += [f"text ~ {self.text}"] if self.text else []
        parts += ["unless its cause says more"] if self.general else []
        return "; ".join(parts)

    def flat(self) -> dict[str, str]:
        """Return the row as plain cells, for people and tools."""
        entry = self.entry
        return {
            "exception": self.exception,
            "when": self.told,
            "code": self.code,
            "meaning": entry.meaning,
            "class": entry.failure.value,
            "severity": entry.severity.value,
            "device": "suspect" if self.suspect else "",
            "way_out": entry.hint,
        }


_MEMORY = (
    r"out of memory|can't allocate memory|not enough memory|cannot allocate memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|std::bad_alloc|out of shared memory|\(shm\)"
)
_DEVICE = (
    r"uncorrectable (NVLink|ECC)|ECC error|fallen off the bus|GPU is lost|hardware stack error|busy or unavailable"
    r"|no CUDA-capable device|NVIDIA driver|driver (version|initialization|error)|CUDA unknown error"
    r"|invalid device ordinal|no kernel image|system not yet initialized"
)
_BROKEN = (
    r"CUDA error|device-side assert|illegal memory access|unspecified launch failure|misaligned address"
    r"|cuDNN(_STATUS| error)|cuBLAS(_STATUS| error)|HIP error"
)
_SHAPES = (
    r"shapes cannot be multiplied|must match the size|is invalid for input|size mismatch|Missing key\(s\) in state_dict"
    r"|not implemented for|expected .* but (got|found)|on the same device|does not require grad"
    r"|Trying to backward through the graph|inplace operation|expected scalar type|same dtype"
)
_MODEL = (
    r"Unrecognized model|does not recognize this architecture|instantiate the backend tokenizer|no file named"
    r"|does not appear to have a file|not a valid model identifier|Repo id must|is not a valid JSON|Can't load"
)
_TOKENIZER = r"untagged enum|Model missing|at line \d+ column \d+"
_NET = (
    "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EPIPE", "ETIMEDOUT", "EHOSTUNREACH", "EHOSTDOWN", "ENETUNREACH",
    "ENETDOWN", "ENETRESET", "ENOTCONN",
)  # fmt: skip
_T = FailureClass.TRANSIENT
_TRUST = "set SSL_CERT_FILE to the authority's PEM file"
_DEFECTS = (
    "ValueError", "TypeError", "LookupError", "AttributeError", "AssertionError", "NotImplementedError", "NameError",
    "ImportError", "SyntaxError", "ArithmeticError", "RecursionError", "torch._LinAlgError",
)  # fmt: skip


def _statuses(exception: str) -> tuple[Row, ...]:
    """What an HTTP status means, on whatever exception carries it."""
    away = ("408", "409", "423", "425", "500", "502", "503", "504", "520", "521", "522", "523", "524", "529")
    bad = ("400", "405", "406", "411", "412", "413", "414", "415", "416", "417", "422", "431", "451", "501")
    return (
        Row(exception=exception, code="TAPE-5008", field="status", values=("429",)),
        Row(exception=exception, code="TAPE-5007", field="status", values=away),
        Row(exception=exception, code="TAPE-4004", field="status", values=("401", "402", "407")),
        Row(exception=exception, code="TAPE-4003", field="status", values=("403",)),
        Row(exception=exception, code="TAPE-2001", field="status", values=("404", "410"), hint="check the address"),
        Row(exception=exception, code="TAPE-1013", field="status", values=bad),
    )


_ACCELERATORS = (
    Row(exception="torch.OutOfMemoryError", code="TAPE-6003"),
    Row(exception="RuntimeError", code="TAPE-6003", text=_MEMORY),
    Row(exception="RuntimeError", code="TAPE-6016", text=_DEVICE, suspect=True),
    Row(exception="torch.DistBackendError", code="TAPE-6016", suspect=True),
    Row(exception="RuntimeError", code="TAPE-6016", text="NCCL", suspect=True),
    Row(exception="torch.DistError", code="TAPE-6001", hint="another rank died or is late; read its log"),
    Row(exception="RuntimeError", code="TAPE-6015", text=_BROKEN),
    Row(exception="torch.AcceleratorError", code="TAPE-6015"),
    Row(exception="RuntimeError", code="TAPE-6002", text=r"DataLoader worker .*(exited unexpectedly|killed)"),
    Row(exception="RuntimeError", code="TAPE-6012", text="no space left|file write failed"),
    Row(exception="RuntimeError", code="TAPE-6013", text="can't start new thread"),
    Row(exception="RuntimeError", code="TAPE-6014", text=_SHAPES),
    Row(exception="torch.ProcessExitedException", code="TAPE-6002"),
    Row(exception="torch.ProcessRaisedException", code="TAPE-6001", general=True),
)

_MODELS = (
    Row(exception="pydantic_core.ValidationError", code="TAPE-1002"),
    Row(
        exception="safetensors.SafetensorError", code="TAPE-1009", hint="the safetensors file is broken; fetch it anew"
    ),
    Row(exception="OSError", code="TAPE-1009", text=_MODEL),
    Row(exception="ValueError", code="TAPE-1009", text=_MODEL),
    Row(exception="Exception", code="TAPE-1009", text=_TOKENIZER),
    Row(exception="*pickle.UnpicklingError", code="TAPE-1009"),
    Row(exception="huggingface_hub.GatedRepoError", code="TAPE-4004", hint="accept its licence and set HF_TOKEN"),
    Row(exception="huggingface_hub.HFValidationError", code="TAPE-1009"),
    Row(exception="huggingface_hub.OfflineModeIsEnabled", code="TAPE-2001", hint="put the model into the store"),
    Row(exception="huggingface_hub.LocalEntryNotFoundError", code="TAPE-2001", hint="put the model into the store"),
)

_S3 = (
    Row(exception="minio.S3Error", code="TAPE-5008", field="code",
        values=("SlowDown", "SlowDownRead", "SlowDownWrite", "TooManyRequests", "RequestLimitExceeded")),
    Row(exception="minio.S3Error", code="TAPE-2001", field="code",
        values=("NoSuchKey", "NoSuchObject", "NoSuchVersion", "XMinioParentIsObject")),
    Row(exception="minio.S3Error", code="TAPE-2001", field="code", values=("NoSuchBucket",),
        hint="make the bucket, or mend TAPE_STORE_URL"),
    Row(exception="minio.S3Error", code="TAPE-4003", field="code", values=("AccessDenied", "AllAccessDisabled")),
    Row(exception="minio.S3Error", code="TAPE-4002", field="code",
        values=("ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch")),
    Row(exception="minio.S3Error", code="TAPE-4002", field="code", values=("RequestTimeTooSkewed",),
        hint="set this machine's clock; requests are signed with the time"),
    Row(exception="minio.S3Error", code="TAPE-3001", field="code", values=("PreconditionFailed",)),
    Row(exception="minio.S3Error", code="TAPE-3002", field="code", values=("ConditionalRequestConflict",)),
    Row(exception="minio.S3Error", code="TAPE-1002", field="code",
        values=("KeyTooLongError", "XMinioInvalidObjectName"), hint="choose another name"),
    Row(exception="minio.S3Error", code="TAPE-6007", field="code", values=("BadDigest", "XAmzContentSHA256Mismatch")),
    Row(exception="minio.S3Error", code="TAPE-5002", field="code",
        values=("XMinioStorageFull", "QuotaExceeded"), hint="give the store more space"),
    Row(exception="minio.*Error", code="TAPE-5002"),
    Row(exception="minio.MinioException", code="TAPE-5002"),
)  # fmt: skip

_HTTP = (
    *_statuses("Exception"),
    Row(exception="urllib3.SSLError", code="TAPE-5007", hint=_TRUST),
    Row(exception="urllib3.LocationValueError", code="TAPE-1002", hint="mend the address"),
    Row(exception="urllib3.MaxRetryError", code="TAPE-5007", general=True),
    Row(exception="urllib3.HTTPError", code="TAPE-5007", general=True),
    Row(exception="http.HTTPException", code="TAPE-5007"),
    Row(exception="requests.InvalidURL", code="TAPE-1002", hint="mend the address"),
    Row(exception="requests.RequestException", code="TAPE-5007", general=True),
    Row(exception="httpx*.TransportError", code="TAPE-5007", general=True),
    Row(exception="httpx*.InvalidURL", code="TAPE-1002", hint="mend the address"),
    Row(exception="ssl.SSLError", code="TAPE-5007", hint=_TRUST),
    Row(exception="socket.gaierror", code="TAPE-5007", hint="the host's name is not known; check it, and the DNS"),
    Row(exception="urllib.URLError", code="TAPE-5007", general=True),
)

_SYSTEM = (
    Row(exception="OSError", code="TAPE-6012", field="errno", values=("ENOSPC", "EDQUOT")),
    Row(exception="OSError", code="TAPE-6003", field="errno", values=("ENOMEM",)),
    Row(exception="OSError", code="TAPE-6013", field="errno", values=("EMFILE", "ENFILE", "EAGAIN", "ENOBUFS")),
    Row(exception="OSError", code="TAPE-2003", field="errno", values=("ENOENT", "ENOTDIR")),
    Row(exception="OSError", code="TAPE-4003", field="errno", values=("EACCES", "EPERM", "EROFS")),
    Row(exception="OSError", code="TAPE-3003", field="errno", values=("EADDRINUSE",), failure=_T),
    Row(exception="OSError", code="TAPE-6017", field="errno", suspect=True,
        values=("EIO", "ESTALE", "ENODEV", "ENXIO")),
    Row(exception="OSError", code="TAPE-5007", field="errno", values=_NET),
    Row(exception="OSError", code="TAPE-6014", field="errno",
        values=("EISDIR", "EEXIST", "ENOTEMPTY", "ENAMETOOLONG", "ELOOP", "EINVAL", "EBADF", "EFBIG", "ESPIPE")),
    Row(exception="ConnectionError", code="TAPE-5007"),
    Row(exception="FileNotFoundError", code="TAPE-2003"),
    Row(exception="PermissionError", code="TAPE-4003"),
    Row(exception="TimeoutError", code="TAPE-5007", text=r"timed out"),
    Row(exception="TimeoutError", code="TAPE-7003"),
    Row(exception="concurrent.CancelledError", code="TAPE-6001", general=True),
    Row(exception="subprocess.TimeoutExpired", code="TAPE-7003"),
    Row(exception="subprocess.CalledProcessError", code="TAPE-6002", field="returncode",
        values=("-4", "-6", "-7", "-8", "-9", "-11", "132", "134", "135", "136", "137", "139")),
    Row(exception="concurrent.BrokenExecutor", code="TAPE-6002"),
    Row(exception="MemoryError", code="TAPE-6003"),
)  # fmt: skip

_CODE = (
    Row(exception="FloatingPointError", code="TAPE-6009"),
    Row(exception="OverflowError", code="TAPE-6009"),
    Row(exception="ModuleNotFoundError", code="TAPE-8003", hint="install it; models need `tickertape[llm]`"),
    *(Row(exception=name, code="TAPE-6014", general=True) for name in _DEFECTS),
    Row(exception="BaseException", code="TAPE-6001", general=True),
)

FOREIGN: tuple[Row, ...] = _ACCELERATORS + _MODELS + _S3 + _HTTP + _SYSTEM + _CODE
"""The table, in the order in which it is read."""
