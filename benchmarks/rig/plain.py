"""The peer of `benchmarks/training.py`: a training as anybody would write it with transformers and peft, and no queue.

It is given JSON on its command line and prints JSON: seconds from the end of the first step to the end of the last, the
number of steps between, and the largest resident memory.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, set_seed

from wire.rows import load
from workers.llm import data

IGNORED = -100


class Watch(TrainerCallback):  # type: ignore[misc]
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step ended."""
        self.ends.append(time.monotonic())


def collate(rows: list[Any], pad: int) -> dict[str, torch.Tensor]:
    """Pad a batch on the right."""
    widest = max(len(row.input_ids) for row in rows)

    def padded(values: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([[*value, *[filler] * (widest - len(value))] for value in values])

    return {
        "input_ids": padded([row.input_ids for row in rows], pad),
        "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
        "labels": padded([row.labels for row in rows], IGNORED),
    }


def main() -> None:
    """Train and tell."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(given["base"])
    module = AutoModelForCausalLM.from_pretrained(given["base"], dtype=torch.float32)
    module.config.use_cache = False
    # The rows are read and encoded as the job does it, so that both train on the same tokens.
    rows = [data.encode(row, tokenizer, given["max_length"]) for row in load(Path(given["data"]))]
    targets = given["targets"]
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out="c_attn" in targets
    )
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=given["steps"], per_device_train_batch_size=given["batch_size"],
            learning_rate=1e-3, lr_scheduler_type="cosine", warmup_steps=0.05, use_cpu=True, logging_steps=1,
            save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
            remove_unused_columns=False, seed=0,
        )  # fmt: skip
        trainer = Trainer(
            model=get_peft_model(module, config), args=arguments, train_dataset=rows, callbacks=[watch],
            data_collator=lambda batch: collate(batch, tokenizer.pad_token_id or tokenizer.eos_token_id),
        )  # fmt: skip
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = {"seconds": watch.ends[-1] - watch.ends[0], "steps": len(watch.ends) - 1, "peak": peak}
    sys.stdout.write("\n" + json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
