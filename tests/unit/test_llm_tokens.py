"""Tokens that are kept are those that would be made; what is not is never taken for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from train_rig import ROWS, files

from schemas.row import Row
from workers.llm import data, tokens
from workers.llm import model as models
from workers.llm.settings import TrainParams
from workers.llm.train import train

pytestmark = [pytest.mark.model, pytest.mark.timeout(600), pytest.mark.usefixtures("every_step")]


class Folder:
    """A shelf that is a folder, and remembers what it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[tuple[str, bool]] = []
        path.mkdir(exist_ok=True)

    def find(self, key: str) -> Path | None:
        path = self.path / key
        self.asked.append((key, path.exists()))
        return path if path.exists() else None

    def keep(self, key: str, path: Path) -> None:
        shutil.copyfile(path, self.path / key)


@pytest.fixture(scope="module")
def model(blank: Path) -> models.Model:
    return models.load(blank, device="cpu", threads=1)


TEXT = st.text(max_size=30)
CHATS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXT}), min_size=1,
    max_size=3,
)  # fmt: skip
PROMPTS = st.one_of(TEXT, CHATS)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(st.tuples(PROMPTS, TEXT), min_size=1, max_size=8), st.integers(8, 40))
def test_what_is_found_is_what_would_be_made(
    model: models.Model, tmp_path: Path, pairs: list[tuple[Any, str]], length: int
) -> None:
    rows = [Row(prompt, completion, str(number)) for number, (prompt, completion) in enumerate(pairs)]
    plain = [data.encode(row, model.tokenizer, length) for row in rows]
    shelf = Folder(tmp_path / "shelf")
    fresh = tokens.encoded(tokens.Shelved(rows, shelf), model, length)
    again = tokens.encoded(tokens.Shelved(rows, shelf), model, length)
    assert list(fresh) == list(again) == list(tokens.encoded(rows, model, length)) == plain
    assert again.found
    assert (again.cut, again.sizes) == (sum(row.cut for row in plain), [len(row.input_ids) for row in plain])
    assert all(row.held for row in tokens.encoded(tokens.Shelved(rows, shelf), model, length, held=True))


def test_whatever_decides_about_tokens_is_in_the_key(
    blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    shutil.copytree(blank, base)
    keys = [tokens.key(ROWS, base, 64), tokens.key(ROWS, base, 65), tokens.key(ROWS[1:], base, 64)]
    keys.append(tokens.key([*ROWS[:-1], Row(ROWS[-1].prompt, "other", "x")], base, 64))
    keys.append(
        tokens.key([Row([{"role": "user", "content": str(row.prompt)}], row.completion, "") for row in ROWS], base, 64)
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
        before = (base / name).read_bytes()
        (base / name).write_bytes(before + b" ")
        keys.append(tokens.key(ROWS, base, 64))
        (base / name).write_bytes(before)
    for name in (models.MANIFEST, "README.md", "metrics.jsonl", "train.json", "model.safetensors"):
        (base / name).write_bytes(b"other")
    assert tokens.key(ROWS, base, 64) == keys[0], "weights and words do not decide"
    monkeypatch.setattr(tokens, "_version", lambda name: f"{name} of tomorrow")
    keys.append(tokens.key(ROWS, base, 64))
    (tmp_path / "data.py").write_text("other code")
    monkeypatch.setattr(data, "__file__", str(tmp_path / "data.py"))
    keys.append(tokens.key(ROWS, base, 64))
    assert len(set(keys)) == len(keys)


def test_no_two_lists_of_rows_share_a_key_for_where_they_are_cut(blank: Path) -> None:
    """Prompt and completion are apart, and so is each row from the next."""
    one, other = [Row("ab", "c", "1"), Row("d", "e", "2")], [Row("a", "bc", "1"), Row("d", "e", "2")]
    assert tokens.key(one, blank, 8) != tokens.key(other, blank, 8)
    assert tokens.key(one, blank, 8) != tokens.key(one[::-1], blank, 8), "their order counts"


@pytest.mark.parametrize("broken", ["empty", "short", "text", "rows", "vocabulary", "ends", "skipped"])
def test_what_cannot_be_right_is_made_anew(model: models.Model, tmp_path: Path, broken: str) -> None:
    from safetensors.numpy import load_file, save_file

    shelf = Folder(tmp_path / "shelf")
    fresh = list(tokens.encoded(tokens.Shelved(ROWS, shelf), model, 64))
    [(key, _)] = shelf.asked
    path = shelf.path / key
    columns = load_file(path)
    if broken == "empty":
        path.write_bytes(b"")
    elif broken == "short":
        path.write_bytes(path.read_bytes()[:-9])
    elif broken == "text":
        path.write_text("no safetensors at all")
    else:
        if broken == "rows":
            columns = {name: column[:-1] if name != "tokens" else column for name, column in columns.items()}
        elif broken == "vocabulary":
            columns["tokens"] = columns["tokens"] + len(model.tokenizer)
        elif broken == "ends":
            columns["ends"] = columns["ends"] + 1
        else:
            columns["skipped"] = columns["skipped"] + 1000
        save_file(columns, path)
    again = tokens.encoded(tokens.Shelved(ROWS, shelf), model, 64)
    assert not again.found
    assert list(again) == fresh
    assert tokens.encoded(tokens.Shelved(ROWS, shelf), model, 64).found, "it was written anew"


def test_a_training_is_the_same_from_the_shelf(blank: Path, tmp_path: Path) -> None:
    shelf, told, found = Folder(tmp_path / "shelf"), [], {}
    for name in ("plain", "made", "cached", "packed"):
        rows = ROWS if name == "plain" else tokens.Shelved(ROWS, shelf)
        held = ROWS[:3] if name == "plain" else tokens.Shelved(ROWS[:3], shelf)
        params = TrainParams(steps=3, batch_size=4, threads=1, device="cpu", packing=name == "packed")
        train(params, base=blank, rows=rows, valid=held, out=tmp_path / name, progress=told.append)
        found[name] = files(tmp_path / name)
    assert found["plain"] == found["made"] == found["cached"]
    heard = [record for record in told if "tokenised" in record]
    assert [record["tokenised"] for record in heard] == ["made", "cached", "cached"], "packing is of the same tokens"
    assert all(record.keys() == {"tokenised", "tokenised_s"} and record["tokenised_s"] >= 0 for record in heard)
    written = json.loads((tmp_path / "packed" / "train.json").read_text())
    assert written["params"]["packing"] is True


def test_of_no_rows_nothing_is_kept(model: models.Model, tmp_path: Path) -> None:
    shelf = Folder(tmp_path / "shelf")
    assert list(tokens.encoded(tokens.Shelved([], shelf), model, 64)) == []
    assert shelf.asked == []
    assert not list(shelf.path.iterdir())


def test_tokens_are_mapped_and_not_read(model: models.Model, tmp_path: Path) -> None:
    import numpy

    shelf = Folder(tmp_path / "shelf")
    tokens.encoded(tokens.Shelved(ROWS, shelf), model, 64)
    again = tokens.encoded(tokens.Shelved(ROWS, shelf), model, 64)
    assert isinstance(again.columns["tokens"], numpy.memmap)
