"""What may be deleted, for any state of groups and logs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wire.housekeeper import UNKNOWN, Deletion, Place, decide

offsets = st.integers(UNKNOWN, 50)
places = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 2))
groups = st.dictionaries(st.sampled_from(["g1", "g2", "g3"]), st.dictionaries(places, offsets))


@given(groups, st.dictionaries(places, st.integers(0, 50)))
def test_no_group_loses_a_record_it_has_not_finished(
    finished: dict[str, dict[Place, int]], starts: dict[Place, int]
) -> None:
    found = decide(finished, starts)
    assert len({(deletion.topic, deletion.partition) for deletion in found}) == len(found)
    for deletion in found:
        place = (deletion.topic, deletion.partition)
        known = [group[place] for group in finished.values() if place in group]
        assert known, "a partition nobody reads keeps everything"
        assert starts[place] == deletion.start < deletion.before
        assert all(deletion.before <= offset for offset in known)


@given(groups, st.dictionaries(places, st.integers(0, 50)))
def test_everything_that_may_go_goes(finished: dict[str, dict[Place, int]], starts: dict[Place, int]) -> None:
    gone = {(deletion.topic, deletion.partition) for deletion in decide(finished, starts)}
    for place, start in starts.items():
        known = [group[place] for group in finished.values() if place in group]
        if known and min(known) > start:
            assert place in gone


def test_the_slowest_group_decides() -> None:
    finished = {"fast": {("t", 0): 90, ("t", 1): 5}, "slow": {("t", 0): 40, ("t", 1): UNKNOWN}}
    assert decide(finished, {("t", 0): 10, ("t", 1): 0, ("u", 0): 0}) == [Deletion("t", 0, 10, 40)]
