"""What a model itself keeps of so many tokens: the form that a restored cache is filled into, and
that one from a file is held against.

Two short passes tell it. Windows apart, every size and every count in a cache object either stays
or grows by as much for each token, or, where entries are compressed by groups of tokens, for each
group: it is a straight line through whole periods of tokens, on which two points are seen.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from data import extraction
from data.cache import KINDS, KVCache, Past
from data.inventory import kind_of, leaves
from data.loaded_model import LoadedModel

States = dict[str, torch.Tensor]  # by paths in the cache object, see inventory.leaves
Size = tuple[int, str, int, int, int, int]  # index, kind, heads, tokens, key_dim, value_dim
Form = tuple[torch.dtype, tuple[int, ...]]


def states_of(past: Past) -> States:
    """Whatever a cache object holds beside the keys and values of its layers; copies. Single
    numbers are counts, which follow from how many tokens there are."""
    return {path: x.clone().contiguous() for path, x in leaves(past) if _is_state(path, x)}


def _is_state(path: str, x: object) -> bool:
    return isinstance(x, torch.Tensor) and x.ndim > 0 and not _is_kv(path)


def _is_kv(path: str) -> bool:
    return kind_of(path) in KINDS


@dataclass(frozen=True)
class OwnCache:
    """The model's own cache object after `seen` tokens, and after `more`, in whose form `n_tokens`
    are to be kept."""

    cache: KVCache
    past: Past
    later: Past
    seen: int
    more: int
    n_tokens: int
    device: torch.device

    @classmethod
    def of(cls, loaded: LoadedModel, n_tokens: int, token: int) -> "OwnCache":
        """As passes over this token, again and again, tell."""
        period = _period(loaded)
        seen = n_tokens if n_tokens <= 2 * period else n_tokens % period + period
        more = seen if seen == n_tokens else seen + period
        first, *second = (
            extraction.prefill(loaded, torch.full((n,), token)) for n in sorted({seen, more})
        )
        later = second[0].past if second else first.past
        return cls(first.cache, first.past, later, seen, more, n_tokens, loaded.device)

    @property
    def sizes(self) -> list[Size]:
        """Of each layer with keys and values, for `n_tokens`."""
        sizes = []
        for x in self.cache.layers:
            window = getattr(self.past.layers[x.index], "sliding_window", None)
            held = self.n_tokens if window is None else min(self.n_tokens, window - 1)
            sizes.append((x.index, x.kind, x.n_heads, held, x.keys.shape[2], x.values.shape[2]))
        return sizes

    @property
    def states(self) -> dict[str, Form]:
        """dtype and shape of all that is kept beside keys and values, for `n_tokens`."""
        return {path: form for path, form in self._forms.items() if isinstance(form, tuple)}

    def fits(self, past: Past) -> bool:
        """Whether a cache object of `n_tokens` is as this says."""
        there = {path: _form(x) for path, x in leaves(past) if not _is_kv(path)}
        return there == self._forms

    def fit(self, states: Mapping[str, torch.Tensor]) -> bool:
        """Whether these are the states that the model keeps, by name, dtype and shape."""
        return {path: _form(x) for path, x in states.items()} == self.states

    def filled(self, cache: KVCache, states: Mapping[str, torch.Tensor]) -> Past:
        """The cache object with this content; used up by that."""
        if not self.fit(states):
            raise ValueError(
                f"states are {', '.join(self.states)}, each in its own dtype and shape"
            )
        for path, x in list(leaves(self.past)):
            if path in states:
                _put(self.past, path, states[path].to(self.device, copy=True))
            elif type(x) is int and x != self._forms[path]:
                _put(self.past, path, self._forms[path])
        for layer in cache.layers:
            held = self.past.layers[layer.index]
            like = held.keys
            held.keys, held.values = (x[None].to(like) for x in (layer.keys, layer.values))
        return self.past

    @cached_property
    def _forms(self) -> dict[str, Any]:
        """What is to stand where, but for keys and values: the form of a state, or a count."""
        later = {path: _form(x) for path, x in leaves(self.later)}
        return {
            path: self._at_length(_form(x), later.get(path))
            for path, x in leaves(self.past)
            if not _is_kv(path)
        }

    def _at_length(self, now: Any, later: Any) -> Any:
        if isinstance(now, tuple) and isinstance(later, tuple):
            (dtype, sizes), (_, grown) = now, later
            return dtype, tuple(map(self._grown, sizes, grown))
        if type(now) is int and type(later) is int:
            return self._grown(now, later)
        return now

    def _grown(self, now: int, later: int) -> int:
        if self.more == self.seen:
            return now
        return now + (later - now) * (self.n_tokens - self.seen) // (self.more - self.seen)


def _form(x: Any) -> Any:
    """dtype and shape of a state; any other thing itself."""
    if not isinstance(x, torch.Tensor):
        return x
    return (x.dtype, tuple(x.shape)) if x.ndim else x.item()


def _period(loaded: LoadedModel) -> int:
    """Tokens after which layers that compress groups of tokens have all begun anew."""
    rates: dict[str, int] = getattr(loaded.settings, "compress_rates", None) or {}
    return math.lcm(1, *rates.values())


def _put(past: Any, path: str, x: Any) -> None:
    """Puts something where `leaves` finds it."""
    *lead, last = path.split(".")
    for name in lead:
        past = _part(past, name)
    if isinstance(past, dict):
        past[_key(past, last)] = x
    elif isinstance(past, list):
        past[int(last)] = x
    else:
        setattr(past, last, x)


def _part(x: Any, name: str) -> Any:
    if isinstance(x, dict):
        return x[_key(x, name)]
    return x[int(name)] if isinstance(x, list | tuple) else getattr(x, name)


def _key(x: dict[Any, Any], name: str) -> Any:
    return next(key for key in x if str(key) == name)
