"""A cache whose layers are made when they are touched, one of them in memory at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from data.cache import PER_ENTRY, KVCache, LayerKV

TENSORS = ("positions", "keys", "values", *PER_ENTRY)
Make = Callable[[int, str], torch.Tensor]  # from the index of a layer and the name of a tensor


@dataclass(frozen=True)
class SavedCache:
    """A cache as a file holds it.

    cache: its tensors lie in the file and are read when they are touched. Where token ids are not
        known, they are all -1.
    words: the tokens as visible text; None where they are not known.
    model: what made it: name, revision, identity, dtype and device, as far as they are known.
    text: its source, index, title and sha256, as far as they are known.
    assumed: in sentences, what no file says and is taken to be so.
    largest: kind -> |entry| of all layers, as the file has it; None where it does not say.
    """

    cache: KVCache
    words: tuple[str, ...] | None = None
    model: dict[str, str] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    largest: dict[str, float] | None = None


class OneLayer:
    """Makes the tensors of layers, and holds those of the layer that was touched last."""

    def __init__(self, make: Make, leave: Callable[[int], None] = lambda index: None) -> None:
        """leave: is told of a layer that is not held any more."""
        self._make = make
        self._leave = leave
        self._index: int | None = None
        self._held: dict[str, torch.Tensor] = {}

    def __call__(self, index: int, name: str) -> torch.Tensor:
        if index != self._index:
            self._held.clear()
            if self._index is not None:
                self._leave(self._index)
            self._index = index
        if name not in self._held:
            self._held[name] = self._make(index, name)
        return self._held[name]


class SavedLayer(LayerKV):
    """A layer whose tensors are made when they are asked for; what is made of it is a layer as any
    other."""

    _make: Make

    @classmethod
    def of(cls, make: Make, **parts: Any) -> "SavedLayer":
        """Tensors of `parts` stand for their dtype and shape alone."""
        parts |= {name: x.to("meta") for name, x in parts.items() if name in TENSORS}
        layer = cls(**parts)
        object.__setattr__(layer, "_make", make)
        return layer

    def __getattribute__(self, name: str) -> Any:
        own = super().__getattribute__(name)
        if name not in TENSORS or own is None or "_make" not in vars(self):
            return own
        return vars(self)["_make"](self.index, name)

    @property
    def n_heads(self) -> int:
        return int(vars(self)["keys"].shape[0])

    @property
    def n_tokens(self) -> int:
        return int(vars(self)["keys"].shape[1])

    @property
    def n_entries(self) -> int:
        return int(vars(self)["keys"].numel() + vars(self)["values"].numel())
