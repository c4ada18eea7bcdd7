"""From what a group of layers holds to the integers that are coded, and back: the arithmetic of
`coded`, all tokens of a part of the text at a time."""

import numpy as np
import torch

from compression.base import CacheShape
from compression.coded.transform import Group, classes, is_stored, magnitudes, rows, scales
from compression.methods.place_by_place import Middles
from config import UsageError
from data.cache import KVCache, by_head, in_16_bits

BLOCK = 256  # tokens of like weight restored at once: those that weigh little need few columns
LARGEST = 2.0**31 - 1  # |integer| that can be coded


def transformed(cache: KVCache, group: Group, tokens: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean (width,) in 16 bits over these of the tokens of a group, and the coefficients
    (columns, tokens) of what is left."""
    x = rows(cache, group.places, tokens)
    mean = in_16_bits(x.mean(0))
    return mean, (group.analysis.to(x.device) @ (x - mean.float()).T).cpu()


def quantised(
    coefficients: torch.Tensor, levels: np.ndarray, step: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of magnitude (columns,) uint8 of (columns, tokens) coefficients, and of those that are
    stored the integers (n,) int32 and their classes (n,) uint8, column by column."""
    codes = magnitudes(coefficients, step).numpy()
    codes[~is_stored(classes(codes, levels.max(keepdims=True)))[:, 0]] = 0
    live = int(codes.nonzero()[0].max(initial=-1)) + 1
    entry_classes = classes(codes[:live], levels)
    coded = is_stored(entry_classes)
    scaled = coefficients[:live].mul_(torch.from_numpy(scales(levels, step))).round_()
    symbols = scaled.numpy()[coded]
    if symbols.size and max(symbols.max(), -symbols.min()) >= LARGEST:
        raise UsageError(f"A step of {step:g} is too small for this cache", "give a larger one")
    return codes, symbols.astype(np.int32), entry_classes[coded]


def restored_places(
    coefficients: torch.Tensor,
    codes: np.ndarray,
    levels: np.ndarray,
    mean: torch.Tensor,
    group: Group,
    shape: CacheShape,
) -> Middles:
    """(heads, tokens, dim) of each place of a group from its (columns, tokens) coefficients. They
    are zero beyond the last column that is stored: early for tokens that weigh little."""
    coefficients = coefficients.to(mean.device)
    synthesis = group.synthesis.to(mean.device)
    x = mean.expand(len(levels), -1).contiguous()
    order = torch.from_numpy(np.argsort(levels, kind="stable"))
    for tokens in order.to(mean.device).split(BLOCK):
        live = is_stored(classes(codes, levels[tokens.cpu()].max(keepdims=True)))[:, 0]
        n = int(live.nonzero()[0].max(initial=-1)) + 1
        x.index_add_(0, tokens, coefficients[:n].index_select(1, tokens).T @ synthesis[:n])
    parts = zip(group.places, x.split(group.widths, dim=1), strict=True)
    return {(i, kind): by_head(part, shape.layers[i].n_heads) for (i, kind), part in parts}
