"""Whether a model goes on from its cache as it goes on without one, tried on a few tokens.

All costs are measured between two passes on top of a cache: what is wrong with both (positions, a
state, a mask) no comparison of them can see. It costs four passes over a dozen tokens, less than
to tell whether the same weights were tried before, so that it is done anew by every run.
"""

from weakref import WeakSet

import torch

from config import UsageError
from data.forward import forward, some_token_ids
from data.models import LoadedModel
from data.refusals import said, strangers_code

CONTEXT = 8
STEPS = ((8, 10), (10, 11))  # tokens fed on top of it, at once and alone
LEAST_TOLERANCE = 1e-3  # of the spread of logits; right models differ by 1e-5, wrong ones by 1e-1

_tried: WeakSet[torch.nn.Module] = WeakSet()


def refuse_wrong_cache(loaded: LoadedModel) -> None:
    """Raise UsageError, on a loaded model's first time here, where its predictions on top of its
    cache are not those without one."""
    if loaded.model in _tried:
        return
    with strangers_code(
        lambda error: UsageError(
            f"{loaded.name} cannot be run both on top of its cache and without one "
            f"({said(error)}), so whether its cache is right cannot be told",
            "try another version of transformers",
        )
    ):
        off = _difference(loaded)
    # In 16 bits right models differ by a quarter of this.
    if off > max(LEAST_TOLERANCE, 2 * torch.finfo(loaded.torch_dtype).eps ** 0.5):
        raise UsageError(
            f"{loaded.name} predicts otherwise on top of its cache than without one (logits "
            f"differ by {100 * off:.2g} % of their spread), so nothing measured on it would hold",
            "try `dtype` float32, or another version of transformers",
        )
    _tried.add(loaded.model)


@torch.no_grad()
def _difference(loaded: LoadedModel) -> float:
    """Between logits on top of a cache and without one, as a share of their spread: the median
    over tokens, for where experts are chosen by a hair a few tokens may differ by more."""
    ids = some_token_ids(loaded, STEPS[-1][1])
    past = forward(loaded, ids[:CONTEXT]).past_key_values
    steps = [forward(loaded, ids[start:end], past, start).logits[0] for start, end in STEPS]
    whole = loaded.model(ids[None].to(loaded.device), use_cache=False).logits[0, CONTEXT:]
    found, whole = torch.cat(steps).float(), whole.float()
    return float(((found - whole).square().mean(-1).sqrt() / whole.std(-1)).median())
