"""Which texts are scored, and which are learned from: those long enough, by their first tokens."""

import logging
from collections.abc import Iterable, Sequence

import torch

from config import UsageError
from data import texts
from data.models import LoadedModel
from data.texts import Sample

Text = tuple[Sample, torch.Tensor]  # a text, and its first token ids (tokens,)

log = logging.getLogger(__name__)


def long_enough(
    loaded: LoadedModel,
    candidates: Sequence[Sample],
    context_tokens: int,
    score_tokens: int,
    num_samples: int,
    continuation: str | None = None,
    show_generation: int = 0,
) -> list[Text]:
    """The first `num_samples` of these texts with a context and scored tokens after it, and their
    first (context + 1 + scored,) token ids: the one between is fed and not scored.

    continuation: scored after each context instead of its own text. show_generation: tokens for
    which the model must have positions after a context, too.
    """
    follows = None if continuation is None else _ids_of_continuation(loaded, continuation)
    n_scored = score_tokens if follows is None else len(follows)
    need = context_tokens + 1 + (0 if follows is not None else n_scored)
    asked = f"A context of {context_tokens} tokens and {n_scored} scored ones"
    lower = "`context_tokens` or `score_tokens`"
    loaded.refuse_beyond(context_tokens + 1 + n_scored, asked, lower)
    shown = f"A context of {context_tokens} tokens and `show_generation` {show_generation}"
    lower = "`context_tokens` or `show_generation`"
    loaded.refuse_beyond(context_tokens + 1 + show_generation, shown, lower)
    chosen, longest = _first(loaded, candidates, need, num_samples)
    if not chosen:
        raise UsageError(
            f"{asked} need a text of {need} tokens, the longest here has {longest}",
            "give a longer one, or lower `context_tokens` or `score_tokens`",
        )
    if len(chosen) < min(num_samples, len(candidates)):
        log.warning(
            "Only %d of the %d texts of `num_samples` are long enough (%d tokens): using those.",
            len(chosen),
            num_samples,
            need,
        )
    if follows is None:
        return chosen
    return [(sample, torch.cat([ids, follows])) for sample, ids in chosen]


def _ids_of_continuation(loaded: LoadedModel, continuation: str) -> torch.Tensor:
    ids = loaded.ids_of(continuation, special_tokens=False)
    if not len(ids):
        raise UsageError("`continuation` has no tokens", "give the text that is to be scored")
    return ids


def _first(
    loaded: LoadedModel, samples: Iterable[Sample], n_tokens: int, most: int
) -> tuple[list[Text], int]:
    """Of the samples that have `n_tokens`, the first `most` with their first tokens; and how many
    tokens the longest of those looked at has."""
    chosen: list[Text] = []
    longest = 0
    for sample in samples:
        if len(chosen) == most:
            break
        ids = loaded.ids_of(sample.text, n_tokens)
        longest = max(longest, len(ids))
        if len(ids) == n_tokens:
            chosen.append((sample, ids))
    return chosen, longest


def others(loaded: LoadedModel, scored: Sequence[Sample], n_tokens: int, most: int) -> list[Text]:
    """Up to `most` texts of the offline corpus that are not among the `scored` ones, to learn from:
    what is learned on a text says nothing of it."""
    apart = [s for s in texts.reference_samples() if s.sha256 not in {t.sha256 for t in scored}]
    chosen, longest = _first(loaded, apart, n_tokens, most)
    if most and not chosen:
        raise UsageError(
            f"No other text of the offline corpus has the {n_tokens} tokens that calibration takes "
            f"(the longest has {longest})",
            "lower `context_tokens`",
        )
    return chosen
