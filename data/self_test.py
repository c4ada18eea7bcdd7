"""Whether a model goes on from its cache as it goes on without one, tried on a few tokens.

All costs are measured between two passes on top of a cache: what is wrong with both (positions, a
state, a mask) no comparison of them can see. It costs eight passes over a few tokens, about
what it takes to tell whether the same weights were tried before: so every run does it anew.
"""

from weakref import WeakSet

import torch

from config import UsageError
from data.forward import forward, one_by_one, some_token_ids
from data.loaded_model import LoadedModel
from data.refusals import said, strangers_code

CONTEXT, ADDED = 8, 4  # tokens
LEAST_TOLERANCE = 1e-3  # of the spread of logits; right models differ by 1e-5, wrong ones by 1e-1
FAR_WORSE = 10  # times as wrong at once as one by one: not by rounding

_tried: WeakSet[torch.nn.Module] = WeakSet()


def refuse_wrong_cache(loaded: LoadedModel) -> None:
    """Raise UsageError, on a loaded model's first time here, where its predictions on top of its
    cache are not those without one. Where they are if it is given one token after the other,
    `forward` will."""
    if loaded.model in _tried:
        return
    with strangers_code(
        lambda error: UsageError(
            f"{loaded.name} cannot be run both on top of its cache and without one "
            f"({said(error)}), so whether its cache is right cannot be told",
            "try another version of transformers",
        )
    ):
        at_once, stepwise = differences(loaded)
    rounding = torch.finfo(loaded.torch_dtype).eps
    if at_once > max(LEAST_TOLERANCE / 100, 4 * rounding, FAR_WORSE * stepwise):
        one_by_one.add(loaded.model)
        at_once = stepwise
    # In 16 bits right models differ by a quarter of this.
    if at_once > max(LEAST_TOLERANCE, 2 * rounding**0.5):
        raise UsageError(
            f"{loaded.name} predicts otherwise on top of its cache than without one (logits "
            f"differ by {100 * at_once:.2g} % of their spread), so nothing measured on it would "
            "hold",
            "try `dtype` float32, or another version of transformers",
        )
    _tried.add(loaded.model)


@torch.no_grad()
def differences(loaded: LoadedModel) -> tuple[float, float]:
    """Between logits without a cache and on top of one, as a share of their spread, where tokens
    are fed at once and one by one. Medians over tokens, for where experts are chosen by a hair a
    few tokens may differ by more."""
    ids = some_token_ids(loaded, CONTEXT + ADDED)
    whole = loaded.model(ids[None].to(loaded.device), use_cache=False).logits[0, CONTEXT:].float()

    def difference(n_at_once: int) -> float:
        past = forward(loaded, ids[:CONTEXT]).past_key_values
        fed = ids[CONTEXT:].split(n_at_once)
        steps = [
            forward(loaded, some, past, CONTEXT + i * n_at_once).logits[0]
            for i, some in enumerate(fed)
        ]
        off = torch.cat(steps).float() - whole
        return float((off.square().mean(-1).sqrt() / whole.std(-1)).median())

    return difference(ADDED), difference(1)
