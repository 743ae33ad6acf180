"""The methods of training: what of a model learns, and what of it is written in the end."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from schemas.errors import InvalidError
from workers.llm import distill, resume
from workers.llm import model as models
from workers.llm.distill import Lesson
from workers.llm.objective import Objective
from workers.llm.router import Router
from workers.llm.settings import LATER, TrainParams, TrainResult

CONFIG = "train.json"


def prepare(model: models.Model, params: TrainParams) -> Any:
    """Return the module that is trained: the model's own, or one with an adapter in it."""
    from transformers import set_seed

    set_seed(params.seed)
    model.module.config.use_cache = False
    if params.method != "lora":
        return model.module
    from peft import LoraConfig, get_peft_model

    targets = list(params.targets) or _targets(model.module)
    config = LoraConfig(
        r=params.rank,
        lora_alpha=params.alpha,
        lora_dropout=params.dropout,
        target_modules=targets,
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
    # peft's own card: half of what saving a checkpoint takes, and it names the base by a path of this machine
    tuned.create_or_update_model_card = lambda *_: None
    return tuned


def objective(model: models.Model, params: TrainParams) -> Objective | None:
    """Return what is learnt, where that is more than the cross entropy; None where it is not."""
    if params.method == "pretrain" and params.architecture is not None and params.architecture.family == "moe":
        return Router(model.module)
    if params.method == "distill":
        assert params.teacher is not None and params.temperature is not None and params.teacher_share is not None
        return Lesson(distill.fetch(params.teacher, model, params), params.temperature, params.teacher_share)
    return None


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


def save(module: Any, model: models.Model, params: TrainParams, result: TrainResult, origin: str) -> None:
    out = result.out
    if params.method == "lora":
        module.save_pretrained(out, safe_serialization=True)
        _tidy(out / models.ADAPTER, model.path.name)
    else:
        module.config.use_cache = True
        module.config.name_or_path = ""
        module.save_pretrained(out)
    model.tokenizer.save_pretrained(out)
    left_out = {"out", "seconds", "stopped", "resumed", "exact"}  # what differs where the bytes do not
    facts = {key: value for key, value in asdict(result).items() if key not in left_out}
    config = {
        "params": _said(params.model_dump(mode="json")), "result": _said(facts), "versions": resume.versions()
    }  # fmt: skip
    (out / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    models.seal(out, base=origin, base_name=model.path.name, method=params.method)


def _said(facts: dict[str, Any]) -> dict[str, Any]:
    """Leave out what came later and was not asked for: an old request still comes out the same, byte for byte."""
    return {name: value for name, value in facts.items() if value is not None or name not in LATER}


def _tidy(path: Path, base: str) -> None:
    """Write the adapter's config anew: the base by name and not by path, the layers sorted and not in a set's order."""
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
