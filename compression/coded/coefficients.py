"""From what a group of layers holds to the integers that are coded, and back: the arithmetic of
`coded`, all tokens of a part of the text at a time."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from compression.coded.transform import Group, classes, is_stored, magnitudes, rows, scales
from compression.methods.place_by_place import Middles
from compression.shapes import LayerShape
from config import UsageError
from data.cache import LayerKV, by_head

BLOCK = 256  # tokens of like weight restored at once: those that weigh little need few columns
LARGE_MEAN = 4  # times the deviations from it: a chunk's mean counts for its column's magnitude
LARGEST = 2.0**31 - 1  # |integer| that can be coded


def transformed(layers: Sequence[LayerKV], group: Group, tokens: slice) -> torch.Tensor:
    """(columns, tokens): the coefficients of what these of the tokens of a group are off the mean
    of all texts."""
    x = rows(layers, group.places, tokens)
    group = group.on(x.device)
    return group.analysis @ (x - group.mean).T


def quantised(
    coefficients: torch.Tensor, levels: torch.Tensor, step: float, codes: torch.Tensor | None = None
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Codes of magnitude (columns,) uint8 of (columns, tokens) coefficients, and of those that are
    stored the integers (n,) int32 and their classes (n,) uint8, column by column. codes: where they
    are to be others than those of the coefficients."""
    codes = magnitudes(coefficients, step) if codes is None else codes.clone()
    codes[~is_stored(classes(codes, levels.max()[None]))[:, 0]] = 0
    live = _live(codes != 0)
    entry_classes = classes(codes[:live], levels)
    coded = is_stored(entry_classes)
    scaled = coefficients[:live].mul_(scales(levels, step)).round_()
    symbols = _chosen(scaled, coded)
    if symbols.size and max(symbols.max(), -symbols.min()) >= LARGEST:
        raise UsageError(f"A step of {step:g} is too small for this cache", "give a larger one")
    return codes, symbols.astype(np.int32), _chosen(entry_classes, coded)


def centred(
    coefficients: torch.Tensor, levels: torch.Tensor, step: float
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """As `quantised`, of what is left of (columns, tokens) coefficients after their mean over
    tokens, which is coded in front of them as one more token: (1 + tokens,) levels."""
    mean = coefficients.mean(1, keepdim=True)
    codes = torch.maximum(
        magnitudes(coefficients - mean, step), magnitudes(mean / LARGE_MEAN, step)
    )
    kept = is_stored(classes(codes, levels[:1]))
    scale = scales(levels[:1], step)
    coded = torch.where(kept, (mean * scale).round() / scale, 0.0)
    return quantised(torch.cat([coded, coefficients - coded], dim=1), levels, step, codes)


def spread(
    entry_classes: Sequence[torch.Tensor], read: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[torch.Tensor]:
    """(columns, tokens) float32 of each group whose entries have these classes: the integers that
    `read` gives for the (n,) classes of all symbols, 0 where there is no symbol."""
    coded = [is_stored(each) for each in entry_classes]
    symbols = [each[is_coded] for each, is_coded in zip(entry_classes, coded, strict=True)]
    integers = read(torch.cat(symbols)).split([len(each) for each in symbols])
    for is_coded, part in zip(coded, integers, strict=True):
        whole = torch.zeros(is_coded.shape, device=part.device)
        yield whole.masked_scatter_(is_coded, part.float())


def restored_places(
    coefficients: torch.Tensor,
    codes: torch.Tensor,
    levels: torch.Tensor,
    group: Group,
    layers: Sequence[LayerShape],
) -> Middles:
    """(heads, tokens, dim) of each place of a group from its (columns, 1 + tokens) coefficients,
    those of their mean first. They are zero beyond the last column that is stored: early for tokens
    that weigh little."""
    group = group.on(levels.device)
    synthesis = group.synthesis
    mean = group.mean + coefficients[:, 0] @ synthesis
    coefficients, levels = coefficients[:, 1:], levels[1:]
    x = mean.expand(len(levels), -1).contiguous()
    for tokens in levels.argsort(stable=True).split(BLOCK):
        n = _live(is_stored(classes(codes, levels[tokens].max()[None]))[:, 0])
        x.index_add_(0, tokens, coefficients[:n].index_select(1, tokens).T @ synthesis[:n])
    parts = zip(group.places, x.split(group.widths, dim=1), strict=True)
    return {(i, kind): by_head(part, layers[i].n_heads) for (i, kind), part in parts}


def _chosen(x: torch.Tensor, coded: torch.Tensor) -> np.ndarray:
    """(n,) those that are marked, where the coder runs. Numpy picks them out faster on the CPU, an
    accelerator does so before they are moved."""
    if x.device.type == "cpu":
        chosen: np.ndarray = x.numpy()[coded.numpy()]
        return chosen
    moved: np.ndarray = x[coded].cpu().numpy()
    return moved


def _live(kept: torch.Tensor) -> int:
    """How many of the (columns,) there are up to the last that is kept."""
    places = kept.nonzero()
    return int(places[-1]) + 1 if len(places) else 0
