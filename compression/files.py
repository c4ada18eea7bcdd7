"""A compressed cache in a file: safetensors, the settings and shapes as JSON in its header."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from compression.base import CacheShape, Compressed, LayerShape, ModelSide, Tensors
from compression.methods import METHODS
from config import UsageError
from data.rotary import Rotary

FORMAT = "1"


def save(compressed: Compressed, file: Path, **facts: str) -> None:
    """Write what is stored, and nothing else but a header, which also holds the `facts`."""
    metadata = {
        "format": FORMAT,
        "method": compressed.compressor.name,
        "settings": json.dumps(compressed.compressor.settings()),
        "shape": json.dumps(asdict(compressed.shape)),
        "facts": json.dumps(facts),
    }
    if compressed.compressor.model_side is not None:
        metadata["model_side"] = compressed.compressor.model_side.identity
    metadata["sha256"] = _checksum(metadata, compressed.stored)
    save_file(compressed.stored, file, metadata=metadata)


def _checksum(metadata: dict[str, str], stored: Tensors) -> str:
    """Over the header and every stored byte."""
    header = json.dumps({k: v for k, v in sorted(metadata.items()) if k != "sha256"})
    return hashlib.sha256((header + ModelSide(stored, "").identity).encode()).hexdigest()


def _layer_shape(layer: dict) -> LayerShape:
    rotary = layer.pop("rotary")
    if rotary is not None:
        rotary = Rotary(tuple(rotary.pop("frequencies")), **rotary)
    return LayerShape(**layer, rotary=rotary)


def read_facts(file: Path) -> dict[str, str]:
    """The facts that a file was saved with, and `method` and, where it has one, `model_side`."""
    metadata, _ = _content(file)
    facts = {name: metadata[name] for name in ("method", "model_side") if name in metadata}
    return json.loads(metadata["facts"]) | facts


def _content(file: Path) -> tuple[dict[str, str], Tensors]:
    """The header and the tensors, once the checksum has vouched for both."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except OSError as error:
        raise UsageError(f"{file} cannot be read as a compressed cache: {error}.") from None
    except SafetensorError as error:
        raise _damaged(file, str(error)) from None
    if _checksum(metadata, stored) != metadata.get("sha256"):
        raise _damaged(file, "its checksum does not fit")
    if metadata.get("format") != FORMAT:
        raise UsageError(f"{file} has format {metadata.get('format')}, not {FORMAT}.")
    return metadata, stored


def _damaged(file: Path, how: str) -> UsageError:
    what = f"{file} is damaged or no compressed cache of format {FORMAT}"
    return UsageError(f"{what} ({how}): compress the text again.")


def load(file: Path, model_side: ModelSide | None = None) -> Compressed:
    """Read what `save` wrote; model_side: what the method had learned of the model, if it had.

    Raises UsageError for a file that is damaged, of another format or of another calibration.
    """
    metadata, stored = _content(file)
    side = {} if "model_side" not in metadata else {"model_side": model_side}
    method = METHODS[metadata["method"]](**json.loads(metadata["settings"]), **side)
    if side and method.model_side.identity != metadata["model_side"]:
        raise UsageError(f"{file} was compressed with another calibration: give that one.")
    shape = json.loads(metadata["shape"])
    layers = tuple(_layer_shape(layer) for layer in shape.pop("layers"))
    token_ids = tuple(shape.pop("token_ids"))
    return Compressed(method, stored, CacheShape(layers, token_ids, **shape))
