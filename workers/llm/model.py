"""Models as directories: checked, hashed, loaded from safetensors only, with an adapter on top where one is named.

Nothing is ever fetched, no code of a model directory is run, and no pickle is opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from schemas.errors import InvalidError, JobError, NotFoundError, SetupError
from workers.failures import classify
from workers.llm import quantise, weights
from workers.llm.weights import parsed

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
ADAPTER = "adapter_config.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})
CHUNK = 1 << 20
NODE = Path("/dev/nvidia0")

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(slots=True)
class Model:
    """A loaded model, ready to be asked or trained: the torch module, its tokenizer, and what it was loaded from."""

    module: Any
    tokenizer: Any
    path: Path
    adapter: Path | None
    device: str
    context: int

    @property
    def parameters(self) -> int:
        """How many parameters it has, the adapter's included."""
        return sum(tensor.numel() for tensor in self.module.parameters())


def quiet() -> None:
    """Keep the libraries offline and silent; called before any of them is imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["TQDM_DISABLE"] = "1"
    # by default OpenMP's threads spin while they wait: beside a broker on the same cores a step took 20 s and not 1.5
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from transformers.utils import logging as noise
    except ImportError as error:
        raise classify(error) from error
    noise.set_verbosity_error()
    # peft imports it where it is installed, and where a CPU has bfloat16 it misses a kernel that is not part of it
    logging.getLogger(quantise.PACKAGE).setLevel(logging.ERROR)
    noise.disable_progress_bar()


@contextmanager
def muted() -> Iterator[None]:
    """Pass over what transformers 5.23 says of the names that peft 0.21, and 5.0, have for gradient checkpointing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error of our own tells of them
        warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing(_enable)?` is deprecated", FutureWarning)
        yield


def check(path: Path, *, adapter: bool = False) -> dict[str, str]:
    """Verify that a directory is a safe model (or adapter) and unchanged; give the sha256 of its weight files.

    Refuses pickles, code of the directory's own, and weights that are not safetensors right in the directory, which an
    index may name (`InvalidError`, TAPE-1009): what is hashed is what is loaded.
    Where a `manifest.json` lies beside them every file it lists must have its hash (`JobError`, TAPE-6007).
    """
    if not path.is_dir():
        raise NotFoundError("there is no such model directory", code="TAPE-2003", file=str(path))
    names = sorted(member.name for member in path.iterdir() if member.is_file())
    for name in names:
        if Path(name).suffix.lower() in PICKLES:
            raise InvalidError(
                f"{name} may hold a pickle, which runs code when it is opened",
                code="TAPE-1009",
                file=str(path),
                hint="remove it, or convert the weights to safetensors",
            )
    wanted = ADAPTER if adapter else "config.json"
    if wanted not in names:
        raise InvalidError(f"{wanted} is missing", code="TAPE-1009", file=str(path))
    for name in ("config.json", "tokenizer_config.json"):
        if name in names and "auto_map" in parsed(path / name):
            raise InvalidError(
                f"{name} asks for code of its own (auto_map), which is never run", code="TAPE-1009", file=str(path)
            )
    there = [name for name in names if name.endswith(".safetensors")]
    if not there:
        raise InvalidError("there are no safetensors weights", code="TAPE-1009", file=str(path))
    if not adapter:
        weights.plain(path, names)
    chosen = weights.loaded(path, adapter=adapter)
    hashes = verify(path)
    found = {name: hashes.get(name) or digest(path / name) for name in there}
    if not adapter and weights.WHOLE not in there and set(chosen) != set(there):
        # the index chooses among the files: which it does is part of what the weights are
        found[weights.INDEX] = hashlib.sha256(json.dumps(chosen).encode()).hexdigest()
    return found


def digest(path: Path) -> str:
    """Give the sha256 of a file, in hex."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total.update(chunk)
    return total.hexdigest()


def fingerprint(path: Path) -> str:
    """Give one sha256 for the weights of a model directory, by name and content; raises what `check` raises."""
    hashes = check(path, adapter=(path / ADAPTER).is_file())
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def seal(path: Path, **about: Any) -> dict[str, Any]:
    """Write the manifest of a finished directory, last of all: every file's name, size and sha256, and `about`."""
    members = sorted(member for member in path.rglob("*") if member.is_file() and member.name != MANIFEST)
    listed = [
        {"path": member.relative_to(path).as_posix(), "size": member.stat().st_size, "sha256": digest(member)}
        for member in members
    ]
    manifest = {**about, "files": listed}
    partial = path / f".{MANIFEST}"
    partial.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    partial.replace(path / MANIFEST)
    return manifest


def verify(path: Path) -> dict[str, str]:
    """Check every file the manifest lists; give their hashes, or nothing where there is no manifest.

    Raises `JobError` (TAPE-6007) that names the file which is missing or differs.
    """
    if not (path / MANIFEST).is_file():
        return {}
    listed = parsed(path / MANIFEST).get("files")
    try:
        wanted = [(str(entry["path"]), str(entry["sha256"])) for entry in listed or ()]
    except (TypeError, KeyError):
        wanted = []
    if not wanted:
        raise InvalidError("the manifest lists no files", code="TAPE-1009", file=str(path / MANIFEST))
    hashes: dict[str, str] = {}
    for name, expected in wanted:
        member = path / name
        if not member.resolve().is_relative_to(path.resolve()) and not member.is_symlink():
            raise InvalidError(f"the manifest names {name}, outside the directory", code="TAPE-1009", file=str(path))
        if not member.is_file() or digest(member) != expected:
            raise JobError(f"{name} is not what the manifest says", code="TAPE-6007", file=str(path))
        hashes[name] = expected
    return hashes


def place(device: Device = "auto") -> str:
    """Choose the device: the accelerator where there is one, else the CPU; raises `SetupError` for one that is not."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SetupError("no CUDA device is here", code="TAPE-8003", hint="use device=auto or cpu")
    return device


def probe() -> None:
    """Compute a little on the accelerator, if this machine has one; raises whatever it meets."""
    import torch

    device = place()
    if device == "cpu" and torch.version.cuda is not None and NODE.exists():
        raise RuntimeError("the NVIDIA driver is there, but no CUDA-capable device answers")
    ones = torch.ones(128, 128, device=device)
    if (found := float((ones @ ones).sum().item())) != 128.0**3:
        raise RuntimeError(f"the device computes wrongly: {found:g} instead of {128**3}")


def precision(device: str, wanted: Precision = "auto") -> torch.dtype:
    """Choose the number format: bfloat16 on an accelerator that has it, else float32.

    A CPU gets float32 even where it has bfloat16 instructions: 1.3 times slower there, more than twice as fast
    elsewhere, and the same numbers on both.
    """
    import torch

    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    return torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def load(
    path: Path,
    *,
    adapter: Path | None = None,
    device: Device = "auto",
    dtype: Precision = "auto",
    threads: int | None = None,
    four_bit: bool = False,
) -> Model:
    """Load a model directory, and merge an adapter into it where one is named; both are checked first.

    With `four_bit` the linear layers are quantised, to train an adapter on them (`workers.llm.quantise`). `threads`
    sets torch's threads for this process. Raises what `check` raises; `InvalidError` (TAPE-1009) for an architecture
    that is not known, tensors that are missing or have another shape, a tokenizer that is missing or not this model's,
    and an adapter that was made on another base; `SetupError` (TAPE-8003) where nothing quantises here; and `JobError`
    (TAPE-6003) where memory runs out.
    """
    hashes = check(path)
    if adapter is not None:
        check(adapter, adapter=True)
        _belongs(adapter, hashes)
    quiet()
    try:
        return _load(path, adapter, place(device), dtype, threads, four_bit=four_bit)
    except Exception as error:
        known = classify(error)
        if known is error or known.code not in ("TAPE-6001", "TAPE-6014"):
            raise known from error
        raise InvalidError(f"the model cannot be loaded: {error}", code="TAPE-1009", file=str(path)) from error


_FIRST: list[int] = []
"""How many threads this process began with."""


MOST = 256
"""Threads that any machine takes: fewer would end in other bytes where a training of a larger one is made again."""


def cores() -> int:
    """Return how many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pin(count: int | None, *, exactly: bool = False) -> int:
    """Set torch's threads for this process: so many, or as many as it began with; return how many they are.

    A process is warm, and a job before this one may have pinned its own number. More than `MOST`, and more than four
    times the cores, are not begun with; `exactly` takes what a run began with elsewhere, since it decides about bytes.
    """
    import torch

    _FIRST[:] = _FIRST or [torch.get_num_threads()]
    wanted = count or _FIRST[0]
    threads = wanted if exactly else min(wanted, max(MOST, 4 * cores()))
    torch.set_num_threads(threads)
    return threads


def _load(
    path: Path, adapter: Path | None, device: str, dtype: Precision, threads: int | None, *, four_bit: bool
) -> Model:
    from transformers import AutoModelForCausalLM

    pin(threads)
    known = quantise.settings(device, precision(device, dtype)) if four_bit else {}
    tokenizer = weights.tokenizer(path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    with weights.explained(path):
        module, told = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=precision(device, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told, all of them, and refused here
            **known,
        )
    weights.complete(path, told)
    weights.embedded(path, tokenizer, module)
    if four_bit:
        quantise.mend(module)
    if adapter is not None:
        with muted():
            module = weights.adapted(module, adapter)
    (module if four_bit else module.to(device)).eval()
    config = module.config
    context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048
    return Model(module, tokenizer, path, adapter, device, int(context))


def _belongs(adapter: Path, hashes: dict[str, str]) -> None:
    if not (adapter / MANIFEST).is_file():
        return
    made_on = parsed(adapter / MANIFEST).get("base")
    ours = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    files = {
        name: found for name, found in hashes.items() if name != weights.INDEX
    }  # as it was before the index counted
    if made_on not in (None, ours, hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()):
        raise InvalidError(
            "the adapter was made on another base",
            code="TAPE-1009",
            file=str(adapter),
            hint="name the base it was trained on",
            base=ours[:12],
            made_on=str(made_on)[:12],
        )
