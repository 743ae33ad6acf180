"""`tape plot`: the curves of trainings, wherever their metrics are, in a terminal or as a file."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_rig import Tape, ended, submitted, told
from hypothesis import given
from hypothesis import strategies as st

from producers.cli.exits import Exit
from producers.memory import MemoryPorts
from producers.plot import figure, page, text
from producers.plot.scale import bounds, ticks
from producers.plot.series import Axis, Series, smoothed
from schemas.artifact import ArtifactFile, Manifest
from schemas.event import EventType
from schemas.ids import uuid7
from schemas.outcome import Outcome, Status, outcome_name
from wire.blobs.manifest import digest_of, publish

pytestmark = pytest.mark.usefixtures("home")
START = datetime(2026, 3, 1, tzinfo=UTC)


def line(step: int, loss: float | None = None, **more: Any) -> dict[str, Any]:
    return {"step": step, "steps": 9, "epoch": step / 4, "loss": loss or 3.0 / step, "lr": 1e-3, **more}


def jsonl(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def trained(ports: MemoryPorts, *records: dict[str, Any]) -> str:
    """A training that succeeded, whose adapter holds these metrics."""
    job = uuid7()
    files: dict[str, Path | bytes] = {"metrics.jsonl": jsonl(*records), "train.json": b"{}"}
    artifact = publish(ports.blobs, files, job=job, kind="training", name="adapter")
    outcome = Outcome(
        job=job, kind="training", status=Status.SUCCEEDED, attempt=1, worker="w", finished_at=START,
        artifacts=[artifact],
    )  # fmt: skip
    ports.blobs.put(outcome_name(job), outcome.model_dump_json().encode())
    return job


def kept(ports: MemoryPorts, job: str, step: int, *records: dict[str, Any], spoilt: bool = False) -> None:
    """A checkpoint of a job."""
    place, data = f"runs/{job}/checkpoints/{step:012d}-1-abcd", jsonl(*records)
    digest, size = digest_of(data)
    ports.blobs.put(f"{place}/metrics.jsonl", data + b"!" if spoilt else data)
    file = ArtifactFile(path="metrics.jsonl", sha256=digest, size=size)
    manifest = Manifest(name="checkpoint", kind="training", job=job, files=[file])
    ports.blobs.put(f"{place}/manifest.json", manifest.model_dump_json().encode())


def stepped(ports: MemoryPorts, job: str, *records: dict[str, Any]) -> None:
    """A running job that told of steps."""
    told(ports, job, EventType.RUNNING, attempt=1, started_at=datetime.now(UTC) - timedelta(seconds=10))
    for record in records:
        told(ports, job, EventType.PROGRESS, attempt=1, progress=record)


def points(tape: Tape, *argv: str) -> list[list[float]]:
    (row,) = tape("plot", *argv).rows
    return list(row["points"])


class TestSources:
    def test_a_training_that_ended_is_read_from_its_artifact(self, tape: Tape, ports: MemoryPorts) -> None:
        job = trained(ports, line(1), line(2, 1.5), {"step": 2, "valid_loss": 1.25}, line(3, 1.0))
        (row,) = tape("plot", job).rows
        assert row == {
            "job": job, "label": job[-8:], "metric": "loss", "x": "step", "points": [[1, 3.0], [2, 1.5], [3, 1.0]],
        }  # fmt: skip
        assert points(tape, job, "--metric", "valid_loss", "--x", "epoch") == [[0.5, 1.25]], "where that step was"

    def test_a_running_one_from_its_checkpoint_and_the_events_since(self, tape: Tape, ports: MemoryPorts) -> None:
        job = submitted(tape)
        stepped(ports, job, line(1), line(3), line(4, 0.7), line(6, 0.5))
        assert points(tape, job) == [[1, 3.0], [3, 1.0], [4, 0.7], [6, 0.5]]
        kept(ports, job, 3, *(line(step) for step in (1, 2, 3)))
        assert points(tape, job) == [[1, 3.0], [2, 1.5], [3, 1.0], [4, 0.7], [6, 0.5]]
        kept(ports, job, 5, line(1), spoilt=True)
        assert len(points(tape, job)) == 5, "one that is broken gives way to the one before"

    @pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED, Status.DEAD])
    def test_one_that_came_to_nothing_has_a_curve_too(self, tape: Tape, ports: MemoryPorts, status: Status) -> None:
        job = uuid7()
        stepped(ports, job, line(1), line(2))
        ended(ports, job, status)
        assert points(tape, job) == [[1, 3.0], [2, 1.5]]

    def test_steps_that_a_death_undid_are_not_drawn(self, tape: Tape, ports: MemoryPorts) -> None:
        job = uuid7()
        stepped(ports, job, line(1), line(2), line(5, 9.0), {"resumed": 2}, line(3, 0.9), line(4, 0.8))
        assert points(tape, job) == [[1, 3.0], [2, 1.5], [3, 0.9], [4, 0.8]]

    def test_times_are_those_of_the_events(self, tape: Tape, ports: MemoryPorts) -> None:
        job = trained(ports, line(1), line(2))
        found = tape("plot", job, "--x", "time")
        assert found.code == Exit.NOT_FOUND and "no times: its events are gone" in found.err
        job = uuid7()
        stepped(ports, job, line(1), line(2))
        ((first, _), (last, _)) = points(tape, job, "--x", "time")
        assert 10 <= first <= last < 40

    def test_a_checkpoint_will_do_where_no_broker_answers(
        self, tape: Tape, ports: MemoryPorts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from schemas.errors import UnavailableError

        def away(*_: object, **__: object) -> None:
            raise UnavailableError("no broker")

        job = uuid7()
        kept(ports, job, 1, line(1))
        monkeypatch.setattr("producers.client.Client.scan", away)
        assert points(tape, job) == [[1, 3.0]]
        assert tape("plot", uuid7()).code == Exit.UNAVAILABLE
        assert points(tape, trained(ports, line(1))) == [[1, 3.0]], "the store has it all"


class TestErrors:
    def test_an_unknown_metric_tells_which_there_are(self, tape: Tape, ports: MemoryPorts) -> None:
        job = trained(ports, line(1), {"step": 1, "valid_loss": 1.0})
        for wrong in ("accuracy", "step"):
            found = tape("plot", job, "--metric", wrong)
            assert found.code == Exit.USAGE
            assert f"the job has no metric '{wrong}'" in found.err
            assert "it has: epoch, loss, lr, valid_loss" in found.err

    def test_an_axis_that_nothing_tells_of(self, tape: Tape, ports: MemoryPorts) -> None:
        found = tape("plot", trained(ports, line(1)), "--x", "tokens")
        assert found.code == Exit.USAGE and "use one of: step, epoch" in found.err
        assert points(tape, trained(ports, line(1, tokens=77)), "--x", "tokens") == [[77, 3.0]]

    def test_an_unknown_job(self, tape: Tape) -> None:
        found = tape("plot", uuid7())
        assert (found.code, "TAPE-2002" in found.err) == (Exit.NOT_FOUND, True)

    @pytest.mark.parametrize("over", [True, False])
    def test_a_job_that_has_no_metrics(self, tape: Tape, ports: MemoryPorts, over: bool) -> None:
        job = submitted(tape)
        if over:
            ended(ports, job)
        found = tape("plot", job)
        assert found.code == Exit.NOT_FOUND
        assert "the job (inference) has no metrics: it told of no step" in found.err

    @pytest.mark.parametrize(
        ("more", "named"),
        [
            (("--x", "hours"), "use one of step, epoch, time, tokens"),
            (("--out", "loss.gif"), ".png, .svg, .html"),
            (("--label", "a", "--label", "b"), "2 labels for 1 jobs"),
            (("--smooth", "1"), "--smooth"),
        ],
    )
    def test_a_wrong_option(self, tape: Tape, ports: MemoryPorts, more: tuple[str, ...], named: str) -> None:
        found = tape("plot", trained(ports, line(1)), *more)
        assert (found.code, named in found.err) == (Exit.USAGE, True), found.err

    def test_a_job_twice_or_a_label_twice(self, tape: Tape, ports: MemoryPorts) -> None:
        one, two = trained(ports, line(1)), trained(ports, line(1))
        assert "is named twice" in tape("plot", one, one).err
        assert "two jobs have one label" in tape("plot", one, two, "--label", "a", "--label", "a").err

    def test_a_folder_that_is_not_there(self, tape: Tape, ports: MemoryPorts, tmp_path: Path) -> None:
        found = tape("plot", trained(ports, line(1)), "--out", str(tmp_path / "no" / "loss.svg"))
        assert (found.code, "TAPE-2003" in found.err) == (Exit.INVALID, True) or found.code == Exit.NOT_FOUND

    def test_without_matplotlib(
        self, tape: Tape, ports: MemoryPorts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        job = trained(ports, line(1), line(2))
        found = tape("plot", job, "--out", str(tmp_path / "loss.png"))
        assert (found.code, "TAPE-8003" in found.err) == (Exit.UNAVAILABLE, True)
        assert "pip install 'tickertape[plot]'" in found.err
        assert tape("plot", job, "--out", str(tmp_path / "loss.html")).code == Exit.OK


class TestPictures:
    def test_in_a_terminal(self, tape: Tape, ports: MemoryPorts) -> None:
        one, two = trained(ports, *map(line, range(1, 9))), trained(ports, *map(line, range(1, 5)))
        both = ("--metric", "loss", "--metric", "lr", "--label", "[b]a", "--label", "b")
        out = tape("--output", "table", "plot", one, two, *both).out
        assert out.startswith("loss (nats per token)\n") and "\nlearning rate\n" in out
        assert "• [b]a  × b" in out
        assert re.search(r"^    3 ┤", out, re.M) and re.search(r"^0.375 ┤.*•\s*$", out, re.M)
        assert re.search(r"1 +step +8\n", out)

    def test_json_holds_every_point_smoothed_if_asked(self, tape: Tape, ports: MemoryPorts) -> None:
        job = trained(ports, line(1, 4.0, valid_loss=4.0), line(2, 1.0, valid_loss=1.0))
        both = ("--metric", "loss", "--metric", "valid_loss")
        smooth, bare = json.loads(tape("--output", "table", "plot", job, "--json", "--smooth", "0.5", *both).out)
        assert smooth["points"] == [[1.0, 4.0], [2.0, 2.0]]
        assert bare["points"] == [[1.0, 4.0], [2.0, 1.0]], "a validation is what it is"

    @pytest.mark.parametrize("form", ["png", "svg", "html"])
    def test_a_file_is_the_same_each_time(self, tape: Tape, ports: MemoryPorts, tmp_path: Path, form: str) -> None:
        jobs = [trained(ports, *map(line, range(1, 30))), trained(ports, *map(line, range(1, 9)))]
        files = [tmp_path / f"{name}.{form}" for name in "ab"]
        for file in files:
            found = tape(
                "plot", *jobs, "--out", str(file), "--smooth", "0.6", "--label", "one", "--label", "two <&>"
            )  # fmt: skip
            assert found.code == Exit.OK, found.err
            assert found.row["file"] == str(file)
        assert files[0].read_bytes() == files[1].read_bytes()
        if form != "png":
            written = files[0].read_text()
            assert str(datetime.now(UTC).year) not in written or form == "html", "no day is written down"
            assert all(colour.lower() in written.lower() for colour in ("#0072B2", "#D55E00"))

    def test_a_page_needs_nothing_and_runs_nothing_of_a_job(self, tmp_path: Path) -> None:
        evil = "</script><script>alert(1)</script>"
        series = [Series("j", evil, "loss", (1.0, 2.0), (3.0, 1.0)), Series("k", "k", "loss", (1.0,), (2.0,))]
        written = page.draw(series, Axis.STEP, title=evil)
        assert evil not in written
        assert written.count("<script") == 2 == written.count("</script>")
        assert not re.search(r"https?:|src=|@import|url\(", written)
        data = json.loads(re.search(r'id="data">(.*?)</script>', written, re.S)[1])  # type: ignore[index]
        assert data["panels"][0]["lines"][0] == {"label": evil, "x": [1.0, 2.0], "y": [3.0, 1.0]}

    def test_what_is_not_finite_breaks_no_picture(self) -> None:
        series = [Series("j", "j", "loss", (1.0, 2.0, 3.0), (math.nan, math.inf, 2.0))]
        assert figure.draw(series, Axis.STEP, title="t", form="svg")
        assert '"y": [2.0]' in page.draw(series, Axis.STEP, title="t")
        assert any("•" in drawn.plain for drawn in text.draw(series, Axis.STEP, width=60))

    def test_a_long_line_keeps_its_ends(self) -> None:
        long = tuple(float(at) for at in range(50_000))
        written = page.draw([Series("j", "j", "loss", long, long)], Axis.STEP, title="t")
        assert len(written) < 200_000
        assert '"x": [0.0, ' in written and ", 49999.0]" in written


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 0.99))
def test_a_smoothed_line_stays_between_its_values(values: list[float], weight: float) -> None:
    found = smoothed(values, weight)
    assert len(found) == len(values) and found[0] == values[0]
    assert all(min(values) - 1e-6 <= value <= max(values) + 1e-6 for value in found)
    assert smoothed(values, 0.0) == tuple(values)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_marks_are_within_and_round(low: float, span: float) -> None:
    high = low + span
    if (high - low) / max(abs(low), abs(high)) < 1e-6:
        return
    found = ticks(low, high)
    assert 1 <= len(found) <= 8
    assert all(low - span * 1e-6 <= mark <= high + span * 1e-6 for mark in found)
    steps = {round(later - sooner, 12) for sooner, later in itertools.pairwise(found)}
    assert max(steps, default=0) - min(steps, default=0) <= span * 1e-6


@given(st.lists(st.floats(-1e300, 1e300) | st.sampled_from([math.inf, -math.inf, math.nan])))
def test_bounds_are_apart(values: list[float]) -> None:
    low, high = bounds(values)
    assert math.isfinite(low) and math.isfinite(high) and low < high
