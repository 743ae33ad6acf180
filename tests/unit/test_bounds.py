"""What a request may say is what the work takes: nothing is queued that must be refused later."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import settings as bounded
from hypothesis import strategies as st
from models_rig import Stock
from pydantic import ValidationError

from producers.models.again import request as again
from producers.request import Request, prepare
from schemas.errors import InvalidError
from schemas.job import DRAWS, PARAMS, THREADS, Inference, Training
from schemas.model import Strict
from schemas.topics import Names
from wire.blobs.memory import Memory
from workers.handlers.training import settings
from workers.llm.generate import Sampling, _Draw

ASKED: tuple[dict[str, Any], ...] = (
    {"base": "b", "method": "lora"},
    {"base": "b", "method": "full"},
    {"method": "pretrain"},
    {"base": "b", "method": "distill", "teacher": "t"},
)
GIVEN: dict[str, Any] = {"data": "d", "validation": "v", "validation_steps": 1, "batch_size": 64}


def numbers(model: type[Strict]) -> list[str]:
    return [name for name, field in model.model_fields.items() if {"int", "float"} & set(_words(field.annotation))]


def _words(annotation: object) -> list[str]:
    return "".join(sign if sign.isalpha() else " " for sign in str(annotation)).split()


NUMBERS = st.one_of(
    st.integers(), st.integers(0, 70), st.floats(), st.floats(0, 2), st.sampled_from([2**32 - 1, 2**32, 1e30, 10**20])
)


def accepted(model: type[Strict], fields: dict[str, Any]) -> Any:
    try:
        return model.model_validate(fields)
    except ValidationError:
        assume(False)


def test_the_numbers_are_found() -> None:
    assert {"seed", "learning_rate", "threads", "temperature", "patience", "epochs"} <= set(numbers(Training))
    assert {"seed", "temperature", "top_p"} <= set(numbers(Inference))


@given(asked=st.sampled_from(ASKED), name=st.sampled_from(numbers(Training)), value=NUMBERS)
@example(asked=ASKED[0], name="learning_rate", value=5)
@example(asked=ASKED[0], name="seed", value=-1)
@example(asked=ASKED[0], name="seed", value=10**20)
def test_a_training_that_may_be_asked_for_can_be_set(asked: dict[str, Any], name: str, value: float) -> None:
    settings(accepted(Training, GIVEN | asked | {name: value}))


@given(name=st.sampled_from(["rank", "alpha", "dropout"]), value=NUMBERS)
def test_an_adapter_that_may_be_asked_for_can_be_set(name: str, value: float) -> None:
    settings(accepted(Training, GIVEN | ASKED[0] | {"lora": {name: value}}))


@bounded(deadline=None)  # the first one loads torch
@given(
    name=st.sampled_from(numbers(Inference)), value=NUMBERS, stop=st.lists(st.text(max_size=2), max_size=2),
    temperature=st.sampled_from([0.0, 0.7]),
)  # fmt: skip
@example(name="seed", value=10**20, stop=[], temperature=0.7)
@example(name="seed", value=DRAWS[0], stop=[], temperature=0.7)
@example(name="seed", value=DRAWS[-1], stop=[], temperature=0.7)
@example(name="batch_size", value=1, stop=[""], temperature=0.0)
def test_an_answer_that_may_be_asked_for_can_be_drawn(
    name: str, value: float, stop: list[str], temperature: float
) -> None:
    asked = {"model": "m", "prompt": "p", "temperature": temperature, "stop": stop}
    found = accepted(Inference, asked | {name: value})
    sampling = Sampling(
        max_new_tokens=found.max_new_tokens, temperature=found.temperature, top_p=found.top_p, seed=found.seed,
        stop=tuple(found.stop),
    )  # fmt: skip
    if found.temperature > 0:
        _Draw(sampling, [0, 2**32 - 1], 0)


def test_a_greedy_answer_draws_nothing_and_takes_any_seed() -> None:
    assert Inference.model_validate({"model": "m", "prompt": "p", "seed": 10**20}).seed == 10**20


@pytest.mark.parametrize(("kind", "fields", "field"), [
    ("training", {"base": "b", "data": "d", "threads": THREADS + 1}, "threads"),
    ("evaluation", {"model": "m", "data": "d", "threads": 100_000}, "threads"),
    ("inference", {"model": "m", "prompt": "p", "threads": 100_000}, "threads"),
    ("training", {"base": "b", "data": "d", "method": "full", "lora": {"rank": 4}}, "lora"),
])  # fmt: skip
def test_a_client_refuses_what_an_older_request_may_still_say(kind: str, fields: dict[str, Any], field: str) -> None:
    PARAMS[kind].model_validate(fields)  # one that is queued already is read
    with pytest.raises(InvalidError) as caught:
        prepare(Request(kind, fields), Names(""), tenant="t")
    assert (caught.value.code, caught.value.place) == ("TAPE-1002", {"field": field, "kind": kind})
    assert caught.value.hint


def test_what_changes_nothing_is_taken_and_what_was_made_so_is_made_again() -> None:
    full = {"base": "b", "data": "d", "method": "full"}
    for fields in (full | {"lora": {"rank": 8}}, full | {"threads": THREADS}):
        prepare(Request("training", fields), Names(""), tenant="t")
    labels = again(Stock(Memory()).put(b"1")).labels
    once_more = Request("training", full | {"lora": {"rank": 4}}, labels=labels)
    prepare(once_more, Names(""), tenant="t")
