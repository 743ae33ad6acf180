"""The shape of a model that is trained from nothing: a GPT-2, or a sparse mixture of experts."""

from __future__ import annotations

from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from schemas.model import Strict, wrong

SPARSE: Final = {"experts": 8, "experts_per_token": 2, "balance": 0.01}
"""What a mixture of experts has where nothing is said."""


class Architecture(Strict):
    """What is built before it is trained: GPT-2 (Radford et al. 2019), or a decoder whose every layer routes each token
    to a few of its experts (Shazeer et al. 2017, arXiv:1701.06538), balanced as in arXiv:2101.03961."""

    family: Literal["gpt2", "moe"] = "gpt2"
    layers: int = Field(default=4, ge=1, le=64)
    heads: int = Field(default=4, ge=1, le=64)
    width: int = Field(default=128, ge=8, le=8192, description="of the residual stream; a multiple of `heads`")
    context: int = Field(default=512, ge=8, le=32_768, description="most tokens it can look at")
    vocabulary: int = Field(
        default=2048, ge=260, le=262_144,
        description="most tokens of the tokenizer that is made from the data; a given `tokenizer` has its own",
    )  # fmt: skip
    dropout: float = Field(default=0.0, ge=0, lt=1)
    experts: int | None = Field(default=None, ge=2, le=64, description="of each layer of a `moe`; 8 by default")
    experts_per_token: int | None = Field(default=None, ge=1, le=64, description="of a `moe`; 2 by default")
    balance: float | None = Field(
        default=None, ge=0, le=10,
        description="of a `moe`: weight of the auxiliary loss that evens the experts' load, 0.01 by default; 0 is none",
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("family") != "moe":
            return given
        return given | {name: value for name, value in SPARSE.items() if given.get(name) is None}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.width % self.heads:
            raise wrong("width", self.width, f"{self.width} is no multiple of `heads`, which is {self.heads}")
        if self.family == "moe" and self.width // self.heads % 2:
            told = f"{self.width} over {self.heads} heads is odd, and a `moe` turns pairs of numbers (rotary positions)"
            raise wrong("width", self.width, told)
        if self.family != "moe":
            for name in SPARSE:
                if (value := getattr(self, name)) is not None:
                    raise wrong(name, value, f"a {self.family} has no experts; `family` must be `moe`")
        elif (self.experts_per_token or 0) > (self.experts or 0):
            told = f"{self.experts_per_token} experts for each token, and there are only {self.experts}"
            raise wrong("experts_per_token", self.experts_per_token, told)
        return self
