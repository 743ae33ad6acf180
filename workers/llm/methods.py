"""The methods of training: what of a model learns, and what of it is written in the end."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from schemas.errors import InvalidError, SetupError
from workers.llm import distill, quantise, resume, shard
from workers.llm import model as models
from workers.llm.distill import Lesson
from workers.llm.objective import Objective
from workers.llm.router import Router
from workers.llm.settings import ADAPTERS, LATER, TrainParams, TrainResult

CONFIG = "train.json"


def prepare(model: models.Model, params: TrainParams) -> Any:
    """Return the module that is trained: the model's own, or one with an adapter in it."""
    from transformers import set_seed

    set_seed(params.seed)
    model.module.config.use_cache = False
    module = _adapted(model, params) if params.method in ADAPTERS else model.module
    if params.gradient_checkpointing:
        with models.muted():
            model.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return module


def _adapted(model: models.Model, params: TrainParams) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if params.method == "qlora":
        with models.muted():
            prepare_model_for_kbit_training(model.module, use_gradient_checkpointing=False)
    targets = list(params.targets) or _targets(model.module)
    config = LoraConfig(
        r=params.rank,
        lora_alpha=params.alpha,
        lora_dropout=params.dropout,
        target_modules=targets,
        use_rslora=params.rslora,
        use_dora=params.dora,
        fan_in_fan_out=model.module.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    try:
        with models.muted():
            tuned = get_peft_model(model.module, config)
    except ValueError as error:
        raise InvalidError(
            f"LoRA fits none of the layers: {error}",
            code="TAPE-1002",
            field="targets",
            hint=f"layers here: {', '.join(_targets(model.module))}",
        ) from error
    for tensor in tuned.parameters():
        if tensor.requires_grad:  # steps of a small rate would be rounded away
            tensor.data = tensor.data.float()
    # peft's own card: half of what saving a checkpoint takes, and it names the base by a path of this machine
    tuned.create_or_update_model_card = lambda *_: None
    return tuned


def objective(model: models.Model, params: TrainParams) -> Objective | None:
    """Return what is learnt, where that is more than the cross entropy; None where it is not."""
    if params.method == "pretrain" and params.architecture is not None and params.architecture.family == "moe":
        return Router(model.module)
    if params.method == "distill":
        assert params.teacher is not None and params.temperature is not None and params.teacher_share is not None
        return Lesson(
            distill.fetch(params.teacher, model, params, computed(params)), params.temperature, params.teacher_share
        )
    return None


def load(params: TrainParams, base: Path) -> models.Model:
    """Load the base for a method: what learns in float32, what is frozen in what is computed in, or in four bits.

    Raises what `models.load` raises, and `SetupError` (TAPE-8003) for a precision that the device has not.
    """
    frozen = params.method in ADAPTERS
    dtype = computed(params) if frozen else "float32"
    return models.load(
        base, device=params.device, dtype=dtype, threads=params.threads, four_bit=params.method == "qlora"
    )


def computed(params: TrainParams) -> Literal["float32", "bfloat16"]:
    """Return what is computed in: what was asked, else bfloat16 on an accelerator that has it.

    A CPU has to be asked for bfloat16: without instructions for it it takes more than twice as long.
    Raises `SetupError` (TAPE-8003).
    """
    import torch

    device = models.place(params.device)
    if params.precision == "bfloat16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise SetupError("the device here has no bfloat16", code="TAPE-8003", hint="use precision=auto or float32")
    return "bfloat16" if models.precision(device, params.precision) == torch.bfloat16 else "float32"


def sizes(module: Any) -> tuple[int, int]:
    """Return how many numbers learn, and how many there are."""
    counted = [(quantise.size(tensor), tensor.requires_grad) for tensor in module.parameters()]
    return sum(size for size, learns in counted if learns), sum(size for size, _ in counted)


def _targets(module: Any) -> list[str]:
    """Name the linear layers inside the blocks, whatever the architecture calls them; the output layer is left out."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found = {
        name.rsplit(".", 1)[-1]
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not module.get_output_embeddings()
    }
    return sorted(found)


Kept = tuple[dict[str, Any] | None, Path | None]
"""Weights that are not in the module, if so: by their names, and files that are taken instead."""


def save(
    module: Any, model: models.Model, params: TrainParams, result: TrainResult, origin: str, kept: Kept = (None, None)
) -> None:
    """Write the artifact of a training; its manifest comes last."""
    out, (weights, files) = result.out, kept
    if params.method in ADAPTERS:
        module.save_pretrained(out, state_dict=weights)
        _tidy(out / models.ADAPTER, model.path.name)
    else:
        module.config.use_cache = True
        module.config.name_or_path = ""
        module.save_pretrained(out, state_dict=weights)
    if files is not None:
        shard.replace(out, files)
    model.tokenizer.save_pretrained(out)
    left_out = {"out", "seconds", "stopped", "resumed", "exact"}  # what differs where the bytes do not
    facts = {key: value for key, value in asdict(result).items() if key not in left_out}
    config = {
        "params": _said(params.model_dump(mode="json")), "result": _said(facts),
        "versions": resume.versions(params.method),
    }  # fmt: skip
    (out / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    models.seal(out, base=origin, base_name=model.path.name, method=params.method)


def _said(facts: dict[str, Any]) -> dict[str, Any]:
    """Leave out what came later and was not asked for: an old request still comes out the same, byte for byte."""
    return {name: value for name, value in facts.items() if name not in LATER or value != LATER[name]}


def _tidy(path: Path, base: str) -> None:
    """Write the adapter's config anew: the base by name and not by path, the layers sorted and not in a set's order."""
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
