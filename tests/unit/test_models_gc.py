"""`tape models gc`: what goes, what stays, and that nothing goes that anything names."""

from __future__ import annotations

import pytest
from cli_rig import Tape
from hypothesis import given, settings
from hypothesis import strategies as st
from models_rig import BORN, Stock, at

from producers.cli.exits import Exit
from producers.memory import MemoryPorts
from producers.models import Shelf, plan, promote, sweep, verify
from schemas.errors import InvalidError
from schemas.lineage import ModelVersion
from wire.blobs.manifest import blob_name, publish, read_manifest
from wire.blobs.memory import Memory


@pytest.fixture
def stock(ports: MemoryPorts) -> Stock:
    return Stock(ports.blobs)


def bytes_of(stock: Stock, version: ModelVersion) -> list[str]:
    """The blobs of a version: its config, which all share, and its weights."""
    return [blob_name(file.sha256) for file in read_manifest(stock.blobs, version.artifact).files]


def manifest(version: ModelVersion) -> str:
    return version.artifact.uri.removeprefix("artifact:")


def test_it_is_a_rehearsal_unless_it_is_told_to_do_it(tape: Tape, stock: Stock) -> None:
    old, new = stock.put(b"old"), stock.put(b"newer")
    before, weights = stock.names(), bytes_of(stock, old)[1]
    rehearsed = tape("models", "gc", "--keep", "1")
    assert rehearsed.code == Exit.OK
    assert [(row["what"], row["name"], row["removed"]) for row in rehearsed.rows] == [
        ("version", at(old), False), ("manifest", manifest(old), False), ("blob", weights, False),
    ]  # fmt: skip
    assert "would be removed" in rehearsed.err
    assert "next: tape models gc --yes" in rehearsed.err
    assert stock.names() == before
    done = tape("models", "gc", "--keep", "1", "--yes")
    assert [(row["what"], row["name"], row["removed"]) for row in done.rows] == [
        ("version", at(old), True), ("manifest", manifest(old), True), ("blob", weights, True),
    ]  # fmt: skip
    assert before - stock.names() == {f"models/mood/versions/{old.version}.json", manifest(old), weights}
    assert stock.registry.versions("mood") == [new]
    assert tape("models", "verify", "--all").code == Exit.OK
    assert tape("models", "gc", "--keep", "1", "--yes").out == "", "again there is nothing"


def test_what_an_alias_needs_now_or_after_a_rollback_stays(tape: Tape, stock: Stock) -> None:
    first, second, third, fourth = (stock.put(bytes([number])) for number in range(4))
    for version in (second, third):
        tape("models", "promote", at(version), "--to", "prod")
    tape("models", "gc", "--keep", "0", "--yes")
    assert stock.registry.versions("mood") == [second, third]
    assert first
    assert fourth
    assert tape("models", "rollback", "mood").code == Exit.OK


def test_the_newest_and_the_young_and_other_names_stay(tape: Tape, stock: Stock) -> None:
    versions = [stock.put(bytes([number])) for number in range(4)]
    other = stock.put(b"other", "rank")
    tape("models", "gc", "mood", "--keep", "3", "--yes")
    assert stock.registry.versions("mood") == versions[1:]
    assert tape("models", "gc", "mood", "--keep", "0", "--older-than", "36500d", "--yes").code == Exit.OK
    assert stock.registry.versions("mood") == versions[1:]
    shelf = Shelf(stock.blobs)
    found = plan(shelf, keep=0, before=versions[2].created_at)
    assert found.versions == (versions[1],)
    assert stock.registry.versions("rank") == [other]
    for long in ("long", "9000000d", "1e300", "inf"):
        assert "TAPE-1010" in tape("models", "gc", "--older-than", long).err
    assert tape("models", "gc", "--keep", "-1").code == Exit.USAGE


def test_a_base_of_what_stays_stays_and_so_does_its_base(stock: Stock) -> None:
    root = stock.put(b"root", "root", method="full")
    middle = stock.put(b"middle", "middle", method="full", base=f"model:{at(root)}")
    leaf = stock.put(b"leaf", "leaf", base=f"model:{at(middle)}")
    shelf = Shelf(stock.blobs)
    promote(shelf, at(leaf), "prod")
    assert plan(shelf, keep=0).versions == ()
    loose = stock.put(b"loose", "loose", base=f"model:{at(root)}")
    assert plan(shelf, keep=0).versions == (loose,)


@pytest.mark.parametrize("use", ["base", "teacher", "tokenizer"])
def test_whatever_a_version_that_stays_was_made_of_stays(tape: Tape, stock: Stock, use: str) -> None:
    source = stock.put(b"source", "source", method="full")
    made = stock.put(b"made", "made", method="full", **{use: f"model:{at(source)}"})
    promote(Shelf(stock.blobs), at(made), "prod")
    loose = stock.put(b"loose", "loose")
    tape("models", "gc", "--keep", "0", "--yes")
    assert stock.registry.names() == ["made", "source"], f"and not {at(loose)}"
    assert tape("models", "verify", at(source)).code == Exit.OK


def test_bytes_that_anything_names_stay(tape: Tape, stock: Stock) -> None:
    old, twin = stock.put(b"shared"), stock.put(b"shared", "twin")
    weights = bytes_of(stock, old)[1]
    tape("models", "gc", "mood", "--keep", "0", "--yes")
    assert manifest(old) not in stock.names()
    assert weights in stock.names(), "another model holds them"
    assert tape("models", "verify", at(twin)).code == Exit.OK

    for number, place in enumerate((
        "datasets/news/versions/0123456789abcdef.json", "runs/j/checkpoints/000000000120-2-5f3a/manifest.json",
        "runs/j/outcome.json", "indexes/of/a/later/time.json",
    )):  # fmt: skip
        lone = stock.put(f"named {number}".encode(), "lone")
        name = bytes_of(stock, lone)[1]
        stock.blobs.put(place, f'{{"any": ["{name.rsplit("/", 1)[1]}"]}}'.encode())
        tape("models", "gc", "lone", "--keep", "0", "--yes")
        assert name in stock.names(), place
        assert manifest(lone) not in stock.names()

    named = stock.put(b"manifest is named", "lone")
    stock.blobs.put("runs/k/request.json", f'{{"base": "{named.artifact.uri}"}}'.encode())
    tape("models", "gc", "lone", "--keep", "0", "--yes")
    assert {manifest(named), *bytes_of(stock, named)} <= stock.names()


def test_an_outcome_holds_what_it_names_unless_it_is_said_that_it_does_not(tape: Tape, stock: Stock) -> None:
    version = stock.put(b"weights")
    stock.end(version)
    weights = bytes_of(stock, version)[1]
    held = tape("models", "gc", "--keep", "0")
    assert [row["what"] for row in held.rows] == ["version"]
    assert "15 of their bytes are named elsewhere and stay; --outcomes frees" in held.err
    tape("models", "gc", "--keep", "0", "--outcomes", "--yes")
    assert weights not in stock.names()
    assert "runs/job-1/outcome.json" in stock.names(), "the outcome itself stays"


def test_an_outcome_of_another_job_holds_all_the_same(tape: Tape, stock: Stock) -> None:
    version = stock.put(b"weights")
    again = stock.artifact(b"weights", "later")
    stock.end(version.model_copy(update={"job": "later", "artifact": again}))
    tape("models", "gc", "--keep", "0", "--outcomes", "--yes")
    assert stock.registry.names() == []
    assert bytes_of(stock, version.model_copy(update={"artifact": again}))[1] in stock.names()


def test_what_was_uploaded_stays(tape: Tape, stock: Stock) -> None:
    mine = publish(stock.blobs, {"model.safetensors": b"mine"}, job="uploads", kind="upload", name="tiny")
    stock.put(b"1")
    tape("models", "gc", "--keep", "0", "--outcomes", "--yes")
    assert [blob_name(file.sha256) in stock.names() for file in read_manifest(stock.blobs, mine).files] == [True]


def test_a_version_that_was_promoted_since_stays_whole(stock: Stock) -> None:
    versions = [stock.put(bytes([number])) for number in range(2)]
    shelf = Shelf(stock.blobs, "me", lambda: BORN)
    planned = plan(shelf, keep=0)
    promote(shelf, at(versions[0]), "prod")
    done = sweep(shelf, planned)
    assert done.versions == (versions[1],)
    assert [broken for _, _, broken in verify(stock.blobs, versions[:1])] == [[]]


def test_a_version_that_is_broken_already_goes_and_what_it_named_stays(tape: Tape, stock: Stock) -> None:
    version = stock.put(b"1")
    blobs = bytes_of(stock, version)
    stock.blobs.delete(manifest(version))
    assert [row["what"] for row in tape("models", "gc", "--keep", "0", "--yes").rows] == ["version"]
    assert set(blobs) <= stock.names()


def test_nothing_goes_while_a_version_cannot_be_read(stock: Stock) -> None:
    stock.put(b"1")
    stock.blobs.put(f"models/mood/versions/{'0' * 16}.json", b"{}")
    with pytest.raises(InvalidError) as told:
        plan(Shelf(stock.blobs), keep=0)
    assert told.value.place["name"] == f"models/mood/versions/{'0' * 16}.json"


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), min_size=1, max_size=12),
    st.lists(st.integers(0, 11), max_size=4), st.integers(0, 2), st.booleans(),
)  # fmt: skip
def test_whatever_is_swept_what_stays_is_whole(
    made: list[tuple[str, int]], promoted: list[int], keep: int, outcomes: bool
) -> None:
    stock = Stock(Memory())
    versions = [stock.put(bytes([weights]), name) for name, weights in made]
    for version in versions[::2]:
        stock.end(version)
    shelf = Shelf(stock.blobs, "me", lambda: BORN)
    for number in promoted:
        promote(shelf, at(versions[number % len(versions)]), "prod")
    sweep(shelf, plan(shelf, keep=keep, outcomes=outcomes), outcomes=outcomes)
    left = [version for name in stock.registry.names() for version in stock.registry.versions(name)]
    assert all(not broken for _, _, broken in verify(stock.blobs, left))
    for name in {name for name, _ in made}:
        aliases = stock.registry.aliases(name)
        wanted = {*aliases.aliases.values(), aliases.former("prod")} - {None}
        assert wanted <= {version.version for version in left if version.name == name}
    assert plan(shelf, keep=keep, outcomes=outcomes).versions == ()
