"""`docker-compose.yml` holds against the Compose specification and against the settings the code reads."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from wire.settings import PREFIX, Settings
from workers.__main__ import _parser

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
FOUND: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FOUND["services"]


def test_the_file_follows_the_compose_specification() -> None:
    compose = PyCompose.from_yaml(TEXT)
    compose.validate()
    assert set(compose.service_names()) == {"kafka", "store", "collector", "topics", "worker"}


def test_the_referee_refuses_a_wrong_file() -> None:
    with pytest.raises(Exception, match=r"ports|imagge|unknown"):
        PyCompose.from_yaml(TEXT.replace("image: apache", "imagge: apache")).validate()


def test_every_setting_is_one_the_code_reads() -> None:
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", TEXT))
    assert {name.removeprefix(PREFIX).lower() for name in named} <= set(Settings.model_fields)


def test_the_worker_can_start_from_its_environment() -> None:
    environment = {
        key: "secret" if "${" in value else value for key, value in SERVICES["worker"]["environment"].items()
    }
    settings = Settings.load(env=environment)
    assert settings.kafka_servers == ["kafka:19092"]
    assert settings.store_secret_key is not None


def test_the_workers_command_parses() -> None:
    command = SERVICES["worker"]["command"]
    assert command[:3] == ["python", "-m", "workers"]
    given = _parser().parse_args(command[3:])
    grace = float(re.sub(r"\D", "", SERVICES["worker"]["stop_grace_period"]))
    assert grace > given.grace, "the container must outlive the worker's own grace"


def test_no_secret_is_in_the_file() -> None:
    secrets = {name: value for name, value in FOUND["x-tape"].items() if re.search("KEY|PASSWORD|TOKEN", name)}
    assert "TAPE_STORE_SECRET_KEY" in secrets
    for name, value in secrets.items():
        assert value.startswith("${"), name


def test_every_image_is_pinned() -> None:
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    assert images
    for image in images:
        assert re.match(r"\d+\.\d+", image.rpartition(":")[2]), image


def test_the_dockerfile_copies_what_is_there() -> None:
    lines = (ROOT / "deploy/docker/Dockerfile").read_text().splitlines()
    copied = [part for line in lines if line.startswith("COPY") for part in shlex.split(line)[1:-1]]
    assert copied
    for part in copied:
        assert (ROOT / part).exists(), part


def test_what_is_kept_outlives_the_containers() -> None:
    kafka, worker = SERVICES["kafka"], SERVICES["worker"]
    assert kafka["volumes"] == [f"kafka:{kafka['environment']['KAFKA_LOG_DIRS']}"]
    folder = worker["volumes"][0].partition(":")[2]
    made = (ROOT / "deploy/docker/Dockerfile").read_text().partition("USER tape")[0]
    assert re.search(rf"install -d -o tape .*{folder}", made), "Docker would make the folder root's"
