"""A plain cache in a file: written layer by layer, and read one layer at a time where it lies.

The file is safetensors, so that anybody can read it (see data/tensor_files.py for its checksums).
Its tensors, `i` being the index of a layer in its model:

- `token_ids` (tokens,) I64, of the whole sequence;
- `layers.i.positions` (cached tokens,) I64, increasing;
- `layers.i.attention` and `layers.i.recent_attention` (kv_heads, cached tokens) F32, the mean
  weight that each key received from all queries and from the last few, where it was measured;
- `layers.i.keys` (kv_heads, cached tokens, key_dim), after rotary embedding, and `layers.i.values`
  (kv_heads, cached tokens, value_dim), F16 or BF16 as they are served, or F32 where that was asked
  for;
- `layers.i.keep` (kv_heads, cached tokens) BOOL, False where an entry was evicted, if any was;
- `words` U8, if they are known: each token as visible text, in UTF-8, a line each.

Its `__metadata__` holds `format`, this format and its version, and `about`, JSON of an `About`: the
kind and rotary embedding of each layer, `n_prompt` (tokens from there on were generated), what made
the cache (name, revision, identity, dtype and device of the model), the text it is of (source,
index, title, sha256), and the largest |entry| of all keys and of all values, which spares who looks
for it a pass over the file: it is believed until that pass finds another. What such a file claims
is held against it before anything is made of it; the bytes of a tensor are held against their
checksum when the tensor is first asked for.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from data.cache import KVCache, dtype_in_16_bits
from data.rotary import Rotary
from data.saved_layers import TENSORS
from data.tensor_files import write
from data.tensor_headers import Form

FORMAT = "plain cache 1"
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
TOKEN_IDS, WORDS = "token_ids", "words"
KINDS_OF_LAYERS = ("full", "sliding", "latent")
MODEL_FACTS = ("name", "revision", "identity", "dtype", "device")
TEXT_FACTS = ("source", "index", "title", "sha256")


@dataclass(frozen=True)
class LayerAbout:
    """What a file says of a layer beside its tensors."""

    index: int
    kind: str
    rotary: Rotary | None


@dataclass(frozen=True)
class About:
    """What a file says of a cache beside its tensors. model, text: names and what they stand
    for. largest: |entry| of all keys, and of all values."""

    layers: tuple[LayerAbout, ...]
    n_prompt: int
    model: tuple[tuple[str, str], ...]
    text: tuple[tuple[str, str], ...]
    largest: tuple[float, float]


def save(
    file: Path | str,
    cache: KVCache,
    words: Sequence[str] | None = None,
    model: Mapping[str, str] | None = None,
    text: Mapping[str, str] | None = None,
    as_computed: bool = False,
) -> None:
    """Write a cache as it is served, in 16 bits, or in the dtype in which it was computed; one
    tensor after the other, so that no more than one is in memory a second time.

    words: each token of the cache as visible text. model, text: see `SavedCache`. Raises OSError
    where that cannot be.
    """
    if words is not None and (len(words) != cache.n_tokens or any("\n" in w for w in words)):
        raise ValueError(f"words are {cache.n_tokens}, each on one line")
    parts = _parts(cache, words)
    forms = {name: _form(name, part(), as_computed) for name, part in parts.items()}
    about = About(
        tuple(LayerAbout(layer.index, layer.kind, layer.rotary) for layer in cache.layers),
        cache.n_prompt,
        _facts({"name": cache.model, **(model or {})}, MODEL_FACTS),
        _facts(text or {}, TEXT_FACTS),
        (_largest("keys", cache, forms), _largest("values", cache, forms)),
    )
    # Wider numbers first, so that each begins at a multiple of its size
    order = sorted(forms, key=lambda name: -forms[name].dtype.itemsize)
    write(
        Path(file),
        {name: forms[name] for name in order},
        ((name, parts[name]().detach().to("cpu", forms[name].dtype)) for name in order),
        {"format": FORMAT, "about": json.dumps(asdict(about))},
    )


def _parts(cache: KVCache, words: Sequence[str] | None) -> dict[str, Callable[[], torch.Tensor]]:
    """What gives each tensor of a file, by name, layer by layer: those of a cache that is read from
    a file are not to be held all at once."""
    parts: dict[str, Callable[[], torch.Tensor]] = {TOKEN_IDS: lambda: cache.token_ids}
    for layer in cache.layers:
        for name in TENSORS:
            if getattr(layer, name) is not None:
                parts[f"layers.{layer.index}.{name}"] = partial(getattr, layer, name)
    if words is not None:
        said = bytearray("\n".join(words).encode()) or bytearray(b" ")
        parts[WORDS] = lambda: torch.frombuffer(said, dtype=torch.uint8)
    return parts


def _largest(name: str, cache: KVCache, forms: Mapping[str, Form]) -> float:
    """|entry| of all `keys` or all `values`, rounded as they are written."""
    peaks = []
    for layer in cache.layers:
        low, high = getattr(layer, name).aminmax()
        peak = torch.maximum(-low, high).to(forms[f"layers.{layer.index}.{name}"].dtype)
        peaks.append(float(peak))
    return max(peaks)


def _form(name: str, x: torch.Tensor, as_computed: bool) -> Form:
    return Form(_dtype(name, x, as_computed), tuple(x.shape))


def _dtype(name: str, x: torch.Tensor, as_computed: bool) -> torch.dtype:
    if name.endswith((".keys", ".values")):
        return x.dtype if as_computed and x.dtype in FLOATS else dtype_in_16_bits(x)
    return torch.float32 if x.is_floating_point() else x.dtype


def _facts(given: Mapping[str, str], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    if not given.keys() <= set(names):
        raise ValueError(f"facts are {', '.join(names)}, not {', '.join(given)}")
    return tuple((name, str(given[name])) for name in names if name in given)
