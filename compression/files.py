"""A compressed cache in a file: its tensors and its shape, sealed, and its settings as JSON in the
header.

A file is read as if it came from a stranger: its words are held against the classes that they
describe, its tensors against its shapes by the method that restores them, and nothing is made in
proportion to a size that is only claimed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compression import sealed
from compression.base import Calibration, Compressed
from compression.file_parts import FORMAT, apart, together
from compression.registry import make
from compression.shapes import CacheShape
from compression.stored import FLOATS, Tensors, nbytes, under
from config import UsageError
from data.cache import KINDS, KVCache
from data.headers import fitting, shown, words

STATE = "state."  # how the names of states begin, before their path in the cache object
WORDS = {"format", "method", "settings", "facts"}
DTYPES = ("float16", "bfloat16")  # of caches as they are served
STATE_DTYPES = (*FLOATS, torch.float64, torch.int32, torch.int64, torch.bool)
# Of a cache over what is stored of it. Honest files stay far below, and what is restored of a
# stranger's takes memory in proportion to the file.
LARGEST_RATIO = 4096
ANEW = "compress the text again"


def save(
    compressed: Compressed, file: Path | str, states: Tensors | None = None, **facts: str
) -> None:
    """Write what is stored, the `states` that the model keeps beside, by name, and nothing else but
    a header, which also holds the `facts`; raises OSError where that cannot be."""
    if compressed.shape.nbytes > LARGEST_RATIO * compressed.nbytes:
        raise UsageError(
            f"Less than a {LARGEST_RATIO}th of the cache is stored, which no file may claim",
            "give the method more to keep",
        )
    named = {f"{STATE}{name}": state for name, state in (states or {}).items()}
    if any(name.startswith(STATE) for name in compressed.stored):
        raise ValueError(f"names that begin with {STATE} are of states")
    tensors = together(compressed.stored | named, compressed.shape)
    sealed.write(Path(file), tensors, compressed.header(**facts))


@dataclass(frozen=True)
class OfFile(Compressed):
    """What a file holds of a cache. states: what the model keeps beside keys and values, as they
    were."""

    file: Path
    states: Tensors

    def restore(self) -> KVCache:
        """Raises UsageError where what is stored is not what its method would have stored of such
        a cache, or is no cache that a model can go on from."""
        try:
            cache = super().restore()
        except UsageError as refusal:
            raise _not_restored(self.file, refusal) from None
        except ValueError as error:
            raise damaged(self.file, error) from None
        if not all(layer.tensor(kind).isfinite().all() for layer in cache.layers for kind in KINDS):
            raise damaged(self.file, "its numbers are not finite")
        return cache


@dataclass(frozen=True)
class Content:
    """A file that was read: what is known of the cache before it is restored.

    facts: what it was saved with. calibration: the identity of what its method had learned.
    states: see `OfFile`.
    """

    file: Path
    method: str
    settings: dict[str, Any]
    shape: CacheShape
    facts: dict[str, str]
    calibration: str | None
    stored: Tensors
    states: Tensors

    @property
    def n_tokens(self) -> int:
        return len(self.shape.token_ids)

    def compressed(self, calibration: Calibration | None = None) -> OfFile:
        """calibration: what the method had learned of the model, if it had. Raises UsageError for a
        method that is not known, settings that it does not take, or another calibration."""
        another = UsageError(
            f"{self.file} was compressed with another calibration", "give that one"
        )
        if self.calibration is not None and calibration is None:
            raise another
        try:
            method = make(self.method, self.settings, calibration)
        except UsageError as refusal:
            raise _not_restored(self.file, refusal) from None
        # That of the method, which may keep but a part of what it is given
        if getattr(method.calibration, "identity", None) != self.calibration:
            raise another
        return OfFile(method, self.stored, self.shape, self.file, self.states)


def load(file: Path | str, calibration: Calibration | None = None) -> OfFile:
    """Read what `save` wrote; calibration: what the method had learned of the model, if it had.

    Raises UsageError for a file that is damaged, of another format, of a method that is not known
    or of another calibration.
    """
    return read(file).compressed(calibration)


def read(file: Path | str) -> Content:
    """What a file holds; raises UsageError for one that cannot be read, is damaged, or claims what
    no cache can be."""
    file = Path(file)
    try:
        tensors, header = sealed.read(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be read as a compressed cache", str(error)) from None
    except ValueError as error:
        raise damaged(file, error) from None
    if header.get("format") != FORMAT:
        raise UsageError(f"{file} has format {shown(header.get('format'))}, not {FORMAT}", ANEW)
    try:
        return _content(file, header, tensors)
    except ValueError as error:
        raise damaged(file, error) from None


def _content(file: Path, header: dict[str, str], tensors: Tensors) -> Content:
    """Raises ValueError for words that `save` has not written."""
    calibration = header.pop("calibration", None)
    if header.keys() != WORDS:
        raise ValueError(f"its header does not hold {', '.join(sorted(WORDS))}")
    stored, shape = apart(tensors)
    states = under(stored, STATE)
    if not all(x.dtype in STATE_DTYPES and x.isfinite().all() for x in states.values()):
        raise ValueError("its states are not finite numbers")
    _refuse_claims(shape, stored)
    settings, facts = (words(header[name]) for name in ("settings", "facts"))
    if not isinstance(settings, dict) or not isinstance(facts, dict):
        raise ValueError("its settings and facts are no mappings")
    for name, fact in facts.items():
        fitting(str, fact, shown(name))
    return Content(file, header["method"], settings, shape, facts, calibration, stored, states)


def _refuse_claims(shape: CacheShape, stored: Tensors) -> None:
    """Raise ValueError for a shape that no cache has, or none that is stored in so few bytes."""
    if min(shape.token_ids) < 0:
        raise ValueError("a token id is below 0")
    for layer in shape.layers:
        if layer.dtype not in DTYPES:
            raise ValueError(f"layer {layer.index} is of dtype {shown(layer.dtype)}")
    if shape.nbytes > LARGEST_RATIO * nbytes(stored):
        raise ValueError(f"it claims a cache of {shape.nbytes:,} bytes in {nbytes(stored):,}")


def damaged(file: Path, reason: object) -> UsageError:
    """The refusal of a file whose content does not fit."""
    return UsageError(
        f"{file} is damaged, of an older version or no compressed cache ({reason})", ANEW
    )


def _not_restored(file: Path, refusal: UsageError) -> UsageError:
    return UsageError(f"{file} cannot be restored ({shown(refusal.reason, 300)})", ANEW)
