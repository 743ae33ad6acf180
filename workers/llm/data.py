"""Rows as tokens: what the model sees of a prompt, and what it is to learn. The loss is taken on the answer only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from schemas.row import Prompt, Row

IGNORED = -100


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    eos_token_id: int | None
    chat_template: str | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def apply_chat_template(self, messages: Any, *, tokenize: bool, add_generation_prompt: bool) -> str: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as tokens; labels are `IGNORED` wherever no loss is taken. One that is `held` is only validated on."""

    input_ids: list[int]
    labels: list[int]
    cut: bool
    held: bool = False


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
    tokens = [*asked, *answered]
    first = max(1, len(asked))  # what a row begins with is predicted by nothing, and must not be counted as if
    return Encoded(tokens, [*[IGNORED] * first, *tokens[first:]], cut)
