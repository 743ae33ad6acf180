"""The shelf of tokens in the store: whole or not there, verified, and swept when nobody wants it."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.errors import JobError, UnavailableError
from wire.blobs.manifest import digest_of
from wire.blobs.memory import Memory
from workers.tokens import DAYS, TOP, Tokens

NOW = datetime(2026, 11, 21, tzinfo=UTC)


class Bench:
    """A store, and workers with folders of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.now = folder, Memory(), NOW
        folder.mkdir(exist_ok=True)

    def worker(self, name: str = "one") -> Tokens:
        return Tokens(lambda: self.store, self.folder / name, today=lambda: self.now)

    def file(self, content: bytes) -> Path:
        path = self.folder / "made"
        path.write_bytes(content)
        return path

    def names(self) -> list[str]:
        return sorted(blob.name for blob in self.store.list(TOP))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_another_worker_finds_what_one_kept(bench: Bench) -> None:
    assert bench.worker().find("k") is None
    bench.worker().keep("k", bench.file(b"tokens"))
    digest, _ = digest_of(b"tokens")
    assert bench.names() == [f"tokens/k/{digest}.safetensors", "tokens/k/used-20261121"]
    for name in ("one", "two", "two"):
        found = bench.worker(name).find("k")
        assert found is not None
        assert found.read_bytes() == b"tokens"
        assert found.is_relative_to(bench.folder / name / "tokens")
    assert bench.worker("two").find("other") is None


def test_a_copy_on_the_worker_is_used_and_verified(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.worker().keep("k", bench.file(b"tokens"))
    fetched = []
    real = Memory.fetch
    monkeypatch.setattr(Memory, "fetch", lambda *given, **rest: fetched.append(given[1]) or real(*given, **rest))
    found = bench.worker().find("k")
    assert fetched == [], "it lies here already"
    assert found is not None
    found.write_bytes(b"rotten")
    again = bench.worker().find("k")
    assert again is not None
    assert again.read_bytes() == b"tokens"
    assert len(fetched) == 1


def test_what_is_broken_in_the_store_is_none_and_is_written_anew(bench: Bench) -> None:
    bench.worker().keep("k", bench.file(b"tokens"))
    [name, _] = bench.names()
    bench.store.put(name, b"tokenz")
    assert bench.worker("two").find("k") is None
    assert name not in bench.names()
    bench.worker("two").keep("k", bench.file(b"tokens"))
    found = bench.worker("three").find("k")
    assert found is not None
    assert found.read_bytes() == b"tokens"


@pytest.mark.parametrize("error", [UnavailableError("gone", code="TAPE-5002"), JobError("full", code="TAPE-6014")])
def test_trouble_with_the_store_is_no_trouble_of_the_training(bench: Bench, error: Exception) -> None:
    def broken() -> Memory:
        raise error

    shelf = Tokens(broken, bench.folder)
    shelf.keep("k", bench.file(b"tokens"))
    assert shelf.find("k") is None


def test_a_disk_without_room_is_none_either(bench: Bench) -> None:
    (bench.folder / "one").mkdir()
    (bench.folder / "one" / "tokens").write_text("no folder")
    bench.worker().keep("k", bench.file(b"tokens"))
    assert bench.worker().find("k") is None


def test_what_nobody_wants_for_a_month_goes_when_something_comes(bench: Bench) -> None:
    for key in ("old", "wanted"):
        bench.worker().keep(key, bench.file(key.encode()))
    bench.now = NOW + timedelta(days=DAYS)
    assert bench.worker().find("wanted") is not None
    assert [name for name in bench.names() if "used-" in name] == [
        "tokens/old/used-20261121",
        "tokens/wanted/used-20261221",
    ]
    bench.worker().keep("new", bench.file(b"new"))
    assert bench.worker().find("old") is not None, "a month is not over yet"
    bench.now += timedelta(days=DAYS + 1)
    local = bench.folder / "one" / "tokens"
    for path in local.iterdir():
        os.utime(path, (NOW.timestamp(), NOW.timestamp()))
    assert bench.worker().find("wanted") is not None
    bench.worker().keep("last", bench.file(b"last"))
    assert {name.split("/")[1] for name in bench.names()} == {"wanted", "last"}
    assert {path.read_bytes() for path in local.iterdir()} == {b"wanted", b"last"}


def test_what_was_left_half_written_goes(bench: Bench) -> None:
    bench.store.put("tokens/half/abc.safetensors", b"no day was ever told")
    bench.worker().keep("k", bench.file(b"tokens"))
    assert all(name.startswith("tokens/k/") for name in bench.names())


def test_a_day_is_told_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.worker().keep("k", bench.file(b"tokens"))
    monkeypatch.setattr(Memory, "put", lambda *_, **__: pytest.fail("nothing to say"))
    assert bench.worker().find("k") is not None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["keep", "find", "rot", "rot here", "lose", "days"]), st.integers(0, 2), st.integers(0, 1)
        ),
        max_size=25,
    )
)
def test_whatever_happens_nothing_else_is_found(tmp_path: Path, acts: list[tuple[str, int, int]]) -> None:
    """Workers keep, look and grow old, bytes rot and vanish: a key gives its own bytes, or nothing."""
    bench = Bench(tmp_path / f"{time.monotonic_ns()}")
    for what, number, who in acts:
        key, worker = f"k{number}", bench.worker(str(who))
        if what == "keep":
            worker.keep(key, bench.file(f"tokens of {key}".encode()))
            assert worker.find(key) is not None
        elif what == "rot":
            for blob in list(bench.store.list(f"{TOP}{key}/")):
                bench.store.put(blob.name, b"rotten")
        elif what == "rot here":
            for path in (bench.folder / str(who)).rglob("*.safetensors"):
                path.write_bytes(b"rotten")
        elif what == "lose":
            for blob in list(bench.store.list(f"{TOP}{key}/"))[:1]:
                bench.store.delete(blob.name)
        elif what == "days":
            bench.now += timedelta(days=20)
        found = worker.find(key)
        assert found is None or found.read_bytes() == f"tokens of {key}".encode()
