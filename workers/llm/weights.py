"""Which files of a model directory are loaded, and whether they hold all of it: nothing is made up or a pickle.

A library that finds a tensor missing fills it with random numbers and goes on; here that is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.errors import InvalidError
from workers.failures import classify

WHOLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
TOKENIZERS = ("tokenizer*.json", "vocab.*", "merges.txt", "tekken.json", "*.model", "*.tiktoken")
SHOWN = 5
"""Names in one message."""
_NUMBER = re.compile(r"\.(\d+)\.")
_SPREAD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_SELF = frozenset({"tokenizer_config.json"})


def parsed(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raises `InvalidError` (TAPE-1009)."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidError(f"{path.name} is not JSON: {error}", code="TAPE-1009", file=str(path)) from error
    if not isinstance(found, dict):
        raise InvalidError(f"{path.name} is not a JSON object", code="TAPE-1009", file=str(path))
    return found


def loaded(path: Path, *, adapter: bool = False) -> list[str]:
    """Return the names of the weight files that are loaded from a directory, each a safetensors file right in it.

    An index may name others only by plain names: no folder, no way out of the directory. Raises `InvalidError`
    (TAPE-1009) that names the file.
    """
    if adapter:
        names = [ADAPTER]
    elif (path / WHOLE).is_file():
        names = [WHOLE]
    else:
        names = _listed(path)
    for name in names:
        _sound(path / name)
    return names


def _listed(path: Path) -> list[str]:
    index = path / INDEX
    if not index.is_file():
        raise _bad(path, f"there is neither {WHOLE} nor {INDEX}", "name the file so, or save the model anew")
    listed = parsed(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise _bad(index, f"{INDEX} has no weight_map from tensors to files", "save the model anew")
    names = sorted(set(listed.values()))
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            told = f"{INDEX} names {name!r}, which is no safetensors file beside it"
            raise _bad(index, told, "put the weights beside the index, as safetensors")
        if (path / name).is_file() and not _within(path, name):
            raise _bad(path / name, f"{name} leads out of the directory", "put the file itself there, and no link")
    return names


def _within(path: Path, name: str) -> bool:
    """Whether a file lies in the directory; one in the hub's cache is a link to its blob beside the snapshots."""
    top = path.resolve()
    return (top / name).resolve().parent in (top, top.parent.parent / "blobs")


def _sound(file: Path) -> None:
    """Raise unless the file begins as safetensors do, and has all the bytes that it says."""
    if not file.is_file():
        raise _bad(file, f"{file.name} is missing", "fetch it, or save the model anew")
    if not _header(file)[1]:
        raise _bad(file, f"{file.name} is no whole safetensors file", "fetch it anew, or convert it to safetensors")


def _header(file: Path) -> tuple[list[str], bool]:
    """Return the names of the tensors in a safetensors file, and whether it is one and has all the bytes it says."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(opened.read(length) if length <= size - 8 else b"")
            ends = {name: entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
            return list(ends), max(ends.values(), default=0) + 8 + length <= size
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            return [], False


def plain(path: Path, names: Iterable[str]) -> None:
    """Raise `InvalidError` (TAPE-1009) where a directory leads a library away from its `config.json` and weights."""
    for name in names:
        if _SPREAD.fullmatch(name):
            told = f"{name} is a part of a distributed checkpoint, which is not read"
            raise _bad(path / name, told, f"save the model as {WHOLE}")
        if name == "adapter_config.json":
            told = "config.json and adapter_config.json lie in one directory: a model and an adapter"
            raise _bad(path, told, "merge the adapter, or keep it in a directory of its own and name it as the adapter")
    config = parsed(path / "config.json")
    for field in ("_attn_implementation", "attn_implementation"):
        if "/" in str(config.get(field)):
            told = f"config.json asks for code of its own ({field}: {config[field]}), which is never run"
            raise _bad(path / "config.json", told, "remove the field")
    if _has(config, "transformers_weights"):
        told = (
            f"config.json says where the weights are (transformers_weights), and they must be {WHOLE} or in its index"
        )
        raise _bad(path / "config.json", told, "remove the field")


def _has(found: Any, key: str) -> bool:
    if isinstance(found, dict):
        return found.get(key) is not None or any(_has(value, key) for value in found.values())
    return isinstance(found, list) and any(_has(value, key) for value in found)


def complete(path: Path, told: dict[str, Any]) -> None:
    """Raise `InvalidError` (TAPE-1009) unless every tensor of the model was in the files, in its shape.

    `told` is what `from_pretrained` says with `output_loading_info`: tied tensors and buffers are not missing.
    """
    missing = sorted(told.get("missing_keys") or ())
    other = sorted(told.get("mismatched_keys") or (), key=lambda entry: str(entry[0]))
    hint = "take the config.json that belongs to these weights, or fetch the weights anew"
    if missing:
        raise _bad(path, f"the weights lack {_count(missing)} of the model: {_few(missing)}", hint)
    if other:
        shapes = [f"{name} is {_shape(here)} and not {_shape(wanted)}" for name, here, wanted in other]
        raise _bad(path, f"{_count(shapes)} of another shape than in the model: {_few(shapes)}", hint)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say which tensors a library could not put together, as it does with the experts of a mixture: it only logs that.

    Raises `InvalidError` (TAPE-1009).
    """
    try:
        yield
    except RuntimeError as error:
        if "automatic conversion" not in str(error):
            raise
        names = {name for file in loaded(path) for name in _header(path / file)[0]}
        lacking = _gaps(names)
        which = f", which lack {_count(lacking)} that others like them have: {_few(lacking)}" if lacking else ""
        told = f"the weights cannot be put together as the model has them{which}"
        raise _bad(path, told, "fetch the weights anew, or take the config.json that belongs to them") from error


def _gaps(names: Iterable[str]) -> list[str]:
    """Return the tensors that one numbered part lacks and another of the same kind has."""
    parts: dict[str, set[tuple[str, ...]]] = {}
    ends: dict[str, set[str]] = {}
    for name in (name for name in names if "{" not in name and "}" not in name):
        kind, _, end = _NUMBER.sub(".{}.", name).rpartition("{}.")
        parts.setdefault(kind, set()).add(tuple(_NUMBER.findall(name)))
        ends.setdefault(kind, set()).add(end)
    every = {(kind + "{}." + end).format(*one) for kind in parts if kind for one in parts[kind] for end in ends[kind]}
    return sorted(every - set(names))


def tokenizer(path: Path) -> Any:
    """Load the tokenizer of a directory; raises `InvalidError` (TAPE-1009) where there is none.

    Without its files a library makes up one that knows its special tokens and nothing else.
    """
    from transformers import AutoTokenizer

    there = any(file.name not in _SELF for pattern in TOKENIZERS for file in path.glob(pattern))
    hint = "put the tokenizer's files beside the weights (`tokenizer.save_pretrained(DIRECTORY)`)"
    try:
        found = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        if there or classify(error).code not in ("TAPE-1009", "TAPE-6001", "TAPE-6014"):
            raise
        raise _bad(path, "there is no tokenizer in the directory", hint) from error
    known = set(found.get_vocab())
    if known <= set(found.all_special_tokens) or (type(found).vocab_files_names and not there):
        raise _bad(path, "there is no tokenizer in the directory", hint)
    return found


def embedded(path: Path, tokens: Any, module: Any) -> None:
    """Raise `InvalidError` (TAPE-1009) where the tokenizer gives a token that the model has no embedding for."""
    highest = max(tokens.get_vocab().values(), default=-1)
    rows = int(module.get_input_embeddings().weight.shape[0])
    if highest >= rows:
        told = f"the tokenizer has tokens up to number {highest}, and the model embeddings for {rows} (0 to {rows - 1})"
        raise _bad(path, told, "take the tokenizer that belongs to this model, or resize its embeddings and save it")


def adapted(module: Any, adapter: Path) -> Any:
    """Return a model with an adapter merged into it; raises `InvalidError` (TAPE-1009) for one that does not fit it.

    It does not where tensors of it are missing, are left over, or have another shape. Kinds that are no layers to
    merge, or that load files of their own, are refused before anything is opened.
    """
    from peft import PeftModel
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    kind = str(parsed(adapter / "adapter_config.json").get("peft_type"))
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(kind)
    if kind == "XLORA" or not hasattr(tuner, "merge_and_unload"):
        raise _bad(adapter, f"an adapter of the kind {kind} cannot be merged into its base", "take a LoRA adapter")
    try:
        tuned = PeftModel.from_pretrained(module, adapter, local_files_only=True)
        # what was missing or left over is told by the second call alone; it reads the same file into the same places
        told = tuned.load_adapter(str(adapter), "default", local_files_only=True)
    except Exception as error:
        known = classify(error)
        if known is error or known.code not in ("TAPE-6001", "TAPE-6014"):
            raise
        text = str(error)[:500]
        raise _bad(adapter, f"the adapter does not fit the base: {text}", "name the base it was trained on") from error
    for names, what in ((told.missing_keys, "lacks"), (told.unexpected_keys, "has, and the base has no place for,")):
        if names:
            hint = "name the base it was trained on, or fetch the adapter anew"
            raise _bad(adapter, f"the adapter {what} {_count(names)}: {_few(sorted(names))}", hint)
    return tuned.merge_and_unload()


def _few(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _count(names: Sized) -> str:
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


def _shape(shape: Iterable[int]) -> str:
    return "×".join(str(size) for size in shape) or "a number"


def _bad(file: Path, told: str, hint: str) -> InvalidError:
    return InvalidError(told, code="TAPE-1009", file=str(file), hint=hint)
