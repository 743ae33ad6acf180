"""How large a request may be: the same for the client that sends it and the worker that reads it, and never a wedge."""

from __future__ import annotations

import pytest
from dead_rig import Rig
from hypothesis import given
from hypothesis import strategies as st
from worker_twin import Bench, Record, record

from producers.request import Request, prepare
from schemas.dead import CUT, fitting
from schemas.errors import InvalidError
from schemas.past import ATTEMPT
from schemas.redrive import Skip
from schemas.topics import LETTER_LIMIT, MESSAGE_LIMIT, PAST_ROOM, Names, topics
from wire.share import AckType

MODEL = {"model": "builtin:m"}


def padded(size: int, *, where: str = "value", own: int = 0) -> Record:
    """A good request of exactly so many bytes, and as many more in a header of ours."""
    whole = record(labels={"x": ""})
    used = (
        len(whole.value or b"")
        + len(whole.key or b"")
        + sum(len(name) + len(raw or b"") for name, raw in whole.headers)
    )
    left = size - used
    if where == "value":
        whole = whole._replace(value=(whole.value or b"").replace(b'"x": ""', b'"x": "' + b"y" * left + b'"'))
    else:
        whole = whole._replace(headers=(*whole.headers, ("x", b"y" * (left - 1))))
    return whole._replace(headers=(*whole.headers, (ATTEMPT, b"0" * own))) if own else whole


class TestWorker:
    @pytest.mark.parametrize("where", ["value", "header"])
    @pytest.mark.parametrize("own", [0, 1_000])
    def test_the_largest_request_is_run(self, where: str, own: int) -> None:
        bench = Bench()
        assert bench.run(padded(MESSAGE_LIMIT, where=where, own=own)) is AckType.ACCEPT

    @pytest.mark.parametrize("where", ["value", "header"])
    def test_one_byte_more_is_a_dead_letter(self, where: str) -> None:
        bench = Bench()
        assert bench.run(padded(MESSAGE_LIMIT + 1, where=where)) is AckType.REJECT
        failure = bench.events()[-1].failure
        assert failure is not None
        assert (failure.code, "1,048,577 bytes before compression" in failure.message) == ("TAPE-1006", True)

    def test_a_record_that_no_letter_holds_is_buried_without_its_value(self) -> None:
        """It was compressed on its way in, and is not on its way out: it was tried for ever."""
        bench = Bench()
        huge = record()._replace(value=b"{" * (LETTER_LIMIT + 1))
        assert bench.run(huge) is AckType.REJECT
        (entry,) = bench.log.read("t.dead.say", 0)
        assert (entry.key, entry.value) == (b"job-1", None)
        assert int(dict(entry.headers)[CUT] or 0) > LETTER_LIMIT
        assert dict(entry.headers)["ce_subject"] == b"job-1"


class TestClient:
    def test_what_the_client_sends_the_worker_takes(self) -> None:
        def size(prompt: int) -> int:
            made = prepare(Request("inference", MODEL | {"prompt": "x" * prompt}), Names(), tenant="t").request
            return len(made.value) + len(made.key) + sum(len(name) + len(raw) for name, raw in made.headers)

        low, high = 0, MESSAGE_LIMIT
        while high - low > 1:
            middle = (low + high) // 2
            try:
                size(middle)
                low = middle
            except InvalidError as error:
                assert error.code == "TAPE-1006"
                high = middle
        # The trace headers come after the check.
        assert MESSAGE_LIMIT - 1_024 < size(low) <= MESSAGE_LIMIT - 256


class TestLetter:
    @given(
        st.integers(0, 3), st.integers(0, 3), st.lists(st.tuples(st.text(max_size=9), st.integers(0, 3)), max_size=4)
    )
    def test_a_letter_always_fits_and_small_records_are_untouched(
        self, key: int, value: int, headers: list[tuple[str, int]]
    ) -> None:
        large = 700 << 10
        given = b"k" * key * large, b"v" * value * large, [(name, b"h" * count * large) for name, count in headers]
        whole = sum(len(part) for part in given[:2]) + sum(len(name) + len(raw) for name, raw in given[2])
        found = fitting(*given)
        if whole <= LETTER_LIMIT - PAST_ROOM:
            assert found == given
        else:
            assert found[1] is None
            assert len(found[0] or b"") + sum(len(name) + len(raw or b"") for name, raw in found[2]) < PAST_ROOM * 2
            assert found[2][-1] == (CUT, str(whole).encode())

    def test_topics_have_the_limits(self) -> None:
        wanted = {one.name: one.configs.get("max.message.bytes") for one in topics(Names())}
        assert wanted["tape.dead.inference"] == str(LETTER_LIMIT)
        assert wanted["tape.jobs.inference.bulk"] == str(MESSAGE_LIMIT + PAST_ROOM)

    def test_a_letter_without_its_record_is_not_sent_back(self) -> None:
        rig = Rig()
        rig.bury("a")
        first = rig.entries("tape.dead.inference")[0]
        rig.append("tape.dead.inference", b"b", None, [*first.headers, (CUT, b"5000000"), ("tape-line", b"x/0/1")])
        made = rig.plan()
        assert (made.redrive.plan.letters, made.redrive.plan.skipped) == (1, {Skip.EMPTY: 1})
