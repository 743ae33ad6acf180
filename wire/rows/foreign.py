"""Financial question answering as others publish it, made into rows: FinQA, ConvFinQA, TAT-QA, FinEntity.

Sources of the formats: the README files of czyssrs/FinQA, czyssrs/ConvFinQA, NExTplusplus/TAT-QA, yixuantt/FinEntity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from schemas.dataset import Rule
from wire.rows.shapes import Asked, Bad, sort, text


def finqa(record: Mapping[str, Any]) -> Iterator[Asked]:
    """Read a question over a report's page: with retrieved facts, with a table, or as the original files have it."""
    if isinstance(original := record.get("qa"), dict):
        facts = [*_texts(record, "pre_text"), *_rows(record), *_texts(record, "post_text")]
        yield _asked(facts, text(original, "question")), text(original, "program") if "program" in original else None
        return
    contexts = _texts(record, "contexts")
    facts = contexts or _rows(record)
    if not facts:
        raise Bad("table", "neither `contexts` nor `table` holds facts", Rule.MISSING)
    yield _asked(facts, text(record, "question")), text(record, "program") if "program" in record else None


def convfinqa(record: Mapping[str, Any]) -> Iterator[Asked]:
    """Read a conversation over a report's page: each turn sees the questions and programs before it."""
    doc, talk = _object(record, "doc"), _object(record, "dialogue")
    facts = [text(doc, name) for name in ("pre_text", "post_text") if str(doc.get(name, "")).strip()]
    for column, cells in _object(doc, "table").items():
        if not isinstance(cells, dict):
            raise Bad("doc.table", f"column {column!r} is {sort(cells)}, not an object")
        facts[1:1] = [f"{row} of {column} is {cell} ;" for row, cell in cells.items()]
    questions, programs = _texts(talk, "conv_questions"), _texts(talk, "turn_program")
    if not questions or (programs and len(programs) != len(questions)):
        told = f"{len(questions)} questions and {len(programs)} programs do not belong together"
        raise Bad("dialogue.turn_program", told, Rule.MISSING)
    lines: list[str] = []
    for at, question in enumerate(questions):
        yield "\n".join([*facts, *lines, f"Question: {question}", "Program:"]), programs[at] if programs else None
        if programs:
            lines += [f"Question: {question}", f"Program: {programs[at]}"]


def tatqa(record: Mapping[str, Any]) -> Iterator[Asked]:
    """Read the questions over a table and its paragraphs; lists of answers are joined, scales stand behind."""
    table = _object(record, "table").get("table")
    paragraphs, questions = record.get("paragraphs"), record.get("questions")
    if not isinstance(paragraphs, list) or not isinstance(questions, list):
        raise Bad("questions", "`paragraphs` and `questions` are not lists")
    facts = [*_rows({"table": table}), *(text(part, "text") for part in paragraphs)]
    for question in questions:
        asked = text(question, "question")
        answer, scale = question.get("answer"), question.get("scale") or ""
        told = ", ".join(map(str, answer)) if isinstance(answer, list) else None if answer is None else str(answer)
        prompt = "\n".join([*facts, f"Question: {asked}", "Answer:"])
        yield prompt, None if told is None else f"{told} {scale}".strip()


def finentity(record: Mapping[str, Any]) -> Iterator[Asked]:
    """Read a sentence with entities: what is the sentiment towards each of them?

    An entity that is named several times is asked for once; where its labels differ, once for each of them: which is
    right is not for us to say, and the rows show as a conflict.
    """
    sentence, found = text(record, "content"), record.get("annotations")
    if not isinstance(found, list):
        raise Bad("annotations", f"`annotations` is {sort(found)}, not a list")
    for name, label in dict.fromkeys((text(entity, "value"), text(entity, "label").lower()) for entity in found):
        yield f"{sentence}\nSentiment towards {name}:", label


def _asked(facts: Sequence[str], question: str) -> str:
    return "\n".join([*facts, f"Question: {question}", "Program:"])


def _texts(record: Mapping[str, Any], name: str) -> list[str]:
    value = record.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise Bad(name, f"`{name}` is not a list of strings")
    return value


def _rows(record: Mapping[str, Any]) -> list[str]:
    table = record.get("table")
    if table is None:
        return []
    if not isinstance(table, list) or not all(isinstance(cells, list) for cells in table):
        raise Bad("table", "`table` is not a list of lists")
    return [" | ".join(map(str, cells)) for cells in table]


def _object(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = record.get(name)
    if not isinstance(value, dict):
        raise Bad(name, f"`{name}` is {sort(value)}, not an object", Rule.MISSING if value is None else Rule.TYPE)
    return value
