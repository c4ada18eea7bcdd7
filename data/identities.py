"""Which model it is: a hash that all copies of it share, wherever they were loaded from."""

import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

import torch

from data import placement

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Settings that say where a copy of a model comes from or how it was loaded, not what it computes.
OF_A_COPY = {
    "_name_or_path",
    "_commit_hash",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
RENEWED = ("inv_freq", "cos_cached", "sin_cached")


def identity(model: torch.nn.Module, settings: "PretrainedConfig", dtype: str) -> str:
    """A hash of what a model computes: its settings, its weights and buffers by name, and the dtype
    they run in."""
    digest = hashlib.sha256(dtype.encode())
    digest.update(_words(settings).encode())
    parts = chain(_weights(model), _buffers(model))
    for _, hashed in sorted({name: _hashed(name, x) for name, x in parts}.items()):
        digest.update(hashed)
    return digest.hexdigest()


def _words(settings: "PretrainedConfig") -> str:
    own = {k: v for k, v in settings.to_dict().items() if k not in OF_A_COPY}
    return json.dumps(own, sort_keys=True, default=str)


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """By name, those that are kept elsewhere too, each brought back for as long as it is looked
    at."""
    for path, module in model.named_modules(remove_duplicate=False):
        with placement.at_hand(module):
            for name, weights in module.state_dict(keep_vars=True).items():
                if "." not in name:
                    yield f"{path}.{name}".removeprefix("."), weights


def _buffers(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Those that no checkpoint holds too. Rotary modules renew some of theirs for a long text: what
    these follow from is among the settings."""
    for name, buffer in model.named_buffers():
        if not name.endswith(RENEWED) or name.endswith("original_inv_freq"):
            yield name, buffer


def _hashed(name: str, weights: torch.Tensor) -> bytes:
    digest = hashlib.sha256(repr((name, str(weights.dtype), tuple(weights.shape))).encode())
    content = weights.detach().cpu().contiguous().flatten().view(torch.uint8)
    digest.update(content.numpy().data)
    return digest.digest()
