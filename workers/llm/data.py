"""Training and evaluation rows, read from JSONL as a stream and checked line by line.

A row asks something and says what is to be answered. These shapes are recognised by their fields:

    messages                        OpenAI chat; the last message is the assistant's and is the answer
    prompt, completion              plain text, either may also be written as `context`, `target` (FinLoRA)
    question, table, program        FinQA; the answer is the program
    text                            nothing is asked; the whole text is learnt
    prompt | messages (user last)   nothing is answered: a row to generate for, with `need="prompt"`

The loss is taken on the answer only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from schemas.errors import InvalidError, NotFoundError

Message = Mapping[str, str]
Prompt = str | Sequence[Message]
Need = Literal["completion", "prompt"]
Split = Literal["train", "valid", "test"]

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
ALIASES: dict[str, Split] = {"dev": "valid", "validation": "valid", "eval": "valid"}
ROLES = frozenset({"system", "user", "assistant", "tool"})
MAX_LINE = 16 * 2**20
SHOWN = 5
IGNORED = -100


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    eos_token_id: int | None
    chat_template: str | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def apply_chat_template(self, messages: Any, *, tokenize: bool, add_generation_prompt: bool) -> str: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One example: the prompt (text or chat), the completion to learn or to compare with, and where it stood."""

    prompt: Prompt
    completion: str
    id: str
    line: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as tokens; labels are `IGNORED` wherever no loss is taken."""

    input_ids: list[int]
    labels: list[int]
    cut: bool


Recipe = Callable[[Mapping[str, Any]], tuple[Prompt, str | None]]


class _Bad(Exception):  # noqa: N818 - a problem with a line, turned into an error at the edge
    def __init__(self, name: str, problem: str) -> None:
        super().__init__(problem)
        self.name, self.problem = name, problem


def _string(record: Mapping[str, Any], name: str) -> str:
    if name not in record:
        raise _Bad(name, f"`{name}` is missing")
    value = record[name]
    if not isinstance(value, str):
        raise _Bad(name, f"`{name}` is {_kind(value)}, not a string")
    if not value.strip():
        raise _Bad(name, f"`{name}` is empty")
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", int: "a number", float: "a number", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _chat(record: Mapping[str, Any]) -> tuple[Prompt, str | None]:
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise _Bad(
            "messages", f"`messages` is {_kind(messages) if messages != [] else 'empty'}, not a list of messages"
        )
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _Bad(f"messages.{at}", f"message {at} is {_kind(message)}, not an object")
        if message.get("role") not in ROLES:
            raise _Bad(f"messages.{at}.role", f"message {at} has the role {message.get('role')!r}")
        if not isinstance(message.get("content"), str):
            raise _Bad(f"messages.{at}.content", f"message {at} has no text in `content`")
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    if plain[-1]["role"] != "assistant":
        return plain, None
    if len(plain) == 1:
        raise _Bad("messages", "`messages` holds an answer and no question")
    if not plain[-1]["content"].strip():
        raise _Bad(f"messages.{len(plain) - 1}.content", "the assistant's last message is empty")
    return plain[:-1], plain[-1]["content"]


def _pair(asked: str, answered: str) -> Recipe:
    def recipe(record: Mapping[str, Any]) -> tuple[Prompt, str | None]:
        return _string(record, asked), _string(record, answered) if answered in record else None

    return recipe


def _text(record: Mapping[str, Any]) -> tuple[Prompt, str | None]:
    return "", _string(record, "text")


def _finqa(record: Mapping[str, Any]) -> tuple[Prompt, str | None]:
    contexts, table = record.get("contexts"), record.get("table")
    if contexts is not None and not (isinstance(contexts, list) and all(isinstance(part, str) for part in contexts)):
        raise _Bad("contexts", "`contexts` is not a list of strings")
    if not contexts and not (isinstance(table, list) and all(isinstance(cells, list) for cells in table)):
        raise _Bad("table", "neither `contexts` nor `table` holds facts")
    facts = contexts or [" | ".join(map(str, cells)) for cells in table or []]
    prompt = "\n".join([*facts, f"Question: {_string(record, 'question')}", "Program:"])
    return prompt, _string(record, "program") if "program" in record else None


RECIPES: dict[str, tuple[frozenset[str], Recipe]] = {
    "chat": (frozenset({"messages"}), _chat),
    "finqa": (frozenset({"question", "table"}), _finqa),
    "prompt": (frozenset({"prompt"}), _pair("prompt", "completion")),
    "finlora": (frozenset({"context"}), _pair("context", "target")),
    "text": (frozenset({"text"}), _text),
}
"""Every recipe by name: the fields that show it, and how it reads a record."""


def read(path: Path, *, recipe: str = "auto", need: Need = "completion") -> Iterator[Row]:
    """Stream the rows of a JSONL file; blank lines are passed over.

    Raises `InvalidError` (TAPE-1008) at the first bad line, with file, line, field and how to mend it, and
    `NotFoundError` (TAPE-2003) where there is no file.
    """
    for line, found in _lines(path, recipe, need):
        if isinstance(found, _Bad):
            raise _error(path, [(line, found)])
        yield found


def load(path: Path, *, recipe: str = "auto", need: Need = "completion", limit: int | None = None) -> list[Row]:
    """Read all rows of a JSONL file, or the first `limit`; all bad lines are looked at before one error names them.

    Raises what `read` raises, and `InvalidError` (TAPE-1008) where the file holds no row at all.
    """
    rows: list[Row] = []
    bad: list[tuple[int, _Bad]] = []
    for line, found in _lines(path, recipe, need):
        if isinstance(found, _Bad):
            bad.append((line, found))
        else:
            rows.append(found)
        if limit is not None and len(rows) >= limit:
            break
    if bad:
        raise _error(path, bad)
    if not rows:
        raise InvalidError("the file holds no rows", code="TAPE-1008", file=str(path), hint="write one object a line")
    return rows


def _lines(path: Path, recipe: str, need: Need) -> Iterator[tuple[int, Row | _Bad]]:
    if recipe != "auto" and recipe not in RECIPES:
        known = ", ".join(["auto", *RECIPES])
        raise InvalidError(f"no recipe is called {recipe!r}", code="TAPE-1010", field="recipe", hint=f"known: {known}")
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise NotFoundError("there is no such data file", code="TAPE-2003", file=str(path)) from None
    except (IsADirectoryError, PermissionError) as error:
        raise InvalidError(
            f"the data file cannot be read: {error.strerror}", code="TAPE-1008", file=str(path)
        ) from None
    with file:
        line = 0
        while raw := file.readline(MAX_LINE + 1):
            line += 1
            if len(raw) > MAX_LINE:
                yield line, _Bad("line", f"the line is longer than {MAX_LINE >> 20} MiB")
                return
            if raw.strip():
                try:
                    yield line, _row(raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw, line, recipe, need)
                except _Bad as bad:
                    yield line, bad


def _row(raw: bytes, line: int, recipe: str, need: Need) -> Row:
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _Bad("line", f"byte {error.start + 1} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _Bad("line", f"column {error.colno} is not JSON: {error.msg}") from None
    except RecursionError:
        raise _Bad("line", "the JSON is nested too deeply") from None
    if not isinstance(record, dict):
        raise _Bad("line", f"the line is {_kind(record)}, not an object")
    prompt, completion = _recipe(record, recipe)(record)
    if need == "completion" and completion is None:
        missing = {"chat": "messages", "finlora": "target", "finqa": "program"}.get(_name(record, recipe), "completion")
        raise _Bad(missing, "the row asks and gives no answer to learn from or to compare with")
    return Row(prompt, completion or "", str(record.get("id", line)), line, record)


def _name(record: Mapping[str, Any], recipe: str) -> str:
    if recipe != "auto":
        return recipe
    return next((name for name, (shown, _) in RECIPES.items() if shown <= record.keys()), "")


def _recipe(record: Mapping[str, Any], recipe: str) -> Recipe:
    name = _name(record, recipe)
    if not name:
        has = ", ".join(sorted(record)[:6]) or "nothing"
        raise _Bad(
            "line", f"the row has {has}; wanted messages, or prompt and completion, or context and target, or text"
        )
    shown, chosen = RECIPES[name]
    for field_name in sorted(shown - record.keys()):
        raise _Bad(field_name, f"`{field_name}` is missing")
    return chosen


def _error(path: Path, bad: list[tuple[int, _Bad]]) -> InvalidError:
    line, first = bad[0]
    message = first.problem
    if len(bad) > 1:
        more = "; ".join(f"line {at}: {other.problem}" for at, other in bad[1:SHOWN])
        message = f"{len(bad)} bad lines. line {line}: {message}; {more}" + (" …" if len(bad) > SHOWN else "")
    hint = f"mend {'these lines' if len(bad) > 1 else f'line {line}'} and submit again"
    return InvalidError(message, code="TAPE-1008", file=path.name, line=line, field=first.name, hint=hint)


def files(path: Path) -> dict[Split, list[Path]]:
    """Which JSONL files of a directory belong to which split, by name (`train.jsonl`, `formula_test.jsonl`); a file is
    a train split by itself, and so are the files of a directory that names none.

    Raises `NotFoundError` (TAPE-2003) where nothing is, or no JSONL is in it.
    """
    if path.is_file():
        return {"train": [path]}
    found = sorted(path.glob("*.jsonl")) if path.is_dir() else []
    if not found:
        raise NotFoundError("there is no JSONL file", code="TAPE-2003", file=str(path))
    parts: dict[Split, list[Path]] = {}
    for file in found:
        last = file.stem.replace("-", "_").split("_")[-1].lower()
        for name in SPLITS:
            if ALIASES.get(last, last) == name:
                parts.setdefault(name, []).append(file)
    return parts if "train" in parts else {"train": found}


def splits(
    path: Path, *, recipe: str = "auto", valid: int = 0, test: int = 0, seed: int = 0, limit: int | None = None
) -> dict[Split, list[Row]]:
    """Read train, valid and test rows; a part that has no file of its own gets that many rows split off from train.

    `limit` bounds each part (spread over its files). Raises what `load` raises.
    """
    parts: dict[Split, list[Row]] = {}
    for part, members in files(path).items():
        share = None if limit is None else -(-limit // len(members))
        parts[part] = [row for member in members for row in load(member, recipe=recipe, limit=share)][:limit]
    wanted: tuple[tuple[Split, int], ...] = (("test", test), ("valid", valid))
    for name, count in wanted:
        if name not in parts and count:
            parts["train"], parts[name] = split(parts["train"], count, seed=seed)
    return {name: parts.get(name, []) for name in SPLITS}


def split(rows: Iterable[Row], count: int, *, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Split off about `count` rows, the same ones every time, rows with an equal prompt always together.

    Which side a row goes to depends on its prompt and the seed only, not on its place in the file.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        asked = json.dumps(row.prompt, sort_keys=True) if row.prompt else row.completion
        groups.setdefault(hashlib.sha256(f"{seed}:{asked}".encode()).hexdigest(), []).append(row)
    kept: list[Row] = []
    held: list[Row] = []
    for key in sorted(groups):
        (held if len(held) < count else kept).extend(groups[key])
    if not kept:
        raise InvalidError(
            f"{len(held)} rows are too few to hold {count} back", code="TAPE-1008", hint="hold fewer rows back"
        )
    return sorted(kept, key=lambda row: row.line), sorted(held, key=lambda row: row.line)


def render(prompt: Prompt, tokenizer: Tokenizer) -> str:
    """Give the text that the model sees for a prompt: chats by the tokenizer's template, text as it is."""
    if isinstance(prompt, str):
        return prompt
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    return "\n".join([*(f"{message['role']}: {message['content']}" for message in prompt), "assistant:"])


def joint(prompt: Prompt, completion: str, tokenizer: Tokenizer) -> str:
    """Give the completion with the space that belongs between it and a prompt ending in a word or a colon."""
    if isinstance(prompt, str):
        glued = not prompt or prompt[-1].isspace() or completion[:1].isspace()
    else:
        glued = bool(tokenizer.chat_template)
    return completion if glued else " " + completion


def encode(row: Row, tokenizer: Tokenizer, max_length: int) -> Encoded:
    """Turn a row into tokens and labels: no loss on the prompt, an end token after the completion.

    What is longer than `max_length` loses the beginning of its prompt first, then the end of its completion.
    """
    asked = tokenizer.encode(render(row.prompt, tokenizer), add_special_tokens=False)
    answered = tokenizer.encode(joint(row.prompt, row.completion, tokenizer), add_special_tokens=False)
    if tokenizer.eos_token_id is not None:
        answered.append(tokenizer.eos_token_id)
    cut = len(asked) + len(answered) > max_length
    answered = answered[:max_length]
    asked = asked[max(0, len(asked) + len(answered) - max_length) :]
    return Encoded([*asked, *answered], [*[IGNORED] * len(asked), *answered], cut)
