"""Credentials and certificates against a native broker that asks for them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import AuthError, InvalidError, UnavailableError
from schemas.topics import Topic
from wire.broker import NativeBroker, Security
from wire.kafka import Link, connection
from wire.publish import KafkaPublisher
from wire.settings import Settings
from wire.topics import ensure

CACHE = Path(os.environ.get("TAPE_CACHE", "~/.cache/tickertape")).expanduser()

pytestmark = [pytest.mark.slow, pytest.mark.kafka, pytest.mark.usefixtures("jars")]


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a broker's and a client's certificate from it, and an authority nobody knows."""
    folder = tmp_path_factory.mktemp("certificates")

    def path(name: str) -> str:
        return str(folder / name)

    for authority in ("ca", "stranger"):
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", f"/CN={authority}", "-keyout", path(f"{authority}.key"), "-out", path(f"{authority}.pem")),
        )
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    for owner in ("broker", "client"):
        openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={owner}"),
            *("-keyout", path(f"{owner}.key"), "-out", path(f"{owner}.csr")),
        )
        openssl(
            *("x509", "-req", "-in", path(f"{owner}.csr"), "-CA", path("ca.pem"), "-CAkey", path("ca.key")),
            *("-CAcreateserial", "-days", "2", "-extfile", path("names"), "-out", path(f"{owner}.pem")),
        )
    (folder / "keystore.pem").write_text((folder / "broker.key").read_text() + (folder / "broker.pem").read_text())
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made: list[NativeBroker] = []

    def begin(security: Security) -> str:
        broker = NativeBroker(tmp_path_factory.mktemp("secure"), CACHE, security=security)
        made.append(broker)
        return broker.start(tie=True).url

    yield begin
    for broker in made:
        broker.stop(grace_s=0)


def works(settings: Settings) -> None:
    ensure(settings, [Topic("secure", 1)])
    publisher = KafkaPublisher(settings)
    assert publisher.publish("secure", key=None, value=b"v").result(10).offset >= 0
    publisher.close(10)


def refused(settings: Settings, match: str = ".") -> None:
    began = time.monotonic()
    for attempt in (lambda: Link(settings), lambda: KafkaPublisher(settings)):
        with pytest.raises(AuthError, match=match) as caught:
            attempt()
        assert caught.value.code == "TAPE-4001"
        assert "hunter2" not in str(caught.value)
    assert time.monotonic() - began < settings.kafka_timeout_s, "it must not wait for its deadline"


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN"])
def test_passwords(start: Any, mechanism: Any) -> None:
    users = {"alice": "hunter2"}
    url = start(Security("SASL_PLAINTEXT", mechanism, users=users))
    good = Settings(
        kafka_url=url,
        kafka_security="SASL_PLAINTEXT",
        kafka_mechanism=mechanism,
        kafka_username="alice",
        kafka_password="hunter2",  # type: ignore[arg-type]
    )
    works(good)
    refused(good.model_copy(update={"kafka_username": "mallory"}))
    refused(Settings(**{**good.model_dump(), "kafka_password": "wrong"}))
    other = "PLAIN" if mechanism != "PLAIN" else "SCRAM-SHA-256"
    refused(good.model_copy(update={"kafka_mechanism": other}))
    with pytest.raises(UnavailableError):
        Link(Settings(kafka_url=url), timeout_s=1)


def test_tokens(start: Any, tmp_path: Path) -> None:
    url = start(Security("SASL_PLAINTEXT", "OAUTHBEARER"))
    token = tmp_path / "token"
    settings = Settings(
        kafka_url=url,
        kafka_security="SASL_PLAINTEXT",
        kafka_mechanism="OAUTHBEARER",
        kafka_token_file=token,
    )
    with pytest.raises(AuthError, match="token file cannot be read"):
        Link(settings)
    token.write_text(unsecured(time.time() + 3600))
    works(settings)
    token.write_text(unsecured(time.time() - 3600))
    refused(settings)


def unsecured(expires: float) -> str:
    parts = [{"alg": "none"}, {"sub": "alice", "iat": expires - 7200, "exp": expires}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


def test_tls(start: Any, certificates: Path) -> None:
    url = start(Security("SSL", keystore=certificates / "keystore.pem"))
    good = Settings(kafka_url=url, kafka_security="SSL", kafka_ca=certificates / "ca.pem")
    works(good)
    refused(good.model_copy(update={"kafka_ca": certificates / "stranger.pem"}), "certificate verify failed")
    with pytest.raises(InvalidError, match="TLS file"):
        Link(good.model_copy(update={"kafka_ca": certificates / "absent.pem"}))
    with pytest.raises(UnavailableError):
        Link(Settings(kafka_url=url), timeout_s=1)


def test_tls_where_there_is_none(start: Any, certificates: Path) -> None:
    url = start(Security())
    refused(Settings(kafka_url=url, kafka_security="SSL", kafka_ca=certificates / "ca.pem"), "TLS")
    away = Settings(kafka_url="127.0.0.1:1", kafka_security="SSL", kafka_ca=certificates / "ca.pem")
    with pytest.raises(UnavailableError):
        Link(away, timeout_s=0.5)


def test_mutual_tls(start: Any, certificates: Path) -> None:
    store, authority = certificates / "keystore.pem", certificates / "ca.pem"
    url = start(Security("SSL", keystore=store, truststore=authority, mutual=True))
    good = Settings(
        kafka_url=url,
        kafka_security="SSL",
        kafka_ca=authority,
        kafka_cert=certificates / "client.pem",
        kafka_key=certificates / "client.key",
    )
    works(good)
    refused(good.model_copy(update={"kafka_cert": None, "kafka_key": None}))
    stranger = {"kafka_cert": certificates / "stranger.pem", "kafka_key": certificates / "stranger.key"}
    refused(good.model_copy(update=stranger))


def test_passwords_over_tls(start: Any, certificates: Path) -> None:
    security = Security("SASL_SSL", "SCRAM-SHA-512", users={"alice": "hunter2"}, keystore=certificates / "keystore.pem")
    settings = Settings(
        kafka_url=start(security),
        kafka_security="SASL_SSL",
        kafka_mechanism="SCRAM-SHA-512",
        kafka_username="alice",
        kafka_password="hunter2",  # type: ignore[arg-type]
        kafka_ca=certificates / "ca.pem",
    )
    works(settings)
    refused(Settings(**{**settings.model_dump(), "kafka_password": "wrong"}))
    assert "hunter2" not in repr(settings)
    assert connection(settings)["sasl_plain_password"] == "hunter2"
