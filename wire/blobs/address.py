"""From an address in the settings to a store.

dir:PATH                         a directory, made if need be, and never again: a store that is away is not made anew
s3+http://host:port/bucket       a bucket, objects at its root
s3+https://host/bucket/prefix    a bucket, objects under a prefix
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from schemas.errors import AuthError, InvalidError
from wire.blobs.port import Blobs, check_name
from wire.blobs.traced import Traced
from wire.settings import Settings

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_store(settings: Settings, *, create_bucket: bool = True) -> Blobs:
    """Open the store that the settings name; its calls make spans when a tracer is configured.

    Raises `InvalidError` (TAPE-1007) for an address that leads nowhere, `UnavailableError` (TAPE-5002) within seconds
    when nobody answers, `AuthError` (TAPE-4002) for wrong credentials, and `NotFoundError` (TAPE-2001) for a missing
    bucket that `create_bucket` does not allow to make.
    """
    scheme, _, rest = settings.store_url.partition(":")
    if scheme == "dir":
        from wire.blobs.directory import Directory

        if not rest:
            raise _bad_address("dir: names no path")
        root = Path(rest).expanduser().absolute()
        note = settings.home / "stores" / hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
        return Traced(Directory(root, note=note))
    from wire.blobs.s3 import S3  # `minio` costs memory and time that a directory store must not

    host, bucket, prefix, secure = _parse(settings.store_url)
    return Traced(
        S3.connect(
            host,
            bucket,
            prefix=prefix,
            credentials=_credentials(settings),
            secure=secure,
            region=settings.store_region,
            create_bucket=create_bucket,
        )
    )


def _parse(url: str) -> tuple[str, str, str, bool]:
    parts = urlsplit(url)
    bucket, _, prefix = unquote(parts.path).strip("/").partition("/")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if not parts.hostname or port == -1 or parts.query or parts.fragment:
        raise _bad_address(f"{_shown(url)} is not s3+http(s)://host:port/bucket")
    if parts.username is not None or parts.password is not None:
        raise _bad_address(
            "the address holds credentials", hint="set TAPE_STORE_ACCESS_KEY and TAPE_STORE_SECRET_KEY instead"
        )
    if not BUCKET.fullmatch(bucket):
        raise _bad_address(
            f"{_shown(url)} names no bucket",
            hint="a bucket's name is 3 to 63 lowercase letters, digits, dots or hyphens",
        )
    if prefix:
        check_name(prefix)
    return parts.netloc, bucket, f"{prefix}/" if prefix else "", parts.scheme == "s3+https"


def _credentials(settings: Settings) -> tuple[str, str] | None:
    access, secret = settings.store_access_key, settings.store_secret_key
    if (access is None) != (secret is None):
        raise AuthError(
            "one of the store's two credentials is missing",
            code="TAPE-4002",
            hint="set both TAPE_STORE_ACCESS_KEY and TAPE_STORE_SECRET_KEY",
        )
    return None if access is None or secret is None else (access, secret.get_secret_value())


def _shown(url: str) -> str:
    # An address with a password by mistake must not end up in a log.
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _bad_address(message: str, *, hint: str | None = None) -> InvalidError:
    return InvalidError(f"TAPE_STORE_URL: {message}", code="TAPE-1007", field="TAPE_STORE_URL", hint=hint)
