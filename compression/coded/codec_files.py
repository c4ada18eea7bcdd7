"""The file of a chunk codec: all that whoever decodes chunks needs, with no model at hand."""

import json
from dataclasses import asdict
from pathlib import Path

from compression import sealed
from compression.base import Calibration
from compression.coded import transform
from compression.coded.chunk_bytes import IDENTITY
from compression.coded.chunks import ChunkCodec
from compression.shapes import LayerShape
from config import UsageError
from data.cache import KINDS
from data.headers import fitting, shown, words

FORMAT = "chunk codec 4"


def save(codec: ChunkCodec, file: Path | str) -> None:
    """Raises OSError where it cannot be written."""
    header = {
        "format": FORMAT,
        "model": codec.model,
        "learned_from": codec.calibration.learned_from,
        "step": json.dumps(codec.step),
        "layers": json.dumps([asdict(layer) for layer in codec.layers]),
    }
    sealed.write(Path(file), codec.calibration.tensors, header)


def load(file: Path | str) -> ChunkCodec:
    """Raises UsageError for a file that cannot be read, is damaged or is none."""
    file = Path(file)
    try:
        tensors, header = sealed.read(file)
        if header.get("format") != FORMAT:
            raise ValueError(f"it has format {shown(header.get('format'))}, not {FORMAT}")
        layers = fitting(tuple[LayerShape, ...], words(header.get("layers")), "layers")
        step = fitting(float, words(header.get("step")), "step")
        if not IDENTITY.fullmatch(header.get("model", "")):
            raise ValueError("it does not say of which model it is")
        widths = {(i, k): x.n_heads * x.dim(k) for i, x in enumerate(layers) for k in KINDS}
        transform.refuse_misfit(tensors, widths)
        learned = Calibration(tensors, header.get("learned_from", ""))
        transform.read(learned)  # which is kept for who decodes
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is no chunk codec ({error})", "save one again") from None
    return ChunkCodec(layers, header["model"], learned, step)
