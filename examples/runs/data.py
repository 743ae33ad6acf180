"""What the runs learn from: the published data sets in a folder of yours, or the sample that is bundled here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).resolve().parents[1] / "headlines"
PARTS = ("train", "validation", "test")


def texts(folder: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Prose of financial reports, a document a row, parted by document; of the sample its headlines and answers.

    FinQA and ConvFinQA quote the same reports: a document that shares a sentence with one held back is left out.
    """
    if folder is None:
        told = [f"{row['prompt']} {row['completion']}" for row in _sample("train", "valid", "test", "qa")]
        return _parted((text, text) for text in told)
    parts = _parted((text, text) for text in sorted({*_finqa(folder), *_convfinqa(folder), *_tatqa(folder)}))
    held = {line for part in PARTS[1:] for row in parts[part] for line in _sentences(row["text"])}
    parts["train"] = [row for row in parts["train"] if held.isdisjoint(_sentences(row["text"]))]
    return parts


def sentiments(folder: Path | None) -> dict[str, list[dict[str, Any]]]:
    """FinEntity: the sentiment towards each entity, parted by sentence; of the sample that of a headline."""
    if folder is None:
        return _files()
    records = json.loads((folder / "finentity" / "FinEntity.json").read_text("utf-8"))
    return _parted((record["content"], {key: record[key] for key in ("content", "annotations")}) for record in records)


def questions(folder: Path | None, name: str) -> dict[str, list[dict[str, Any]]]:
    """FinLoRA's `formula` or `xbrl_term` questions in the parts they come in; of the sample short questions."""
    if folder is None:
        rows = _sample("qa")
        return {"train": rows[:24], "test": rows[24:]}
    found = {part: _lines(folder / "finlora" / f"{name}_{part}.jsonl") for part in ("train", "test")}
    seen = {row["context"] for row in found["test"]}
    return {"train": [row for row in found["train"] if row["context"] not in seen], "test": found["test"]}


def _finqa(folder: Path) -> Iterator[str]:
    for record in _lines(folder / "finqa" / "finqa_dev.jsonl"):
        yield "\n".join(record["contexts"])


def _convfinqa(folder: Path) -> Iterator[str]:
    for record in json.loads((folder / "convfinqa" / "convfinqa_dev.json").read_text("utf-8"))["dev"]:
        doc = record["doc"]
        yield "\n".join(str(doc[name]).strip() for name in ("pre_text", "post_text") if str(doc.get(name, "")).strip())


def _tatqa(folder: Path) -> Iterator[str]:
    for record in json.loads((folder / "tatqa" / "tatqa_dataset_dev.json").read_text("utf-8")):
        yield "\n".join(part["text"] for part in record["paragraphs"])


def _sentences(text: str) -> set[str]:
    return {line for line in re.split(r"(?<=[.;])\s+|\n", text) if len(line) >= 40}


def _sample(*names: str) -> list[dict[str, Any]]:
    return [row for name in names for row in _lines(SAMPLE / f"{name}.jsonl")]


def _files() -> dict[str, list[dict[str, Any]]]:
    return {part: _sample(name) for part, name in zip(PARTS, ("train", "valid", "test"), strict=True)}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def _parted(rows: Iterable[tuple[str, str | dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Part rows eight to one to one by the hash of what they are about: the same ones each time."""
    found: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for key, row in rows:
        at = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
        part = "test" if at == 0 else "validation" if at == 1 else "train"
        found[part].append({"text": row} if isinstance(row, str) else row)
    return found
