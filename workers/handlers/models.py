"""Models kept warm between the jobs of one slot process."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from workers.context import Context
from workers.lineage import parts
from workers.refs import resolve

if TYPE_CHECKING:
    from workers.llm.model import Model

KEPT = 2
_warm: OrderedDict[tuple[Path, Path | None, int | None], Model] = OrderedDict()


def probe() -> None:
    """Use the accelerator a little; raises what it meets."""
    from workers.llm.model import probe

    probe()


def model_for(context: Context, model: str, adapter: str | None, threads: int | None) -> Model:
    """Return a loaded model, warm from an earlier job of this process where it can be; the last two are kept.

    A registered adapter may be given as the model: it is loaded on the base that it was made of.
    """
    from workers.llm.model import load

    model, adapter = parts(model, adapter, context)
    base = resolve(model, context, field="model")
    tuned = resolve(adapter, context, field="adapter") if adapter else None
    key = (base, tuned, threads)
    if key in _warm:
        _warm.move_to_end(key)
        return _warm[key]
    while len(_warm) >= KEPT:
        _warm.popitem(last=False)
    context.progress(step="load", model=model, adapter=adapter)
    _warm[key] = load(base, adapter=tuned, threads=threads)
    return _warm[key]
