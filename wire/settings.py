"""Settings: read once, frozen, validated at the start, secrets masked.

Order: an explicit argument > the environment (`TAPE_*`) > the profile that `tape up` wrote under the home folder >
the default. A `TAPE_*` variable that no field reads is an error, so a typing slip never passes silently.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from schemas.errors import InvalidError

PREFIX = "TAPE_"
PROFILE = "profile.json"
EMPTY = frozenset({"prefix"})
"""Settings for which an empty variable is a value; for all others it is as good as none."""


class Settings(BaseModel):
    """Everything a process needs to reach the outside world.

    >>> Settings.load(env={"TAPE_KAFKA_URL": "broker:9092"}).kafka_servers
    ['broker:9092']
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    home: Path = Field(default=Path(".tape"), description="where the embedded broker, store and profile live")
    cache: Path = Field(
        default=Path("~/.cache/tickertape"), description="what is fetched or built once: jars, models, MinIO"
    )
    prefix: str = Field(default="tape.", pattern=r"^[A-Za-z0-9._-]*$", description="put before every topic and group")
    tenant: str = Field(default="default", min_length=1, description="whose jobs this client submits")

    kafka_url: str = Field(default="127.0.0.1:9092", description="broker addresses, host:port separated by commas")
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    kafka_username: str | None = None
    kafka_password: SecretStr | None = None
    kafka_token_file: Path | None = Field(default=None, description="a file that holds the OAUTHBEARER token, re-read")
    kafka_ca: Path | None = Field(default=None, description="PEM of the authority that signed the broker's certificate")
    kafka_cert: Path | None = Field(default=None, description="PEM of the client's certificate, for mutual TLS")
    kafka_key: Path | None = Field(default=None, description="PEM of the client's key, for mutual TLS")
    kafka_timeout_s: float = Field(default=10.0, gt=0, description="how long to wait for a broker at the start")
    replication: int = Field(default=1, ge=1, description="replicas of every topic; 3 outside the embedded default")
    partitions: int = Field(default=8, ge=1, description="partitions of a job topic")
    lock_ms: int = Field(default=30_000, ge=1_000, description="how long a lease lasts before it must be renewed")

    store_url: str = Field(
        default="dir:.tape/store", description="dir:PATH, or s3+http://host:port/bucket, s3+https://host/bucket"
    )
    store_access_key: str | None = None
    store_secret_key: SecretStr | None = None
    store_region: str = "us-east-1"

    otlp_endpoint: str | None = Field(default=None, description="OTLP/HTTP collector; unset writes spans to a file")
    trace_file: Path | None = Field(default=None, description="where spans go without a collector; default home/traces")
    price_per_hour: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="what an hour of the worker costs, its slots in equal parts",
    )
    cpu_watts: float = Field(
        default=10.0, ge=0, allow_inf_nan=False, description="of a busy core, where the machine counts no energy"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"

    @field_validator("home", "cache", "kafka_ca", "kafka_cert", "kafka_key", "kafka_token_file", "trace_file")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @field_validator("kafka_url")
    @classmethod
    def _addresses(cls, value: str) -> str:
        for part in value.split(","):
            host, colon, port = part.strip().rpartition(":")
            if not (colon and host and port.isdigit() and 0 < int(port) < 65536):
                raise ValueError(f"{part.strip()!r} is not host:port")
        return value

    @field_validator("store_url")
    @classmethod
    def _store(cls, value: str) -> str:
        if not value.startswith(("dir:", "s3+http://", "s3+https://")):
            raise ValueError("is neither dir:PATH nor s3+http(s)://host:port/bucket")
        return value

    @property
    def kafka_servers(self) -> list[str]:
        """The broker addresses, one by one."""
        return [part.strip() for part in self.kafka_url.split(",")]

    def environ(self) -> dict[str, str]:
        """Return the variables that make another process load these settings; secrets are in clear."""
        return {
            PREFIX + name.upper(): value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name in type(self).model_fields
            if (value := getattr(self, name)) is not None
        }

    @classmethod
    def load(cls, env: Mapping[str, str] | None = None, **given: Any) -> Settings:
        """Read settings from arguments, environment, profile and defaults, in that order.

        Raises `InvalidError` (TAPE-1007) that names the variable or key, and what is wrong with it.
        """
        env = os.environ if env is None else env
        given = {key: value for key, value in given.items() if value is not None}
        named = {key[len(PREFIX) :].lower(): key for key in env if key.startswith(PREFIX)}
        unknown = sorted(variable for field, variable in named.items() if field not in cls.model_fields)
        if unknown:
            raise InvalidError(
                f"{unknown[0]} is not a setting",
                code="TAPE-1007",
                field=unknown[0],
                hint=f"known: {', '.join(PREFIX + name.upper() for name in cls.model_fields)}",
            )
        values: dict[str, Any] = {
            field: env[variable] for field, variable in named.items() if env[variable] != "" or field in EMPTY
        }
        home = Path(given.get("home", values.get("home", cls.model_fields["home"].default))).expanduser()
        merged = {**_profile(home), **values, **given}
        if "store_url" not in merged:
            merged["store_url"] = f"dir:{home / 'store'}"
        try:
            return cls(**merged)
        except ValidationError as error:
            first = error.errors()[0]
            field = str(first["loc"][0]) if first["loc"] else "settings"
            raise InvalidError(
                f"{PREFIX}{field.upper()}: {first['msg']}", code="TAPE-1007", field=PREFIX + field.upper()
            ) from None


def _profile(home: Path) -> dict[str, Any]:
    path = home / PROFILE
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidError(
            f"the profile cannot be read: {error}",
            code="TAPE-1007",
            file=str(path),
            hint="remove it; `tape up` remakes it",
        ) from error
    if not isinstance(found, dict):
        raise InvalidError("the profile is not a JSON object", code="TAPE-1007", file=str(path))
    return found
