"""Checkpoints in a store: complete or not there, the newest that is whole is taken up, and what dies leaves no harm."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import UnavailableError
from wire.blobs.memory import Memory
from wire.blobs.port import missing
from workers.checkpoint import KEPT, MANIFEST, Checkpoints, clear, found_of, prefix


class Rig:
    """Checkpoints of one job, kept by attempts that come and go."""

    def __init__(self, tmp_path: Path, store: Any = None) -> None:
        self.store = store or Memory()
        self.folder = tmp_path
        self.told: list[float] = []
        self.made = 0

    def attempt(self, number: int = 1, **more: Any) -> Checkpoints:
        return Checkpoints(
            lambda: self.store, job="j", kind="training", attempt=number, advanced=self.told.append, **more
        )

    def keep(self, kept: Checkpoints, step: int, **facts: Any) -> Path:
        self.made += 1
        folder = self.folder / f"made-{self.made}"
        (folder / "deep").mkdir(parents=True)
        (folder / "weights.bin").write_bytes(b"w%d" % step)
        (folder / "deep" / "state.json").write_bytes(b"s%d" % step)
        kept.keep(step, folder, **facts)
        return folder

    def names(self) -> set[str]:
        return {blob.name.removeprefix(prefix("j")) for blob in self.store.list(prefix("j"))}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_what_was_kept_is_taken_up_by_the_next_attempt(rig: Rig, tmp_path: Path) -> None:
    with rig.attempt() as kept:
        folder = rig.keep(kept, 10, threads=2)
    assert not folder.exists(), "it was handed over"
    assert rig.told == [10]
    found = rig.attempt(2).newest(tmp_path / "in")
    assert found is not None
    assert (found.step, dict(found.facts)) == (10, {"threads": 2})
    assert (tmp_path / "in" / "10" / "weights.bin").read_bytes() == b"w10"
    assert (tmp_path / "in" / "10" / "deep" / "state.json").read_bytes() == b"s10"


def test_the_last_few_stay_whoever_kept_them(rig: Rig) -> None:
    with rig.attempt() as kept:
        for step in (10, 20, 30):
            rig.keep(kept, step)
    with rig.attempt(12) as kept:
        rig.keep(kept, 30)
    told = [(found.step, found.folder.split("-")[1]) for found in found_of(rig.store, "j")]
    assert told == [(30, "12"), (30, "1")]
    assert len(rig.names()) == KEPT * 3


def test_the_best_stays_however_old_it_is(rig: Rig, tmp_path: Path) -> None:
    with rig.attempt() as kept:
        for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, None)):
            rig.keep(kept, step, **({"valid_loss": loss} if loss is not None else {}))
        best = kept.at(20, tmp_path / "best")
        assert best is not None and best.facts["valid_loss"] == 1.0
        assert (tmp_path / "best" / "20" / "weights.bin").read_bytes() == b"w20"
        assert kept.at(30, tmp_path / "best") is None
    assert [found.step for found in found_of(rig.store, "j")] == [50, 40, 20]


def test_a_checkpoint_without_its_manifest_is_none_and_is_swept(rig: Rig, tmp_path: Path) -> None:
    """The worker died while it was sent."""
    with rig.attempt() as kept:
        rig.keep(kept, 10)
    rig.store.put(f"{prefix('j')}000000000020-1/weights.bin", b"half")
    found = rig.attempt(2).newest(tmp_path / "in")
    assert found is not None and found.step == 10
    with rig.attempt(2) as kept:
        rig.keep(kept, 30)
        rig.keep(kept, 40)
    assert [found.step for found in found_of(rig.store, "j")] == [40, 30]
    assert not [name for name in rig.names() if "0020-1" in name]


class Cut(Memory):
    """A store to which only so many objects more can be sent: whoever sends them dies in between."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.sent = 99, list[str]()

    def put(self, name: str, *args: Any, **more: Any) -> Any:
        if not self.left:
            raise UnavailableError("the store is away", code="TAPE-5002")
        self.left -= 1
        self.sent.append(name.rpartition("/")[2])
        return super().put(name, *args, **more)


@pytest.mark.parametrize("sent", [0, 1, 2])
def test_a_death_while_it_is_sent_leaves_the_one_before_in_use(tmp_path: Path, sent: int) -> None:
    store = Cut()
    rig = Rig(tmp_path, store)
    with rig.attempt() as kept:
        rig.keep(kept, 10)
        kept.flush()
        assert (len(store.sent), store.sent[-1], store.sent.count(MANIFEST)) == (3, MANIFEST, 1), "the manifest is last"
        store.left = sent
        rig.keep(kept, 20)
    assert [found.step for found in found_of(store, "j")] == [10]
    found = rig.attempt(2).newest(tmp_path / "in")
    assert found is not None and found.step == 10
    assert (tmp_path / "in" / "10" / "weights.bin").read_bytes() == b"w10"
    assert rig.told == [10]


@pytest.mark.parametrize("harm", ["altered", "gone", "no manifest at all", "a manifest that leads out"])
def test_a_broken_checkpoint_gives_way_to_the_one_before(rig: Rig, tmp_path: Path, harm: str) -> None:
    with rig.attempt() as kept:
        rig.keep(kept, 10)
        rig.keep(kept, 20)
    newest = next(found_of(rig.store, "j")).folder
    match harm:
        case "altered":
            rig.store.put(f"{newest}/weights.bin", b"w21")
        case "gone":
            rig.store.delete(f"{newest}/weights.bin")
        case "no manifest at all":
            rig.store.put(f"{newest}/{MANIFEST}", b"{}")
        case _:
            text = rig.store.read(f"{newest}/{MANIFEST}").replace(b"weights.bin", b"../../x.bin")
            rig.store.put(f"{newest}/{MANIFEST}", text)
    found = rig.attempt(2).newest(tmp_path / "in")
    assert found is not None and found.step == 10
    assert not (tmp_path / "x.bin").exists()


def test_one_that_does_not_fit_is_passed_over(rig: Rig, tmp_path: Path) -> None:
    with rig.attempt() as kept:
        rig.keep(kept, 10, base="a")
        rig.keep(kept, 20, base="b")
    found = rig.attempt(2).newest(tmp_path / "in", lambda facts: facts["base"] == "a")
    assert found is not None and found.step == 10
    assert rig.attempt(2).newest(tmp_path / "in", lambda _: False) is None


def test_what_was_of_no_use_pushes_nothing_out(rig: Rig, tmp_path: Path) -> None:
    """The job began anew: its first steps must stay, though they are behind those of the other request."""
    with rig.attempt() as kept:
        for step in (500, 600):
            rig.keep(kept, step, base="other")
    with rig.attempt(2) as kept:
        assert kept.newest(tmp_path / "in", lambda facts: facts["base"] == "ours") is None
        rig.keep(kept, 100, base="ours")
        rig.keep(kept, 200, base="ours")
    assert [found.step for found in found_of(rig.store, "j")] == [200, 100]
    found = rig.attempt(3).newest(tmp_path / "next", lambda facts: facts["base"] == "ours")
    assert found is not None and found.step == 200


def test_two_attempts_of_one_number_do_not_write_over_each_other(rig: Rig, tmp_path: Path) -> None:
    """A frozen worker's child goes on for a while; an attempt that was not spent gives the next its number."""
    with rig.attempt() as ours, rig.attempt() as theirs:
        rig.keep(ours, 10)
        rig.keep(theirs, 10, other=True)
    assert len(list(found_of(rig.store, "j"))) == 2


def test_what_goes_while_it_is_read_is_looked_for_anew(rig: Rig, tmp_path: Path) -> None:
    with rig.attempt() as kept:
        rig.keep(kept, 10)
    zombie = rig.attempt()

    class Swept(Memory):
        def fetch(self, name: str, *args: Any, **more: Any) -> Any:
            rig.store = Memory()  # swept by another attempt, which kept its own
            with zombie:
                rig.keep(zombie, 20)
            raise missing(name)

        def list(self, prefix: str = "") -> Any:
            return first.list(prefix) if rig.store is self else rig.store.list(prefix)

        def read(self, name: str, **more: Any) -> bytes:
            return first.read(name)

    first, rig.store = rig.store, Swept()
    found = rig.attempt(2).newest(tmp_path / "in")
    assert found is not None and found.step == 20


def test_there_may_be_none_and_strange_things(rig: Rig, tmp_path: Path) -> None:
    assert rig.attempt().newest(tmp_path / "in") is None
    rig.store.put(f"{prefix('j')}notes/{MANIFEST}", b"{}")
    assert rig.attempt().newest(tmp_path / "in") is None


class Slow(Memory):
    """A store that takes what it is sent when it is told to, or does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.down = threading.Event(), False
        self.came = threading.Event()

    def put(self, name: str, *args: Any, **more: Any) -> Any:
        self.came.set()
        self.free.wait(20)
        if self.down:
            raise UnavailableError("the store is away", code="TAPE-5002")
        return super().put(name, *args, **more)

    def list(self, prefix: str = "") -> Any:
        if self.down:
            raise UnavailableError("the store is away", code="TAPE-5002")
        return super().list(prefix)


def test_the_work_goes_on_while_one_is_sent(tmp_path: Path) -> None:
    store = Slow()
    rig = Rig(tmp_path, store)
    kept = rig.attempt()
    assert not kept.busy
    rig.keep(kept, 10)
    assert store.came.wait(20)
    assert kept.busy
    assert rig.told == [], "it is not durable yet"
    store.free.set()
    kept.flush()
    assert not kept.busy
    assert rig.told == [10]


def test_a_store_that_is_away_costs_a_checkpoint_and_not_the_job(tmp_path: Path) -> None:
    store = Slow()
    store.free.set()
    rig = Rig(tmp_path, store)
    with rig.attempt() as kept:
        rig.keep(kept, 10)
        kept.flush()
        store.down = True
        folder = rig.keep(kept, 20)
        kept.flush()
        assert rig.told == [10]
        assert not folder.exists()
        with pytest.raises(UnavailableError):  # beginning anew would cost more than waiting
            rig.attempt(2).newest(tmp_path / "in")
        store.down = False
        rig.keep(kept, 30)
    assert rig.told == [10, 30]


def test_clearing_leaves_nothing_of_this_job_and_all_of_others(rig: Rig) -> None:
    with rig.attempt() as kept:
        rig.keep(kept, 10)
    rig.store.put(f"{prefix('jj')}x", b"1")
    clear(rig.store, "j")
    assert rig.names() == set()
    assert [blob.name for blob in rig.store.list()] == [f"{prefix('jj')}x"]
