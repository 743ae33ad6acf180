"""The table of foreign exceptions: every row against a real exception, and what becomes of the rest."""

from __future__ import annotations

import concurrent.futures.process
import errno
import http.client
import json
import os
import pickle
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from pydantic import BaseModel

from schemas.errors import CODES, FailureClass, InvalidError, JobError, TapeError, UnavailableError
from schemas.foreign import FOREIGN, Row
from schemas.outcome import Failure
from schemas.past import TEXT, Try
from wire.blobs.s3 import REFUSALS
from workers.failures import CAUSE, FAMILIES, cause, classify, dependency, fingerprint, match, suspect

ROOT = Path(__file__).parents[2]
Case = tuple[BaseException, str, str]


def s3(code: str) -> S3Error:
    answer = urllib3.HTTPResponse(status=503, headers={"Retry-After": "7"})
    return S3Error(
        response=answer, code=code, message="no", resource="/b/k", request_id="1", host_id="h", bucket_name="b"
    )


def caught(call: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as found:
        call()
    return found.value


def web(status: int, **headers: str) -> urllib.error.HTTPError:
    told = Message()
    for name, value in headers.items():
        told[name.replace("_", "-")] = value
    return urllib.error.HTTPError("http://judge/v1", status, "no", told, None)


def pool() -> urllib3.HTTPConnectionPool:
    return urllib3.HTTPConnectionPool("judge.example")


def os_error(symbol: str) -> OSError:
    number = getattr(errno, symbol)
    return OSError(number, os.strerror(number), "rows.jsonl")


class Rows(BaseModel):
    """Something that validates."""

    rows: int


PLAIN: list[Case] = [
    # the system
    (os_error("ENOSPC"), "TAPE-6012", "resource"),
    (os_error("EDQUOT"), "TAPE-6012", "resource"),
    (os_error("ENOMEM"), "TAPE-6003", "resource"),
    (os_error("EMFILE"), "TAPE-6013", "resource"),
    (os_error("EAGAIN"), "TAPE-6013", "resource"),
    (os_error("EACCES"), "TAPE-4003", "permanent"),
    (os_error("EROFS"), "TAPE-4003", "permanent"),
    (os_error("EADDRINUSE"), "TAPE-3003", "transient"),
    (os_error("EIO"), "TAPE-6017", "resource"),
    (os_error("ESTALE"), "TAPE-6017", "resource"),
    (os_error("ECONNREFUSED"), "TAPE-5007", "dependency"),
    (os_error("ETIMEDOUT"), "TAPE-5007", "dependency"),
    (os_error("EISDIR"), "TAPE-6014", "permanent"),
    (caught(lambda: Path("/no/such/file").read_text()), "TAPE-2003", "invalid"),
    (caught(lambda: Path("/").read_bytes()), "TAPE-6014", "permanent"),
    (ConnectionError("gone"), "TAPE-5007", "dependency"),
    (FileNotFoundError("a library's own words"), "TAPE-2003", "invalid"),
    (PermissionError("a library's own words"), "TAPE-4003", "permanent"),
    (TimeoutError("timed out"), "TAPE-5007", "dependency"),
    (TimeoutError(), "TAPE-7003", "timeout"),
    (caught(lambda: concurrent.futures.Future[None]().result(timeout=0)), "TAPE-7003", "timeout"),
    (concurrent.futures.CancelledError(), "TAPE-6001", "transient"),
    (subprocess.TimeoutExpired("prepare", 3), "TAPE-7003", "timeout"),
    (subprocess.CalledProcessError(-11, "prepare"), "TAPE-6002", "crashed"),
    (subprocess.CalledProcessError(2, "prepare"), "TAPE-6001", "transient"),
    (concurrent.futures.process.BrokenProcessPool("a child died"), "TAPE-6002", "crashed"),
    (MemoryError(), "TAPE-6003", "resource"),
    (caught(lambda: bytearray(1 << 62)), "TAPE-6003", "resource"),
    # S3
    (s3("SlowDown"), "TAPE-5008", "dependency"),
    (s3("ServiceUnavailable"), "TAPE-5002", "dependency"),
    (s3("InternalError"), "TAPE-5002", "dependency"),
    (s3("NoSuchKey"), "TAPE-2001", "permanent"),
    (s3("NoSuchBucket"), "TAPE-2001", "permanent"),
    (s3("AccessDenied"), "TAPE-4003", "permanent"),
    (s3("InvalidAccessKeyId"), "TAPE-4002", "dependency"),
    (s3("RequestTimeTooSkewed"), "TAPE-4002", "dependency"),
    (s3("PreconditionFailed"), "TAPE-3001", "permanent"),
    (s3("ConditionalRequestConflict"), "TAPE-3002", "transient"),
    (s3("KeyTooLongError"), "TAPE-1002", "invalid"),
    (s3("BadDigest"), "TAPE-6007", "permanent"),
    (s3("XMinioStorageFull"), "TAPE-5002", "dependency"),
    (ServerError("server failed with HTTP status code 502", 502), "TAPE-5002", "dependency"),
    (InvalidResponseError(200, "text/html", "<html>"), "TAPE-5002", "dependency"),
    (MinioException("something"), "TAPE-5002", "dependency"),
    # HTTP
    (web(429), "TAPE-5008", "dependency"),
    (web(503), "TAPE-5007", "dependency"),
    (web(529), "TAPE-5007", "dependency"),
    (web(401), "TAPE-4004", "dependency"),
    (web(403), "TAPE-4003", "permanent"),
    (web(404), "TAPE-2001", "permanent"),
    (web(422), "TAPE-1013", "permanent"),
    (urllib3.exceptions.SSLError("CERTIFICATE_VERIFY_FAILED"), "TAPE-5007", "dependency"),
    (urllib3.exceptions.LocationParseError("a:b:c"), "TAPE-1002", "invalid"),
    (urllib3.exceptions.MaxRetryError(pool(), "/", None), "TAPE-5007", "dependency"),
    (urllib3.exceptions.ReadTimeoutError(pool(), "/", "read timed out"), "TAPE-5007", "dependency"),
    (urllib3.exceptions.ProtocolError("broken", ConnectionResetError()), "TAPE-5007", "dependency"),
    (http.client.IncompleteRead(b"half", 10), "TAPE-5007", "dependency"),
    (http.client.RemoteDisconnected("closed"), "TAPE-5007", "dependency"),
    (ssl.SSLError(1, "wrong version number"), "TAPE-5007", "dependency"),
    (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "TAPE-5007", "dependency"),
    (urllib.error.URLError("unknown"), "TAPE-5007", "dependency"),
    # models, as far as plain Python raises them
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "TAPE-6002", "crashed"),
    (RuntimeError("[enforce fail at inline_container.cc:595] file write failed"), "TAPE-6012", "resource"),
    (RuntimeError("can't start new thread"), "TAPE-6013", "resource"),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), "TAPE-6015", "crashed"),
    (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "TAPE-6016", "resource"),
    (RuntimeError("CUDA error: out of memory"), "TAPE-6003", "resource"),
    (RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "TAPE-6003", "resource"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "TAPE-6015", "crashed"),
    (RuntimeError("The NVIDIA driver on your system is too old"), "TAPE-6016", "resource"),
    (RuntimeError("NCCL communicator was aborted on rank 0"), "TAPE-6016", "resource"),
    (OSError("Error no file named model.safetensors found in directory /x"), "TAPE-1009", "invalid"),
    (ValueError("Unrecognized model in /x. Should have a `model_type` key"), "TAPE-1009", "invalid"),
    (Exception("data did not match any variant of untagged enum ModelWrapper"), "TAPE-1009", "invalid"),
    (caught(lambda: pickle.loads(b"\x80\x04K")), "TAPE-1009", "invalid"),
    # code
    (caught(lambda: Rows.model_validate({"rows": "many"})), "TAPE-1002", "invalid"),
    (caught(lambda: Rows.model_validate_json("{")), "TAPE-1002", "invalid"),
    (FloatingPointError("overflow"), "TAPE-6009", "permanent"),
    (caught(lambda: 10.0**400), "TAPE-6009", "permanent"),
    (caught(lambda: __import__("no_such_package")), "TAPE-8003", "invalid"),
    (ImportError("cannot import name"), "TAPE-6014", "permanent"),
    (KeyError("choices"), "TAPE-6014", "permanent"),
    (IndexError("list index out of range"), "TAPE-6014", "permanent"),
    (ValueError("no"), "TAPE-6014", "permanent"),
    (TypeError("no"), "TAPE-6014", "permanent"),
    (AttributeError("no"), "TAPE-6014", "permanent"),
    (AssertionError("no"), "TAPE-6014", "permanent"),
    (NotImplementedError("no"), "TAPE-6014", "permanent"),
    (NameError("no"), "TAPE-6014", "permanent"),
    (ZeroDivisionError("no"), "TAPE-6014", "permanent"),
    (SyntaxError("no"), "TAPE-6014", "permanent"),
    (RecursionError("maximum recursion depth exceeded"), "TAPE-6014", "permanent"),
    (caught(lambda: json.loads("{")), "TAPE-6014", "permanent"),
    (RuntimeError("something else"), "TAPE-6001", "transient"),
    (OSError("without a number"), "TAPE-6001", "transient"),
    (SystemExit(3), "TAPE-6001", "transient"),
]


def named(cases: list[Case]) -> list[str]:
    return [f"{type(error).__name__}-{number}" for number, (error, _, _) in enumerate(cases)]


def check(error: BaseException, code: str, failure: str) -> None:
    found = classify(error)
    assert (found.code, found.failure) == (code, FailureClass(failure))
    assert isinstance(found, FAMILIES[code[5]])
    assert pickle.loads(pickle.dumps(found)).code == code
    assert 0 < len(found.message) < 700
    assert "\n" not in found.message


@pytest.mark.parametrize(("error", "code", "failure"), PLAIN, ids=named(PLAIN))
def test_every_exception_has_a_code_and_a_class(error: BaseException, code: str, failure: str) -> None:
    check(error, code, failure)


def models() -> list[Case]:
    """Real exceptions of the packages that only the llm extra brings."""
    import huggingface_hub.errors as hub
    import requests
    import torch
    import torch.distributed as dist
    from safetensors import SafetensorError
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    httpx: Any = sys.modules[next(one.__module__ for one in hub.HfHubHTTPError.__mro__ if "httpx" in one.__module__)]
    asked = httpx.Request("GET", "http://hub.example/x")

    def answered(status: int) -> Any:
        return httpx.Response(status, request=asked, headers={"Retry-After": "3"})

    broken = caught(lambda: load(b"\x00" * 9))
    assert isinstance(broken, SafetensorError)
    two, three = torch.zeros(2), torch.zeros(3)
    return [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "TAPE-6003", "resource"),
        (caught(lambda: torch.empty(1 << 55)), "TAPE-6003", "resource"),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), "TAPE-6015", "crashed"),
        (torch.AcceleratorError("something new"), "TAPE-6015", "crashed"),
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), "TAPE-6016", "resource"),
        (dist.DistBackendError("ncclUnhandledCudaError: Call to CUDA function failed"), "TAPE-6016", "resource"),
        (dist.DistNetworkError("The client socket has timed out"), "TAPE-6001", "transient"),
        (dist.DistStoreError("wait timeout after 300000ms"), "TAPE-6001", "transient"),
        (ProcessExitedException("died", 0, 7, -9, "SIGKILL"), "TAPE-6002", "crashed"),
        (ProcessRaisedException("Traceback ...", 0, 7), "TAPE-6001", "transient"),
        (caught(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3)), "TAPE-6014", "permanent"),
        (caught(lambda: two + three), "TAPE-6014", "permanent"),
        (caught(lambda: two.view(3)), "TAPE-6014", "permanent"),
        (caught(lambda: torch.nn.Linear(2, 3).load_state_dict({})), "TAPE-6014", "permanent"),
        (caught(lambda: torch.embedding(torch.zeros(2, 3), torch.tensor([5]))), "TAPE-6014", "permanent"),
        (caught(lambda: torch.linalg.inv(torch.zeros(2, 2))), "TAPE-6014", "permanent"),
        (caught(two.backward), "TAPE-6014", "permanent"),
        (broken, "TAPE-1009", "invalid"),
        (caught(lambda: Tokenizer.from_str("{}")), "TAPE-1009", "invalid"),
        (caught(lambda: Tokenizer.from_str("{")), "TAPE-1009", "invalid"),
        (hub.GatedRepoError("gated", response=answered(403)), "TAPE-4004", "dependency"),
        (hub.RepositoryNotFoundError("none", response=answered(404)), "TAPE-2001", "permanent"),
        (hub.HfHubHTTPError("slow", response=answered(429)), "TAPE-5008", "dependency"),
        (hub.HFValidationError("bad name"), "TAPE-1009", "invalid"),
        (hub.OfflineModeIsEnabled("offline"), "TAPE-2001", "permanent"),
        (hub.LocalEntryNotFoundError("not cached"), "TAPE-2001", "permanent"),
        (httpx.ConnectError("refused", request=asked), "TAPE-5007", "dependency"),
        (httpx.ReadTimeout("slow", request=asked), "TAPE-5007", "dependency"),
        (caught(answered(500).raise_for_status), "TAPE-5007", "dependency"),
        (caught(lambda: httpx.URL("http://a:b")), "TAPE-1002", "invalid"),
        (requests.ConnectionError("refused"), "TAPE-5007", "dependency"),
        (requests.exceptions.InvalidURL("no host"), "TAPE-1002", "invalid"),
    ]


@pytest.mark.model
@pytest.mark.timeout(300)
def test_every_row_is_met_by_a_real_exception_and_every_class_is_reached() -> None:
    cases = PLAIN + models()
    for error, code, failure in cases:
        check(error, code, failure)
    met = {match(error)[0] for error, _, _ in cases}
    assert [row for row in FOREIGN if row not in met] == []
    assert {classify(error).failure for error, _, _ in cases} == set(FailureClass)


def test_the_table_is_well_formed_and_ends_with_everything() -> None:
    assert len(set(FOREIGN)) == len(FOREIGN)
    assert FOREIGN[-1] == Row(exception="BaseException", code="TAPE-6001", general=True)
    for row in FOREIGN:
        assert row.code in CODES
        assert bool(row.field) == bool(row.values)
        if row.field == "errno":
            assert all(hasattr(errno, symbol) for symbol in row.values)


def test_the_store_and_the_table_tell_the_same_of_a_refusal() -> None:
    for code, (_, number, hint) in REFUSALS.items():
        found = classify(s3(code))
        assert (found.code, found.hint) == (number, hint or CODES[number].hint), code


def test_it_needs_none_of_the_packages_it_knows() -> None:
    code = (
        "import sys, workers.failures; print(*(m for m in ('torch', 'minio', 'urllib3', 'kafka') if m in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.split() == []


# Causes


def chained(outer: BaseException, cause: BaseException) -> BaseException:
    outer.__cause__ = cause
    return outer


def test_a_general_exception_gives_way_to_its_cause() -> None:
    found = classify(chained(RuntimeError("the data set cannot be made"), os_error("ENOSPC")))
    assert (found.code, found.place["file"]) == ("TAPE-6012", "rows.jsonl")
    assert "the data set cannot be made" in found.message
    found = classify(urllib3.exceptions.MaxRetryError(pool(), "/", urllib3.exceptions.SSLError("bad certificate")))
    assert "SSL_CERT_FILE" in found.hint
    group = ExceptionGroup("two", [ValueError("x"), os_error("ENOMEM")])
    assert classify(group).code == "TAPE-6003"


def test_a_specific_exception_keeps_its_own_meaning() -> None:
    assert classify(chained(MemoryError(), os_error("ENOSPC"))).code == "TAPE-6003"
    assert classify(chained(ValueError("x"), KeyError("y"))).code == "TAPE-6014"


def test_what_was_only_being_handled_is_no_cause() -> None:
    def clumsy() -> None:
        try:
            raise os_error("ENOSPC")
        except OSError:
            {}["key"]

    found = caught(clumsy)
    assert found.__context__ is not None
    assert classify(found).code == "TAPE-6014"


def test_our_own_error_is_told_even_from_below() -> None:
    ours = UnavailableError("the judge is away", code="TAPE-5007", dependency="judge")
    assert classify(ours) is ours
    found = classify(chained(RuntimeError("scoring failed"), ours))
    assert (found.code, found.place) == ("TAPE-5007", {"dependency": "judge"})
    lock = threading.Lock()
    assert classify(chained(RuntimeError("x"), JobError("y", lock=lock))).place == {"lock": lock}


def test_causes_in_a_circle_come_to_an_end() -> None:
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one
    assert classify(one).code == "TAPE-6014"


class RudeError(Exception):
    """Cannot be told."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def test_an_exception_that_cannot_be_told_is_named() -> None:
    assert classify(RudeError()).message == "RudeError"
    assert classify(KeyError()).message == "KeyError"
    assert classify(ValueError("first\nsecond")).message == "ValueError: first"


# The place


def test_the_place_tells_file_host_status_and_patience() -> None:
    assert classify(os_error("ENOENT")).place == {"file": "rows.jsonl"}
    assert classify(web(429, Retry_After="12")).place == {"status": 429, "host": "judge", "retry_after": 12.0}
    assert classify(s3("SlowDown")).place["dependency"] == "store"
    found = classify(urllib3.exceptions.ReadTimeoutError(pool(), "/", "read timed out"))
    assert found.place == {"host": "judge.example"}
    assert dependency(Failure.of(found)) == "host:judge.example"


def test_retry_after_may_be_a_date() -> None:
    dates = {"Retry_After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}
    assert classify(web(503, **dates)).place["retry_after"] == 30.0


@pytest.mark.parametrize("told", ["", "soon", "-5", "0", "Wed, 99 Foo 2026", "Wed, 21 Oct 1998 07:28:30 GMT"])
def test_a_retry_after_that_says_nothing_is_left_out(told: str) -> None:
    assert "retry_after" not in classify(web(503, Retry_After=told)).place


def test_a_suspect_device_is_told_across_processes() -> None:
    failed = pickle.loads(pickle.dumps(classify(RuntimeError("CUDA error: uncorrectable ECC error encountered"))))
    assert suspect(Failure.of(failed))
    assert suspect(Failure.of(classify(os_error("EIO"))))
    assert not suspect(Failure.of(classify(RuntimeError("CUDA error: device-side assert triggered"))))


def test_a_failure_names_its_dependency_where_it_can() -> None:
    assert dependency(Failure.of(UnavailableError("x", code="TAPE-5002"))) == "store"
    assert dependency(Failure.of(UnavailableError("x", code="TAPE-5007", dependency="models"))) == "models"
    assert dependency(Failure.of(InvalidError("x"))) is None
    assert dependency(Failure.of(UnavailableError("x", code="TAPE-5007"))) is None


@given(st.integers(-200, 200) | st.text(max_size=5) | st.none(), st.text(max_size=50))
def test_whatever_is_raised_becomes_an_error_of_ours(number: Any, text: str) -> None:
    for error in (OSError(number, text), RuntimeError(text), Exception(number, text), urllib.error.URLError(text)):
        assert isinstance(classify(error), TapeError)


# Fingerprints


def test_a_fingerprint_leaves_out_what_varies() -> None:
    one = (
        "job 0197f3e2-11d2-7abc-8def-0123456789ab: GET http://a:1/x?y=1 gave 503 after 12.5 s at 0xdeadbeef in /tmp/a/b"
    )
    two = "job 0197f3e2-99d2-7abc-8def-ffffffffffff: GET http://b:2/zz gave 502 after 3 s at 0x1 in /var/lib/c/d.json"
    assert fingerprint("TAPE-5007", one) == fingerprint("TAPE-5007", two)
    assert fingerprint("TAPE-5007", one) != fingerprint("TAPE-5008", one)
    assert fingerprint("TAPE-6001", "no such column") != fingerprint("TAPE-6001", "no such table")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=3 * TEXT))
def test_an_old_failure_and_a_new_one_compare(message: str) -> None:
    from datetime import UTC, datetime

    told = Try.of(
        Failure(failure=FailureClass.TRANSIENT, code="TAPE-6001", message=message),
        attempt=1, ended_at=datetime(2026, 1, 1, tzinfo=UTC), worker="w",
    )  # fmt: skip
    assert fingerprint(told.code, told.message) == fingerprint("TAPE-6001", message)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("the store does not answer", "the store does not answer"),
        ("GET https://u:pw@s3.desk:9000/b/k?X-Amz-Signature=1f2e gave 503", "GET https://s3.desk:9000 gave 503"),
        ("refused: Bearer abc.def-9", "refused: Bearer <hidden>"),
        ("bad api_key='sk-1', go away", "bad api_key=<hidden> go away"),
        ("refused the credentials: HTTP Error 401", "refused the credentials: HTTP Error 401"),
        ("AKIAIOSFODNN7EXAMPLE is unknown", "<hidden> is unknown"),
        ("no store any more\n  at /mnt/store", "no store any more at /mnt/store"),
    ],
)
def test_a_cause_is_short_and_holds_no_secret(message: str, told: str) -> None:
    assert cause(Failure(failure="dependency", code="TAPE-5002", message=message)) == f"TAPE-5002 {told}"


def test_a_cause_is_bounded() -> None:
    found = cause(Failure(failure="dependency", code="TAPE-5002", message="no " * 9_000))
    assert (len(found), found[-1]) == (CAUSE, "…")
