"""The S3 store against a scripted server: retries, lost answers, broken bodies, refusals, stores that cheat."""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import wire
from schemas.errors import AuthError, ConflictError, InvalidError, NotFoundError, TapeError, UnavailableError
from wire.blobs import Blobs, open_store
from wire.blobs.address import _parse
from wire.blobs.client import Client
from wire.blobs.port import CHUNK, CONDITIONAL_BYTES
from wire.blobs.s3 import RESUMES, S3
from wire.blobs.transport import ATTEMPTS, BUDGET_S, Transport, retry_after
from wire.process import free_port
from wire.settings import Settings

XML = {"Content-Type": "application/xml"}
EMPTY = b"<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated></ListBucketResult>"


@dataclass
class Reply:
    """What the server says next; `cut` ends the connection after so many bytes of the body (-1: says nothing)."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


def refusal(status: int, code: str, **headers: str) -> Reply:
    body = f"<Error><Code>{code}</Code><Message>told so</Message></Error>".encode()
    return Reply(status, body, {**XML, **{key.replace("_", "-"): value for key, value in headers.items()}})


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Server:
    """Answers requests from a script, in order, and remembers them."""

    def __init__(self) -> None:
        self.script: deque[Reply | Callable[[Seen], Reply]] = deque()
        self.seen: list[Seen] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {key.lower(): value for key, value in self.headers.items()}
                seen = Seen(self.command, self.path, headers, body)
                outer.seen.append(seen)
                step = outer.script.popleft() if outer.script else Reply(599, b"the script is over")
                reply = step if isinstance(step, Reply) else step(seen)
                self.close_connection = reply.cut is not None
                if reply.cut == -1:
                    return
                self.send_response_only(reply.status)  # its own Date would stand beside the script's
                for key, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(reply.body[: reply.cut])

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.address = f"127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def methods(self) -> list[str]:
        return [seen.method for seen in self.seen]

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def store(server: Server, waits: list[float]) -> S3:
    client = Client(
        server.address,
        access_key="key",
        secret_key="secret",
        secure=False,
        region="us-east-1",
        http_client=Transport(sleep=waits.append),
    )
    made = S3(client, "bucket", endpoint=server.address)
    made._proven = True
    return made


def head(data: bytes, **meta: str) -> Reply:
    headers = {"ETag": '"e1"', "Content-Length": str(len(data))}
    return Reply(200, data, {**headers, **{f"x-amz-meta-{key}": value for key, value in meta.items()}})


def test_retry_after_is_obeyed(server: Server, store: S3, waits: list[float]) -> None:
    server.script += [refusal(503, "SlowDown", Retry_After="2"), refusal(429, "SlowDown", Retry_After="1"), head(b"x")]
    assert store.stat("x").size == 1
    assert waits == [2.0, 1.0]


def test_asking_for_more_time_than_there_is_ends_it_at_once(server: Server, store: S3, waits: list[float]) -> None:
    server.script += [refusal(503, "SlowDown", Retry_After="3600")] * 2
    with pytest.raises(UnavailableError, match="SlowDown") as caught:
        store.read("x")
    assert caught.value.code == "TAPE-5002"
    assert (waits, len(server.seen)) == ([], 1)


@pytest.mark.parametrize("reply", [refusal(503, "SlowDown"), refusal(500, "InternalError"), Reply(502), Reply(504)])
def test_busy_store_is_asked_a_few_times(server: Server, store: S3, waits: list[float], reply: Reply) -> None:
    server.script += [reply] * 10
    with pytest.raises(UnavailableError) as caught:
        store.put("x", b"data")
    assert caught.value.code == "TAPE-5002"
    assert len(server.seen) == ATTEMPTS
    assert all(seen.body == b"data" for seen in server.seen)
    assert all(0 <= wait <= 0.1 * 2**index for index, wait in enumerate(waits))


def test_broken_connection_is_tried_again(server: Server, store: S3) -> None:
    server.script += [Reply(cut=-1), Reply(200, headers={"ETag": '"e1"'})]
    assert store.put("x", b"data").etag == "e1"
    assert [seen.body for seen in server.seen] == [b"data", b"data"]


def test_refusals_are_not_repeated(server: Server, store: S3) -> None:
    expected = {
        "InvalidAccessKeyId": (AuthError, "TAPE-4002"),
        "SignatureDoesNotMatch": (AuthError, "TAPE-4002"),
        "RequestTimeTooSkewed": (AuthError, "TAPE-4002"),
        "AccessDenied": (AuthError, "TAPE-4003"),
        "NoSuchBucket": (NotFoundError, "TAPE-2001"),
        "KeyTooLongError": (InvalidError, "TAPE-1002"),
        "ConditionalRequestConflict": (ConflictError, "TAPE-3002"),
        "SomethingNew": (UnavailableError, "TAPE-5002"),
    }
    for code, (kind, number) in expected.items():
        server.script.append(refusal(400, code))
        server.seen.clear()
        with pytest.raises(kind, match=code) as caught:
            store.get("x")
        assert caught.value.code == number
        assert len(server.seen) == 1


def test_nobody_there_is_told_within_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="refused") as caught:
        open_store(Settings(store_url=f"s3+http://127.0.0.1:{free_port()}/bucket"))
    assert caught.value.code == "TAPE-5002"
    assert time.monotonic() - started < BUDGET_S


def test_something_else_there_is_told(server: Server) -> None:
    for reply, why in (
        (Reply(200, b"<html>hello</html>"), "as an S3 store does"),
        (Reply(200, b"hello"), "as an S3 store does"),
        (Reply(418, b"teapot", {"Content-Type": "text/html"}), "as an S3 store does"),
    ):
        server.script.append(reply)
        with pytest.raises(UnavailableError, match=why):
            open_store(Settings(store_url=f"s3+http://{server.address}/bucket"))


def test_plain_http_under_https_is_told(server: Server) -> None:
    with pytest.raises(UnavailableError, match="does not speak TLS") as caught:
        open_store(Settings(store_url=f"s3+https://{server.address}/bucket"))
    assert "s3+http://" in caught.value.hint


def test_lost_answer_to_a_creation_is_not_a_conflict(server: Server, store: S3) -> None:
    def ours(_: Seen) -> Reply:
        return head(b"mine", nonce=server.seen[0].headers["x-amz-meta-nonce"])

    server.script += [Reply(cut=-1), refusal(412, "PreconditionFailed"), ours]
    assert store.create("claim", b"mine").etag == "e1"
    assert server.methods() == ["PUT", "PUT", "HEAD"]
    assert {seen.headers.get("if-none-match") for seen in server.seen[:2]} == {"*"}


@pytest.mark.parametrize("found", [head(b"theirs", nonce="other"), head(b"theirs"), Reply(404)])
def test_somebody_elses_object_is_a_conflict(server: Server, store: S3, found: Reply) -> None:
    server.script += [refusal(412, "PreconditionFailed"), found]
    with pytest.raises(ConflictError) as caught:
        store.create("claim", b"mine")
    assert caught.value.code == "TAPE-3001"
    server.script += [refusal(404, "NoSuchKey"), found]
    with pytest.raises(ConflictError) as caught:
        store.replace("claim", b"mine", "e0")
    assert caught.value.code == "TAPE-3002"
    assert server.seen[2].headers["if-match"] == '"e0"'


def test_trouble_while_looking_whose_it_is_is_told(server: Server, store: S3) -> None:
    server.script += [refusal(412, "PreconditionFailed"), Reply(403)]
    with pytest.raises(AuthError):
        store.create("claim", b"mine")


def test_store_that_ignores_conditions_is_found_out(server: Server, store: S3) -> None:
    store._proven = None
    server.script += [Reply(200, headers={"ETag": '"e"'})] * 2 + [Reply(204)]
    assert not store.atomic_create
    for write in (lambda: store.create("claim", b"1"), lambda: store.replace("claim", b"1", "e")):
        with pytest.raises(UnavailableError) as caught:
            write()
        assert caught.value.code == "TAPE-5006"
    assert server.methods() == ["PUT", "PUT", "DELETE"]
    assert len({seen.path for seen in server.seen}) == 1
    assert ".probe/" in server.seen[0].path


def test_conditions_are_proven_once(server: Server, store: S3) -> None:
    store._proven = None
    server.script += [Reply(), refusal(412, "PreconditionFailed"), Reply(204), Reply(200, headers={"ETag": '"e"'})]
    assert store.create("claim", b"1").etag == "e"
    server.script += [Reply(200, headers={"ETag": '"e2"'})]
    assert store.replace("claim", b"1", "e").etag == "e2"
    assert len(server.seen) == 5
    store._proven = None
    server.script += [Reply(), refusal(403, "AccessDenied"), Reply(204)]
    with pytest.raises(AuthError):
        store.create("claim", b"1")
    assert store._proven is None


def test_broken_body_is_taken_up_where_it_was(server: Server, store: S3) -> None:
    data = random.Random(1).randbytes(3 * CHUNK + 5)

    def rest(seen: Seen) -> Reply:
        start = int(seen.headers["range"].removeprefix("bytes=").removesuffix("-"))
        return Reply(206, data[start:], {"ETag": '"e1"'}, cut=CHUNK + 7 if start < CHUNK * 2 else None)

    whole = head(data, sha256=hashlib.sha256(data).hexdigest())
    whole.cut = CHUNK + CHUNK // 2
    server.script += [whole, rest, rest]
    assert store.read("x") == data
    assert [seen.headers.get("range") for seen in server.seen] == [None, f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]
    assert {seen.headers.get("if-match") for seen in server.seen} == {None, '"e1"'}


def test_body_that_keeps_breaking_is_given_up(server: Server, store: S3) -> None:
    whole = head(b"0123456789")
    whole.cut = 4
    server.script += [whole, *[Reply(206, b"456789", {"ETag": '"e1"'}, cut=0)] * 5]
    with pytest.raises(UnavailableError, match="broke off"):
        store.read("x")
    assert len(server.seen) == 1 + RESUMES


def test_object_that_changed_while_read_is_a_conflict(server: Server, store: S3) -> None:
    whole = head(b"0123456789")
    whole.cut = 4
    server.script += [whole, refusal(412, "PreconditionFailed")]
    with pytest.raises(ConflictError) as caught:
        store.read("x")
    assert caught.value.code == "TAPE-3002"


def test_object_of_others_has_no_hash_and_is_read_all_the_same(server: Server, store: S3) -> None:
    server.script += [head(b"plain"), head(b"plain")]
    assert store.stat("x").sha256 is None
    assert store.read("x") == b"plain"


def test_upload_that_fails_is_aborted(server: Server, store: S3) -> None:
    started = b"<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
    server.script += [Reply(200, started, XML), *[refusal(503, "SlowDown")] * ATTEMPTS, Reply(204)]
    with pytest.raises(UnavailableError):
        store.put("x", bytes(CONDITIONAL_BYTES + 1))
    assert server.methods() == ["POST", *["PUT"] * ATTEMPTS, "DELETE"]
    assert "uploadId=u1" in server.seen[-1].path


def test_source_that_shrinks_meanwhile_is_no_object(server: Server, store: S3) -> None:
    class Shrinking(io.BytesIO):
        def seek(self, offset: int, whence: int = 0) -> int:
            end = super().seek(offset, whence)
            return end + CONDITIONAL_BYTES + 9 if whence == os.SEEK_END else end

    with pytest.raises(TapeError) as caught:
        store.put("x", Shrinking(b"short"))
    assert caught.value.code == "TAPE-6007"
    assert server.seen == []


def test_child_of_a_fork_opens_connections_of_its_own(server: Server, store: S3) -> None:
    server.script += [head(b"1"), head(b"2")]
    store.stat("x")
    transport: Any = store._client._http
    pools = list(transport.pools._container.values())
    transport._owner = -1
    assert store.stat("x").size == 1
    assert transport._owner == os.getpid()
    assert list(transport.pools._container.values()) != pools


def test_links_have_a_limit(store: S3) -> None:
    for expires in (0, 8 * 86_400):
        with pytest.raises(InvalidError, match="seconds"):
            store.link("x", expires)


def connect(server: Server, *, create_bucket: bool) -> Blobs:
    settings = Settings(
        store_url=f"s3+http://{server.address}/bucket/some/prefix",
        store_access_key="key",
        store_secret_key="secret",  # type: ignore[arg-type]
    )
    return open_store(settings, create_bucket=create_bucket)


def test_missing_bucket_is_made_only_if_asked(server: Server) -> None:
    server.script += [refusal(404, "NoSuchBucket")]
    with pytest.raises(NotFoundError, match="NoSuchBucket"):
        connect(server, create_bucket=False)
    for answer in (Reply(), refusal(409, "BucketAlreadyOwnedByYou")):
        server.script += [refusal(404, "NoSuchBucket"), answer]
        connect(server, create_bucket=True)
    server.script += [refusal(404, "NoSuchBucket"), refusal(403, "AccessDenied")]
    with pytest.raises(AuthError):
        connect(server, create_bucket=True)


@pytest.mark.parametrize(
    ("refused", "hint"), [("RequestTimeTooSkewed", "clock"), ("AccessDenied", "TAPE_STORE_ACCESS_KEY")]
)
def test_a_refusal_at_the_door_keeps_its_way_out(server: Server, refused: str, hint: str) -> None:
    server.script += [refusal(403, refused)]
    with pytest.raises(AuthError, match=refused) as caught:
        connect(server, create_bucket=False)
    assert caught.value.code == "TAPE-4002"
    assert hint in caught.value.hint


def test_prefix_is_put_before_every_name_and_taken_off_again(server: Server) -> None:
    rows = b"".join(
        b"<Contents><Key>some/prefix/%s</Key><Size>3</Size></Contents>" % key for key in (b"a/x", b".probe/1", b"f/")
    )
    found = EMPTY.replace(b"</Name>", b"</Name>" + rows)
    server.script += [Reply(200, EMPTY, XML), Reply(200, found, XML), Reply(200, headers={"ETag": '"e"'})]
    store = connect(server, create_bucket=False)
    assert [blob.name for blob in store.list("a/")] == ["a/x"]
    assert "prefix=some%2Fprefix%2Fa%2F" in server.seen[1].path
    store.put("y", b"")
    assert server.seen[2].path == "/bucket/some/prefix/y"


@pytest.mark.parametrize(
    "url",
    [
        "s3+http://host",
        "s3+http://host/",
        "s3+http:///bucket",
        "s3+http://host:port/bucket",
        "s3+http://host:99999/bucket",
        "s3+http://host/No_Bucket",
        "s3+http://host/bucket?x=1",
        "s3+http://user:hush@host/bucket",
        "s3+http://user:hush@host/",
        "s3+http://host/bucket/../other",
        "dir:",
    ],
)
def test_addresses_that_lead_nowhere_are_told(url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        open_store(Settings(store_url=url))
    assert "hush" not in str(caught.value)


def test_address_parts() -> None:
    assert _parse("s3+https://host/bucket") == ("host", "bucket", "", True)
    assert _parse("s3+http://h:1/bucket/a/b/") == ("h:1", "bucket", "a/b/", False)
    assert _parse("s3+http://[::1]:9000/bucket") == ("[::1]:9000", "bucket", "", False)


def test_one_credential_of_two_is_not_enough() -> None:
    with pytest.raises(AuthError) as caught:
        open_store(Settings(store_url="s3+http://127.0.0.1:1/bucket", store_access_key="key"))
    assert caught.value.code == "TAPE-4002"


def test_retry_after_forms() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after(None, now) is None
    assert retry_after("7", now) == 7
    assert retry_after("Thu, 01 Jan 2026 00:00:30 GMT", now) == 30
    assert retry_after("Wed, 31 Dec 2025 23:59:00 GMT", now) == 0
    assert retry_after("Thu, 01 Jan 2026 00:00:30 -0000", now) == 30
    assert retry_after("soon", now) is None


def test_directory_store_loads_no_s3_client(tmp_path: Path) -> None:
    code = (
        "import sys; from wire.blobs import open_store; from wire.settings import Settings\n"
        "open_store(Settings(store_url='dir:' + sys.argv[1])).put('x', b'1')\n"
        "assert not {'minio', 'urllib3', 'tenacity'} & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(wire.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=True, env=env)
    assert (tmp_path / "s" / "objects" / "x").read_bytes() == b"1"


def dated(hours: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True)


def signed(seen: Seen) -> timedelta:
    """How far ahead of true time a request was dated."""
    return datetime.strptime(seen.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) - datetime.now(UTC)


@pytest.mark.parametrize("hours", [2.0, -2.0])
def test_a_store_whose_clock_differs_is_gone_by(server: Server, store: S3, hours: float) -> None:
    server.script += [refusal(403, "RequestTimeTooSkewed", Date=dated(hours)), head(b"x"), head(b"x")]
    assert store.stat("x").size == store.stat("x").size == 1
    first, *rest = map(signed, server.seen)
    assert abs(first) < timedelta(minutes=1)
    assert all(abs(one - timedelta(hours=hours)) < timedelta(minutes=1) for one in rest)
    server.script += [refusal(403, "RequestTimeTooSkewed", Date=dated(0)), head(b"x")]  # a clock was set
    assert store.stat("x").size == 1
    assert abs(signed(server.seen[-1])) < timedelta(minutes=1)


@pytest.mark.parametrize("said", [None, "soon", "now"])
def test_a_refusal_that_is_none_of_the_clock_s_stands(server: Server, store: S3, said: str | None) -> None:
    # "now" is when the test runs: the whole suite takes longer than a clock may be off
    headers = {} if said is None else {"Date": dated(0.0) if said == "now" else said}
    server.script += [refusal(403, "AccessDenied", **headers)]
    with pytest.raises(AuthError):
        store.read("x")
    assert len(server.seen) == 1


def test_a_store_that_refuses_its_own_time_is_asked_twice(server: Server, store: S3) -> None:
    server.script += [refusal(403, "RequestTimeTooSkewed", Date=dated(hours)) for hours in (2.0, 4.0)]
    with pytest.raises(AuthError) as caught:
        store.read("x")
    assert caught.value.code == "TAPE-4002"
    assert len(server.seen) == 2


def test_two_requests_that_are_refused_together_are_both_repeated(server: Server, store: S3) -> None:
    """The first mends the clock; the second was dated before that, and must not be taken for refused for good."""
    both = threading.Barrier(2)

    def refuse(_: Seen) -> Reply:
        both.wait(10)
        return refusal(403, "RequestTimeTooSkewed", Date=dated(2.0))

    server.script += [refuse, refuse, head(b"x"), head(b"x")]
    sizes: list[int] = []
    threads = [threading.Thread(target=lambda: sizes.append(store.stat("x").size)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sizes == [1, 1]


def test_a_link_is_dated_by_the_store_s_clock(server: Server, store: S3) -> None:
    server.script += [refusal(403, "RequestTimeTooSkewed", Date=dated(2.0)), head(b"x"), head(b"x")]
    store.stat("x")
    stamp = re.search(r"X-Amz-Date=(\w+)", store.link("x"))
    assert stamp is not None
    ahead = datetime.strptime(stamp[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) - datetime.now(UTC)
    assert abs(ahead - timedelta(hours=2)) < timedelta(minutes=1)
