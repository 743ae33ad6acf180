"""The shapes in which people write rows for training and evaluation.

A row asks something and says what is to be answered. These shapes are recognised by their fields:

    messages                        OpenAI chat; the last message is the assistant's and is the answer
    prompt, completion              plain text, either may also be written as `context`, `target` (FinLoRA)
    question, table, program        FinQA; the answer is the program. The original files (`qa`, `pre_text`) too
    doc, dialogue                   ConvFinQA; a row for each turn, the answer is the turn's program
    paragraphs, table, questions    TAT-QA; a row for each question
    content, annotations            FinEntity; a row for each entity, the answer is its sentiment
    text                            nothing is asked; the whole text is learnt
    prompt | messages (user last)   nothing is answered: a row to generate for, with `need="prompt"`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from schemas.dataset import Rule
from schemas.row import Prompt

ROLES = frozenset({"system", "user", "assistant", "tool"})


Asked = tuple[Prompt, str | None]
Recipe = Callable[[Mapping[str, Any]], Iterable[Asked]]


class Bad(Exception):  # noqa: N818 - a problem with a line, turned into an error or a report at the edge
    """What is wrong with a record: which field, how, and by which rule; `last` when nothing can be read behind it."""

    def __init__(self, name: str, problem: str, rule: Rule = Rule.TYPE, *, last: bool = False) -> None:
        super().__init__(problem)
        self.name, self.problem, self.rule, self.last = name, problem, rule, last


def text(record: Mapping[str, Any], name: str) -> str:
    """Return a field that must be text with something in it. Raises `Bad`."""
    if not isinstance(record, Mapping):
        raise Bad(name, f"`{name}` is to be in an object, and this is {sort(record)}")
    if name not in record:
        raise Bad(name, f"`{name}` is missing", Rule.MISSING)
    value = record[name]
    if not isinstance(value, str):
        raise Bad(name, f"`{name}` is {sort(value)}, not a string")
    if not value.strip():
        raise Bad(name, f"`{name}` is empty", Rule.EMPTY)
    return value


def sort(value: object) -> str:
    """Name what a value is, as JSON calls it."""
    names = {dict: "an object", list: "a list", int: "a number", float: "a number", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def chat(record: Mapping[str, Any]) -> Iterator[Asked]:
    """Read an OpenAI chat."""
    messages = record["messages"]
    if messages == []:
        raise Bad("messages", "`messages` is empty, not a list of messages", Rule.EMPTY)
    if not isinstance(messages, list):
        raise Bad("messages", f"`messages` is {sort(messages)}, not a list of messages")
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            raise Bad(f"messages.{at}", f"message {at} is {sort(message)}, not an object")
        if message.get("role") not in ROLES:
            raise Bad(f"messages.{at}.role", f"message {at} has the role {message.get('role')!r}")
        if not isinstance(message.get("content"), str):
            raise Bad(f"messages.{at}.content", f"message {at} has no text in `content`", Rule.MISSING)
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    if plain[-1]["role"] != "assistant":
        yield plain, None
        return
    if len(plain) == 1:
        raise Bad("messages", "`messages` holds an answer and no question", Rule.MISSING)
    if not plain[-1]["content"].strip():
        raise Bad(f"messages.{len(plain) - 1}.content", "the assistant's last message is empty", Rule.EMPTY)
    yield plain[:-1], plain[-1]["content"]


def pair(asked: str, answered: str) -> Recipe:
    """Return the recipe of two fields of text."""

    def recipe(record: Mapping[str, Any]) -> Iterator[Asked]:
        # A cell that a table leaves empty is an answer that is missing, not one that is null.
        has = record.get(answered) is not None
        yield text(record, asked), text(record, answered) if has else None

    return recipe


def whole(record: Mapping[str, Any]) -> Iterator[Asked]:
    """Read text that is learnt as it is."""
    yield "", text(record, "text")
