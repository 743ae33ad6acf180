"""Training: validated rows in, an adapter (or a model) out, as an artifact with its lineage."""

from __future__ import annotations

from schemas.job import Training
from schemas.lineage import label
from schemas.outcome import Cancelled, Succeeded, Usage, Verdict
from wire.blobs.manifest import digest_of
from workers.context import Context
from workers.handlers.models import probe
from workers.kinds import kind
from workers.lineage import pinned, register
from workers.refs import MODELS, recipe_for, resolve
from workers.tokens import Tokens


@kind("training", params=Training, max_attempts=3, needs=(MODELS,), probe=probe)
def training(context: Context, params: Training) -> Verdict:
    """Fine-tune the base on the rows; the artifact holds safetensors, tokenizer, metrics, settings and a model card.

    With `publish_as` it is registered as a version of that model, and the result says which (`workers.lineage`).
    Checkpoints go to the store meanwhile: whoever takes the job up after a death, a drain or a failure goes on from the
    last, and an attempt that kept one is not spent.
    """
    from wire.rows import load
    from workers.llm import card, train
    from workers.llm.settings import ADAPTERS
    from workers.llm.tokens import Shelved

    fixed = pinned(params, context)
    path = resolve(fixed.data, context, field="data")
    rows = load(path, recipe=recipe_for(fixed.data, params.recipe), limit=params.limit)
    hashes = {"data": digest_of(path)[0]}
    valid = []
    if fixed.validation:
        held = resolve(fixed.validation, context, field="validation")
        valid = load(held, recipe=recipe_for(fixed.validation, params.recipe))
        hashes["validation"] = digest_of(held)[0]
    base = resolve(fixed.base, context, field="base")
    context.check()
    context.progress(step="train", rows=len(rows), validation_rows=len(valid))
    out = context.scratch / "model"
    shelf = Tokens(lambda: context.store, context.cache)
    with context.checkpoints() as kept:
        done = train.train(
            settings(params), base=base, rows=Shelved(rows, shelf), valid=Shelved(valid, shelf), out=out,
            checkpoints=kept, progress=lambda told: context.progress(**told),
            should_stop=lambda: context.cancelled,
        )  # fmt: skip
    if done.stopped:
        return Cancelled()
    context.check()
    card.write(
        out, base=label(fixed.base), data={use: (label(getattr(fixed, use)), found) for use, found in hashes.items()}
    )
    result = {
        "base": fixed.base, "base_sha256": done.base, "data": fixed.data, "validation": fixed.validation,
        "method": params.method,
        "rows": done.rows, "rows_cut": done.cut, "steps": done.steps, "first_loss": done.first_loss, "loss": done.loss,
        "validation_loss": done.valid_loss, "trainable": done.trainable, "parameters": done.parameters,
        "seconds": done.seconds, "best_step": done.best_step, "resumed_from": done.resumed, "exact": done.exact,
        "precision": done.precision, "packs": done.packs,
        **{f"{use}_sha256": found for use, found in hashes.items()},
    }  # fmt: skip
    name = "adapter" if params.method in ADAPTERS else "model"
    context.progress(phase="publish")
    artifact = context.keep(name, out, **result, request=params.model_dump(mode="json"))
    if params.publish_as:
        result["model"] = register(context, params, fixed, out=out, artifact=artifact, result=result)
    return Succeeded(result=result, artifacts=[artifact], usage=Usage(training_tokens=done.tokens))


def settings(params: Training):  # type: ignore[no-untyped-def]  # the type lives beside torch
    """Return the request's settings as `workers.llm.train` takes them."""
    from workers.llm.settings import TrainParams

    return TrainParams(
        method=params.method, steps=params.steps, epochs=params.epochs, batch_size=params.batch_size,
        accumulation=params.accumulation, lr=params.learning_rate, schedule=params.schedule, warmup=params.warmup,
        weight_decay=params.weight_decay, max_length=params.max_length, rank=params.lora.rank, alpha=params.lora.alpha,
        dropout=params.lora.dropout, targets=tuple(params.lora.targets or ()), seed=params.seed, threads=params.threads,
        rslora=params.lora.rslora, dora=params.lora.dora, packing=params.packing, precision=params.precision,
        gradient_checkpointing=params.gradient_checkpointing,
        checkpoint_steps=params.checkpoint_steps, validation_steps=params.validation_steps, patience=params.patience,
    )  # fmt: skip
