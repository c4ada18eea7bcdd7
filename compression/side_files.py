"""What was learned of a model in a file: safetensors, and in its header what vouches for it."""

import hashlib
import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from compression.base import ModelSide

FORMAT = "coded model side 2"
_OWN = ("format", "learned_from", "sha256")  # of the header; the others are the caller's


def save_model_side(side: ModelSide, file: Path, metadata: dict[str, str]) -> None:
    """Write a model side and the caller's `metadata` (its model, revision, ...), all or
    nothing; raises OSError where it cannot be."""
    if taken := set(metadata) & set(_OWN):
        raise ValueError(f"{sorted(taken)} are names of the header itself")
    header = metadata | {"format": FORMAT, "learned_from": side.learned_from}
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        sealed = header | {"sha256": _digest(side, header)}
        save_file(side.tensors, unfinished, metadata=sealed)
        unfinished.replace(file)
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written ({error})") from error
    finally:
        unfinished.unlink(missing_ok=True)


def load_model_side(file: Path) -> tuple[ModelSide, dict[str, str]]:
    """What `save_model_side` wrote; raises ValueError for a file that is damaged, or of another
    version."""
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error})") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"{file} has format {header.get('format')}, not {FORMAT}")
    side = ModelSide(tensors, header.get("learned_from", ""))
    if _digest(side, header) != header.get("sha256"):
        raise ValueError(f"{file} is damaged: its content is not what its header vouches for")
    return side, {name: text for name, text in header.items() if name not in _OWN}


def _digest(side: ModelSide, header: dict[str, str]) -> str:
    """A hash of the tensors and of the header."""
    vouched = {name: text for name, text in header.items() if name != "sha256"}
    return hashlib.sha256(
        (side.identity + json.dumps(vouched, sort_keys=True)).encode()
    ).hexdigest()
