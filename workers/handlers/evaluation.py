"""Evaluation: a model, or an adapter beside its base, measured on the same held-out rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from schemas.job import Evaluation
from schemas.outcome import Succeeded, Usage, Verdict
from workers.context import Context
from workers.handlers.models import model_for, probe
from workers.kinds import kind
from workers.lineage import pinned
from workers.refs import MODELS, recipe_for, resolve

if TYPE_CHECKING:
    from schemas.row import Row
    from workers.llm.score import Item


@kind("evaluation", params=Evaluation, max_attempts=3, needs=(MODELS,), probe=probe)
def evaluation(context: Context, params: Evaluation) -> Verdict:
    """Measure. The result holds the numbers with their counts; the artifact holds every item."""
    from wire.rows import load
    from workers.llm import score

    fixed = pinned(params, context)
    path = resolve(fixed.data, context, field="data")
    rows = load(path, recipe=recipe_for(fixed.data, fixed.recipe), limit=fixed.limit)
    names: dict[str, str | None] = {"model": None}
    if fixed.adapter:
        names = {"base": None, "adapter": fixed.adapter} if fixed.baseline else {"adapter": fixed.adapter}
    result: dict[str, Any] = {"n": len(rows)}
    answered: dict[str, list[Item]] = {}
    folder = context.scratch / "evaluation"
    folder.mkdir()
    tokens = 0
    for name, adapter in names.items():
        context.check()
        numbers, answers, spent = _measure(context, fixed, rows, name, adapter)
        result[name] = numbers
        tokens += spent
        if answers:
            answered[name] = answers
            with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in answers)
    if len(answered) == 2:
        result["comparison"] = asdict(score.compare(answered["base"], answered["adapter"]))
    (folder / "report.json").write_text(json.dumps(result, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    artifact = context.keep("evaluation", folder, model=params.model, adapter=params.adapter, data=params.data)
    return Succeeded(result=result, artifacts=[artifact], usage=Usage(prompt_tokens=tokens))


def _measure(
    context: Context, params: Evaluation, rows: Sequence[Row], name: str, adapter: str | None
) -> tuple[dict[str, Any], list[Item], int]:
    """Return one model's numbers, its answers item by item, and the prompt tokens they took."""
    from workers.llm import score
    from workers.llm.draw import Sampling
    from workers.llm.generate import choices, generate

    model = model_for(context, params.model, adapter, params.threads)
    numbers: dict[str, Any] = {}
    answers: list[Item] = []
    tokens = 0

    def told(step: str) -> Any:
        return lambda data: context.progress(step=f"{name} {step}", **data)

    if "perplexity" in params.metrics:
        found = score.perplexity(
            model, rows, max_length=params.max_length, batch_size=params.batch_size, progress=told("perplexity"),
            should_stop=lambda: context.cancelled,
        )  # fmt: skip
        numbers["perplexity"] = {"value": found.perplexity, "tokens": found.tokens, "rows": found.rows}
    prompts = [row.prompt for row in rows]
    if "exact_match" in params.metrics:
        replies = generate(
            model, prompts, Sampling(max_new_tokens=params.max_new_tokens, stop=("\n",)), batch_size=params.batch_size,
            progress=told("answers"), should_stop=lambda: context.cancelled,
        )  # fmt: skip
        answers = score.items(rows, [reply.text for reply in replies])
        numbers["exact_match"] = asdict(score.exact_match(answers))
        tokens += sum(reply.prompt_tokens for reply in replies)
    if "accuracy" in params.metrics and params.labels:
        chosen = choices(
            model, prompts, params.labels, batch_size=params.batch_size, progress=told("choices"),
            should_stop=lambda: context.cancelled,
        )  # fmt: skip
        answers = score.items(rows, [choice.label for choice in chosen])
        numbers["accuracy"] = asdict(score.report(answers))
        tokens += sum(choice.prompt_tokens for choice in chosen)
    return numbers, answers, tokens
