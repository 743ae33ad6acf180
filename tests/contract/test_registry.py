"""Registered versions and their aliases, on every store."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from test_blobs import blobs  # noqa: F401 - a fixture

from schemas.errors import ConflictError, InvalidError, NotFoundError
from schemas.version import Move, Version
from wire.blobs import Blobs
from wire.registry import Registry

NOW = datetime(2030, 1, 2, 9, tzinfo=UTC)


def made(digit: str, at: int = 0, name: str = "base") -> Version:
    return Version(name=name, version=digit * 16, created_at=NOW + timedelta(seconds=at), created_by="me")


def move(alias: str, before: str | None, after: str | None) -> Move:
    return Move(alias=alias, before=before, after=after, by="me", time=NOW)


@pytest.fixture
def registry(blobs: Blobs) -> Registry[Version]:  # noqa: F811
    return Registry(blobs, "things", Version)


def test_a_version_is_written_once_and_found_by_name_version_and_alias(registry: Registry[Version]) -> None:
    assert registry.names() == []
    first, second = registry.add(made("a")), registry.add(made("b", 5))
    assert registry.add(made("a", 9)) == first, "what was there first stays"
    registry.add(made("c", name="other"))
    assert registry.names() == ["base", "other"]
    assert registry.versions("base") == [first, second]
    assert registry.find("base") == second
    assert registry.find("base@aaaa") == registry.find("base@" + "a" * 16) == first
    registry.move("base", move("prod", None, "a" * 16))
    assert registry.find("base@prod") == first
    assert registry.names() == ["base", "other"], "aliases are no versions"


def test_what_is_not_there_is_told_with_what_is(registry: Registry[Version]) -> None:
    registry.add(made("a"))
    registry.add(Version(name="base", version="a" * 15 + "b", created_at=NOW))
    with pytest.raises(NotFoundError, match="no thing is called 'nothing'") as none:
        registry.find("nothing")
    assert (none.value.code, none.value.hint) == ("TAPE-2008", "there are: base")
    with pytest.raises(NotFoundError, match="has no version or alias 'prod'") as lost:
        registry.find("base@prod")
    assert lost.value.hint.startswith("there are: aaaaaaaaaaaaaaa")
    with pytest.raises(InvalidError, match="2 versions begin with 'aaaa'"):
        registry.find("base@aaaa")
    with pytest.raises(NotFoundError):
        registry.find("base@aaa")
    with pytest.raises(NotFoundError):
        registry.find("base@" + "d" * 16)
    for name in ("../x", "", "a/b", "x" * 200):
        with pytest.raises(InvalidError, match="is no name"):
            registry.find(name)


def test_an_alias_is_moved_by_compare_and_swap_and_knows_its_past(registry: Registry[Version]) -> None:
    for at, digit in enumerate("abc"):
        registry.add(made(digit, at))
    a, b, c = ("a" * 16, "b" * 16, "c" * 16)
    registry.move("base", move("prod", None, a))
    with pytest.raises(ConflictError, match=f"'prod' points to {a}, not to nothing") as late:
        registry.move("base", move("prod", None, b))
    assert late.value.code == "TAPE-3002"
    assert registry.move("base", move("prod", a, b)).former("prod") == a
    registry.move("base", move("canary", None, c))
    registry.move("base", move("prod", b, c))
    assert registry.aliases("base").former("prod") == b
    assert registry.move("base", move("prod", c, b)).former("prod") == a, "a way back is not a way on"
    assert registry.aliases("base").aliases == {"prod": b, "canary": c}
    with pytest.raises(NotFoundError):
        registry.move("base", move("prod", b, "d" * 16))
    registry.move("base", move("canary", c, None))
    assert [(one.alias, one.after) for one in registry.aliases("base").history][-2:] == [("prod", b), ("canary", None)]
    assert registry.aliases("base").aliases == {"prod": b}


def test_of_many_who_move_an_alias_one_wins_and_no_move_of_another_is_lost(registry: Registry[Version]) -> None:
    for digit in "abcdef":
        registry.add(made(digit))
    won: list[str] = []

    def promote(digit: str) -> None:
        registry.move("base", move(f"own-{digit}", None, digit * 16))
        try:
            registry.move("base", move("prod", None, digit * 16))
            won.append(digit * 16)
        except ConflictError:
            pass

    threads = [threading.Thread(target=promote, args=(digit,)) for digit in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = registry.aliases("base").aliases
    assert won == [found["prod"]]
    assert len(found) == 7


def test_a_version_that_an_alias_points_to_stays(registry: Registry[Version]) -> None:
    first = registry.add(made("a"))
    registry.add(made("b"))
    registry.move("base", move("prod", None, first.version))
    with pytest.raises(ConflictError, match=r"base@a+ is prod") as held:
        registry.remove(first)
    assert held.value.code == "TAPE-3010"
    registry.move("base", move("prod", first.version, "b" * 16))
    registry.remove(first)
    assert [one.version for one in registry.versions("base")] == ["b" * 16]
