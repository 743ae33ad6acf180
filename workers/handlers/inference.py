"""Inference: one prompt, one chat, or every row of a JSONL file through one model."""

from __future__ import annotations

import json

from schemas.job import Inference
from schemas.outcome import Succeeded, Usage, Verdict
from workers.context import Context
from workers.handlers.models import model_for, probe
from workers.kinds import kind
from workers.lineage import pinned
from workers.refs import MODELS, recipe_for, resolve


@kind("inference", params=Inference, max_attempts=3, needs=(MODELS,), probe=probe)
def inference(context: Context, params: Inference) -> Verdict:
    """Generate. A single answer is in the result; those of a file are an artifact, one line a row, in its order."""
    from schemas.row import Prompt
    from wire.rows import load
    from workers.llm.draw import Sampling
    from workers.llm.generate import generate

    fixed = pinned(params, context)
    ids: list[str] = []
    prompts: list[Prompt] = []
    if fixed.data is not None:
        path = resolve(fixed.data, context, field="data")
        rows = load(path, recipe=recipe_for(fixed.data, fixed.recipe), need="prompt", limit=params.limit)
        ids, prompts = [row.id for row in rows], [row.prompt for row in rows]
    elif params.messages is not None:
        prompts = [tuple({"role": turn.role, "content": turn.content} for turn in params.messages)]
    else:
        prompts = [params.prompt or ""]
    model = model_for(context, fixed.model, fixed.adapter, params.threads)
    sampling = Sampling(
        max_new_tokens=params.max_new_tokens, temperature=params.temperature, top_p=params.top_p, seed=params.seed,
        stop=tuple(params.stop),
    )  # fmt: skip
    replies = generate(
        model, prompts, sampling, batch_size=params.batch_size,
        progress=lambda told: context.progress(step="generate", **told), should_stop=lambda: context.cancelled,
    )  # fmt: skip
    usage = Usage(
        prompt_tokens=sum(reply.prompt_tokens for reply in replies),
        completion_tokens=sum(reply.completion_tokens for reply in replies),
    )
    if params.data is None:
        (reply,) = replies
        return Succeeded(result={"text": reply.text, "finish_reason": reply.finish_reason}, usage=usage)
    folder = context.scratch / "predictions"
    folder.mkdir()
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for name, reply in zip(ids, replies, strict=True):
            line = {"id": name, "text": reply.text, "finish_reason": reply.finish_reason,
                    "prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}  # fmt: skip
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    artifact = context.keep("predictions", folder, model=params.model, adapter=params.adapter, data=params.data)
    return Succeeded(result={"rows": len(replies)}, artifacts=[artifact], usage=usage)
