"""A compressed cache in a file: sealed tensors, the settings and shapes as JSON in its header."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compression import sealed
from compression.base import CacheShape, Calibration, Compressed, LayerShape, Tensors
from compression.registry import make
from config import UsageError
from data.rotary import Rotary

FORMAT = "compressed cache 2"


def save(compressed: Compressed, file: Path | str, **facts: str) -> None:
    """Write what is stored, and nothing else but a header, which also holds the `facts`; raises
    OSError where that cannot be."""
    header = {
        "format": FORMAT,
        "method": compressed.compressor.name,
        "settings": json.dumps(compressed.compressor.settings()),
        "shape": json.dumps(asdict(compressed.shape)),
        "facts": json.dumps(facts),
    }
    if compressed.compressor.calibration is not None:
        header["calibration"] = compressed.compressor.calibration.identity
    sealed.write(Path(file), compressed.stored, header)


def load(file: Path | str, calibration: Calibration | None = None) -> Compressed:
    """Read what `save` wrote; calibration: what the method had learned of the model, if it had.

    Raises UsageError for a file that is damaged, of another format, of a method that is not known
    or of another calibration.
    """
    header, stored = _content(Path(file))
    another = UsageError(f"{file} was compressed with another calibration", "give that one")
    if "calibration" in header and calibration is None:
        raise another
    try:
        method = make(header["method"], json.loads(header["settings"]), calibration)
    except UsageError as refusal:
        raise UsageError(
            f"{file} cannot be restored ({refusal.reason})", "compress the text again"
        ) from None
    # That of the method, which may keep but a part of what it is given
    if getattr(method.calibration, "identity", None) != header.get("calibration"):
        raise another
    return Compressed(method, stored, _shape(json.loads(header["shape"])))


def read_facts(file: Path | str) -> dict[str, str]:
    """The facts that a file was saved with, and `method` and, where it has one, `calibration`."""
    header, _ = _content(Path(file))
    facts = {name: header[name] for name in ("method", "calibration") if name in header}
    saved: dict[str, str] = json.loads(header["facts"])
    return saved | facts


def _content(file: Path) -> tuple[dict[str, str], Tensors]:
    try:
        stored, header = sealed.read(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be read as a compressed cache", str(error)) from None
    except ValueError as error:
        raise UsageError(
            f"{file} is damaged, of an older version or no compressed cache ({error})",
            "compress the text again",
        ) from None
    if header.get("format") != FORMAT:
        raise UsageError(
            f"{file} has format {header.get('format')}, not {FORMAT}", "compress the text again"
        )
    return header, stored


def _shape(shape: dict[str, Any]) -> CacheShape:
    layers = tuple(_layer_shape(layer) for layer in shape.pop("layers"))
    return CacheShape(layers, tuple(shape.pop("token_ids")), **shape)


def _layer_shape(layer: dict[str, Any]) -> LayerShape:
    rotary = layer.pop("rotary")
    if rotary is not None:
        rotary = Rotary(tuple(rotary.pop("frequencies")), **rotary)
    return LayerShape(**layer, rotary=rotary)
