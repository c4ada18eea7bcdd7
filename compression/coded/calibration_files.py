"""The files of calibrations in the user's cache folder: where that of a model is, what it holds.
Nothing here brings in transformers, so that one is found for a saved cache too."""

import hashlib
import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import config
from compression import sealed
from compression.base import Calibration
from compression.coded import transform
from compression.coded.learned_text import calibration_texts
from compression.methods.place_by_place import Place
from data.cache import KINDS, KVCache

FORMAT = "calibration of coded 8"
SOURCES = Path(__file__).parent.parent.parent
# Of the code that a calibration follows from; read as files, for one of them needs a model.
MODULES = (
    "compression/coded/bases.py",
    "compression/coded/blocks.py",
    "compression/coded/calibration.py",
    "compression/coded/coefficients.py",
    "compression/coded/groups.py",
    "compression/coded/learned_windows.py",
    "compression/coded/method.py",
    "compression/coded/moments.py",
    "compression/coded/products.py",
    "compression/coded/roots.py",
    "compression/coded/transform.py",
    "compression/coded/rans.py",
    "compression/coded/tables.py",
    "compression/coded/token_weights.py",
    "compression/methods/layer_groups.py",
    "compression/methods/place_by_place.py",
    "data/expected_queries.py",
    "data/probe.py",
    "data/rotary.py",
    "data/sensitivity.py",
    "data/softmax_sums.py",
)

log = logging.getLogger(__name__)


@cache
def recipe(modules: tuple[str, ...] = MODULES) -> str:
    """A hash of all that a calibration follows from, beside the model: the texts, and the code of
    these modules."""
    digest = hashlib.sha256("\0".join(calibration_texts()).encode())
    for module in modules:
        digest.update((SOURCES / module).read_bytes())
    return digest.hexdigest()


def folder_of(identity: str) -> Path:
    """Of all calibrations of the model with this identity, by whatever code."""
    return config.cache_folder() / "calibrations" / identity[:32]


def file_of(identity: str) -> Path:
    """Of the calibration by this code."""
    return folder_of(identity) / f"{recipe()[:16]}.safetensors"


def read(file: Path, identity: str, widths: dict[Place, int]) -> Calibration:
    """widths: heads x dim of each cached place of the model. Raises ValueError for a file that is
    damaged, of another version or model, or not what would be learned of this one."""
    if not file.exists():
        raise FileNotFoundError(file)
    tensors, header = sealed.read(file)
    if header.get("format") != FORMAT:
        raise ValueError(f"it has format {header.get('format')}, not {FORMAT}")
    if header.get("model") != identity:
        raise ValueError("it is of another model")
    if not header.get("learned_from", "").isprintable():
        raise ValueError("it does not say what it was learned from")
    learned = Calibration(tensors, header.get("learned_from", ""))
    transform.refuse_misfit(tensors, widths)
    transform.read(learned)  # which inverts matrices, and is kept for who compresses
    return learned


def kept(cache: KVCache, identity: str) -> Calibration | None:
    """That of the model that made a cache, where it is on this machine; it is not said of a cache
    in what folder of ours to look, so what is no identity has none."""
    if not re.fullmatch("[0-9a-f]{64}", identity):
        return None
    file = file_of(identity)
    try:
        return read(file, identity, dict(_widths(cache)))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        log.warning("The calibration %s cannot be used (%s).", file, error)
        return None


def _widths(cache: KVCache) -> Iterator[tuple[Place, int]]:
    for i, layer in enumerate(cache.layers):
        for kind in KINDS:
            yield (i, kind), layer.n_heads * layer.tensor(kind).shape[2]
