"""Which texts are looked at, which are scored, and which are learned from: those long enough, by
their first tokens."""

import logging
from collections.abc import Iterable, Sequence
from itertools import islice

import torch

from config import UsageError
from data import chosen_texts, corpora, extraction
from data.chosen_texts import OwnTexts
from data.loaded_model import LoadedModel
from data.texts import Sample

Text = tuple[Sample, torch.Tensor]  # a text, and its first token ids (tokens,)

log = logging.getLogger(__name__)


def looked_at(
    loaded: LoadedModel,
    candidates: Sequence[Sample],
    context_tokens: int | None,
    new_tokens: int,
    num_samples: int,
) -> list[Text]:
    """The first `num_samples` of these texts with their first `context_tokens` token ids, or all
    without a number; room is left in the model for `new_tokens` after them.

    Of one text what there is is taken. Of several, those with fewer tokens are left out: means over
    texts are position by position of texts that are as long.
    """
    if num_samples == 1:
        sample = chosen_texts.only_first(candidates)
        return [(sample, extraction.tokenise(loaded, sample, context_tokens, new_tokens))]
    if context_tokens is None:
        first = list(islice(candidates, num_samples))
        _tell_left_out(candidates, len(first), len(first), num_samples, 0)
        return [(s, extraction.tokenise(loaded, s, None, new_tokens)) for s in first]
    asked = f"A text of {context_tokens} tokens and {new_tokens} new ones"
    loaded.refuse_beyond(context_tokens + new_tokens, asked, "`context_tokens` or `new_tokens`")
    chosen, seen, longest = _first(loaded, candidates, context_tokens, num_samples)
    if not chosen:
        raise UsageError(
            f"None of the {seen} texts has `context_tokens` {context_tokens} tokens, the longest "
            f"has {longest}",
            "lower it, or give longer ones",
        )
    _tell_left_out(candidates, len(chosen), seen, num_samples, context_tokens)
    return chosen


def _tell_left_out(
    candidates: Sequence[Sample], n_chosen: int, n_seen: int, num_samples: int, n_tokens: int
) -> None:
    """What was asked for and is not there; of a person's own texts also which were passed over."""
    if n_chosen < min(num_samples, n_seen):
        log.warning(
            "Only %d of %d texts are long enough for `num_samples` %d (%d tokens): using those, "
            "and leaving out the shorter ones.",
            n_chosen,
            n_seen,
            num_samples,
            n_tokens,
        )
    elif 1 < n_chosen < num_samples:
        log.warning("There are %d texts for `num_samples` %d: using those.", n_chosen, num_samples)
    elif n_chosen < n_seen and isinstance(candidates, OwnTexts):
        log.warning(
            "%d of the first %d texts have fewer than %d tokens and are left out.",
            n_seen - n_chosen,
            n_seen,
            n_tokens,
        )


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
    chosen, seen, longest = _first(loaded, candidates, need, num_samples)
    if not chosen:
        raise UsageError(
            f"{asked} need a text of {need} tokens, the longest here has {longest}",
            "give a longer one, or lower `context_tokens` or `score_tokens`",
        )
    _tell_left_out(candidates, len(chosen), seen, num_samples, need)
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
) -> tuple[list[Text], int, int]:
    """Of the samples that have `n_tokens`, the first `most` with their first tokens; of how many
    samples that were looked at, and how many tokens the longest of those has."""
    chosen: list[Text] = []
    seen = longest = 0
    for sample in samples if most else ():
        seen += 1
        ids = loaded.ids_of(sample.text, n_tokens)
        longest = max(longest, len(ids))
        if len(ids) == n_tokens:
            chosen.append((sample, ids))
        if len(chosen) == most:
            break  # before the next text is read
    return chosen, seen, longest


def others(loaded: LoadedModel, scored: Sequence[Sample], n_tokens: int, most: int) -> list[Text]:
    """Up to `most` texts of the offline corpus that are not among the `scored` ones, to learn from:
    what is learned on a text says nothing of it."""
    apart = [s for s in corpora.reference_samples() if s.sha256 not in {t.sha256 for t in scored}]
    chosen, _, longest = _first(loaded, apart, n_tokens, most)
    if most and not chosen:
        raise UsageError(
            f"No other text of the offline corpus has the {n_tokens} tokens that calibration takes "
            f"(the longest has {longest})",
            "lower `context_tokens`",
        )
    return chosen
