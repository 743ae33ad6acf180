"""Training: validated rows in, an adapter (or a model) out, as an artifact with its lineage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import TapeError
from schemas.job import Training
from schemas.lineage import SCRATCH, label
from schemas.outcome import Cancelled, Succeeded, Usage, Verdict
from wire.blobs.manifest import digest_of
from workers.context import Context
from workers.handlers.models import probe
from workers.kinds import kind
from workers.lineage import pinned, register
from workers.refs import MODELS, recipe_for, resolve
from workers.report import Reports
from workers.tokens import Tokens
from workers.vet import vet

if TYPE_CHECKING:
    from schemas.row import Row
    from workers.llm.settings import TrainResult

FIELDS = {"targets": "lora.targets"}
"""What the training's own settings are called in a request, where that differs and an error may be about them."""


@kind("training", params=Training, max_attempts=3, needs=(MODELS,), probe=probe)
def training(context: Context, params: Training) -> Verdict:
    """Train on the rows; the artifact holds safetensors, tokenizer, metrics, settings and a model card.

    With `publish_as` it is registered as a version of that model, and the result says which (`workers.lineage`).
    Checkpoints go to the store meanwhile: whoever takes the job up after a death, a drain or a failure goes on from the
    last, and an attempt that kept one is not spent.
    """
    from workers.llm import card, train
    from workers.llm.settings import ADAPTERS
    from workers.llm.tokens import Shelved

    reports = Reports(context, params)
    fixed = pinned(params, context)
    rows, valid, hashes = _rows(fixed, context)
    warnings = vet(context, fixed, rows, valid, same=hashes["data"] == hashes.get("validation"))
    base = resolve(fixed.base, context, field="base") if fixed.base else built(fixed, rows, context, hashes)
    teacher = resolve(fixed.teacher, context, field="teacher") if fixed.teacher else None
    context.check()
    context.progress(step="train", rows=len(rows), validation_rows=len(valid))
    out = context.scratch / "model"
    shelf = Tokens(lambda: context.store, context.cache)

    def told(record: dict[str, Any]) -> None:
        context.progress(**record, **(context.spent() if "eta_s" in record else {}))
        reports.seen(record)

    with _named(), context.checkpoints() as kept:
        done = train.train(
            settings(params, teacher), base=base, rows=Shelved(rows, shelf), valid=Shelved(valid, shelf), out=out,
            checkpoints=kept, progress=told, should_stop=lambda: context.cancelled,
        )  # fmt: skip
    usage = Usage(training_tokens=done.tokens, training_samples=done.samples)
    if done.stopped:
        return Cancelled(usage=usage)
    context.check()
    hashes |= {"teacher": done.teacher} if done.teacher else {}
    origin = fixed.base or f"{SCRATCH}{fixed.architecture and fixed.architecture.family}"
    made_of = {use: (label(getattr(fixed, use)), found) for use, found in hashes.items()}
    card.write(out, base=label(origin), data=made_of, warnings=warnings)
    result = _facts(fixed, origin, done, hashes) | ({"warnings": warnings} if warnings else {})
    more = reports.write(out / "metrics.jsonl", result)
    name = "adapter" if params.method in ADAPTERS else "model"
    context.progress(phase="publish")
    artifact = context.keep(name, out, **result, request=params.model_dump(mode="json"))
    if params.publish_as:
        result["model"] = register(context, params, fixed, out=out, artifact=artifact, result=result)
    return Succeeded(result=result, artifacts=[artifact, *more], usage=usage)


@contextmanager
def _named() -> Iterator[None]:
    """Name a field as the request does, and not as the training, which knows none."""
    try:
        yield
    except TapeError as error:
        if (field := error.place.get("field")) in FIELDS:
            error.place["field"] = FIELDS[field]
        raise


def _rows(fixed: Training, context: Context) -> tuple[list[Row], list[Row], dict[str, str]]:
    """Return the rows to learn and to validate on, and the sha256 of the files they were in."""
    from wire.rows import load

    path = resolve(fixed.data, context, field="data")
    rows = load(path, recipe=recipe_for(fixed.data, fixed.recipe), limit=fixed.limit)
    hashes = {"data": digest_of(path)[0]}
    if not fixed.validation:
        return rows, [], hashes
    held = resolve(fixed.validation, context, field="validation")
    hashes["validation"] = digest_of(held)[0]
    return rows, load(held, recipe=recipe_for(fixed.validation, fixed.recipe)), hashes


def _facts(fixed: Training, origin: str, done: TrainResult, hashes: dict[str, str]) -> dict[str, Any]:
    return {
        "base": origin, "base_sha256": done.base, "data": fixed.data, "validation": fixed.validation,
        "method": fixed.method,
        "rows": done.rows, "rows_cut": done.cut, "steps": done.steps, "first_loss": done.first_loss, "loss": done.loss,
        "validation_loss": done.valid_loss, "trainable": done.trainable, "parameters": done.parameters,
        "seconds": done.seconds, "best_step": done.best_step, "resumed_from": done.resumed, "exact": done.exact,
        "precision": done.precision, "packs": done.packs,
        **{f"{use}_sha256": found for use, found in hashes.items()},
        **{use: getattr(fixed, use) for use in ("teacher", "tokenizer") if use in hashes},
        **({"blocks": done.blocks} if done.blocks else {}),
    }  # fmt: skip


def built(params: Training, rows: Sequence[Row], context: Context, hashes: dict[str, str]) -> Path:
    """Build what `pretrain` begins with: random weights by the seed, and a tokenizer, borrowed or made from the rows.

    A borrowed one's hash goes into `hashes`. It is built anew by each attempt, the same each time.
    """
    from workers.llm import pretrain

    shape = params.architecture
    assert shape is not None
    path = context.scratch / f"{shape.family}-from-scratch"
    context.progress(step="build", family=shape.family)
    if params.tokenizer:
        tokenizer, hashes["tokenizer"] = pretrain.borrow(resolve(params.tokenizer, context, field="tokenizer"))
    else:
        tokenizer = pretrain.bpe(pretrain.texts(rows), size=shape.vocabulary, context=shape.context)
    pretrain.blank(path, shape, tokenizer, seed=params.seed)
    return path


def settings(params: Training, teacher: Path | None = None):  # type: ignore[no-untyped-def]  # it lives beside torch
    """Return the request's settings as `workers.llm.train` takes them; `teacher` is the folder of one."""
    from workers.llm.settings import TrainParams

    return TrainParams(
        method=params.method, steps=params.steps, epochs=params.epochs, batch_size=params.batch_size,
        accumulation=params.accumulation, lr=params.learning_rate, schedule=params.schedule, warmup=params.warmup,
        weight_decay=params.weight_decay, max_length=params.max_length, rank=params.lora.rank, alpha=params.lora.alpha,
        dropout=params.lora.dropout, targets=tuple(params.lora.targets or ()), seed=params.seed, threads=params.threads,
        devices=params.devices, sharding=params.sharding,
        rslora=params.lora.rslora, dora=params.lora.dora, packing=params.packing, precision=params.precision,
        gradient_checkpointing=params.gradient_checkpointing,
        checkpoint_steps=params.checkpoint_steps, validation_steps=params.validation_steps, patience=params.patience,
        architecture=params.architecture, temperature=params.temperature, teacher_share=params.teacher_share,
        teacher=teacher,
    )  # fmt: skip
