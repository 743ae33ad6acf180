"""What a training from nothing and a distillation may ask for: each refusal names its field and says why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.architecture import Architecture
from schemas.codec import parse
from schemas.errors import InvalidError
from schemas.job import Training

PRETRAIN = {"method": "pretrain", "data": "d"}
DISTILL = {"method": "distill", "base": "b", "data": "d"}


@pytest.mark.parametrize(("asked", "field", "told"), [
    ({"data": "d"}, "base", "base: Field required: the method `lora` tunes a model that there is"),
    ({"data": "d", "method": "full"}, "base", "base: Field required: the method `full` tunes a model that there is"),
    (PRETRAIN | {"base": "b"}, "base",
     "base: `pretrain` begins from nothing; give a model as `tokenizer` for its tokenizer alone, or use `full`"),
    (PRETRAIN | {"lora": {"rank": 4}}, "lora", "lora: `pretrain` trains a whole model; the method `lora` an adapter"),
    (PRETRAIN | {"teacher": "t"}, "teacher", "teacher: only the method `distill` takes it, and this is `pretrain`"),
    (PRETRAIN | {"architecture": {"width": 130}}, "architecture.width",
     "architecture.width: 130 is no multiple of `heads`, which is 4"),
    (PRETRAIN | {"architecture": {"family": "moe", "width": 12}}, "architecture.width",
     "architecture.width: 12 over 4 heads is odd, and a `moe` turns pairs of numbers (rotary positions)"),
    (PRETRAIN | {"architecture": {"experts": 4}}, "architecture.experts",
     "architecture.experts: a gpt2 has no experts; `family` must be `moe`"),
    (PRETRAIN | {"architecture": {"balance": 0.0}}, "architecture.balance",
     "architecture.balance: a gpt2 has no experts; `family` must be `moe`"),
    (PRETRAIN | {"architecture": {"family": "moe", "experts": 2, "experts_per_token": 3}},
     "architecture.experts_per_token",
     "architecture.experts_per_token: 3 experts for each token, and there are only 2"),
    (PRETRAIN | {"architecture": {"vocabulary": 100}}, "architecture.vocabulary",
     "architecture.vocabulary: Input should be greater than or equal to 260"),
    (PRETRAIN | {"architecture": {"colour": 1}}, "architecture.colour",
     "architecture.colour: Extra inputs are not permitted"),
    (PRETRAIN | {"architecture": {"family": "rnn"}}, "architecture.family",
     "architecture.family: Input should be 'gpt2' or 'moe'"),
    (DISTILL, "teacher", "teacher: Field required: the method `distill` learns from a model"),
    (DISTILL | {"teacher": "t", "temperature": 0}, "temperature", "temperature: Input should be greater than 0"),
    (DISTILL | {"teacher": "t", "teacher_share": 2}, "teacher_share",
     "teacher_share: Input should be less than or equal to 1"),
    (DISTILL | {"teacher": "t", "lora": {"rank": 4}}, "lora",
     "lora: `distill` trains a whole model; the method `lora` an adapter"),
    ({"base": "b", "data": "d", "sharding": "full"}, "sharding",
     "sharding: it takes at least two `devices`; ask for them, or leave it out"),
    ({"base": "b", "data": "d", "sharding": "full", "devices": 2, "method": "qlora"}, "sharding",
     "sharding: four-bit weights are not sharded; use `lora`, or leave it out"),
    ({"base": "b", "data": "d", "temperature": 2}, "temperature",
     "temperature: only the method `distill` takes it, and this is `lora`"),
    ({"base": "b", "data": "d", "architecture": {}}, "architecture",
     "architecture: only the method `pretrain` takes it, and this is `lora`"),
])  # fmt: skip
def test_what_does_not_fit_together_is_refused_at_its_field(asked: dict[str, Any], field: str, told: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse(Training, asked)
    assert (caught.value.code, caught.value.place["field"], caught.value.message) == ("TAPE-1002", field, told)


def test_a_request_says_what_was_meant() -> None:
    """The defaults of a method are sent with the request: a later version cannot mean others by it."""
    dense = parse(Training, PRETRAIN)
    assert dense.architecture == Architecture()
    assert "architecture" in dense.model_dump(exclude_unset=True)
    sparse = parse(Training, PRETRAIN | {"architecture": {"family": "moe"}}).architecture
    assert sparse is not None
    assert (sparse.experts, sparse.experts_per_token, sparse.balance) == (8, 2, 0.01)
    taught = parse(Training, DISTILL | {"teacher": "t"})
    assert (taught.temperature, taught.teacher_share) == (2.0, 0.5)
    assert parse(Training, DISTILL | {"teacher": "t", "devices": 2, "sharding": "full"}).devices == 2
    plain = parse(Training, {"base": "b", "data": "d"})
    assert plain.model_dump(exclude_unset=True) == {"base": "b", "data": "d"}, "an old request keeps its bytes"


@given(
    st.fixed_dictionaries({}, optional={
        "family": st.sampled_from(["gpt2", "moe"]), "heads": st.integers(1, 8), "width": st.integers(8, 64),
        "experts": st.none() | st.integers(2, 8), "experts_per_token": st.none() | st.integers(1, 8),
        "balance": st.none() | st.floats(0, 1),
    })
)  # fmt: skip
def test_what_was_accepted_is_accepted_as_it_was_written_down(asked: dict[str, Any]) -> None:
    """A version is made again from its request with all defaults in it."""
    try:
        first = parse(Training, PRETRAIN | {"architecture": asked})
    except InvalidError:
        return
    assert parse(Training, first.model_dump(mode="json")) == first
    assert first.architecture is not None
    assert (first.architecture.experts is None) is (first.architecture.family == "gpt2")
