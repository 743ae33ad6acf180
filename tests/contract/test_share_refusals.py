"""A broker that refuses: wrong credentials, no right to the group, share groups switched off."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka.protocol.admin import CreateAclsRequest, UpdateFeaturesRequest

from wire.broker import NativeBroker, Runtime
from wire.broker.config import Security
from wire.settings import Settings
from wire.share import Listener, ShareConfig, ShareConsumer, ShareError
from wire.share.admin import ShareAdmin
from wire.share.errors import AuthenticationError, AuthorizationError, UnavailableError, UnsupportedError

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

USERS = {"admin": "secret-of-admin", "guest": "secret-of-guest"}
GUARDED = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:admin;User:ANONYMOUS",
}


@pytest.fixture(scope="module")
def guarded(jars: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker that asks who one is, and lets only the admin do things."""
    assert jars.java
    security = Security("SASL_PLAINTEXT", "SCRAM-SHA-256", users=USERS)
    native = NativeBroker(tmp_path_factory.mktemp("guarded"), Settings().cache, security=security, extra=GUARDED)
    yield native.start(tie=True).url
    native.stop(grace_s=3)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for the loopback address, and its key in front of it."""
    folder = tmp_path_factory.mktemp("certificate")
    key, pem = folder / "key.pem", folder / "ca.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(pem)], check=True, capture_output=True)
    (folder / "keystore.pem").write_text(key.read_text() + pem.read_text())
    return folder


def test_tls_is_verified(jars: Runtime, certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    security = Security("SSL", keystore=certificate / "keystore.pem")
    native = NativeBroker(tmp_path_factory.mktemp("tls"), Settings().cache, security=security)
    url = native.start(tie=True).url
    try:
        known = {"security_protocol": "SSL", "ssl_cafile": str(certificate / "ca.pem")}
        with ShareConsumer(["jobs"], "g", ShareConfig(bootstrap_servers=url, security=known)) as consumer:
            assert consumer.poll(1, 0.5) == []
        with ShareAdmin(ShareConfig(bootstrap_servers=url, security=known)) as admin:
            assert admin.coordinator("g") == 1
        seen = troubles(ShareConfig(bootstrap_servers=url, security={"security_protocol": "SSL"}))
        assert any("CERTIFICATE_VERIFY_FAILED" in str(error) for error in seen)
    finally:
        native.stop(grace_s=3)


def troubles(settings: ShareConfig) -> list[ShareError]:
    """What a consumer is told within six seconds."""
    seen: list[ShareError] = []

    class Log(Listener):
        def on_error(self, error: ShareError) -> None:
            seen.append(error)

    with ShareConsumer(["jobs"], "g", settings, listener=Log()) as consumer:
        consumer.poll(1, 6.0)
    return seen


def config(url: str, user: str, password: str | None = None) -> ShareConfig:
    security = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": user,
        "sasl_plain_password": password or USERS[user],
    }
    return ShareConfig(bootstrap_servers=url, security=security)


def refusal(settings: ShareConfig, group: str = "group") -> ShareError:
    """What `poll` raises within a few seconds."""
    with ShareConsumer(["jobs"], group, settings) as consumer, pytest.raises(ShareError) as caught:
        for _ in range(20):
            consumer.poll(1, 0.5)
    return caught.value


def ask(admin: ShareAdmin, request: Any) -> Any:
    return admin._run(lambda channel: channel.send("admin", None, request))


def test_wrong_password(guarded: str) -> None:
    error = refusal(config(guarded, "admin", "wrong"))
    assert isinstance(error, AuthenticationError)
    assert "wrong" not in repr(config(guarded, "admin", "wrong"))


def test_no_right_to_the_group_nor_the_topic(guarded: str) -> None:
    error = refusal(config(guarded, "guest"))
    assert isinstance(error, AuthorizationError)
    with ShareAdmin(config(guarded, "admin")) as admin:
        right = CreateAclsRequest.AclCreation(
            resource_type=3,
            resource_name="group",
            resource_pattern_type=3,
            principal="User:guest",
            host="*",
            operation=3,
            permission_type=3,
        )
        answer = ask(admin, CreateAclsRequest(creations=[right]))
        assert [found.error_code for found in answer.results] == [0]
    error = refusal(config(guarded, "guest"))
    assert isinstance(error, AuthorizationError)
    assert "TOPIC" in str(error)


def test_right_credentials_are_let_in(guarded: str) -> None:
    with ShareConsumer(["jobs"], "group", config(guarded, "admin")) as consumer:
        assert consumer.poll(1, 1.0) == []


def test_plain_talk_to_a_guarded_port_does_not_work(guarded: str) -> None:
    seen = troubles(ShareConfig(bootstrap_servers=guarded))
    assert any(isinstance(error, UnavailableError) for error in seen)


def test_share_groups_switched_off(guarded: str) -> None:
    with ShareAdmin(config(guarded, "admin")) as admin:
        update = UpdateFeaturesRequest.FeatureUpdateKey(
            feature="share.version", max_version_level=0, upgrade_type=2, allow_downgrade=True
        )
        answer = ask(admin, UpdateFeaturesRequest(timeout_ms=10_000, feature_updates=[update], validate_only=False))
        assert answer.error_code == 0, answer
    error = refusal(config(guarded, "admin"), "another")
    assert isinstance(error, UnsupportedError)
    assert "share.version" in error.hint
