"""A base in four bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314): frozen, in an eighth of the memory.

Each linear layer's weights are NF4 with their scales quantised once more; they are computed with as they are needed.
The package is bitsandbytes, the extra `qlora`. It has kernels for CUDA, and plain ones for a CPU.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from schemas.errors import SetupError

if TYPE_CHECKING:
    import torch

PACKAGE = "bitsandbytes"


def check() -> None:
    """Raise `SetupError` (TAPE-8003) where the package is not installed."""
    if find_spec(PACKAGE) is None:
        raise SetupError(
            "the method qlora needs bitsandbytes, which is not installed on this worker", code="TAPE-8003",
            hint="pip install 'tickertape[qlora]', or take the method lora",
        )  # fmt: skip


def settings(device: str, compute: torch.dtype) -> dict[str, Any]:
    """Return what makes `from_pretrained` quantise on a device; what is computed in is `compute`."""
    check()
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )
    return {"quantization_config": config, "device_map": {"": device}}


def mend(module: Any) -> None:
    """Keep the layers as they are on a CPU that has bfloat16, where bitsandbytes 0.50 rearranges them for inference.

    It does so in the first validation, rounds the scales, and passes no gradient on from then on: what comes before the
    last such layer would learn nothing.
    """
    for layer in module.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def size(tensor: Any) -> int:
    """Return how many numbers a tensor stands for: two in a byte, where it is quantised."""
    state = getattr(tensor, "quant_state", None)
    return int(tensor.numel() if state is None else state.shape.numel())
