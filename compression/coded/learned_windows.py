"""Which stretches of the calibration texts a model reads to be calibrated, for every method that
is: none has seen more of the world than another."""

from collections.abc import Sequence
from itertools import zip_longest

from compression.coded.learned_text import FIRST_SAMPLE, reference_text
from data import sensitivity
from data.corpora import reference_samples
from data.corpus_texts import CORPUS_SOURCE, corpus_texts
from data.loaded_model import LoadedModel
from data.sensitivity import Window


def learned_windows(loaded: LoadedModel) -> list[Window]:
    """By turns a stretch of the reference and the beginning of a text of another kind, the longest
    first."""
    contexts = sensitivity.CONTEXTS
    reference = sensitivity.windows(loaded, reference_text(), contexts)
    several = [
        sensitivity.windows(loaded, text, (n_context,))[0]
        for text, n_context in zip(corpus_texts(), contexts, strict=False)
    ]
    turns = zip_longest(reference, several)
    return [each for turn in turns for each in turn if each is not None]


def learned_from(windows: Sequence[Window]) -> str:
    """What to say of them."""
    longest = max(n_context for _, n_context in windows)
    return (
        f"{len(windows)} stretches of up to {longest} tokens from #{FIRST_SAMPLE} on of the "
        f"{reference_samples()[0].source} and of {CORPUS_SOURCE}"
    )
