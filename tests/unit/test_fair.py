"""Fair share by arithmetic: the account of tenants, and who waits where."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.fair import FULL, LEAST_S, Backlog, Shares

NAMES = ("a", "b", "c", "d")


def served(shares: Shares, jobs: dict[str, list[float]], slots: int = 1) -> list[tuple[float, str, float]]:
    """Run the jobs of tenants that all wait from the start; returns start, tenant and length of each."""
    left = {name: list(lengths) for name, lengths in jobs.items()}
    now, number, told = 0.0, count(), []
    running: list[tuple[float, int, float]] = []
    while any(left.values()) or running:
        while len(running) < slots and (name := shares.choose([name for name in left if left[name]], now)):
            length, job = left[name].pop(0), next(number)
            shares.started(name, job, now)
            running.append((now + length, job, length))
            told.append((now, name, length))
        ended = min(running)
        running.remove(ended)
        now = max(now, ended[0])
        shares.ended(ended[1], ended[2], now)
    return told


lengths = st.lists(st.floats(LEAST_S, 5.0), min_size=40, max_size=40)


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries(dict.fromkeys(NAMES, lengths)),
    st.fixed_dictionaries(dict.fromkeys(NAMES, st.sampled_from([0.5, 1.0, 3.0]))),
)
def test_nobody_who_waits_falls_back_by_more_than_a_job(
    jobs: dict[str, list[float]], weights: dict[str, float]
) -> None:
    told = served(Shares(weights.__getitem__), jobs)
    used = dict.fromkeys(NAMES, 0.0)
    left = Counter(name for _, name, _ in told)
    for _, name, length in told:
        if min(left.values()) > 0:  # while everybody waits, virtual times stay within the longest job of each two
            for other in NAMES:
                gap = used[name] - used[other]
                assert gap <= 5.0 / weights[other] + 1e-6, f"{name} goes before {other}"
        used[name] += length / weights[name]
        left[name] -= 1


@pytest.mark.parametrize("slots", [1, 3])
def test_a_share_is_of_seconds_and_not_of_jobs(slots: int) -> None:
    told = served(Shares(), {"long": [10.0] * 20, "short": [1.0] * 200}, slots)
    until = 60.0
    seconds: Counter[str] = Counter()
    for at, name, length in told:
        if at < until:
            seconds[name] += int(length)
    assert seconds["long"] / seconds["short"] == pytest.approx(1.0, abs=0.35)


def test_weights_divide() -> None:
    shares = Shares(lambda name: 3.0 if name == "a" else 1.0)
    told = served(shares, {"a": [1.0] * 100, "b": [1.0] * 100})
    first = Counter(name for _, name, _ in told[:80])
    assert first["a"] == pytest.approx(60, abs=2)


def test_who_was_away_goes_next_but_saved_nothing_up() -> None:
    shares = Shares()
    for number in range(1000):
        assert shares.choose(["a"], float(number)) == "a"
        shares.started("a", number, float(number))
        shares.ended(number, 1.0, float(number) + 1.0)
    order = []
    for number in range(2000, 2020):
        name = shares.choose(["a", "b"], float(number))
        assert name is not None
        order.append(name)
        shares.started(name, number, float(number))
        shares.ended(number, 1.0, float(number) + 1.0)
    assert "b" in order[:2]
    assert Counter(order) == {"a": 10, "b": 10}


def test_what_runs_counts_before_it_has_ended() -> None:
    shares = Shares()
    chosen = []
    for number in range(6):
        name = shares.choose(["a", "b", "c"], 0.0)
        assert name is not None
        chosen.append(name)
        shares.started(name, number, 0.0)
    assert Counter(chosen) == {"a": 2, "b": 2, "c": 2}


def test_a_job_that_is_put_off_at_once_is_charged_all_the_same() -> None:
    shares = Shares()
    for number in range(10):
        shares.choose(["a", "b"], 0.0)
        shares.started("a", number, 0.0)
        shares.ended(number, 0.0, 0.0)
    assert shares.used("a") == pytest.approx(10 * LEAST_S)
    assert shares.choose(["a", "b"], 0.0) == "b"


def test_nobody_and_the_unknown() -> None:
    shares = Shares()
    assert shares.choose([], 0.0) is None
    shares.ended("never started", 5.0, 5.0)
    assert shares.used("a") == 0.0


def test_the_account_of_who_left_is_closed() -> None:
    shares, most = Shares(), 0
    for number in range(3000):
        waiting = ["flood", f"tenant-{number // 2}"]
        name = shares.choose(waiting, float(number))
        assert name in waiting
        shares.started(name, number, float(number))
        shares.ended(number, 1.0, float(number) + 1.0)
        most = max(most, len(shares._accounts))
    assert most < 10


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")  # threads of others use `random`
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_backlog_is_what_was_seen_less_what_passed(data: st.DataObject) -> None:
    backlog = Backlog()
    model: dict[int, dict[int, str]] = {}
    heads: dict[int, int] = {}
    ends: dict[int, int] = {}
    newest: dict[int, str] = {}
    for _ in range(data.draw(st.integers(1, 40))):
        partition = data.draw(st.integers(0, 2))
        if data.draw(st.booleans()):
            first = ends.get(partition, -1) + data.draw(st.integers(1, 3))  # markers leave gaps
            last = first + data.draw(st.integers(0, 4))
            tenant = data.draw(st.sampled_from(NAMES))
            assert backlog.see(partition, first, last, tenant)
            if newest.get(partition) == tenant and model.get(partition):  # what a marker parts stays one run
                first = max(model[partition]) + 1
            newest[partition] = tenant
            ends[partition] = last
            heads.setdefault(partition, first)
            for offset in range(first, last + 1):
                if offset >= heads[partition]:
                    model.setdefault(partition, {})[offset] = tenant
        elif partition in ends:
            offset = data.draw(st.integers(0, ends[partition] + 2))
            backlog.passed(partition, offset)
            heads[partition] = max(heads[partition], offset + 1)
            model[partition] = {at: who for at, who in model.get(partition, {}).items() if at > offset}
        assert backlog.tenants() == {who for found in model.values() for who in found.values()}
        for tenant in NAMES:
            near = backlog.nearest(tenant)
            depths = {
                (at - heads[part], part, at)
                for part, found in model.items()
                for at, who in found.items()
                if who == tenant
            }
            if near is None:
                assert not depths
                continue
            assert near.depth == min(depths)[0]
            assert (near.depth, near.partition, near.offset) in depths
            found = model[near.partition]
            assert {found.get(at, tenant) for at in range(near.offset, near.offset + near.count)} == {tenant}
            home = backlog.home(tenant, near.partition)
            others = Counter(part for _, part, _ in depths if part != near.partition)
            assert (home is None) == (not others)


def test_one_partition_is_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.fair.RUNS", 3)
    backlog = Backlog()
    for offset, tenant in enumerate("abc"):
        assert backlog.see(0, offset, offset, tenant)
    assert not backlog.see(0, 3, 3, "a")
    backlog.passed(0, 0)
    assert backlog.see(0, 3, 3, "a")
    assert backlog.see(1, 0, 0, "z"), "another partition has room of its own"


def test_a_home_is_the_fullest_that_can_still_be_reached() -> None:
    backlog = Backlog()
    for partition, waiting in enumerate((100, FULL - 1, FULL, 10 * FULL)):
        backlog.see(partition, 0, waiting - 1, "a")
    assert backlog.home("a", 3) == 1
    assert backlog.home("a", 1) == 0
    for partition in (0, 1):
        backlog.emptied(partition)
    assert backlog.home("a", 3) == 0, "who waits in full ones alone gets the emptiest"
    assert backlog.home("b", 0) is None
    backlog.see(0, 10 * FULL, 20 * FULL, "c")
    backlog.see(1, 10 * FULL, 15 * FULL, "c")
    assert backlog.home("a", 2) == 1
    backlog.see(1, 15 * FULL + 1, 15 * FULL + 1, "a")
    assert backlog.home("a", 2) == 1, "what others have there counts, too"


def test_nothing_waits_in_a_partition_that_gave_nothing() -> None:
    backlog = Backlog()
    backlog.see(0, 5, 9, "a")
    backlog.see(1, 0, 0, "b")
    backlog.emptied(0)
    assert backlog.tenants() == {"b"}
    backlog.see(0, 10, 10, "a")
    near = backlog.nearest("a")
    assert near is not None
    assert (near.partition, near.offset, near.depth) == (0, 10, 0)
