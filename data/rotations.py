"""What rotated the keys that each layer caches, told by the keys themselves.

In a text of one token that token attends to itself alone, so that nothing before the rotary
embedding of any layer depends on where it stands. The same tokens are cached at pairs of positions,
all in one pass; a rotation is claimed where it turns their keys at the one into those at the
other, and that there is none where they are equal. What cannot be reproduced is not claimed.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch

from config import UsageError
from data.cache import PastLayer
from data.forward import forward_at, parameters, some_token_ids
from data.loaded_model import LoadedModel
from data.refusals import said, strangers_code
from data.rotary import NOT_ROTATED, Rotary

log = logging.getLogger(__name__)

Rotations = dict[int, Rotary | None]  # by slot of the cache; None where it is not known

PAIRS = 8  # tokens that are looked at, each at two positions
CLOSE = 1e-3  # relative error of a rotation that is claimed, in float32
ROPE_SETTINGS = ("rope_parameters", "rope_theta", "rotary_dim", "rotary_pct")
SINUSOIDAL_BASE = 10000.0  # of models that keep tables of sines instead of frequencies

_found: WeakKeyDictionary[torch.nn.Module, dict[tuple[torch.dtype, int], Rotations]]
_found = WeakKeyDictionary()


@dataclass(frozen=True)
class _Pairs:
    """Keys (heads, tokens, dim) of the same tokens at two (tokens,) positions each."""

    first: torch.Tensor
    second: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor

    @classmethod
    def of(cls, cached: torch.Tensor, places: torch.Tensor) -> "_Pairs":
        """cached: (texts, heads, 1, dim), the tokens once and again."""
        heads_first = cached[:, :, -1].transpose(0, 1).float()
        return cls(*heads_first.chunk(2, dim=1), *places.chunk(2))

    def error(self, rotary: Rotary) -> float:
        """Relative, of the second keys made from the first."""
        unrotated = rotary.unrotated(self.first, self.before)
        off = rotary.rotated(unrotated, self.after) - self.second
        return float(off.norm() / self.second.norm())


def rotations(loaded: LoadedModel, n_tokens: int) -> Rotations:
    """For a text of so many tokens, on whose number some models' frequencies depend."""
    known = _found.setdefault(loaded.model, {})
    key = (loaded.torch_dtype, n_tokens)
    if key not in known:
        known[key] = _rotations(loaded, n_tokens)
    return known[key]


@torch.no_grad()
def _rotations(loaded: LoadedModel, n_tokens: int) -> Rotations:
    if loaded.device.type != "cpu" and _takes_blocks(loaded):
        log.warning("%s", _not_run(loaded, "it would end all work on this device"))
        return {}
    places = _places(max(n_tokens, min(2 * PAIRS, loaded.max_positions or 2 * PAIRS)))
    ids = some_token_ids(loaded, PAIRS).repeat(2)
    try:
        with strangers_code(lambda error: _not_run(loaded, said(error))):
            past = forward_at(loaded, ids[:, None], places[:, None], last_only=True).past_key_values
    except UsageError as reason:
        log.warning("%s", reason)
        return {}
    cached = {slot: layer for slot, layer in enumerate(past.layers) if is_stored(layer)}
    sources = list(_sources(loaded))
    if not sources and not any(getattr(loaded.settings, name, None) for name in ROPE_SETTINGS):
        return dict.fromkeys(cached, NOT_ROTATED)  # positions are learned, or biases of attention
    keys = {slot: _Pairs.of(layer.keys, places) for slot, layer in cached.items()}
    moved = [
        pairs.error(NOT_ROTATED) > CLOSE
        for layer in cached.values()
        for pairs in (_Pairs.of(layer.keys, places), _Pairs.of(layer.values, places))
    ]
    if "position_ids" not in parameters(loaded) or (sources and not any(moved)):
        return dict.fromkeys(cached)  # it does not heed the positions that it is told
    return {slot: _rotary(pairs, sources, loaded) for slot, pairs in keys.items()}


def _takes_blocks(loaded: LoadedModel) -> bool:
    """Whether its index gathers blocks, which in a text of one token are out of range: an error on
    the CPU, on an accelerator the end of everything."""
    return any("sparse" in kind for kind in getattr(loaded.settings, "layer_types", None) or ())


def _not_run(loaded: LoadedModel, why: str) -> UsageError:
    return UsageError(
        f"{loaded.name} cannot be run on several texts at once ({why})",
        "so what rotates its keys is not known",
    )


def _places(n_positions: int) -> torch.Tensor:
    """(2 x PAIRS,) positions, the first and the last that there are among them: those of each
    token once and, in the same order, those of each again, at distances from wide to narrow."""
    places = torch.linspace(0, n_positions - 1, 2 * PAIRS).long()
    return torch.cat([places[:PAIRS], places[PAIRS:].flip(0)])


def is_stored(layer: PastLayer) -> bool:
    """Whether a layer of the model's cache holds keys."""
    keys: torch.Tensor | None = getattr(layer, "keys", None)
    return keys is not None and keys.numel() > 0


def _rotary(pairs: _Pairs, sources: list[Rotary], loaded: LoadedModel) -> Rotary | None:
    """Of all that may have turned these keys, what turned them with the least error."""
    key_dim = pairs.first.shape[-1]
    close = max(CLOSE, 4 * torch.finfo(loaded.torch_dtype).eps)
    for tried in ([NOT_ROTATED, *_ways(sources)], [*_ways(_sinusoidal(loaded, key_dim))]):
        fits = [rotary for rotary in tried if 2 * len(rotary.frequencies) <= key_dim]
        best = min(fits, key=pairs.error)
        if pairs.error(best) < close:
            return best
    return None


def _ways(sources: list[Rotary]) -> Iterator[Rotary]:
    """Models pair dimensions in two ways, and some turn them backwards."""
    for source in sources:
        backwards = replace(source, frequencies=tuple(-f for f in source.frequencies))
        for rotary in (source, backwards):
            yield rotary
            yield replace(rotary, interleaved=True)


def _sources(loaded: LoadedModel) -> Iterator[Rotary]:
    """The frequencies that the model's rotary modules hold now, each once, with their scaling."""
    seen = set()
    for name, buffer in loaded.model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        if not leaf.endswith("inv_freq") or "original" in leaf or buffer.ndim != 1:
            continue
        named = leaf.replace("inv_freq", "attention_scaling")
        scaling = getattr(loaded.model.get_submodule(owner), named, 1.0)
        rotary = Rotary(tuple(buffer.float().tolist()), float(scaling))
        if rotary not in seen:
            seen.add(rotary)
            yield rotary


def _sinusoidal(loaded: LoadedModel, key_dim: int) -> list[Rotary]:
    """What sines and cosines are made of that a model keeps in place of frequencies."""
    widths = {getattr(loaded.settings, "rotary_dim", None) or key_dim, key_dim - key_dim % 2}
    powers = [torch.arange(0, width, 2) / width for width in sorted(widths)]
    return [Rotary(tuple((1.0 / SINUSOIDAL_BASE**power).tolist())) for power in powers]
