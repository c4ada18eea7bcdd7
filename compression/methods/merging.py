"""Parts of the cache that are alike, stored once: layers, KV heads and tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from compression.base import Compressed, Compressor
from compression.methods.place_by_place import Place, PlaceByPlace, Shape, content
from compression.methods.spectra import leading
from compression.parts import Part, Words
from compression.shapes import CacheShape
from compression.stored import FLOATS, Tensors, refuse_beyond, taken
from config import UsageError
from data.cache import KINDS, KVCache, by_head, in_16_bits, wide

WINDOW = 512  # tokens among which alike ones are looked for: never all pairs of a long text

Head = tuple[int, int]  # the model's layer, and the KV head in it


def leading_mix(members: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """z (n,) and scales (m,) with members (m, n) ~ scales x z, the best of rank 1."""
    scales = leading((members @ members.T).double(), 1)[0][:, 0].to(members.dtype)
    return scales @ members, scales


@dataclass(frozen=True)
class MergedHeads(Compressor):
    """Each group of KV heads is stored as one tensor (tokens, dim), with a least-squares scale for
    each member; the other heads as they are. A group of layers is a group for each of its heads.

    key_groups, value_groups: groups of (layer, head) by their numbers in the model; heads of one
    group have the same tokens and dims.
    """

    name: ClassVar[str] = "merged_heads"
    key_groups: tuple[tuple[Head, ...], ...] = ()
    value_groups: tuple[tuple[Head, ...], ...] = ()
    unrotated_keys: bool = False

    def __post_init__(self) -> None:
        for name in ("key_groups", "value_groups"):
            groups = tuple(tuple(map(tuple, group)) for group in getattr(self, name))
            object.__setattr__(self, name, groups)
            members = [head for group in groups for head in group]
            if len(set(members)) < len(members):
                raise UsageError(f"A head stands in two groups of {name}", "it can be in one")

    def _groups(self, kind: str) -> tuple[tuple[Head, ...], ...]:
        return {"key": self.key_groups, "value": self.value_groups}[kind]

    def part(self, name: str, of: Compressed) -> Part:
        first, second, *rest = name.split(".")
        if not rest:
            return Part("heads that are not merged", (int(first),), second)
        layers = {layer for layer, _ in self._groups(first)[int(second)]}
        words = {"joint": "merged heads", "scales": "scales"}[rest[0]]
        return Part(words, tuple(sorted(layers)), first)

    def encode(self, cache: KVCache) -> Tensors:
        stored: Tensors = {}
        for kind in KINDS:
            tensors = {
                layer.index: content(layer, kind, self.unrotated_keys) for layer in cache.layers
            }
            merged = {head for group in self._groups(kind) for head in group}
            for layer, x in tensors.items():
                alone = [h for h in range(len(x)) if (layer, h) not in merged]
                stored[f"{layer}.{kind}"] = in_16_bits(x[alone])
            for g, group in enumerate(self._groups(kind)):
                members = torch.stack([tensors[layer][head].flatten() for layer, head in group])
                joint, scales = leading_mix(members)
                tokens = tensors[group[0][0]].shape[1]
                stored[f"{kind}.{g}.joint"] = in_16_bits(joint.view(tokens, -1))
                stored[f"{kind}.{g}.scales"] = in_16_bits(scales)
        return stored

    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        keys, values = (self._whole(stored, shape, kind) for kind in KINDS)
        if self.unrotated_keys:
            keys = {layer.index: layer.rotated(keys[layer.index]) for layer in shape.layers}
        return shape.filled(
            tuple(layer.filled(keys[layer.index], values[layer.index]) for layer in shape.layers)
        )

    def _whole(self, stored: Tensors, shape: CacheShape, kind: str) -> dict[int, torch.Tensor]:
        merged = {head for group in self._groups(kind) for head in group}
        sizes = {(x.index, h): x.sizes(kind)[1:] for x in shape.layers for h in range(x.n_heads)}
        tensors = {}
        for layer in shape.layers:
            alone = [h for h in range(layer.n_heads) if (layer.index, h) not in merged]
            own = (len(alone), *layer.sizes(kind)[1:])
            kept = taken(stored, f"{layer.index}.{kind}", FLOATS, *own).float()
            x = kept.new_empty(layer.sizes(kind))
            x[alone] = kept
            tensors[layer.index] = x
        for g, group in enumerate(self._groups(kind)):
            if len({sizes.get(head) for head in group} - {None}) != 1 or merged - sizes.keys():
                raise ValueError(f"heads of {kind} group {g} are not there, or not of one size")
            joint = taken(stored, f"{kind}.{g}.joint", FLOATS, *sizes[group[0]]).float()
            scales = taken(stored, f"{kind}.{g}.scales", FLOATS, len(group)).float()
            for (index, head), scale in zip(group, scales, strict=True):
                tensors[index][head] = scale * joint
        return tensors


@dataclass(frozen=True)
class MergedTokens(PlaceByPlace):
    """Tokens of a layer with at least this cosine, over heads and dims, are stored once: the first
    of them stands for the later ones, with a least-squares scale for each.

    Keys and values apart; looked for among `WINDOW` tokens at a time.
    """

    name: ClassVar[str] = "merged_tokens"
    called: ClassVar[Words] = {"rows": "kept tokens", "place": "indices", "scale": "scales"}
    similarity: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.similarity <= 1:
            raise UsageError(f"A cosine of {self.similarity:g} was given", "above 0, at most 1")

    def parts(self, x: torch.Tensor, place: Place) -> Tensors:
        rows = wide(x)
        starts = range(0, len(rows), WINDOW)
        leader = torch.cat(
            [start + leaders(rows[start : start + WINDOW], self.similarity) for start in starts]
        )
        kept, stands_in = leader.unique(return_inverse=True)
        merged = rows[kept][stands_in]  # (tokens, heads x dim)
        norms = merged.square().sum(1).clamp(min=1e-30)
        return {
            "rows": in_16_bits(rows[kept]),
            "place": stands_in.to(torch.int16 if len(kept) < 2**15 else torch.int32),
            "scale": in_16_bits((rows * merged).sum(1) / norms),
        }

    def bits_by_token(self, stored: Tensors, shape: CacheShape) -> None:
        """What is stored once is of several tokens."""

    def whole(self, parts: Tensors, shape: Shape, place: Place) -> torch.Tensor:
        heads, tokens, dim = shape
        rows = taken(parts, "rows", FLOATS, None, heads * dim)
        places = taken(parts, "place", (torch.int16, torch.int32), tokens)
        scale = taken(parts, "scale", FLOATS, tokens).float()
        refuse_beyond(places, len(rows), "a token")
        return by_head(rows.float()[places.long()] * scale[:, None], heads)


def leaders(rows: torch.Tensor, similarity: float) -> torch.Tensor:
    """(n,) which row stands for each of (n, dim): the first one at least so similar to it that has
    no similar one before itself, or else the row itself."""
    unit = torch.nn.functional.normalize(rows, dim=1)
    alike = unit @ unit.T >= similarity
    own = torch.arange(len(rows), device=rows.device)
    alike[own, own] = True
    first = alike.float().argmax(1) == own
    led = alike & first
    return torch.where(led.any(1), led.float().argmax(1), own)
