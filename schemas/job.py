"""Requests: the job's envelope, and the parameters of the four kinds that ship with Tickertape."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from schemas.architecture import Architecture
from schemas.model import Moment, Name, Open, Strict, wrong


class Lane(StrEnum):
    """How urgent a job is: `interactive` is taken first, `bulk` is never starved."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class Job(Open):
    """The value of a request record: the kind's parameters and how to treat the job.

    The job's id is the `ce_subject` header (else the record's key, else derived from `ce_source` and `ce_id`); its kind
    and lane are the topic's. Unknown fields are ignored here, so that old workers read what new clients write.
    """

    params: dict[str, Any] = Field(description="the parameters of the job's kind")
    tenant: str = Field(default="default", min_length=1, max_length=128)
    key: str | None = Field(default=None, max_length=512, description="idempotency key: the same key is the same job")
    timeout_s: float | None = Field(default=None, gt=0, description="seconds one attempt may run")
    stall_s: float | None = Field(
        default=None, gt=0, description="seconds without progress after which an attempt counts as hung; process kinds"
    )
    expires_at: Moment | None = Field(default=None, description="not started after this, nor if it cannot end by then")
    not_before: Moment | None = Field(default=None, description="not started before this moment")
    max_attempts: int | None = Field(
        default=None, ge=1, le=8, description="below the broker's delivery limit, which is 10"
    )
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)


Ref = Annotated[str, Field(min_length=1, max_length=2048)]
"""Where something is: `blob:NAME`, `artifact:NAME`, `dataset:NAME` or `model:NAME` in the store (the last two also with
`@ALIAS` or `@VERSION`), `builtin:NAME`, or `file:PATH` on the worker."""


class Lora(Strict):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(default=8, ge=1, le=512)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: list[str] | None = Field(default=None, description="module names; default: by architecture")
    rslora: bool = Field(default=False, description="scaled by the root of the rank (arXiv:2312.03732)")
    dora: bool = Field(default=False, description="direction and magnitude apart (arXiv:2402.09353)")


SEEDS = range(2**32)
"""Seeds that a training may have: numpy's generator takes no others."""
APART = 1_000_003
"""What an inference multiplies its seed by and adds a row's number to: each row draws by a seed of its own."""
DRAWS = range(-(2**63 // APART), (2**64 - 2**32) // APART)
"""Seeds that an inference may draw by: torch's generator takes 64 bits, and 2³² are left for the rows."""
THREADS = 1024
"""Most threads that a client asks for."""


OWN: dict[str, tuple[str, ...]] = {
    "pretrain": ("architecture", "tokenizer"),
    "distill": ("teacher", "temperature", "teacher_share"),
}
"""Settings that only one method of training has."""


class Training(Strict):
    """Train a causal language model on rows of text: fine-tune a base, distil a teacher into it, or begin from nothing.

    The outcome's artifact is an adapter or a model.
    """

    base: Ref | None = Field(default=None, description="what is tuned; every method but `pretrain` needs it")
    data: Ref
    validation: Ref | None = None
    recipe: Name | None = Field(default=None, description="how foreign rows become prompts, e.g. `finqa`")
    method: Literal["lora", "full", "qlora", "pretrain", "distill"] = "lora"
    lora: Lora = Lora()
    steps: int | None = Field(default=None, ge=1, description="optimizer steps; wins over epochs")
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=8, ge=1)
    accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(default=0.0, ge=0)
    max_length: int = Field(default=256, ge=8, description="tokens of one example")
    packing: bool = Field(default=False, description="several examples in a row of `max_length`, none sees another")
    gradient_checkpointing: bool = Field(default=False, description="less memory, more time, the same losses")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="what is computed in; `auto` is bfloat16 on an accelerator that has it, else float32",
    )
    seed: int = 0
    threads: int | None = Field(default=None, ge=1)
    devices: int = Field(
        default=1, ge=1, le=64, description="devices of one worker that share each batch; on a CPU: processes"
    )
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="`full`: each device keeps its part of weights, gradients and optimizer; `none`: all of them",
    )
    limit: int | None = Field(default=None, ge=1, description="rows used at most")
    checkpoint_steps: int | None = Field(default=None, ge=1, description="steps between checkpoints; else one a minute")
    validation_steps: int | None = Field(
        default=None, ge=1, description="steps between validations; without it there is one, at the end"
    )
    patience: int | None = Field(
        default=None, ge=1, description="validations without a better one until it ends early, with the best weights"
    )
    publish_as: Name | None = Field(
        default=None, description="the name under which the result is registered as a version of a model"
    )
    report_to: list[Literal["mlflow", "wandb"]] = Field(
        default_factory=list, max_length=2, description="what else keeps the metrics: files in the artifact `reports`"
    )
    run_name: Name | None = Field(default=None, description="what the run is called there; default: the job's id")
    architecture: Architecture | None = Field(default=None, description="of `pretrain`: what is built")
    tokenizer: Ref | None = Field(
        default=None, description="of `pretrain`: a model whose tokenizer is taken; else one is made from the data"
    )
    teacher: Ref | None = Field(default=None, description="of `distill`: a model with the base's tokenizer")
    temperature: float | None = Field(
        default=None, gt=0, le=100, description="of `distill`: what the logits of both are divided by; 2 by default"
    )
    teacher_share: float | None = Field(
        default=None, ge=0, le=1,
        description="of `distill`: share of the teacher in what is learnt, the rest is the rows'; 0.5 by default",
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """A request says what was meant, also where a later version would take something else."""
        defaults: dict[str, dict[str, Any]] = {
            "pretrain": {"architecture": {}}, "distill": {"temperature": 2.0, "teacher_share": 0.5}
        }  # fmt: skip
        if not isinstance(given, dict) or not isinstance(given.get("method"), str):
            return given
        return given | {
            name: value for name, value in defaults.get(given["method"], {}).items() if given.get(name) is None
        }

    @model_validator(mode="after")
    def _fits_its_method(self) -> Self:
        for method, names in OWN.items():
            for name in names if method != self.method else ():
                if (value := getattr(self, name)) is not None:
                    raise wrong(name, value, f"only the method `{method}` takes it, and this is `{self.method}`")
        if self.method in OWN and self.lora != Lora():
            raise wrong("lora", self.lora, f"`{self.method}` trains a whole model; the method `lora` an adapter")
        if self.method == "pretrain" and self.base is not None:
            told = "`pretrain` begins from nothing; give a model as `tokenizer` for its tokenizer alone, or use `full`"
            raise wrong("base", self.base, told)
        if self.method != "pretrain" and self.base is None:
            raise wrong("base", None, f"Field required: the method `{self.method}` tunes a model that there is")
        if self.method in OWN and self.packing:
            raise wrong("packing", True, f"`{self.method}` does not pack; leave it out")
        if self.method == "distill" and self.teacher is None:
            raise wrong("teacher", None, "Field required: the method `distill` learns from a model")
        return self

    @model_validator(mode="after")
    def _shares_its_batches(self) -> Self:
        if self.batch_size % self.devices:
            raise wrong("batch_size", self.batch_size, "it is shared by the `devices`, and must be a multiple of them")
        if self.sharding != "none" and self.devices < 2:
            raise wrong("sharding", self.sharding, "it takes at least two `devices`; ask for them, or leave it out")
        if self.sharding != "none" and self.method == "qlora":
            raise wrong("sharding", self.sharding, "four-bit weights are not sharded; use `lora`, or leave it out")
        return self

    @model_validator(mode="after")
    def _validates_on_something(self) -> Self:
        if self.validation_steps is not None and self.validation is None:
            raise wrong("validation_steps", self.validation_steps, "it needs `validation`, the rows to validate on")
        if self.patience is not None and self.validation_steps is None:
            raise wrong("patience", self.patience, "it counts validations: it needs `validation_steps`")
        return self

    @model_validator(mode="after")
    def _could_run(self) -> Self:
        """Refuse what no worker has ever taken; here, and not as bounds, which `schemas.compat` would refuse."""
        if self.learning_rate >= 1:
            raise wrong("learning_rate", self.learning_rate, "Input should be less than 1")
        if self.seed not in SEEDS:
            raise wrong("seed", self.seed, f"Input should be from 0 to {SEEDS[-1]}")
        return self


def _given(name: str) -> JsonDict:
    """The JSON Schema of an object that has this field, and not as null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


_ASKS_ACCURACY: JsonDict = {"required": ["metrics"], "properties": {"metrics": {"contains": {"const": "accuracy"}}}}


class Evaluation(Strict):
    """Measure a model, or an adapter beside its base, on held-out rows."""

    model_config = ConfigDict(json_schema_extra={"if": _ASKS_ACCURACY, "then": _given("labels")})

    model: Ref
    adapter: Ref | None = None
    baseline: bool = Field(default=True, description="with an adapter: measure the base on the same rows too")
    data: Ref
    recipe: Name | None = None
    metrics: list[Literal["perplexity", "exact_match", "accuracy"]] = Field(
        default=["perplexity", "exact_match"], min_length=1
    )
    labels: list[str] | None = Field(default=None, min_length=2, description="closed set of answers, for `accuracy`")
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)
    max_new_tokens: int = Field(default=16, ge=1)
    max_length: int = Field(default=512, ge=8)
    threads: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _needs_labels(self) -> Self:
        if "accuracy" in self.metrics and not self.labels:
            raise ValueError("the metric `accuracy` needs `labels`, the closed set of answers")
        return self


class Message(Strict):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Inference(Strict):
    """Generate text for one prompt, one chat, or every row of a JSONL file."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_given(name) for name in ("prompt", "messages", "data")]})

    model: Ref
    adapter: Ref | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    data: Ref | None = None
    recipe: Name | None = None
    max_new_tokens: int = Field(default=32, ge=1, le=32_768)
    temperature: float = Field(default=0.0, ge=0, le=5)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    stop: list[str] = Field(default_factory=list, max_length=16)
    batch_size: int = Field(default=16, ge=1)
    limit: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        given = [name for name in ("prompt", "messages", "data") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of prompt, messages and data; got {' and '.join(given) or 'none'}")
        return self

    @model_validator(mode="after")
    def _could_run(self) -> Self:
        """Refuse what no worker has ever taken; here, and not as bounds, which `schemas.compat` would refuse."""
        if not all(self.stop):
            raise wrong("stop", self.stop, "an empty text would end every answer; leave it out")
        if self.temperature > 0 and self.seed not in DRAWS:
            raise wrong("seed", self.seed, f"Input should be from {DRAWS[0]} to {DRAWS[-1]}")
        return self


class Indexing(Strict):
    """Chunk and embed documents into a searchable index version."""

    documents: list[Ref] = Field(min_length=1)
    encoder: Ref
    index: Name
    chunk_tokens: int = Field(default=256, ge=16)
    overlap_tokens: int = Field(default=32, ge=0)

    @model_validator(mode="after")
    def _overlap_is_smaller(self) -> Self:
        if self.overlap_tokens >= self.chunk_tokens:
            raise ValueError("overlap_tokens must be smaller than chunk_tokens")
        return self


PARAMS: dict[str, type[Strict]] = {
    "training": Training,
    "evaluation": Evaluation,
    "inference": Inference,
    "indexing": Indexing,
}
"""The kinds that ship with Tickertape. The set is open: `workers.kinds` adds those of installed packages."""


def kind_of(params: Strict) -> str:
    """Return the kind whose parameters these are. Raises `KeyError` for a model that is none of `PARAMS`."""
    return {model: kind for kind, model in PARAMS.items()}[type(params)]
