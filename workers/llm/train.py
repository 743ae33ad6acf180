"""Fine-tune a model directory on rows: full, or LoRA; one recipe from parameters to files.

    train(TrainParams(steps=60), base=Path("model"), rows=rows, out=Path("adapter"))

What is left in `out`: safetensors, tokenizer, `metrics.jsonl`, `train.json`, and `manifest.json` last. No pickle, no
optimizer, nothing reported to anybody. With `checkpoints` a run that was killed goes on where it was (`resume`).
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from schemas.errors import InvalidError
from schemas.row import Row
from workers.failures import classify
from workers.llm import launch, resume
from workers.llm import model as models
from workers.llm.data import Encoded
from workers.llm.methods import computed, load, objective, prepare, save, sizes
from workers.llm.objective import Objective, trainer
from workers.llm.pack import Packs, isolated
from workers.llm.pretrain import blocks
from workers.llm.settings import TrainParams, TrainResult
from workers.llm.shard import sharded
from workers.llm.tokens import Shelved, Tokens, encoded
from workers.llm.watch import Collate, Progress, Watch, Work, callback


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

    `progress` gets a dict a step: step, steps, epoch, loss, lr, grad_norm, tokens, samples,
    tokens_per_s, eta_s. Once `should_stop`
    says so, training ends after the step with a last checkpoint, `stopped` is set and `out` holds no weights.
    With `patience` the weights of the best validation are taken, if `checkpoints` are kept.
    Where memory runs out, half as many rows are taken at a time and twice as many times, which `progress` hears of.
    Raises `InvalidError` for bad rows, base or targets, `JobError` TAPE-6009 on a loss that is not finite, TAPE-6003
    where memory runs out with a single row.
    """
    if not rows:
        raise InvalidError("there are no rows to train on", code="TAPE-1008", hint="give at least one row")
    if params.devices > 1:
        launch.check(params)
    work = Work(base, rows, valid, out, progress or _silent, should_stop or _never, checkpoints)
    while True:
        try:
            return once(params, work) if params.devices == 1 else launch.launch(params, work)
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
    sizes = range(params.batch_size // 2, 0, -1)
    fewer = [size for size in sizes if together % size == 0 and size % params.devices == 0]
    return params.model_copy(update={"batch_size": fewer[0], "accumulation": together // fewer[0]}) if fewer else None


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def once(params: TrainParams, work: Work) -> TrainResult:
    """Train in this process, alone or as one of a team; raises whatever goes wrong as it is."""
    began = time.monotonic()
    origin = models.fingerprint(work.base)
    model = load(params, work.base)
    length = min(params.max_length, model.context)
    rows, held = _tokens(params, work, model, length)
    module = prepare(model, params)
    goal = objective(model, params)
    learnt = _packed(rows, module, model, length) if isinstance(rows, Tokens) and params.packing else rows
    trainable, parameters = sizes(module)
    work.out.mkdir(parents=True, exist_ok=True)
    facts = resume.facts(params, origin, chain(rows, held), device=model.device, threads=models.pin(params.threads))
    facts |= {"exact": not work.halved, "teacher": params.teacher and models.fingerprint(params.teacher)}
    with _scratch(work) as scratch:
        watch = Watch(work, facts, every=params.checkpoint_steps, patience=params.patience)
        watch.more = goal.take if goal else dict
        start = watch.take_up(Path(scratch))
        params = params.model_copy(update={"threads": models.pin(watch.facts["threads"], exactly=True)})
        try:
            learner = _trainer(module, model, params, (learnt, held), (watch, goal), Path(scratch))
            learner.train(resume_from_checkpoint=start)
            if held and not watch.stopped and watch.validated_at != learner.state.global_step:
                learner.evaluate()
            chosen = _choose(learner, params, watch, Path(scratch))
            kept = (learner.weights(), learner.best) if not watch.stopped else (None, None)
        finally:
            watch.close()
    tail = watch.losses[-max(1, len(watch.losses) // 10) :]
    result = TrainResult(
        out=work.out,
        steps=learner.state.global_step,
        epochs=round(float(learner.state.epoch or 0), 4),
        first_loss=watch.losses[0] if watch.losses else math.nan,
        loss=sum(tail) / len(tail) if tail else math.nan,
        valid_loss=watch.valid_loss if chosen is None else watch.best[0],
        rows=len(work.rows),
        cut=rows.cut if isinstance(rows, Tokens) else 0,
        tokens=watch.tokens,
        trainable=trainable,
        parameters=parameters,
        seconds=round(time.monotonic() - began, 2),
        base=origin,
        stopped=watch.stopped,
        best_step=chosen,
        resumed=watch.start,
        exact=watch.facts["exact"],
        samples=watch.samples,
        teacher=facts["teacher"],
        blocks=len(rows) if params.method == "pretrain" else None,
        precision=computed(params),
        packs=len(learnt) if params.packing else None,
    )
    if not watch.stopped and work.team.first:
        save(module, model, params, result, origin, kept)
    return result


Rows = Tokens | list[Encoded]


def _tokens(params: TrainParams, work: Work, model: models.Model, length: int) -> tuple[Rows, Rows]:
    """Return the rows to learn and those to validate on as tokens; tell how they were come by, where they are kept."""
    if params.method == "pretrain":
        valid = blocks(work.valid, model.tokenizer, length) if work.valid else []
        return blocks(work.rows, model.tokenizer, length), [replace(one, held=True) for one in valid]
    began = time.monotonic()
    found = encoded(work.rows, model, length), encoded(work.valid, model, length, held=True)
    if isinstance(work.rows, Shelved):
        cached = all(one.found for one in found if len(one))
        seconds = round(time.monotonic() - began, 3)
        work.progress({"tokenised": "cached" if cached else "made", "tokenised_s": seconds})
    return found


def _packed(rows: Tokens, module: Any, model: models.Model, length: int) -> Packs:
    isolated(module, len(model.tokenizer))
    return Packs(rows, rows.sizes, length)


@contextmanager
def _scratch(work: Work) -> Iterator[str]:
    """Give a folder for checkpoints on their way: one for the whole team."""
    if work.scratch is not None:
        yield str(work.scratch)
        return
    with tempfile.TemporaryDirectory(prefix="tape-train-", dir=work.out.parent) as made:
        yield made


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


def _trainer(
    module: Any,
    model: models.Model,
    params: TrainParams,
    rows: tuple[Rows | Packs, Rows],
    follower: tuple[Watch, Objective | None],
    scratch: Path,
) -> Any:
    from transformers import TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    learnt, held = rows
    watch, goal = follower
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=params.steps or -1,
        num_train_epochs=params.epochs,
        per_device_train_batch_size=params.batch_size // params.devices,
        per_device_eval_batch_size=params.batch_size // params.devices,
        gradient_accumulation_steps=params.accumulation,
        learning_rate=params.lr,
        lr_scheduler_type=params.schedule if params.schedule != "constant" else "constant_with_warmup",
        warmup_steps=params.warmup,
        weight_decay=params.weight_decay,
        max_grad_norm=params.clip,
        seed=params.seed,
        data_seed=params.seed,
        use_cpu=model.device == "cpu",
        ddp_backend="gloo" if params.devices > 1 and model.device == "cpu" else None,
        ddp_find_unused_parameters=False if params.devices > 1 else None,
        bf16=computed(params) == "bfloat16",
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
    kind = sharded(trainer(goal)) if params.sharding == "full" else trainer(goal)
    made = kind(
        model=module,
        args=arguments,
        train_dataset=learnt,
        eval_dataset=held or None,
        data_collator=Collate(model.tokenizer.pad_token_id, watch),
    )
    # without a progress bar the Trainer prints every log to stdout, and an environment variable may add reporters
    made.remove_callback(PrinterCallback)
    made.add_callback(callback(watch))
    return made


def _silent(record: dict[str, Any]) -> None: ...


def _never() -> bool:
    return False
