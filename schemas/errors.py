"""Every error Tickertape raises or records: one root, stable codes, a way out.

    TapeError                     root: code, hint, place, failure class
    ├── InvalidError              the input is wrong; never retried        TAPE-1xxx
    ├── NotFoundError             what was named does not exist            TAPE-2xxx
    ├── ConflictError             somebody else was first, or state differs TAPE-3xxx
    ├── AuthError                 credentials refused or missing           TAPE-4xxx
    ├── UnavailableError          a dependency does not answer             TAPE-5xxx
    ├── JobError                  a job's own failure while running        TAPE-6xxx
    ├── TimeoutExceeded           a deadline passed                        TAPE-7xxx
    └── SetupError                this machine lacks something             TAPE-8xxx

Codes are listed in `CODES`, each with its meaning, failure class and way out; raising an unlisted code is a
programming error and fails at once. Foreign exceptions are mapped to these at the edge that met them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar


class FailureClass(StrEnum):
    """What a failure means for the next attempt (DESIGN §3)."""

    INVALID = "invalid"
    PERMANENT = "permanent"
    TRANSIENT = "transient"
    RESOURCE = "resource"
    DEPENDENCY = "dependency"
    CRASHED = "crashed"
    TIMEOUT = "timeout"


class Severity(StrEnum):
    """How loud a failure is for the people who operate the queue."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Code:
    """One stable error code: what it means, how it is classed, and the way out."""

    meaning: str
    failure: FailureClass
    hint: str
    severity: Severity = Severity.ERROR


_I, _P, _T = FailureClass.INVALID, FailureClass.PERMANENT, FailureClass.TRANSIENT
_R, _D, _C, _TO = FailureClass.RESOURCE, FailureClass.DEPENDENCY, FailureClass.CRASHED, FailureClass.TIMEOUT
_CRIT, _WARN = Severity.CRITICAL, Severity.WARNING

CODES: dict[str, Code] = {
    "TAPE-1001": Code("the value is not JSON", _I, "send one UTF-8 JSON object as the record's value"),
    "TAPE-1002": Code("a field is missing, unknown or of the wrong type", _I, "mend the named field; see docs/schemas"),
    "TAPE-1003": Code("the kind is not known here", _I, "use a registered kind, or install the package that adds it"),
    "TAPE-1004": Code("the CloudEvents envelope is incomplete", _I, "send ce_id, ce_type and ce_source headers"),
    "TAPE-1005": Code("the schema version is not supported", _I, "publish a supported version of ce_type"),
    "TAPE-1006": Code("the message is larger than the topic takes", _I, "put the data in the store and send its URI"),
    "TAPE-1007": Code("a setting is wrong", _I, "mend the named setting or environment variable"),
    "TAPE-1008": Code("the data file has a bad line", _I, "mend the named line and submit again"),
    "TAPE-1009": Code("the file is not a safe model directory", _I, "use a Hugging Face directory with safetensors"),
    "TAPE-1010": Code("a command-line argument is wrong", _I, "see the command's --help"),
    "TAPE-1011": Code("the schema change would break old messages", _I, "keep the field, or give it a default"),
    "TAPE-1012": Code("the patch is wrong", _I, "give a JSON array of RFC 6902 operations"),
    "TAPE-1013": Code(
        "an endpoint refused the request", _P, "read what it answered, mend the request and submit again"
    ),
    "TAPE-1014": Code("the data set has errors", _I, "mend the named lines, or leave them out with --fix"),
    "TAPE-2001": Code("the object is not in the store", _P, "check the URI; `tape result JOB` lists a job's artifacts"),
    "TAPE-2002": Code("no such job in the events looked at", _P, "check the id, or widen --since"),
    "TAPE-2003": Code("the file does not exist", _I, "check the path"),
    "TAPE-2004": Code("the topic does not exist", _D, "run `tape topics apply`", _CRIT),
    "TAPE-2005": Code(
        "no such dead letter", _P, "`tape dead ls` lists them; a letter is TOPIC/PARTITION/OFFSET or a job"
    ),
    "TAPE-2006": Code("no such redrive", _P, "`tape dead redrive ls` lists them"),
    "TAPE-2007": Code("no such worker", _P, "`tape workers` lists them"),
    "TAPE-2008": Code("no such name or version is registered", _P, "`tape data ls` and `tape models ls` list them"),
    "TAPE-3001": Code("the object exists already", _P, "it is created once; read it instead", _WARN),
    "TAPE-3002": Code("the object changed meanwhile", _T, "read it again and retry", _WARN),
    "TAPE-3003": Code("the port is in use", _I, "stop what listens there, or choose another port"),
    "TAPE-3004": Code("the lease was lost", _T, "another worker has the job; nothing to do", _WARN),
    "TAPE-3005": Code(
        "the idempotency key was used for another request",
        _I,
        "use a new key: under the old one the same request is the same job, and none that has ended is run again; "
        "`tape dead redrive --patch` mends one that is a dead letter",
    ),
    "TAPE-3006": Code(
        "another holder of this transactional id took over", _T, "nothing to do if it is a newer one; else start again"
    ),
    "TAPE-3007": Code("the redrive is not in a state for this", _I, "see `tape dead redrive status ID`"),
    "TAPE-3008": Code("another worker runs the job", _T, "nothing to do; this copy waits for its end", Severity.INFO),
    "TAPE-3009": Code("another worker took the job over", _T, "nothing to do; its outcome is the one kept", _WARN),
    "TAPE-3010": Code("an alias points to this version", _P, "move the alias first"),
    "TAPE-3011": Code("the job is paused", _D, "`tape resume JOB` lets it go on", Severity.INFO),
    "TAPE-4001": Code("the broker refused the credentials", _D, "check TAPE_KAFKA_USERNAME, _PASSWORD and _CA", _CRIT),
    "TAPE-4002": Code("the store refused the credentials", _D, "check TAPE_STORE_ACCESS_KEY and _SECRET_KEY", _CRIT),
    "TAPE-4003": Code("the operation is not allowed", _P, "ask for the missing permission", _CRIT),
    "TAPE-4004": Code("an endpoint refused the credentials", _D, "check the key of that endpoint", _CRIT),
    "TAPE-5001": Code("the broker does not answer", _D, "check TAPE_KAFKA_URL, or run `tape up`", _CRIT),
    "TAPE-5002": Code("the store does not answer", _D, "check TAPE_STORE_URL, or run `tape up`", _CRIT),
    "TAPE-5003": Code("the publish was not confirmed", _T, "retry; the publisher is idempotent", _CRIT),
    "TAPE-5004": Code("the publisher's buffer is full", _T, "slow down, or wait for earlier futures"),
    "TAPE-5005": Code("the broker's share groups are off or too old", _D, "use Apache Kafka 4.2 or newer", _CRIT),
    "TAPE-5006": Code("the store ignores conditional writes", _D, "use one that honours them, e.g. MinIO", _CRIT),
    "TAPE-5007": Code("a dependency does not answer", _D, "look at the place's host; the job waits and spends nothing"),
    "TAPE-5008": Code("a dependency asks to slow down", _D, "nothing; or raise the quota, or lower the rate", _WARN),
    "TAPE-5009": Code("a dependency stayed away too long", _P, "mend it, then redrive the job"),
    "TAPE-5010": Code("the breaker of a dependency is open", _D, "nothing; a probe tries again by itself", _WARN),
    "TAPE-5011": Code("the tenant's quota is used up", _D, "nothing; or `tape tenants set NAME`", Severity.INFO),
    "TAPE-6001": Code("the job failed", _T, "read the error text in the outcome"),
    "TAPE-6002": Code("the job's process died", _C, "read the last log lines; a suspect is re-run alone"),
    "TAPE-6003": Code("out of memory", _R, "use a smaller batch, or a bigger machine"),
    "TAPE-6004": Code("the handler returned no outcome", _P, "return an Outcome from the handler"),
    "TAPE-6005": Code("the job was cancelled", _P, "submit it again if that was a mistake", Severity.INFO),
    "TAPE-6006": Code("the job expired before it ran", _P, "raise `expires_at`, or add workers", _WARN),
    "TAPE-6007": Code("the data's hash does not match", _P, "the object is corrupt; restore or rebuild it", _CRIT),
    "TAPE-6008": Code("its workers died too often", _C, "look at why its workers die, then redrive it"),
    "TAPE-6009": Code("the training diverged", _P, "lower the learning rate"),
    "TAPE-6010": Code("the worker itself is at fault", _P, "report it with the worker's log", _CRIT),
    "TAPE-6011": Code(
        "the result cannot be kept", _P, "return little and plain JSON; write the rest to files and keep an artifact"
    ),
    "TAPE-6012": Code("the disk is full", _R, "free some space on the worker, or give it a bigger disk", _CRIT),
    "TAPE-6013": Code(
        "no more files or threads can be opened", _R, "raise the limits (`ulimit -n`, pids), or use fewer slots"
    ),
    "TAPE-6014": Code(
        "the job's own code or input is wrong", _P, "read the traceback in the outcome, mend it and submit again"
    ),
    "TAPE-6015": Code("the accelerator's context broke", _C, "run it once with CUDA_LAUNCH_BLOCKING=1 to see where"),
    "TAPE-6016": Code(
        "the accelerator, its driver or a link is faulty", _R, "look at `nvidia-smi -q` and the kernel's log", _CRIT
    ),
    "TAPE-6017": Code("a disk or a mounted folder fails", _R, "look at the kernel's log of that worker", _CRIT),
    "TAPE-6018": Code("there is too little time to do it", _P, "raise `expires_at`, or send it earlier", _WARN),
    "TAPE-7001": Code("the job ran longer than timeout_s", _TO, "raise timeout_s, or make the job smaller"),
    "TAPE-7002": Code("waiting took longer than asked", _TO, "wait longer; the job goes on"),
    "TAPE-7003": Code("a step took longer than its limit", _TO, "raise the limit, or make the step smaller"),
    "TAPE-7004": Code("the attempt made no progress for stall_s", _TO, "look at what it waits for, or raise stall_s"),
    "TAPE-8001": Code(
        "no JDK 17 or newer was found", _I, "install one, e.g. `apt-get install openjdk-17-jdk-headless`"
    ),
    "TAPE-8002": Code("Maven was not found", _I, "install it, e.g. `apt-get install maven`"),
    "TAPE-8003": Code("a Python package is missing", _I, "install the extra the message names"),
    "TAPE-8004": Code("the native service did not start", _D, "read its log: `tape broker logs`", _CRIT),
    "TAPE-8005": Code(
        "no MinIO binary was found", _I, "run `tape store build`, or `tape store start --engine seaweedfs`"
    ),
    "TAPE-8006": Code(
        "Tickertape itself is at fault", _P, "run it again with --debug, and report what it shows", _CRIT
    ),
}


class TapeError(Exception):
    """Root of every error here: a stable code, one sentence, the place, the way out.

    `place` says where: keys such as `file`, `line`, `field`, `topic`, `offset`. `str(error)` holds all in one line.
    """

    default: ClassVar[str] = "TAPE-6001"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        failure: FailureClass | None = None,
        **place: Any,
    ) -> None:
        self.code = code or self.default
        entry = CODES[self.code]
        self.message = message
        self.hint = hint or entry.hint
        self.failure = failure or entry.failure
        self.severity = entry.severity
        self.place = {key: value for key, value in place.items() if value is not None}
        super().__init__(message)

    def __str__(self) -> str:
        where = " ".join(f"{key}={value}" for key, value in self.place.items())
        told = f"{self.code} {self.message}" + (f" [{where}]" if where else "") + f"; {self.hint}"
        return " ".join(told.splitlines())

    def __reduce__(self) -> Any:
        # The place may hold what cannot be pickled; an error must cross from a child process whatever it tells of.
        place = {key: value if isinstance(value, int | float) else str(value) for key, value in self.place.items()}
        return (_rebuild, (type(self), self.message, self.code, self.hint, self.failure, place))


def _rebuild(
    kind: type[TapeError], message: str, code: str, hint: str, failure: FailureClass, place: dict[str, Any]
) -> TapeError:
    return kind(message, code=code, hint=hint, failure=failure, **place)


class InvalidError(TapeError):
    """The input is wrong and will be wrong again."""

    default = "TAPE-1002"


class NotFoundError(TapeError):
    """What was named does not exist."""

    default = "TAPE-2001"


class ConflictError(TapeError):
    """Somebody else was first, or the state is not what the caller thought."""

    default = "TAPE-3001"


class AuthError(TapeError):
    """Credentials were refused, or do not allow this."""

    default = "TAPE-4003"


class UnavailableError(TapeError):
    """A dependency (broker, store, endpoint) does not answer."""

    default = "TAPE-5001"


class JobError(TapeError):
    """A job failed while it ran."""

    default = "TAPE-6001"


class TimeoutExceeded(TapeError):  # noqa: N818 - `TimeoutError` is taken by the standard library
    """A deadline passed."""

    default = "TAPE-7001"


class SetupError(TapeError):
    """This machine lacks something that is needed to start."""

    default = "TAPE-8001"
