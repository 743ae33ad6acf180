"""Rows as tokens: what is learnt of them, and what is cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.row import Row
from workers.llm import data
from workers.llm.data import IGNORED


class Letters:
    """A tokenizer of single letters; the end token is 0."""

    eos_token_id: int | None = 0
    chat_template: str | None = None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) for letter in text]

    def apply_chat_template(self, messages: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert add_generation_prompt and not tokenize
        return "".join(f"<{message['role'][0]}>{message['content']}" for message in messages) + "<a>"


def test_the_loss_is_on_the_completion_only() -> None:
    found = data.encode(Row("ab:", "yes", "1"), Letters(), 50)
    assert bytes(found.input_ids) == b"ab: yes\0"
    assert found.labels == [IGNORED] * 3 + list(b" yes\0")
    assert not found.cut


def test_a_text_is_learnt_whole() -> None:
    found = data.encode(Row("", "abc", "1"), Letters(), 50)
    assert found.input_ids == list(b"abc\0")
    assert found.labels == [IGNORED, *b"bc\0"], "nothing predicts the first, so it must not be counted"


@pytest.mark.parametrize(
    ("prompt", "joined"),
    [("Q:", " A"), ("Q: ", "A"), ("Q\n", "A"), ("", "A"), ([{"role": "user", "content": "Q"}], " A")],
)
def test_the_space_before_a_completion(prompt: Any, joined: str) -> None:
    assert data.joint(prompt, "A", Letters()) == joined


def test_chats_go_through_the_template_where_there_is_one() -> None:
    tokenizer, chat = Letters(), [{"role": "user", "content": "Hi"}]
    assert data.render(chat, tokenizer) == "user: Hi\nassistant:"
    tokenizer.chat_template = "yes"
    assert data.render(chat, tokenizer) == "<u>Hi<a>"
    assert data.joint(chat, "A", tokenizer) == "A"


@given(st.text("abc", max_size=20), st.text("xyz", min_size=1, max_size=20), st.integers(8, 30))
def test_what_is_too_long_loses_the_beginning_of_its_prompt_first(prompt: str, completion: str, room: int) -> None:
    tokenizer = Letters()
    found = data.encode(Row(prompt, completion, "1"), tokenizer, room)
    whole = [*map(ord, prompt), *map(ord, data.joint(prompt, completion, tokenizer)), 0]
    answer = len(whole) - len(prompt)
    assert len(found.input_ids) == min(room, len(whole)) == len(found.labels)
    assert found.cut == (len(whole) > room)
    expected = whole[-min(room, len(whole)) :] if answer <= room else whole[len(prompt) :][:room]
    assert found.input_ids == expected
    assert sum(label != IGNORED for label in found.labels) == min(answer, room, len(found.labels) - 1)
