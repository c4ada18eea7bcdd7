"""Which stretches of the calibration texts a model reads to be calibrated, for every method that
is: none has seen more of the world than another."""

from collections.abc import Sequence
from itertools import zip_longest

from compression.coded.learned_text import FIRST_SAMPLE, calibration_texts
from data import sensitivity
from data.corpus_texts import CORPUS_SOURCE
from data.models import LoadedModel
from data.sensitivity import Window
from data.texts import reference_samples


def learned_windows(loaded: LoadedModel) -> list[Window]:
    """As many of each text, by turns; the longest come first."""
    of_texts = [
        sensitivity.windows(loaded, text, sensitivity.CONTEXTS) for text in calibration_texts()
    ]
    return [each for turn in zip_longest(*of_texts) for each in turn if each is not None]


def learned_from(windows: Sequence[Window]) -> str:
    """What to say of them."""
    longest = max(n_context for _, n_context in windows)
    return (
        f"{len(windows)} stretches of up to {longest} tokens from #{FIRST_SAMPLE} on of the "
        f"{reference_samples()[0].source} and of {CORPUS_SOURCE}"
    )
