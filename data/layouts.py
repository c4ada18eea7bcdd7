"""Caches as other programs leave them on disk, read by a small mapping that says what is where.

The mapping is JSON, in a file or as it is. Its fields, of which `format` and `head_dim` are always
due:

- `format`: "vllm", a folder with a safetensors file for each layer, as in
  `model.layers.0.self_attn.attn.safetensors`, each with one tensor `kv_cache`: so vLLM's example
  (earlier shared storage) connector dumps it; or "lmcache", files of raw numbers without a header,
  each a chunk of the text: so LMCache keeps them on disk, named
  `<model>@0x<rank>@<group>@<hash>.data`, or by older versions `<model>@...@<hash>@<dtype>.pt`.
- `head_dim`: numbers in the key of a head, and as many in its value; of latent attention (MLA)
  those of the latent and the rotated part together.
- `rope_dim`: of latent attention, how many of them, the last ones, are the rotated part.
- `kv_heads`: 1 where it is not given.
- `layers` and `dtype` ("float16", "bfloat16" or "float32"): of "lmcache", whose files say neither.
- `axes`: by what the numbers are sorted, the slowest first. Where it is not given, "vllm" is
  "kv tokens heads dim" and "lmcache" is "kv layers tokens heads dim" (its KV_2LTD); with `rope_dim`
  "tokens dim" and "layers tokens dim" (its KV_MLA_FMT). `kv` is key, value. vLLM since August 2026
  dumps "tokens heads kv dim", and its Triton and FlashInfer backends before "tokens kv heads dim".
- `chunks`: names of files in the folder, in the order of the text; due where there are several.
- `token_ids`: of the text, where they are known.
- `rotary`: what rotated the keys, where that is known, as {"theta": 10000.0, "dims": 64,
  "interleaved": false}; `dims` 0 for nothing. Latents themselves are not rotated.
- `model`: what made it.

Such files carry no checksum. What their sizes and this mapping say has to fit together, and their
numbers have to be finite. A layer is copied out of them when it is touched, one at a time.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch

from config import UsageError, user_path
from data.headers import fitting, shown, words
from data.rotary import NOT_ROTATED, Rotary

LARGEST = 10**8  # bytes of a mapping
SEE = "data/layouts.py says which fields there are"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
USUAL_AXES = {
    ("vllm", False): "kv tokens heads dim",
    ("vllm", True): "tokens dim",
    ("lmcache", False): "kv layers tokens heads dim",
    ("lmcache", True): "layers tokens dim",
}
FORMATS = ("vllm", "lmcache")


@dataclass(frozen=True)
class Turned:
    """By what keys were rotated: `dims` of theirs, the fastest by a radian per position, the others
    by powers of 1 / theta."""

    theta: float
    dims: int
    interleaved: bool

    def __post_init__(self) -> None:
        if not 1 <= self.theta <= 1e12 or self.dims < 0 or self.dims % 2:
            raise ValueError("rotary takes theta from 1 and an even number of dims")


@dataclass(frozen=True)
class Layout:
    """The fields of a mapping, see above."""

    format: str
    head_dim: int
    rope_dim: int | None
    kv_heads: int
    layers: int | None
    dtype: str | None
    axes: str | None
    chunks: tuple[str, ...] | None
    token_ids: tuple[int, ...] | None
    rotary: Turned | None
    model: str | None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format is {shown(self.format)}, and takes {' or '.join(FORMATS)}")
        sizes = {name: getattr(self, name) for name in ("head_dim", "kv_heads", "layers")}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}, and takes 1 or more")
        if self.is_latent and not 0 < (self.rope_dim or 0) < self.head_dim:
            raise ValueError(f"rope_dim is {self.rope_dim}, and takes 1 to head_dim - 1")
        if self.is_latent and self.kv_heads != 1:
            raise ValueError("kv_heads of latent attention is 1")
        if self.rotary is not None and self.rotary.dims > self.head_dim:
            raise ValueError("rotary dims are more than head_dim")
        if self.token_ids is not None and not (self.token_ids and min(self.token_ids) >= 0):
            raise ValueError("token_ids are 1 or more numbers from 0")
        if self.model is not None and not self.model.isprintable():
            raise ValueError("model cannot be printed")
        self._refuse_fields_of_another()
        due = USUAL_AXES[self.format, self.is_latent].split()
        if sorted(self.order) != sorted(due):
            raise ValueError(f"axes are {shown(self.axes)}, and take {', '.join(due)} in any order")

    def _refuse_fields_of_another(self) -> None:
        """Those that one format needs and the other says itself."""
        for name in ("layers", "dtype", "chunks"):
            given = getattr(self, name)
            if self.format == "vllm" and given is not None:
                raise ValueError(f"{name} was given, which files of vllm say themselves")
            if self.format == "lmcache" and given is None and name != "chunks":
                raise ValueError(f"{name} is not given, which files of lmcache do not say")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype is {shown(self.dtype)}, and takes one of {', '.join(DTYPES)}")

    @property
    def is_latent(self) -> bool:
        return self.rope_dim is not None

    @property
    def order(self) -> tuple[str, ...]:
        """The axes, the slowest first."""
        return tuple((self.axes or USUAL_AXES[self.format, self.is_latent]).split())

    def dim(self, kind: str) -> int:
        """Numbers in the key or the value of a head."""
        if self.rope_dim is None:
            return self.head_dim
        return self.rope_dim if kind == "value" else self.head_dim - self.rope_dim

    def shape(self, n_tokens: int) -> tuple[int, ...]:
        """Sizes of the axes for so many tokens."""
        sizes = {"kv": 2, "layers": self.layers or 1, "tokens": n_tokens}
        sizes |= {"heads": self.kv_heads, "dim": self.head_dim}
        return tuple(sizes[axis] for axis in self.order)

    @property
    def per_layer(self) -> Rotary | None:
        """What rotated the cached keys; the latents of latent attention are not rotated."""
        if self.is_latent or self.rotary is None:
            return NOT_ROTATED if self.is_latent else None
        pairs = range(self.rotary.dims // 2)
        powers = (-2 * i / self.rotary.dims for i in pairs)
        return Rotary(
            tuple(self.rotary.theta**power for power in powers),
            interleaved=self.rotary.interleaved,
        )


def layout_of(given: str) -> Layout:
    """From JSON, or a file that holds it. Raises UsageError, naming the field, for what is none."""
    said = given if given.lstrip().startswith("{") else _content(given)
    try:
        return _layout(words(said))
    except ValueError as error:
        raise UsageError(f"`cache_layout` {shown(given)} will not do ({error})", SEE) from None


def _content(given: str) -> str:
    file = user_path(given, "`cache_layout`")
    try:
        if not file.is_file() or file.stat().st_size > LARGEST:
            raise UsageError(
                f"`cache_layout` {shown(given)} is no file", f"give one, or the JSON itself; {SEE}"
            )
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`cache_layout` {shown(given)} cannot be read ({error})", SEE) from None


def _layout(said: Any) -> Layout:
    if not isinstance(said, dict):
        raise ValueError("it is no mapping")
    known = [each.name for each in fields(Layout)]
    for name in said:
        if name not in known:
            raise ValueError(f"there is no field {shown(name)}; fields are {', '.join(known)}")
    for name in ("format", "head_dim"):
        if name not in said:
            raise ValueError(f"{name} is not given")
    usual: dict[str, Any] = dict.fromkeys(known) | {"kv_heads": 1}
    if isinstance(said.get("rotary"), dict):
        said = said | {"rotary": {"interleaved": False} | said["rotary"]}
    layout: Layout = fitting(Layout, usual | said, "it")
    return layout
