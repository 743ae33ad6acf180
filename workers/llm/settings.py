"""How to train, and what it came to: the settings and the result of a run, as plain machine learning knows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.architecture import Architecture
from workers.llm import model as models

ADAPTERS: Final = frozenset({"lora", "qlora"})
"""The methods that make an adapter, which needs its base; the others make a whole model."""


class TrainParams(BaseModel):
    """How to train: the method, how long, and how fast. `steps` counts optimizer steps and goes before `epochs`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["lora", "full", "qlora", "pretrain", "distill"] = "lora"
    steps: int | None = Field(default=None, ge=1)
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=8, ge=1)
    accumulation: int = Field(default=1, ge=1, description="batches whose gradients make one step")
    lr: float = Field(default=1e-3, gt=0, lt=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps in which the rate rises")
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    max_length: int = Field(default=512, ge=8, description="tokens of prompt and completion together")
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(default=(), description="layers that get LoRA; empty takes the architecture's own")
    rslora: bool = Field(default=False, description="alpha by the root of the rank, and not by the rank")
    dora: bool = Field(default=False, description="directions by LoRA, magnitudes by themselves")
    packing: bool = Field(
        default=False, description="several rows in one of `max_length`; validation rows are not packed"
    )
    gradient_checkpointing: bool = Field(default=False, description="layers are computed again and not remembered")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="what is computed in; what learns is float32 all the same"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="numpy takes no larger one")
    threads: int | None = Field(default=None, ge=1)
    device: models.Device = "auto"
    devices: int = Field(default=1, ge=1, description="devices here, or processes on a CPU, that share a batch")
    sharding: Literal["none", "full"] = Field(default="none", description="whether each device keeps its part alone")
    checkpoint_steps: int | None = Field(default=None, ge=1, description="steps between checkpoints; else one a minute")
    validation_steps: int | None = Field(
        default=None, ge=1, description="steps between validations; one comes at the end"
    )
    patience: int | None = Field(
        default=None, ge=1, description="validations without a better one, before it ends early"
    )
    architecture: Architecture | None = Field(default=None, description="what a `pretrain` was built as")
    temperature: float | None = Field(default=None, gt=0)
    teacher_share: float | None = Field(default=None, ge=0, le=1)
    teacher: Path | None = Field(default=None, exclude=True, description="a place on this machine: written nowhere")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training came to; `loss` is the mean of the last tenth of the steps, in nats per learnt token.

    `resumed` is the step of the checkpoint it went on from (0: none), `exact` whether its bytes are those of a run that
    nobody disturbed. `best_step` is the step whose weights these are, where validations chose. `samples` are the rows
    that were trained on, each as often as it was. `teacher` is the sha256 of a teacher's weights, `blocks` how many
    blocks the rows of a `pretrain` made, `packs` how many rows the packed examples came to. `precision` is what was
    computed in.
    """

    out: Path
    steps: int
    epochs: float
    first_loss: float
    loss: float
    valid_loss: float | None
    rows: int
    cut: int
    tokens: int
    trainable: int
    parameters: int
    seconds: float
    base: str
    stopped: bool
    best_step: int | None = None
    resumed: int = 0
    exact: bool = True
    samples: int = 0
    teacher: str | None = None
    blocks: int | None = None
    precision: str = "float32"
    packs: int | None = None


LATER: Final[dict[str, object]] = {
    "architecture": None, "temperature": None, "teacher_share": None, "teacher": None, "blocks": None, "packs": None,
    "rslora": False, "dora": False, "packing": False, "gradient_checkpointing": False, "devices": 1,
    "sharding": "none",
}  # fmt: skip
"""Fields of both that came after the first release, and what is not written down of them."""
