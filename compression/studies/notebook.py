"""What a notebook takes, in one import: load a model, let it read a text, look at its cache, make
the methods that compress it. The README has the lines that go with it."""

from typing import Any

import config
from compression import registry
from compression.base import Compressor
from compression.evaluate import Judge
from compression.studies import analyze
from compression.studies.base import Tables, refuse_counts
from compression.studies.tasks import CALIBRATIONS
from compression.studies.work import judge_of
from data import scored_texts
from data.corpora import reference_samples
from data.loaded_model import LoadedModel
from data.models import load
from data.texts import Sample

__all__ = ["load", "look", "make", "read"]


def read(
    loaded: LoadedModel,
    text: str | None = None,
    context_tokens: int | None = None,
    score_tokens: int | None = None,
) -> Judge:
    """Lets a model read the beginning of a text, or without one of the first text of the offline
    corpus that is long enough: the cache of `context_tokens`, and `score_tokens` after them that
    methods are scored on; as config.py says where they are not given."""
    refuse_counts(context_tokens=context_tokens, score_tokens=score_tokens)
    given = None if text is None else [Sample(0, "", "notebook", text)]
    context = context_tokens or config.CONTEXT_TOKENS
    n_scored = score_tokens or config.SCORE_TOKENS
    candidates = given or reference_samples()
    (_, ids), *_ = scored_texts.long_enough(loaded, candidates, context, n_scored, 1)
    return judge_of(loaded, ids, context)


def look(judge: Judge, focus: str = "all") -> Tables:
    """The tables of `analyze` for the cache in 16 bits, by the names of the pictures that they
    feed. focus: all, layers, heads, tokens or embeddings."""
    return analyze.look(judge.continuation.loaded, judge.cache, focus)


def make(loaded: LoadedModel, name: str, **settings: Any) -> Compressor:
    """A method by name, others of its settings at their defaults; its calibration for this model,
    where it needs one, is taken from the cache folder, or learned and kept there."""
    which = registry.learns(name, settings)
    learned = CALIBRATIONS[which](loaded) if which in CALIBRATIONS else None
    return registry.make(name, settings, learned)
