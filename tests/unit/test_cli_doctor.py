"""`tape doctor` on machines that lack things, with services that only pretend."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_rig import DRIFT, MISSING, Result, Tape, bare, plan

import wire.topics
from producers.cli import doctor
from producers.cli.exits import Exit
from producers.cli.services import write_profile
from schemas.errors import AuthError, UnavailableError
from wire.topics import Change

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def tape(tape: Tape) -> Tape:
    return bare(tape)


class FakeLink:
    share = True
    trouble: Exception | None = None

    def __init__(self, *_: object, **__: object) -> None:
        if self.trouble is not None:
            raise self.trouble

    def __enter__(self) -> FakeLink:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def describe(self) -> SimpleNamespace:
        return SimpleNamespace(brokers=1, share=self.share, id="c")


class TestDoctor:
    @pytest.fixture(autouse=True)
    def well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import wire.kafka

        monkeypatch.setattr(wire.kafka, "Link", FakeLink)
        monkeypatch.setattr(FakeLink, "trouble", None)
        monkeypatch.setattr(FakeLink, "share", True)
        monkeypatch.setattr(wire.topics, "check", lambda *_: plan(Change("ok", "topic", "x")))
        monkeypatch.setattr(doctor, "NO_DISK", 0)

    def rows(self, found: Result) -> dict[str, Any]:
        return {row["check"]: row for row in found.rows}

    def test_all_is_well(self, tape: Tape, home: Path) -> None:
        write_profile(home, {})
        found = tape("doctor")
        assert found.code == Exit.OK
        rows = self.rows(found)
        for check in ("python", "broker", "share groups", "topics", "store", "profile"):
            assert rows[check]["status"] == "ok", rows[check]

    @pytest.mark.parametrize(
        ("trouble", "code"), [(UnavailableError("none"), "TAPE-5001"), (AuthError("no", code="TAPE-4001"), "TAPE-4001")]
    )
    def test_a_broker_in_trouble(
        self, tape: Tape, monkeypatch: pytest.MonkeyPatch, trouble: Exception, code: str
    ) -> None:
        monkeypatch.setattr(FakeLink, "trouble", trouble)
        found = tape("doctor")
        assert found.code == Exit.UNAVAILABLE
        assert code in self.rows(found)["broker"]["found"]
        assert self.rows(found)["broker"]["way_out"]

    def test_share_groups_off(self, tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FakeLink, "share", False)
        assert self.rows(tape("doctor"))["share groups"]["status"] == "fail"

    def test_topics_that_differ(self, tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wire.topics, "check", lambda *_: plan(MISSING))
        assert self.rows(tape("doctor"))["topics"]["way_out"] == "tape topics apply"
        monkeypatch.setattr(wire.topics, "check", lambda *_: plan(DRIFT))
        assert self.rows(tape("doctor"))["topics"]["status"] == "warn"

    def test_a_store_that_cannot_be_written(self, tape: Tape, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        found = tape("doctor", "--store-url", f"dir:{tmp_path / 'file'}")
        assert found.code == Exit.UNAVAILABLE
        assert self.rows(found)["store"]["status"] == "fail"

    def test_what_this_machine_lacks(self, tape: Tape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "find_spec", lambda _: None)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setenv("TAPE_CACHE", str(tmp_path / "cache"))
        rows = self.rows(tape("doctor"))
        assert "apt-get install openjdk" in rows["jdk"]["way_out"]
        assert rows["kafka"]["way_out"] == "apt-get install maven"
        assert rows["models"]["way_out"] == "pip install 'tickertape[llm]'"
        assert rows["crc32c"]["status"] == "warn"

    def test_little_room_and_an_open_profile(self, tape: Tape, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_profile(home, {}).chmod(0o644)
        monkeypatch.setattr(doctor, "NO_DISK", 1 << 60)
        found = tape("doctor")
        assert found.code == Exit.FAILURE
        assert self.rows(found)["disk (home)"]["status"] == "fail"
        assert self.rows(found)["profile"]["way_out"].startswith("chmod 600")
