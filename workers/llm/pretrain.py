"""Models from nothing: a tokenizer made from the data, a GPT-2 or a mixture of experts around it, and text in blocks.

    blank(Path("gpt2"), Architecture(), bpe(texts, size=2048, context=512), seed=0)

The same texts, architecture and seed give the same bytes, so a run that goes on elsewhere begins from the same weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from schemas.architecture import Architecture
from schemas.errors import InvalidError
from schemas.row import Row
from workers.failures import classify
from workers.llm import model as models
from workers.llm.data import IGNORED, Encoded, Tokenizer, joint, render

SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TOKENIZER = "tokenizer.json"


def texts(rows: Iterable[Row]) -> Iterator[str]:
    """Yield all that is written in the rows: what is asked, and what is answered."""
    for row in rows:
        if isinstance(row.prompt, str):
            yield row.prompt
        else:
            yield from (message["content"] for message in row.prompt)
        yield row.completion


def bpe(texts: Iterable[str], *, size: int, context: int) -> Any:
    """Make a tokenizer of at most `size` tokens: byte-level BPE (arXiv:1508.07909) in which each digit is a token.

    It can write any text, has an end token that also pads, and a chat template.
    """
    models.quiet()
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(kinds.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        additional_special_tokens=list(SPECIAL[1:]),
        model_max_length=context,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def borrow(path: Path) -> tuple[Any, str]:
    """Return the tokenizer of a model directory, and the sha256 of its `tokenizer.json`.

    Raises `InvalidError` (TAPE-1009) for a directory without that file, a tokenizer that cannot be read or asks for
    code of its own, and one without an end token: nothing would part one document from the next.
    """
    models.quiet()
    from transformers import AutoTokenizer

    if not (path / TOKENIZER).is_file():
        raise InvalidError(f"{TOKENIZER} is missing", code="TAPE-1009", field="tokenizer", file=str(path))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        known = classify(error)
        if known.code not in ("TAPE-6001", "TAPE-6014"):
            raise known from error
        told = f"the tokenizer cannot be loaded: {error}"
        raise InvalidError(told, code="TAPE-1009", field="tokenizer", file=str(path)) from error
    if tokenizer.eos_token_id is None:
        raise InvalidError(
            "the tokenizer has no end token", code="TAPE-1009", field="tokenizer", file=str(path),
            hint="name one in its tokenizer_config.json (eos_token), or leave `tokenizer` out",
        )  # fmt: skip
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, models.digest(path / TOKENIZER)


def blank(path: Path, architecture: Architecture, tokenizer: Any, *, seed: int) -> None:
    """Write a model with random weights into a directory, and its tokenizer beside it; the vocabulary is that one's."""
    models.quiet()
    from transformers import set_seed

    special = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    set_seed(seed)
    build = _gpt2 if architecture.family == "gpt2" else _moe
    build(architecture, special).save_pretrained(path)
    tokenizer.save_pretrained(path)


def _gpt2(architecture: Architecture, special: dict[str, int]) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_positions=architecture.context,
        n_embd=architecture.width,
        n_layer=architecture.layers,
        n_head=architecture.heads,
        resid_pdrop=architecture.dropout,
        embd_pdrop=architecture.dropout,
        attn_pdrop=architecture.dropout,
        **special,
    )
    return GPT2LMHeadModel(config)


def _moe(architecture: Architecture, special: dict[str, int]) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        max_position_embeddings=architecture.context,
        hidden_size=architecture.width,
        intermediate_size=2 * architecture.width,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.heads,
        attention_dropout=architecture.dropout,
        num_local_experts=architecture.experts,
        num_experts_per_tok=architecture.experts_per_token,
        router_aux_loss_coef=architecture.balance,
        tie_word_embeddings=True,
        **special,
    )
    return MixtralForCausalLM(config)


def blocks(rows: Sequence[Row], tokenizer: Tokenizer, length: int) -> list[Encoded]:
    """Lay all rows out as one stream of tokens, an end token before, between and after them, and cut it into blocks.

    A block has `length` tokens, the last what is left. It begins with the token that the one before ended with, so that
    of the stream every token but the first is a label once, and none is cut off. A row with a prompt is a document of
    both.
    """
    assert tokenizer.eos_token_id is not None
    stream = [tokenizer.eos_token_id]
    for row in rows:
        document = render(row.prompt, tokenizer) + joint(row.prompt, row.completion, tokenizer)
        stream += [*tokenizer.encode(document, add_special_tokens=False), tokenizer.eos_token_id]
    starts = range(0, len(stream) - 1, length - 1)
    parts = (stream[at : at + length] for at in starts)
    return [Encoded(part, [IGNORED, *part[1:]], cut=False) for part in parts]


def digest(tokenizer: Any) -> str:
    """Give the sha256 of a tokenizer's vocabulary: two that have it in common mean the same by each number."""
    listed = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return hashlib.sha256(repr(listed).encode()).hexdigest()
