"""Saved keys and values in the place of those that a model makes of the same text, and how far they
are off from those."""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from compression.costs import relative, relative_errors
from config import UsageError
from data.cache import KINDS, KVCache, LayerKV
from data.extraction import refuse_non_finite

# Relative errors of one layer. Half precision and other kernels put a cache off by thousandths, and
# storing it in 8 bits by 0.03. On the default model one other token among 200 does so by 0.2, and
# another text by 1.4; storing it in 2 bits, by 0.46, is the most that is still of the same text.
ROUNDED, MOST_OFF = 0.05, 0.5
ADVICE = "give the model that made it, and its text"


@dataclass(frozen=True)
class Off:
    """How far saved keys and values are off from the model's own.

    errors: of each layer and kind, see `relative_errors`. n_own: entries that were not saved, where
    the model's own stand in; n_entries: of all.
    """

    errors: pd.DataFrame
    n_own: int
    n_entries: int

    @property
    def of_all(self) -> dict[str, float]:
        """kind -> relative error over all layers."""
        errors: pd.Series = relative(self.errors.groupby("kind").sum())
        return {kind: float(errors[kind]) for kind in KINDS}

    @property
    def worst(self) -> float:
        """The relative error of the layer and kind that is off most."""
        return float(self.errors["relative_error"].max())

    @property
    def words(self) -> str:
        """In figures."""
        worst = self.errors.loc[self.errors["relative_error"].idxmax()]
        return (
            f"{self.of_all['key']:.2g} of keys and {self.of_all['value']:.2g} of values, at most "
            f"{self.worst:.2g}, of the {worst['kind']}s of layer {worst['layer']}"
        )

    @property
    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        errors = {f"{kind}_error": error for kind, error in self.of_all.items()}
        return errors | {"models_own_entries": self.n_own, "entries": self.n_entries}


def in_place(own: KVCache, saved: KVCache) -> tuple[KVCache, Off]:
    """The model's own cache of a context with the saved keys and values of the same tokens in the
    place of its own; with all else that is known of it, as the attention that tokens receive. What
    was saved may be of a longer text. Where a token was not saved, as a sliding window may have
    forgotten it by the end of that, the model's own entries stand in.

    Raises UsageError for what cannot be the cache of the same model and text.
    """
    _refuse_other_layers(own, saved)
    put, errors, n_own = [], [], 0
    for mine, theirs in zip(own.layers, saved.layers, strict=True):
        _refuse_misfit(own.model, mine, theirs)
        held = torch.isin(mine.positions, theirs.positions.to(mine.positions.device))
        ours, its = _part(mine, held.nonzero()[:, 0]), _at(theirs, mine.positions[held], mine)
        if held.any():
            refuse_non_finite(replace(own, layers=(its,)), "the saved cache", ADVICE)
        errors.append(relative_errors(*(replace(own, layers=(x,)) for x in (ours, its))))
        n_own += mine.n_entries - its.n_entries
        put.append(_filled(mine, its, held))
    off = Off(pd.concat(errors, ignore_index=True), n_own, own.n_entries)
    _refuse_none_saved(own, off)
    if off.worst > MOST_OFF:
        raise UsageError(
            f"The saved keys and values are not those that {own.model} makes of this text: their "
            f"relative error is {off.words}, where {MOST_OFF:g} is the most that is taken",
            ADVICE,
        )
    return replace(own, layers=tuple(put)), off


def _at(layer: LayerKV, positions: torch.Tensor, like: LayerKV) -> LayerKV:
    """Its entries at these positions, all of which it holds; copies, where `like` has its own."""
    places = torch.searchsorted(layer.positions, positions.to(layer.positions.device))
    part = _part(layer, places)
    device = like.keys.device
    return replace(part, keys=part.keys.to(device), values=part.values.to(device))


def _part(layer: LayerKV, places: torch.Tensor) -> LayerKV:
    """Keys and values at these of its places, copied, and nothing else that was measured."""
    there = places.to(layer.keys.device)
    return LayerKV(
        layer.keys[:, there],
        layer.values[:, there],
        layer.positions[there.to(layer.positions.device)],
        layer.index,
    )


def _filled(own: LayerKV, saved: LayerKV, held: torch.Tensor) -> LayerKV:
    """The layer with the saved entries where they are `held`."""
    if held.all():
        return replace(own, keys=saved.keys, values=saved.values)
    for kind in KINDS:
        x, y = own.tensor(kind), saved.tensor(kind)
        both = x.to(torch.promote_types(x.dtype, y.dtype), copy=True)
        both[:, held.to(x.device)] = y.to(both.dtype)
        own = own.with_tensor(kind, both)
    return own


def _refuse_other_layers(own: KVCache, saved: KVCache) -> None:
    ours, theirs = ([layer.index for layer in each.layers] for each in (own, saved))
    if ours != theirs:
        raise UsageError(
            f"The cache holds keys and values of {_listed(theirs)}, and {own.model} keeps those of "
            f"{_listed(ours)}",
            ADVICE,
        )


def _listed(indices: list[int]) -> str:
    if len(indices) > 2 and indices == list(range(indices[0], indices[-1] + 1)):
        return f"layers {indices[0]} to {indices[-1]}"
    return f"layer{'s' * (len(indices) > 1)} {', '.join(map(str, indices))}"


def _refuse_misfit(model: str, own: LayerKV, saved: LayerKV) -> None:
    ours, theirs = (_shape(layer) for layer in (own, saved))
    if ours != theirs:
        raise UsageError(
            f"Layer {own.index} of the cache has {theirs}, and that of {model} has {ours}", ADVICE
        )
    if saved.keep is not None:
        raise UsageError(
            f"Entries of layer {saved.index} of the cache were evicted, so it cannot be held "
            "against the model's own",
            "give one that holds all",
        )


def _shape(layer: LayerKV) -> str:
    dims = layer.keys.shape[2], layer.values.shape[2]
    return f"{layer.n_heads} KV heads with {dims[0]} dimensions of keys and {dims[1]} of values"


def _refuse_none_saved(own: KVCache, off: Off) -> None:
    if off.n_own == off.n_entries:
        raise UsageError(
            f"Of the first {own.n_tokens} tokens the cache holds nothing any more, for its windows "
            "have moved on",
            "lower `score_tokens`, so that the context ends later",
        )
