"""Reads the files that data/plain_files.py writes, as if they came from a stranger."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from config import UsageError
from data.cache import KINDS, PER_ENTRY, KVCache
from data.headers import fitting, shown, words
from data.own_files import SAVED_CACHE
from data.plain_files import (
    FLOATS,
    FORMAT,
    KINDS_OF_LAYERS,
    MODEL_FACTS,
    TEXT_FACTS,
    TOKEN_IDS,
    WORDS,
    About,
    LayerAbout,
)
from data.saved_layers import TENSORS, OneLayer, SavedCache, SavedLayer
from data.tensor_files import TensorFile

AGAIN = "save the cache again"


def read(file: Path) -> SavedCache:
    """What `save` has written. Raises UsageError for what is damaged, foreign or no file."""
    try:
        tensors = TensorFile(file)
    except OSError as error:
        raise UsageError(
            f"`load_cache` {file} cannot be read ({error.strerror or error})",
            "give a file that `save_cache` has written",
        ) from None
    except ValueError as error:
        raise damaged(file, error) from None
    _refuse_another_format(tensors)
    try:
        return _Opened(tensors).content()
    except ValueError as error:
        raise damaged(file, error) from None


class _Opened:
    """A file that `save` has written. Raises ValueError for one that it cannot have written."""

    def __init__(self, tensors: TensorFile) -> None:
        self.tensors = tensors
        if not tensors.is_sealed:
            raise ValueError("the checksum of its header does not fit")
        self.crcs = tensors.checksums()
        self.about: About = fitting(About, words(tensors.metadata.get("about")), "about")
        self.model = _facts_of(self.about.model, MODEL_FACTS)
        self.text = _facts_of(self.about.text, TEXT_FACTS)
        if not all(0 <= entry < math.inf for entry in self.about.largest):
            raise ValueError("its largest entries are no magnitudes")
        _refuse_order([layer.index for layer in self.about.layers])
        self._left = set(tensors.places)
        self._one_layer = OneLayer(self._made, self._release)

    def content(self) -> SavedCache:
        token_ids = self._taken(TOKEN_IDS, (torch.int64,), None)
        self.tensors.check(TOKEN_IDS, self.crcs)
        if int(token_ids.min()) < 0:
            raise ValueError("a token id is below 0")
        self._n_tokens = len(token_ids)
        layers = tuple(self._layer(layer) for layer in self.about.layers)
        cache = KVCache(layers, token_ids, self.about.n_prompt, self.model.get("name", ""))
        said = self._words()
        if self._left:
            raise ValueError(f"{shown(min(self._left))} belongs to nothing")
        largest = dict(zip(KINDS, self.about.largest, strict=True))
        return SavedCache(cache, said, self.model, self.text, largest=largest)

    def _taken(
        self, name: str, dtypes: tuple[torch.dtype, ...], *sizes: int | None
    ) -> torch.Tensor:
        """The view of a tensor that is due; None stands for any size from 1."""
        if name not in self._left:
            raise ValueError(f"{name} is not there")
        self._left.remove(name)
        form = self.tensors.places[name].form
        pairs = zip(form.shape, sizes, strict=False)
        fits = len(form.shape) == len(sizes) and all(n and size in (n, None) for n, size in pairs)
        if form.dtype not in dtypes or not fits:
            raise ValueError(f"{name} holds {form.dtype} {form.shape}")
        return self.tensors.tensor(name)

    def _layer(self, about: LayerAbout) -> SavedLayer:
        prefix = f"layers.{about.index}"
        keys = self._taken(f"{prefix}.keys", FLOATS, None, None, None)
        heads, tokens, key_dim = keys.shape
        if tokens > self._n_tokens or about.kind not in KINDS_OF_LAYERS:
            raise ValueError(f"{prefix} is {shown(about.kind)} and holds {tokens} tokens")
        if about.rotary is not None and 2 * len(about.rotary.frequencies) > key_dim:
            raise ValueError(f"{prefix} turns more than its {key_dim} dimensions")
        dtypes = {"keep": torch.bool}
        per_entry = {
            name: self._taken(f"{prefix}.{name}", (dtypes.get(name, torch.float32),), heads, tokens)
            for name in PER_ENTRY
            if f"{prefix}.{name}" in self._left
        }
        return SavedLayer.of(
            self._one_layer,
            keys=keys,
            values=self._taken(f"{prefix}.values", FLOATS, heads, tokens, None),
            positions=self._taken(f"{prefix}.positions", (torch.int64,), tokens),
            index=about.index,
            kind=about.kind,
            rotary=about.rotary,
            **per_entry,
        )

    def _words(self) -> tuple[str, ...] | None:
        if WORDS not in self._left:
            return None
        self._taken(WORDS, (torch.uint8,), None)
        self.tensors.check(WORDS, self.crcs)
        said = tuple(self.tensors.raw(WORDS).decode().split("\n"))
        if len(said) != self._n_tokens or not all(map(str.isprintable, said)):
            raise ValueError("its words are not one for each token, or cannot be printed")
        return said

    def _made(self, index: int, name: str) -> torch.Tensor:
        """A tensor of a layer, checked when it is touched for the first time."""
        whole = f"layers.{index}.{name}"
        try:
            self.tensors.check(whole, self.crcs)
            made = self.tensors.tensor(whole)
            if name == "positions":
                _refuse_positions(made, self._n_tokens)
        except ValueError as error:
            raise damaged(self.tensors.file, error) from None
        return made

    def _release(self, index: int) -> None:
        names = (f"layers.{index}.{name}" for name in TENSORS)
        self.tensors.release(name for name in names if name in self.tensors.places)


def _facts_of(said: tuple[tuple[str, str], ...], names: Sequence[str]) -> dict[str, str]:
    facts = dict(said)
    if not facts.keys() <= set(names) or not all(fact.isprintable() for fact in facts.values()):
        raise ValueError(f"its facts are not of {', '.join(names)}, or cannot be printed")
    return facts


def _refuse_order(indices: Sequence[int]) -> None:
    if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0:
        raise ValueError("its layers are not 1 or more, each once, in the model's order")


def _refuse_positions(positions: torch.Tensor, n_tokens: int) -> None:
    increasing = bool((positions[1:] > positions[:-1]).all())
    if not increasing or int(positions[0]) < 0 or int(positions[-1]) >= n_tokens:
        raise ValueError(f"its positions do not increase from 0 or more to less than {n_tokens}")


def _refuse_another_format(tensors: TensorFile) -> None:
    found = tensors.metadata.get("format", "")
    if found == FORMAT:
        return
    if found.startswith(SAVED_CACHE.begins):
        raise UsageError(f"{tensors.file} has format {shown(found)}, not {FORMAT}", AGAIN)
    raise UsageError(
        f"{tensors.file} holds tensors and is no saved cache",
        "give a file that `save_cache` has written, or say its `cache_layout`",
    )


def damaged(file: Path, reason: object) -> UsageError:
    """The refusal of a file whose content does not fit."""
    return UsageError(f"{file} is damaged or no saved cache ({reason})", AGAIN)
