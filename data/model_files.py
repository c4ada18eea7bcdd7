"""What is wrong with the files of a model, file by file. Knows files, not torch."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from config import UsageError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER = ("tokenizer.", "vocab", "merges", "spiece", "sentencepiece", "spm", "tekken")
GGUF_MAGIC = b"GGUF"
MOST_LAYERS = 10_000  # beyond all models; a damaged number must not make that many modules
LARGEST_HEADER = 100_000_000  # bytes; what the safetensors library allows
NUMBERS = ("num_hidden_layers", "n_layer", "num_layers")


def refuse_endless(folder: Path) -> None:
    """Raise UsageError for a pipe or a device among a model's files: reading it may never end."""
    for file in sorted(folder.iterdir()):
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise UsageError(
                f"`model` {folder} holds {file.name}, which is no file but {_kind_of(file)}",
                "give a folder of plain files",
            )


def _kind_of(file: Path) -> str:
    return "a pipe" if stat.S_ISFIFO(file.stat().st_mode) else "a device or a socket"


def refuse_absurd(name: str, settings: dict[str, object]) -> None:
    """Raise UsageError for no layers, or more than any model has, before they are made."""
    for number in NUMBERS:
        layers = settings.get(number)
        if isinstance(layers, int) and not 0 < layers <= MOST_LAYERS:
            raise UsageError(
                f"`model` {name} has {layers} layers by its config.json ({number})",
                f"1 to {MOST_LAYERS} can be loaded",
            )


def what_is_wrong(folder: Path, gguf: str | None = None) -> str | None:
    """The first fault that can be seen in the files of a model; None where each looks sound."""
    try:
        return next(_faults(folder, gguf), None)
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"


def _faults(folder: Path, gguf: str | None) -> Iterator[str]:
    if gguf is not None:
        yield from _of_gguf(folder / gguf)
        return
    yield from _of_json(folder / "config.json")
    yield from _of_weights(folder)
    files = sorted(folder.iterdir())
    if not any(file.name.startswith(TOKENIZER) for file in files):
        yield "it holds no tokenizer, such as tokenizer.json"
    for file in files:
        if file.name.startswith(("tokenizer", "vocab")) and file.suffix == ".json":
            yield from _of_json(file)


def _of_gguf(file: Path) -> Iterator[str]:
    with file.open("rb") as handle:
        start = handle.read(len(GGUF_MAGIC))
    if not start:
        yield f"{file.name} is empty"
    elif start != GGUF_MAGIC:
        yield f"{file.name} is no GGUF file"


def _of_json(file: Path) -> Iterator[str]:
    try:
        if not isinstance(json.loads(file.read_bytes()), dict):
            yield f"{file.name} holds no JSON object"
    except (ValueError, RecursionError):
        yield f"{file.name} is not JSON"


def _of_weights(folder: Path) -> Iterator[str]:
    if (folder / WEIGHTS).exists():
        yield from _of_safetensors(folder / WEIGHTS)
        return
    if not (folder / INDEX).exists():
        pickles = [name for name in PICKLES if (folder / name).exists()]
        also = f"; {pickles[0]} is a pickle, which could run any code" if pickles else ""
        yield f"it holds no {WEIGHTS}{also}"
        return
    yield from _of_json(folder / INDEX)
    shards = json.loads((folder / INDEX).read_bytes()).get("weight_map")
    if not isinstance(shards, dict):
        yield f"{INDEX} has no weight_map"
        return
    for name in sorted({str(shard) for shard in shards.values()}):
        if not (folder / name).exists():
            yield f"{name} is missing, which {INDEX} names"
        yield from _of_safetensors(folder / name)


def _of_safetensors(file: Path) -> Iterator[str]:
    """A file starts with the length of its header in 8 bytes; the header is JSON and says where
    each tensor ends after it."""
    size = os.stat(file).st_size  # noqa: PTH116 (its error names the file)
    with file.open("rb") as handle:
        n_header = int.from_bytes(handle.read(8), "little")
        if size < 8 or n_header > min(size - 8, LARGEST_HEADER):
            yield f"{file.name} is {'empty' if not size else 'cut short or no safetensors file'}"
            return
        header = handle.read(n_header)
    try:
        tensors = {k: v for k, v in json.loads(header).items() if k != "__metadata__"}
        end = max((max(tensor["data_offsets"]) for tensor in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield f"the header of {file.name} is damaged"
        return
    if not tensors:
        yield f"{file.name} holds no tensors"
    elif size - 8 - n_header != end:
        yield f"{file.name} has {size - 8 - n_header} bytes of weights, and its header {end}"
