"""Needles: a made-up fact placed at a depth of real text and asked for at its end. Eviction can
leave perplexity alone and lose the needle, and the reverse."""

import logging
import random
from dataclasses import dataclass

import torch

from data.loaded_model import LoadedModel

DEPTHS = (0.1, 0.5, 0.9)  # of the context
NAMES = ("Amber", "Cedar", "Falcon", "Harbor", "Indigo", "Juniper", "Lantern", "Marble")
FACT = "\nThe secret number of {name} is {number}. Remember it.\n"
QUESTION = (
    "\n\nQuestion: What is the secret number of {name}?\nAnswer: The secret number of {name} is"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Needle:
    """context: (tokens,) ids with the fact in them. follows: the question and the answer. The last
    `n_answer` of them are the answer."""

    depth: float
    context: torch.Tensor
    follows: torch.Tensor
    n_answer: int


def needles(loaded: LoadedModel, ids: torch.Tensor, n_tokens: int) -> list[Needle]:
    """One needle at each depth of the text `ids`, in contexts of `n_tokens` tokens; a name and a
    number of five digits for each, the same on every run. None where the fact is longer than the
    context, or question and answer are beyond the model's positions."""
    rng = random.Random(0)
    hidden = []
    for depth in DEPTHS:
        name, number = rng.choice(NAMES), str(rng.randrange(10_000, 100_000))
        fact = _ids(loaded, FACT.format(name=name, number=number))
        question = _ids(loaded, QUESTION.format(name=name))
        answer = _ids(loaded, f" {number}")
        if not _fits(loaded, n_tokens, len(fact), len(question) + len(answer)):
            return []
        text = ids[: n_tokens - len(fact)]
        place = round(depth * len(text))
        context = torch.cat([text[:place], fact, text[place:]])
        hidden.append(Needle(depth, context, torch.cat([question, answer]), len(answer)))
    return hidden


def _fits(loaded: LoadedModel, n_tokens: int, n_fact: int, n_asked: int) -> bool:
    limit = loaded.max_positions
    if n_fact > n_tokens:
        log.warning(
            "Needles are left out: a fact of %d tokens is longer than the context of %d.",
            n_fact,
            n_tokens,
        )
        return False
    if limit is not None and n_tokens + n_asked > limit:
        log.warning(
            "Needles are left out: a context of %d tokens, a question and its answer (%d) are "
            "beyond the %d positions of %s.",
            n_tokens,
            n_asked,
            limit,
            loaded.name,
        )
        return False
    return True


def _ids(loaded: LoadedModel, text: str) -> torch.Tensor:
    return loaded.ids_of(text, special_tokens=False)
