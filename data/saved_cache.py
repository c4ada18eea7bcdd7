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
the cache (name, revision, identity, dtype and device of the model) and the text it is of (source,
index, title, sha256). What such a file claims is held against it before anything is made of it; the
bytes of a tensor are held against their checksum when the tensor is first asked for.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from config import UsageError, user_path
from data.cache import PER_ENTRY, KVCache, LayerKV, dtype_in_16_bits
from data.headers import fitting, shown, words
from data.rotary import Rotary
from data.tensor_files import Form, TensorFile, write

FORMAT = "plain cache 1"
OURS = "plain cache "  # how the format of our files begins, in any version
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
TENSORS = ("positions", "keys", "values", *PER_ENTRY)
TOKEN_IDS, WORDS = "token_ids", "words"
KINDS_OF_LAYERS = ("full", "sliding", "latent")
MODEL_FACTS = ("name", "revision", "identity", "dtype", "device")
TEXT_FACTS = ("source", "index", "title", "sha256")
AGAIN = "save the cache again"


@dataclass(frozen=True)
class SavedCache:
    """A cache as a file holds it.

    cache: its tensors lie in the file and are read when they are touched. Where token ids are not
        known, they are all -1.
    words: the tokens as visible text; None where they are not known.
    model: what made it: name, revision, identity, dtype and device, as far as they are known.
    text: its source, index, title and sha256, as far as they are known.
    assumed: in sentences, what no file says and is taken to be so.
    """

    cache: KVCache
    words: tuple[str, ...] | None = None
    model: dict[str, str] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerAbout:
    """What a file says of a layer beside its tensors."""

    index: int
    kind: str
    rotary: Rotary | None


@dataclass(frozen=True)
class About:
    """What a file says of a cache beside its tensors. model, text: names and what they stand
    for."""

    layers: tuple[LayerAbout, ...]
    n_prompt: int
    model: tuple[tuple[str, str], ...]
    text: tuple[tuple[str, str], ...]


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
    about = About(
        tuple(LayerAbout(layer.index, layer.kind, layer.rotary) for layer in cache.layers),
        cache.n_prompt,
        _facts({"name": cache.model, **(model or {})}, MODEL_FACTS),
        _facts(text or {}, TEXT_FACTS),
    )
    tensors = dict(_tensors(cache, words))
    forms = {
        name: Form(_dtype(name, x, as_computed), tuple(x.shape)) for name, x in tensors.items()
    }
    # Wider numbers first, so that each begins at a multiple of its size
    order = sorted(forms, key=lambda name: -forms[name].dtype.itemsize)
    write(
        Path(file),
        {name: forms[name] for name in order},
        ((name, tensors[name].detach().to("cpu", forms[name].dtype)) for name in order),
        {"format": FORMAT, "about": json.dumps(asdict(about))},
    )


def _tensors(cache: KVCache, words: Sequence[str] | None) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a file, by name, layer by layer."""
    yield TOKEN_IDS, cache.token_ids
    for layer in cache.layers:
        for name in TENSORS:
            x = getattr(layer, name)
            if x is not None:
                yield f"layers.{layer.index}.{name}", x
    if words is not None:
        said = bytearray("\n".join(words).encode())
        yield WORDS, torch.frombuffer(said or bytearray(b" "), dtype=torch.uint8)


def _dtype(name: str, x: torch.Tensor, as_computed: bool) -> torch.dtype:
    if name.endswith((".keys", ".values")):
        return x.dtype if as_computed and x.dtype in FLOATS else dtype_in_16_bits(x)
    return torch.float32 if x.is_floating_point() else x.dtype


def _facts(given: Mapping[str, str], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    if not given.keys() <= set(names):
        raise ValueError(f"facts are {', '.join(names)}, not {', '.join(given)}")
    return tuple((name, str(given[name])) for name in names if name in given)


class SavedLayer(LayerKV):
    """A layer whose tensors are checked whenever they are asked for, by name; those that are made
    of it are layers as any other."""

    _check: Callable[[str], None]

    @classmethod
    def of(cls, check: Callable[[str], None], **parts: Any) -> "SavedLayer":
        layer = cls(**parts)
        object.__setattr__(layer, "_check", check)
        return layer

    def __getattribute__(self, name: str) -> Any:
        if name in TENSORS:
            check = vars(self).get("_check")
            if check is not None:
                check(name)
        return super().__getattribute__(name)

    @property
    def n_heads(self) -> int:
        return int(vars(self)["keys"].shape[0])

    @property
    def n_tokens(self) -> int:
        return int(vars(self)["keys"].shape[1])

    @property
    def n_entries(self) -> int:
        return int(vars(self)["keys"].numel() + vars(self)["values"].numel())


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
        _refuse_order([layer.index for layer in self.about.layers])
        self._left = set(tensors.places)
        self._last = -1  # the layer that was touched last

    def content(self) -> SavedCache:
        token_ids = self._taken(TOKEN_IDS, (torch.int64,), None)
        self.check(TOKEN_IDS)
        if int(token_ids.min()) < 0:
            raise ValueError("a token id is below 0")
        layers = tuple(self._layer(layer, len(token_ids)) for layer in self.about.layers)
        cache = KVCache(layers, token_ids, self.about.n_prompt, self.model.get("name", ""))
        said = self._words(len(token_ids))
        if self._left:
            raise ValueError(f"{shown(min(self._left))} belongs to nothing")
        return SavedCache(cache, said, self.model, self.text)

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

    def _layer(self, about: LayerAbout, n_tokens: int) -> SavedLayer:
        prefix = f"layers.{about.index}"
        keys = self._taken(f"{prefix}.keys", FLOATS, None, None, None)
        heads, tokens, key_dim = keys.shape
        if tokens > n_tokens or about.kind not in KINDS_OF_LAYERS:
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
            lambda name: self._check(about.index, name, n_tokens),
            keys=keys,
            values=self._taken(f"{prefix}.values", FLOATS, heads, tokens, None),
            positions=self._taken(f"{prefix}.positions", (torch.int64,), tokens),
            index=about.index,
            kind=about.kind,
            rotary=about.rotary,
            **per_entry,
        )

    def _words(self, n_tokens: int) -> tuple[str, ...] | None:
        if WORDS not in self._left:
            return None
        self._taken(WORDS, (torch.uint8,), None)
        self.check(WORDS)
        said = tuple(self.tensors.raw(WORDS).decode().split("\n"))
        if len(said) != n_tokens or not all(map(str.isprintable, said)):
            raise ValueError("its words are not one for each token, or cannot be printed")
        return said

    def check(self, name: str) -> None:
        self.tensors.check(name, self.crcs)

    def _check(self, index: int, name: str, n_tokens: int) -> None:
        """A tensor of a layer, before it is looked into. The layer before it leaves memory."""
        whole = f"layers.{index}.{name}"
        if whole not in self.tensors.places:
            return
        if index != self._last:
            self._release(self._last)
            self._last = index
        try:
            self.check(whole)
            if name == "positions":
                _refuse_positions(self.tensors.tensor(whole), n_tokens)
        except ValueError as error:
            raise damaged(self.tensors.file, error) from None

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


def load(path: str, layout: str | None = None) -> SavedCache:
    """The cache that a file holds, or, by a `layout`, what another program has written (see
    data/layouts.py). Raises UsageError for what is damaged, foreign or no file."""
    file = user_path(path, "`load_cache`")
    if file.is_dir():
        raise UsageError(
            f"`load_cache` {file} is a folder", "give a file, or say its `cache_layout`"
        )
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


def _refuse_another_format(tensors: TensorFile) -> None:
    found = tensors.metadata.get("format", "")
    if found == FORMAT:
        return
    if found.startswith(OURS):
        raise UsageError(f"{tensors.file} has format {shown(found)}, not {FORMAT}", AGAIN)
    raise UsageError(
        f"{tensors.file} holds tensors and is no saved cache",
        "give a file that `save_cache` has written, or say its `cache_layout`",
    )


def damaged(file: Path, reason: object) -> UsageError:
    """The refusal of a file whose content does not fit."""
    return UsageError(f"{file} is damaged or no saved cache ({reason})", AGAIN)
