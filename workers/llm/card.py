"""The model card: what a trained model is, in the words of a person, as its `README.md`.

It tells nothing that differs where the training does not: no time, no path of a machine, no job.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.llm import model as models
from workers.llm.methods import CONFIG
from workers.llm.settings import ADAPTERS

CARD = "README.md"
_LORA = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("BASE")  # the folder of {base}
model = PeftModel.from_pretrained(base, "THIS-FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS-FOLDER")
```
"""
_HEADS = {
    "lora": "A LoRA adapter for `{base}`",
    "full": "A causal language model, fine-tuned from `{base}`",
    "pretrain": "A causal language model, trained from `{base}`",
    "distill": "A causal language model, distilled from `{teacher}` into `{base}`",
}
_FULL = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS-FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS-FOLDER")
```
"""


def write(
    folder: Path, *, base: str, data: dict[str, tuple[str, str]], warnings: Mapping[str, int] | None = None
) -> None:
    """Write the card into the folder that a training left, and seal that anew.

    `base` is what the base is called; `data` what else it was made of, and its sha256: the rows of each use (training,
    validation), a teacher, a tokenizer; `warnings` what was told of the rows and let pass, with its count.
    """
    config = json.loads((folder / CONFIG).read_text())
    (folder / CARD).write_text(text(config, base=base, data=data, warnings=warnings or {}), encoding="utf-8")
    about = json.loads((folder / models.MANIFEST).read_text())
    models.seal(folder, **{key: value for key, value in about.items() if key != "files"})


def text(config: dict[str, Any], *, base: str, data: dict[str, tuple[str, str]], warnings: Mapping[str, int]) -> str:
    """Return the card of a training whose `train.json` holds `config`."""
    params, result = config["params"], config["result"]
    lora = params["method"] in ADAPTERS
    what = _HEADS.get(params["method"], _HEADS["full"]).format(base=base, teacher=data.get("teacher", ("",))[0])
    sources = [("base", base, result["base"]), *((use, *found) for use, found in data.items())]
    measured = {key: value for key, value in result.items() if key != "base" and value is not None}
    said = {key: value for key, value in params.items() if value is not False and value not in (None, [], ())}
    asked = {key: value for key, value in said.items() if _concerns(key, lora)}
    return "\n".join([
        "---",
        f"library_name: {'peft' if lora else 'transformers'}",
        "pipeline_tag: text-generation",
        "---",
        f"# {what}",
        "",
        f"Made by Tickertape: {result['steps']} steps over {result['rows']} rows, loss {result['loss']:.4g}.",
        "",
        "## Made of",
        "| what | which | sha256 |",
        "|---|---|---|",
        *(f"| {use} | `{which}` | `{sha256}` |" for use, which, sha256 in sources),
        "",
        "The base's is over its weights' names and hashes.",
        "",
        *(["## What was told of the rows", *_table(dict(warnings)), ""]
          if warnings else []),
        "## Settings",
        *_table(_flat(asked)),
        "",
        "## What it came to",
        *_table(measured),
        "",
        "Losses are means in nats per learnt token.",
        "",
        "## Load it",
        (_LORA if lora else _FULL).format(base=base),
        "Every file but `manifest.json` is listed there with its sha256.",
        "",
        "## Made with",
        *_table(config["versions"]),
        "",
    ])  # fmt: skip


def _concerns(setting: str, lora: bool) -> bool:
    return lora or setting not in ("rank", "alpha", "dropout", "targets")


def _flat(rows: dict[str, Any]) -> dict[str, Any]:
    """Settings within settings, by their path."""
    inner = {f"{name}.{key}": one for name, held in rows.items() if isinstance(held, dict) for key, one in held.items()}
    return {name: value for name, value in (rows | inner).items() if not isinstance(value, dict) and value is not None}


def _table(rows: dict[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {key} | {_plain(value)} |" for key, value in sorted(rows.items()))]


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
