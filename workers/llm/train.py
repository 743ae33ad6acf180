"""Fine-tune a model directory on rows: full, or LoRA; one recipe from parameters to files.

    train(TrainParams(steps=60), base=Path("model"), rows=rows, out=Path("adapter"))

What is left in `out`: safetensors, tokenizer, `metrics.jsonl`, `train.json`, and `manifest.json` last. No pickle, no
optimizer, nothing reported to anybody. With `checkpoints` a run that was killed goes on where it was (`resume`).
"""

from __future__ import annotations

import gc
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import InvalidError
from schemas.row import Row
from workers.failures import classify
from workers.llm import model as models
from workers.llm import resume
from workers.llm.data import Encoded, encode
from workers.llm.watch import Collate, Progress, Watch, Work, callback

CONFIG = "train.json"


class TrainParams(BaseModel):
    """How to train: the method, how long, and how fast. `steps` counts optimizer steps and goes before `epochs`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["lora", "full"] = "lora"
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
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    device: models.Device = "auto"
    dtype: models.Precision = "auto"
    checkpoint_steps: int | None = Field(default=None, ge=1, description="steps between checkpoints; else one a minute")
    validation_steps: int | None = Field(
        default=None, ge=1, description="steps between validations; one comes at the end"
    )
    patience: int | None = Field(
        default=None, ge=1, description="validations without a better one, before it ends early"
    )


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training came to; `loss` is the mean of the last tenth of the steps, in nats per learnt token.

    `resumed` is the step of the checkpoint it went on from (0: none), `exact` whether its bytes are those of a run that
    nobody disturbed. `best_step` is the step whose weights these are, where validations chose.
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


def train(
    params: TrainParams,
    *,
    base: Path,
    rows: Sequence[Row],
    out: Path,
    valid: Sequence[Row] = (),
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    checkpoints: resume.Keeper | None = None,
) -> TrainResult:
    """Train on `rows`, measure the loss on `valid` at the end, and write the adapter or model to `out`.

    `progress` gets a dict a step: step, steps, epoch, loss, lr, grad_norm, tokens_per_s, eta_s. Once `should_stop`
    says so, training ends after the step with a last checkpoint, `stopped` is set and `out` holds no weights.
    With `patience` the weights of the best validation are taken, if `checkpoints` are kept.
    Where memory runs out, half as many rows are taken at a time and twice as many times, which `progress` hears of.
    Raises `InvalidError` for bad rows, base or targets, `JobError` TAPE-6009 on a loss that is not finite, TAPE-6003
    where memory runs out with a single row.
    """
    if not rows:
        raise InvalidError("there are no rows to train on", code="TAPE-1008", hint="give at least one row")
    work = Work(base, rows, valid, out, progress or _silent, should_stop or _never, checkpoints)
    while True:
        try:
            return _train(params, work)
        except Exception as error:
            known = classify(error)
            smaller = _halved(params) if known.code == "TAPE-6003" else None
            if smaller is None:
                if known is error:
                    raise
                raise known from error
        work.halved = True
        params = smaller  # out of the `except`: the failed run's tensors hang on its traceback
        _free()
        work.progress({"reason": "out of memory", "batch_size": params.batch_size, "accumulation": params.accumulation})


def _halved(params: TrainParams) -> TrainParams | None:
    """Return settings that take at most half as many rows at a time, and as many together; None for one row."""
    together = params.batch_size * params.accumulation
    fewer = [size for size in range(params.batch_size // 2, 0, -1) if together % size == 0]
    return params.model_copy(update={"batch_size": fewer[0], "accumulation": together // fewer[0]}) if fewer else None


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _train(params: TrainParams, work: Work) -> TrainResult:
    began = time.monotonic()
    origin = models.fingerprint(work.base)
    model = models.load(work.base, device=params.device, dtype=params.dtype, threads=params.threads)
    length = min(params.max_length, model.context)
    encoded = [encode(row, model.tokenizer, length) for row in work.rows]
    held = [encode(row, model.tokenizer, length) for row in work.valid]
    module = _prepare(model, params)
    trainable = sum(tensor.numel() for tensor in module.parameters() if tensor.requires_grad)
    work.out.mkdir(parents=True, exist_ok=True)
    facts = resume.facts(params, origin, (*encoded, *held), device=model.device, threads=models.pin(params.threads))
    facts["exact"] = not work.halved
    with tempfile.TemporaryDirectory(prefix="tape-train-", dir=work.out.parent) as scratch:
        watch = Watch(work, facts, every=params.checkpoint_steps, patience=params.patience)
        watch.learnt = set(map(id, encoded))
        start = watch.take_up(Path(scratch))
        params = params.model_copy(update={"threads": models.pin(watch.facts["threads"])})
        try:
            trainer = _trainer(module, model, params, (encoded, held), watch, Path(scratch))
            trainer.train(resume_from_checkpoint=start)
            if held and not watch.stopped and watch.validated_at != trainer.state.global_step:
                trainer.evaluate()
            chosen = _choose(trainer, params, watch, Path(scratch))
        finally:
            watch.close()
    tail = watch.losses[-max(1, len(watch.losses) // 10) :]
    result = TrainResult(
        out=work.out,
        steps=trainer.state.global_step,
        epochs=round(float(trainer.state.epoch or 0), 4),
        first_loss=watch.losses[0] if watch.losses else math.nan,
        loss=sum(tail) / len(tail) if tail else math.nan,
        valid_loss=watch.valid_loss if chosen is None else watch.best[0],
        rows=len(encoded),
        cut=sum(row.cut for row in encoded),
        tokens=watch.tokens,
        trainable=trainable,
        parameters=sum(tensor.numel() for tensor in module.parameters()),
        seconds=round(time.monotonic() - began, 2),
        base=origin,
        stopped=watch.stopped,
        best_step=chosen,
        resumed=watch.start,
        exact=watch.facts["exact"],
    )
    if not watch.stopped:
        _save(module, model, params, result, origin)
    return result


def _choose(trainer: Any, params: TrainParams, watch: Watch, scratch: Path) -> int | None:
    """Put the weights of the best validation back, where the request asks for the best; return their step."""
    if params.patience is None or watch.validated_at is None or watch.stopped:
        return None
    step = watch.best[1]
    if step != trainer.state.global_step:
        keeper = watch.work.checkpoints
        if keeper is None or keeper.at(step, scratch / "best") is None:
            return None
        trainer._load_from_checkpoint(str(scratch / "best" / str(step)))
    return step


def _prepare(model: models.Model, params: TrainParams) -> Any:
    from transformers import set_seed

    set_seed(params.seed)
    model.module.config.use_cache = False
    if params.method == "full":
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


def _trainer(
    module: Any,
    model: models.Model,
    params: TrainParams,
    rows: tuple[list[Encoded], list[Encoded]],
    watch: Watch,
    scratch: Path,
) -> Any:
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    encoded, held = rows
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=params.steps or -1,
        num_train_epochs=params.epochs,
        per_device_train_batch_size=params.batch_size,
        per_device_eval_batch_size=params.batch_size,
        gradient_accumulation_steps=params.accumulation,
        learning_rate=params.lr,
        lr_scheduler_type=params.schedule if params.schedule != "constant" else "constant_with_warmup",
        warmup_steps=params.warmup,
        weight_decay=params.weight_decay,
        max_grad_norm=params.clip,
        seed=params.seed,
        data_seed=params.seed,
        use_cpu=model.device == "cpu",
        bf16=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="steps" if held and params.validation_steps else "no",
        eval_steps=params.validation_steps,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=model.device != "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
    )
    trainer = Trainer(
        model=module,
        args=arguments,
        train_dataset=encoded,
        eval_dataset=held or None,
        data_collator=Collate(model.tokenizer.pad_token_id, watch),
    )
    # without a progress bar the Trainer prints every log to stdout, and an environment variable may add reporters
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback(watch))
    return trainer


def _save(module: Any, model: models.Model, params: TrainParams, result: TrainResult, origin: str) -> None:
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
    config = {"params": params.model_dump(mode="json"), "result": facts, "versions": resume.versions()}
    (out / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    models.seal(out, base=origin, base_name=model.path.name, method=params.method)


def _tidy(path: Path, base: str) -> None:
    """Write the adapter's config anew: the base by name and not by path, the layers sorted and not in a set's order."""
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def _silent(record: dict[str, Any]) -> None: ...


def _never() -> bool:
    return False
