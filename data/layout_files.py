"""Reads what other programs have left on disk, by a `Layout`."""

import mmap
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from math import prod
from operator import mul
from pathlib import Path

import torch

from config import UsageError
from data.cache import KVCache
from data.headers import shown
from data.layouts import DTYPES, Layout, layout_of
from data.plain_files import FLOATS
from data.saved_layers import OneLayer, SavedCache, SavedLayer
from data.tensor_files import TensorFile, is_finite

KV_CACHE = "kv_cache"  # the tensor of a file of vLLM
IN_A_NAME = re.compile(r"\.(\d+)\.")  # the index of a layer
RANK = re.compile(r"@0x([0-9a-f]{8})@")  # of LMCache, its first byte how many ranks there are
NO_MODEL = "unknown model"
LAYERS_OF_VLLM = "*.safetensors"
CHUNKS_OF_LMCACHE = ("*.data", "*.pt")


@dataclass(frozen=True)
class Piece:
    """Numbers of one file. flat: maps them into memory, sorted as the layout says."""

    file: Path
    dtype: torch.dtype
    n_tokens: int
    flat: Callable[[], torch.Tensor]


def read(place: Path, given: str) -> SavedCache:
    """The cache that another program has left in a folder, or a file of a folder. Raises UsageError
    for what does not fit its layout or is not there."""
    layout = layout_of(given)
    try:
        if not place.exists():
            raise UsageError(f"`load_cache` {place} is not there", "give a folder or a file")
        if layout.format == "vllm":
            return _of_vllm(place, layout)
        return _of_lmcache(place, layout)
    except (OSError, ValueError) as error:
        raise _misfit(place, error) from None


def _misfit(place: Path, reason: object) -> UsageError:
    return UsageError(
        f"`load_cache` {place} does not fit its `cache_layout` ({reason})",
        "mend the one or the other",
    )


def _of_vllm(folder: Path, layout: Layout) -> SavedCache:
    files = sorted(folder.glob(LAYERS_OF_VLLM)) if folder.is_dir() else []
    if not files:
        raise ValueError("it is no folder with a safetensors file for each layer")
    indices = [_index(file) for file in files]
    twice = [index for index, n in Counter(indices).items() if n > 1]
    if twice:
        raise ValueError(f"several of its files are of layer {twice[0]}")
    pieces = {
        index: [_of_safetensors(file, layout)]
        for index, file in sorted(zip(indices, files, strict=True))
    }
    if len({piece.n_tokens for (piece,) in pieces.values()}) > 1:
        raise ValueError("its layers are not of as many tokens each")
    return _cache(layout, pieces, layout.model, [])


def _index(file: Path) -> int:
    found = IN_A_NAME.search(file.name)
    if found is None or len(found[1]) > 6:
        raise ValueError(f"the name of {shown(file.name)} does not say which layer it is")
    return int(found[1])


def _of_safetensors(file: Path, layout: Layout) -> Piece:
    places = TensorFile(file).places
    if places.keys() != {KV_CACHE}:
        raise ValueError(f"{shown(file.name)} does not hold one tensor {KV_CACHE}")
    form = places[KV_CACHE].form
    if form.dtype not in FLOATS:
        raise ValueError(f"{shown(file.name)} is of dtype {form.dtype}")
    n_tokens = _n_tokens(layout, prod(form.shape), file)
    # Axes may be joined there, as heads and dimensions are, and not in another order
    joined, ends = (set(accumulate(s, mul)) for s in (form.shape, layout.shape(n_tokens)))
    if not joined <= ends | {1}:
        raise ValueError(
            f"{shown(file.name)} is {form.shape}, and {' '.join(layout.order)} "
            f"{layout.shape(n_tokens)}"
        )

    def flat() -> torch.Tensor:
        now = TensorFile(file)
        if now.places.get(KV_CACHE) != places[KV_CACHE]:
            raise ValueError(f"{shown(file.name)} has changed meanwhile")
        return now.tensor(KV_CACHE).reshape(-1)

    return Piece(file, form.dtype, n_tokens, flat)


def _of_lmcache(place: Path, layout: Layout) -> SavedCache:
    files = _chunks(place, layout)
    dtype = DTYPES[str(layout.dtype)]
    chunks = [_of_raw_numbers(file, layout, dtype) for file in files]
    pieces = dict.fromkeys(range(layout.layers or 0), chunks)
    said = ["Layers are numbered from 0."]
    rank = RANK.search(files[0].name)
    n_ranks = int(rank[1][:2], 16) if rank else 1
    if n_ranks > 1:
        said.append(f"KV heads are those of one of {n_ranks} ranks.")
    name = files[0].name.split("@")[0].replace("-SEP-", "/") if "@" in files[0].name else None
    return _cache(layout, pieces, layout.model or name, said)


def _chunks(place: Path, layout: Layout) -> list[Path]:
    """The files of one text, in its order."""
    if place.is_file():
        if layout.chunks is not None:
            raise ValueError("chunks were given, and it is one file")
        return [place]
    if layout.chunks is None:
        files = [file for pattern in CHUNKS_OF_LMCACHE for file in sorted(place.glob(pattern))]
        if len(files) != 1:
            raise ValueError(f"{len(files)} files are in it, so chunks have to say their order")
        return files
    if not layout.chunks or len(set(layout.chunks)) < len(layout.chunks):
        raise ValueError("chunks are 1 or more files, each once")
    for name in layout.chunks:
        if name != Path(name).name or not (place / name).is_file():
            raise ValueError(f"chunk {shown(name)} is no file in it")
    parts = [name.split("@") for name in layout.chunks]
    unlike = [part for part in zip_longest(*parts) if len(set(part)) > 1]
    if len(unlike) > 1:
        raise ValueError("names of chunks differ in more than their hash: model, rank or group")
    return [place / name for name in layout.chunks]


def _of_raw_numbers(file: Path, layout: Layout, dtype: torch.dtype) -> Piece:
    nbytes = file.stat().st_size
    n, rest = divmod(nbytes, dtype.itemsize)
    if rest:
        raise ValueError(f"{shown(file.name)} has {nbytes} bytes, which {dtype} does not divide")
    n_tokens = _n_tokens(layout, n, file)

    def flat() -> torch.Tensor:
        with file.open("rb") as opened, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            if len(mapped) != nbytes:
                raise ValueError(f"{shown(file.name)} has changed meanwhile")
            return torch.frombuffer(mapped, dtype=dtype)

    return Piece(file, dtype, n_tokens, flat)


def _n_tokens(layout: Layout, n: int, file: Path) -> int:
    """Of `n` numbers."""
    per_token = prod(layout.shape(1))
    if not n or n % per_token:
        raise ValueError(
            f"{shown(file.name)} has {n} numbers, which are no multiple of the {per_token} of a "
            "token"
        )
    return n // per_token


def _cache(
    layout: Layout, pieces: dict[int, list[Piece]], model: str | None, assumed: Sequence[str]
) -> SavedCache:
    n_tokens = sum(piece.n_tokens for piece in next(iter(pieces.values())))
    if layout.token_ids is not None and len(layout.token_ids) != n_tokens:
        raise ValueError(f"{len(layout.token_ids)} token_ids were given for {n_tokens} tokens")
    one_layer = OneLayer(lambda index, name: _made(layout, pieces[index], index, name))
    name = model if model and model.isprintable() else NO_MODEL

    def form(*sizes: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    layers = tuple(
        SavedLayer.of(
            one_layer,
            keys=form(layout.kv_heads, n_tokens, layout.dim("key"), dtype=parts[0].dtype),
            values=form(layout.kv_heads, n_tokens, layout.dim("value"), dtype=parts[0].dtype),
            positions=form(n_tokens, dtype=torch.int64),
            index=index,
            kind="latent" if layout.is_latent else "full",
            rotary=layout.per_layer,
        )
        for index, parts in pieces.items()
    )
    ids = torch.full((n_tokens,), -1)
    if layout.token_ids is not None:
        ids = torch.tensor(layout.token_ids)
    said = [f"Positions are taken to be 0 to {n_tokens - 1}.", *assumed]
    if layout.token_ids is None:
        said.append("Token ids are not known.")
    if layout.per_layer is None:
        said.append("What rotated the keys is not known.")
    facts = {} if name == NO_MODEL else {"name": name}
    return SavedCache(KVCache(layers, ids, n_tokens, name), None, facts, {}, tuple(said))


def _made(layout: Layout, pieces: list[Piece], index: int, name: str) -> torch.Tensor:
    """A tensor of a layer, copied out of its pieces."""
    n_tokens = sum(piece.n_tokens for piece in pieces)
    if name == "positions":
        return torch.arange(n_tokens)
    dim = layout.dim("key" if name == "keys" else "value")
    made, at = torch.empty(layout.kv_heads, n_tokens, dim, dtype=pieces[0].dtype), 0
    for piece in pieces:
        part = made[:, at : at + piece.n_tokens]
        try:
            part.copy_(_part(layout, piece, index, name))
        except (OSError, ValueError) as error:
            raise _misfit(piece.file, error) from None
        at += piece.n_tokens
    if not is_finite(made):
        raise _misfit(pieces[0].file.parent, f"the {name} of layer {index} hold NaN or Inf")
    return made


def _part(layout: Layout, piece: Piece, index: int, name: str) -> torch.Tensor:
    """(kv_heads, tokens, dim) of the keys or values of a layer in one piece: a view."""
    x = piece.flat().view(layout.shape(piece.n_tokens))
    axes = list(layout.order)
    if "layers" in axes:
        x = x.select(axes.index("layers"), index)
        axes.remove("layers")
    if layout.is_latent:
        x = x.permute(axes.index("tokens"), axes.index("dim"))[None]
        n = layout.dim("key")
        return x[..., :n] if name == "keys" else x[..., n:]
    x = x.permute(*(axes.index(axis) for axis in ("kv", "heads", "tokens", "dim")))
    return x[int(name == "values")]
