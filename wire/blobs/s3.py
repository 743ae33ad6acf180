"""Blobs in an S3 bucket (MinIO, SeaweedFS, AWS and the like), by the `minio` client.

The hash of an object travels in its metadata, so it must be known before the first byte is sent: a file is read twice,
a stream that cannot be rewound is spooled to disk. Conditional writes are single requests with `If-None-Match: *` or
`If-Match`, which the public `put_object` cannot send; `_put_object` can. MinIO and SeaweedFS (4.48, one gateway)
decide such races, as the contract suite shows; a store that ignores the condition is found out at the first one.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, BinaryIO, Final, NamedTuple
from xml.etree.ElementTree import ParseError

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from schemas.errors import AuthError, ConflictError, InvalidError, NotFoundError, TapeError, UnavailableError
from wire.blobs.client import Client
from wire.blobs.port import (
    ABSENT,
    CHUNK,
    CONDITIONAL_BYTES,
    Blob,
    Blobs,
    Reader,
    Source,
    Verified,
    check_conditional,
    check_name,
    check_prefix,
    conflict,
    corrupt,
    missing,
    opened,
)
from wire.blobs.transport import BUDGET_S, Transport

PART: Final = CONDITIONAL_BYTES
MOST_PARTS: Final = 10_000
CONTENT_TYPE: Final = "application/octet-stream"
SHA256: Final = "x-amz-meta-sha256"
NONCE: Final = "x-amz-meta-nonce"
WEEK_S: Final = 7 * 86_400
GONE: Final = frozenset({"NoSuchKey", "NoSuchObject", "XMinioParentIsObject"})
LOST: Final = "PreconditionFailed"
PROBE: Final = ".probe/"
RESUMES: Final = 3

_NAME_HINT, _CLOCK_HINT = "choose another name", "set this machine's clock; requests are signed with the time"
REFUSALS: Final[dict[str, tuple[type[TapeError], str, str | None]]] = {
    "AccessDenied": (AuthError, "TAPE-4003", None),
    "ConditionalRequestConflict": (ConflictError, "TAPE-3002", None),  # AWS: undecided, write again
    "ExpiredToken": (AuthError, "TAPE-4002", None),
    "InvalidAccessKeyId": (AuthError, "TAPE-4002", None),
    "InvalidToken": (AuthError, "TAPE-4002", None),
    "KeyTooLongError": (InvalidError, "TAPE-1002", _NAME_HINT),
    "NoSuchBucket": (NotFoundError, "TAPE-2001", "make the bucket, or mend TAPE_STORE_URL"),
    "RequestTimeTooSkewed": (AuthError, "TAPE-4002", _CLOCK_HINT),
    "SignatureDoesNotMatch": (AuthError, "TAPE-4002", None),
    "XMinioInvalidObjectName": (InvalidError, "TAPE-1002", _NAME_HINT),
}
"""How an S3 refusal is told: the error, its code, and a hint where the code's own would mislead."""


class _Measured(NamedTuple):
    stream: BinaryIO
    size: int
    sha256: str | None


class S3(Blobs):
    """A store in a bucket, under an optional prefix."""

    def __init__(self, client: Minio, bucket: str, *, prefix: str = "", endpoint: str = "") -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._endpoint = endpoint
        self._proving = threading.Lock()
        self._proven: bool | None = None

    @property
    def atomic_create(self) -> bool:
        """Found out once by experiment: some stores accept the condition and ignore it."""
        with self._proving:
            if self._proven is None:
                self._proven = self._prove()
            return self._proven

    @classmethod
    def connect(
        cls,
        endpoint: str,
        bucket: str,
        *,
        prefix: str = "",
        credentials: tuple[str, str] | None,
        secure: bool,
        region: str,
        create_bucket: bool = True,
        patient: bool = True,
    ) -> S3:
        """Reach a bucket, made if need be, and prove that the credentials are good for it.

        Without `patient`, no call is ever repeated: for probing.
        """
        access, secret = credentials or (None, None)
        client = Client(
            endpoint,
            access_key=access,
            secret_key=secret,
            secure=secure,
            region=region,
            http_client=Transport(budget_s=BUDGET_S if patient else 0.0),
        )
        store = cls(client, bucket, prefix=prefix, endpoint=endpoint)
        try:
            store._prepare(create_bucket)
        except AuthError as error:
            # Whatever the store calls it, at the door it means the credentials.
            hint = error.hint if error.code == "TAPE-4002" else None
            raise AuthError(error.message, code="TAPE-4002", hint=hint, **error.place) from error
        return store

    def put(
        self,
        name: str,
        source: Source,
        *,
        sha256: str | None = None,
        content_type: str | None = None,
        expect: str | None = None,
    ) -> Blob:
        key = self._key(name)
        with opened(source) as stream, _measured(stream) as (whole, size, known):
            if size > PART:
                check_conditional(name, size, expect)
                digest = sha256 or known or _hash(whole)
                return self._put_large(name, whole, size=size, digest=digest, content_type=content_type)
            data = whole.read()
        digest = hashlib.sha256(data).hexdigest()
        if sha256 not in (None, digest):
            raise corrupt(name, "the content is not what was announced", sha256=sha256)
        headers = {"Content-Type": content_type or CONTENT_TYPE, SHA256: digest}
        if expect is not None:
            etag = self._put_if(name, data, headers, expect)
        else:
            with self._edge(name):
                etag = self._client._put_object(self._bucket, key, data, headers).etag
        return Blob(name, len(data), digest, etag)

    def get(self, name: str, *, sha256: str | None = None) -> Reader:
        body = _Body(self, name)
        return Reader(body, body.blob, sha256)

    def stat(self, name: str) -> Blob:
        with self._edge(name):
            found = self._client.stat_object(self._bucket, self._key(name))
        return Blob(name, int(found.size or 0), _stored_hash(found.metadata or {}), str(found.etag))

    def list(self, prefix: str = "") -> Iterator[Blob]:
        check_prefix(prefix)
        with self._edge(prefix):
            for found in self._client.list_objects(self._bucket, prefix=self._prefix + prefix, recursive=True):
                name = str(found.object_name)[len(self._prefix) :]
                if not found.is_dir and not name.startswith(PROBE):
                    yield Blob(name, int(found.size or 0), None, str(found.etag))

    def delete(self, name: str) -> None:
        with self._edge(name):
            self._client.remove_object(self._bucket, self._key(name))

    def link(self, name: str, expires_s: int = 3600) -> str:
        if not 1 <= expires_s <= WEEK_S:
            raise InvalidError(f"a link lasts 1 to {WEEK_S} seconds, not {expires_s}", field="expires_s")
        self.stat(name)
        with self._edge(name):
            return str(
                self._client.presigned_get_object(self._bucket, self._key(name), expires=timedelta(seconds=expires_s))
            )

    def open_at(self, name: str, offset: int, etag: str | None) -> Any:
        """Start reading an object's bytes from an offset, if it still has the etag; what `get` is made of."""
        headers = {"If-Match": f'"{etag}"'} if etag else {}
        with self._edge(name, expect=etag):
            return self._client.get_object(self._bucket, self._key(name), offset=offset, request_headers=headers)

    def _put_large(self, name: str, stream: BinaryIO, *, size: int, digest: str, content_type: str | None) -> Blob:
        with self._edge(name):
            # The hash is checked before the last part is whole: a mismatch aborts the upload, and nothing appears.
            result = self._client.put_object(
                self._bucket,
                self._key(name),
                Verified(stream, name=name, size=size, sha256=digest),
                length=size,
                part_size=max(PART, -(-size // MOST_PARTS // CHUNK) * CHUNK),
                num_parallel_uploads=1,
                content_type=content_type or CONTENT_TYPE,
                metadata={"sha256": digest},
            )
        return Blob(name, size, digest, str(result.etag))

    def _put_if(self, name: str, data: bytes, headers: dict[str, str], expect: str) -> str:
        if not self.atomic_create:
            raise UnavailableError(
                "the store writes over an object it was told to create",
                code="TAPE-5006",
                endpoint=self._endpoint,
                bucket=self._bucket,
            )
        condition = {"If-None-Match": "*"} if expect == ABSENT else {"If-Match": f'"{expect}"'}
        nonce = secrets.token_hex(16)
        try:
            with self._edge(name, expect=expect):
                return str(
                    self._client._put_object(
                        self._bucket, self._key(name), data, {**headers, **condition, NONCE: nonce}
                    ).etag
                )
        except ConflictError:
            # The answer to an earlier attempt may have been lost: then it was us who won.
            ours = self._written_by(name, nonce)
            if ours is None:
                raise
            return ours

    def _prove(self) -> bool:
        key = f"{self._prefix}{PROBE}{secrets.token_hex(16)}"
        with self._edge(key):
            self._client._put_object(self._bucket, key, b"1", {"If-None-Match": "*"})
            try:
                self._client._put_object(self._bucket, key, b"2", {"If-None-Match": "*"})
            except S3Error as error:
                if error.code != LOST:
                    raise
                return True
            finally:
                self._client.remove_object(self._bucket, key)
        return False

    def _written_by(self, name: str, nonce: str) -> str | None:
        with self._edge(name):
            try:
                found = self._client.stat_object(self._bucket, self._key(name))
            except S3Error as error:
                if error.code in GONE:
                    return None
                raise
        return str(found.etag) if (found.metadata or {}).get(NONCE) == nonce else None

    def _prepare(self, create_bucket: bool) -> None:
        with self._edge(self._bucket):
            try:
                # A listing's refusal says what is wrong with the credentials; the answer to a HEAD has no body.
                next(iter(self._client.list_objects(self._bucket, prefix=self._prefix + "-")), None)
            except S3Error as error:
                if error.code != "NoSuchBucket" or not create_bucket:
                    raise
                self._make_bucket()

    def _make_bucket(self) -> None:
        try:
            self._client.make_bucket(self._bucket)
        except S3Error as error:
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    @contextmanager
    def _edge(self, name: str, *, expect: str | None = None) -> Iterator[None]:
        try:
            yield
        except S3Error as error:
            raise self._refusal(error, name, expect) from error
        except ServerError as error:
            raise self._away(f"answered with HTTP status {error.status_code}") from error
        except (InvalidResponseError, ParseError, ValueError) as error:
            raise self._away("did not answer as an S3 store does") from error
        except urllib3.exceptions.SSLError as error:
            untrusted = "CERTIFICATE_VERIFY_FAILED" in str(error)
            raise self._away(
                "has a certificate that is not trusted" if untrusted else "does not speak TLS",
                hint="set SSL_CERT_FILE to the authority's PEM file" if untrusted else "try s3+http:// as its address",
            ) from error
        except (urllib3.exceptions.HTTPError, MinioException, OSError) as error:
            raise self._away(f"does not answer: {_reason(error)}") from error

    def _refusal(self, error: S3Error, name: str, expect: str | None) -> TapeError:
        code = str(error.code)
        if code == LOST or (code in GONE and expect is not None):
            return conflict(name, expect)
        if code in GONE:
            return missing(name)
        kind, number, hint = REFUSALS.get(code, (UnavailableError, "TAPE-5002", None))
        return kind(
            f"the store refused with {code}: {error.message}",
            code=number,
            hint=hint,
            endpoint=self._endpoint,
            bucket=self._bucket,
            name=name,
        )

    def _away(self, why: str, *, hint: str | None = None) -> UnavailableError:
        return UnavailableError(
            f"the store {why}", code="TAPE-5002", endpoint=self._endpoint, bucket=self._bucket, hint=hint
        )


class _Body:
    """An object's bytes as they come: a broken connection is taken up where it was, while the object is the same."""

    def __init__(self, store: S3, name: str) -> None:
        self._store = store
        self._name = name
        self._offset = 0
        self._resumes = RESUMES
        self._response = store.open_at(name, 0, None)
        headers = self._response.headers
        self._etag = headers.get("etag", "").strip('"')
        self.blob = Blob(name, int(headers.get("content-length", "0")), _stored_hash(headers), self._etag)

    def read(self, size: int = -1, /) -> bytes:
        while True:
            data = b""
            cause: Exception | None = None
            try:
                data = self._response.read(size)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                cause = error
            if data or self._offset >= self.blob.size or size == 0:
                self._offset += len(data)
                return data
            self._resume(cause)

    def close(self) -> None:
        # A body that was not read to its end would block the connection for the next request: closed, not returned.
        if self._offset >= self.blob.size:
            self._response.drain_conn()
        else:
            self._response.close()
        self._response.release_conn()

    def _resume(self, cause: Exception | None) -> None:
        self.close()
        if self._resumes == 0:
            raise self._store._away(f"broke off: {_reason(cause) if cause else 'end of stream'}") from cause
        self._resumes -= 1
        self._response = self._store.open_at(self._name, self._offset, self._etag)


@contextmanager
def _measured(stream: BinaryIO) -> Iterator[_Measured]:
    if stream.seekable():
        start = stream.tell()
        size = stream.seek(0, os.SEEK_END) - start
        stream.seek(start)
        yield _Measured(stream, size, None)
        return
    with tempfile.SpooledTemporaryFile(max_size=PART) as spool:
        digest = hashlib.sha256()
        while piece := stream.read(CHUNK):
            digest.update(piece)
            spool.write(piece)
        size = spool.tell()
        spool.seek(0)
        yield _Measured(spool, size, digest.hexdigest())  # type: ignore[arg-type]


def _hash(stream: BinaryIO) -> str:
    start, digest = stream.tell(), hashlib.sha256()
    while piece := stream.read(CHUNK):
        digest.update(piece)
    stream.seek(start)
    return digest.hexdigest()


def _stored_hash(headers: Mapping[str, Any]) -> str | None:
    value = headers.get(SHA256)
    return str(value) if value else None


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        error = error.reason
    text = str(error)
    return text.rpartition(": ")[2] if isinstance(error, urllib3.exceptions.NewConnectionError) else text
