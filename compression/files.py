"""A compressed cache in a file: safetensors, the settings and shapes as JSON in its header."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from compression.base import CacheShape, Compressed, LayerShape, ModelSide
from compression.methods import METHODS
from config import UsageError
from data.rotary import Rotary

FORMAT = "1"


def save(compressed: Compressed, file: Path) -> None:
    """Write what is stored, and nothing else but a header."""
    metadata = {
        "format": FORMAT,
        "method": compressed.compressor.name,
        "settings": json.dumps(compressed.compressor.settings()),
        "shape": json.dumps(asdict(compressed.shape)),
    }
    if compressed.compressor.model_side is not None:
        metadata["model_side"] = compressed.compressor.model_side.identity
    save_file(compressed.stored, file, metadata=metadata)


def _layer_shape(layer: dict) -> LayerShape:
    rotary = layer.pop("rotary")
    if rotary is not None:
        rotary = Rotary(tuple(rotary.pop("frequencies")), **rotary)
    return LayerShape(**layer, rotary=rotary)


def load(file: Path, model_side: ModelSide | None = None) -> Compressed:
    """Read what `save` wrote; model_side: what the method had learned of the model, if it had."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{file} has format {metadata.get('format')}, not {FORMAT}")
        stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    side = {} if "model_side" not in metadata else {"model_side": model_side}
    method = METHODS[metadata["method"]](**json.loads(metadata["settings"]), **side)
    if side and method.model_side.identity != metadata["model_side"]:
        raise UsageError(f"{file} was compressed with another calibration: give that one.")
    shape = json.loads(metadata["shape"])
    layers = tuple(_layer_shape(layer) for layer in shape.pop("layers"))
    token_ids = tuple(shape.pop("token_ids"))
    return Compressed(method, stored, CacheShape(layers, token_ids, **shape))
