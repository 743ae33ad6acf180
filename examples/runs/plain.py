"""The run `base` without Tickertape: a plain script on transformers, beside which the job's result is laid.

    python -m examples.runs.plain train TOKENIZER TRAIN OUT --seed 0 --steps 400 …
    python -m examples.runs.plain measure MODEL HELD

It shares no code with the product, so that a mistake there is not made here as well: the same tokenizer and the same
shape of model, its own blocks, its own loop. `measure` prints the perplexity of a held-out file for either model.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, get_scheduler


def stream(tokenizer: Any, path: Path) -> list[int]:
    """All documents as one row of tokens, an end token behind each."""
    found: list[int] = []
    for line in path.read_text("utf-8").splitlines():
        found += [*tokenizer.encode(json.loads(line)["text"], add_special_tokens=False), tokenizer.eos_token_id]
    return found


def blocks(tokens: list[int], length: int) -> torch.Tensor:
    """Blocks of `length` tokens; what is left over is dropped."""
    count = len(tokens) // length
    return torch.tensor(tokens[: count * length]).reshape(count, length)


def batches(data: torch.Tensor, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches without end, in a new order in each pass."""
    chance = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data), generator=chance)
        for at in range(0, len(order) - size + 1, size):
            yield data[order[at : at + size]]


def train(given: argparse.Namespace) -> None:
    """Train a GPT-2 from nothing and write it to `OUT`."""
    torch.manual_seed(given.seed)
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=given.context, n_embd=given.width, n_layer=given.layers,
        n_head=given.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.rate, weight_decay=0.0)
    schedule = get_scheduler("cosine", optimizer, math.ceil(0.05 * given.steps), given.steps)
    source = batches(blocks(stream(tokenizer, given.train), given.length), given.batch, given.seed)
    for _ in range(given.steps):
        batch = next(source)
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)


@torch.no_grad()
def measure(model: Path, held: Path, length: int) -> dict[str, float]:
    """Perplexity of a file: every token but the first, each block seen with the last token of the one before."""
    tokenizer, module = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).eval()
    tokens = stream(tokenizer, held)
    total, count = 0.0, 0
    for at in range(0, len(tokens) - 1, length - 1):
        block = torch.tensor([tokens[at : at + length]])
        if block.shape[1] > 1:
            total += float(module(input_ids=block, labels=block).loss) * (block.shape[1] - 1)
            count += block.shape[1] - 1
    return {"perplexity": math.exp(total / count), "nats_per_token": total / count, "tokens": count}


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    learn = commands.add_parser("train")
    for name in ("tokenizer", "train", "out"):
        learn.add_argument(name, type=Path)
    for name, value in (("seed", 0), ("steps", 400), ("batch", 16), ("length", 128), ("context", 512),
                        ("width", 128), ("layers", 4), ("heads", 4), ("threads", 2)):  # fmt: skip
        learn.add_argument(f"--{name}", type=int, default=value)
    learn.add_argument("--rate", type=float, default=3e-3)
    look = commands.add_parser("measure")
    look.add_argument("model", type=Path)
    look.add_argument("held", type=Path)
    look.add_argument("--length", type=int, default=128)
    given = parser.parse_args()
    if given.command == "train":
        torch.set_num_threads(given.threads)
        train(given)
    else:
        print(json.dumps(measure(given.model, given.held, given.length)))


if __name__ == "__main__":
    main()
