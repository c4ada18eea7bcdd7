"""The texts that `coded` learns from, and which scored texts have a part in them."""

import logging
from collections.abc import Iterable
from functools import cache

from data.corpora import reference_samples
from data.corpus_texts import corpus_texts
from data.texts import Sample

# Samples of the offline corpus before this one are left for scoring: what is calibrated on must
# not be scored, and runs that fall back to this corpus score its first samples.
FIRST_SAMPLE = 8
TELLING = 60  # characters from which two equal paragraphs are no chance

log = logging.getLogger(__name__)


@cache
def reference_text() -> str:
    """The later samples of the offline corpus without the paragraphs that the first ones have too,
    for some topics contain others."""
    samples = reference_samples()
    held_out = {p for sample in samples[:FIRST_SAMPLE] for p in paragraphs(sample.text)}
    later = (p for sample in samples[FIRST_SAMPLE:] for p in paragraphs(sample.text))
    return "\n\n".join(p for p in dict.fromkeys(later) if p not in held_out)


def calibration_texts() -> tuple[str, ...]:
    """What is learned from, whatever the scored texts are: the reference, and texts of other kinds,
    for what a model reads is seldom a manual."""
    return reference_text(), *corpus_texts()


def paragraphs(text: str) -> list[str]:
    return [p.strip("\n") for p in text.split("\n\n") if p.strip()]


def leaked(scored: Iterable[Sample]) -> list[str]:
    """The names of those texts of which a paragraph is among those learned from."""
    every = (p for text in calibration_texts() for p in paragraphs(text))
    learned = {p for p in every if len(p) >= TELLING}
    return [sample.name for sample in scored if learned & set(paragraphs(sample.text))]


def leak(scored: Iterable[Sample]) -> list[str]:
    """What to say where texts that are scored have a part in what was learned from, which is said
    at once; else nothing."""
    names = leaked(scored)
    if not names:
        return []
    said = (
        f"What methods are calibrated on has parts of {', '.join(names)}, so their figures there "
        f"are too good: score other texts, of the offline corpus those before #{FIRST_SAMPLE}."
    )
    log.warning("%s", said)
    return [said]
