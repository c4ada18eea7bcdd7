"""The model and the texts that the flags of a run name; what reads them is brought in by then."""

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from visualization.terminal.flags import OF_ITS_COST, Given, arguments_of

if TYPE_CHECKING:
    from data.loaded_model import LoadedModel
    from data.texts import Sample

Phase = Callable[[str], AbstractContextManager[None]]


def model(given: Given, phase: Phase) -> "LoadedModel":
    with phase("load"):
        from data import models

        loaded = models.load(**model_arguments(given))
    all_is_imported()
    return loaded


def model_arguments(given: Given) -> dict[str, Any]:
    """Of models.load."""
    from data import models

    return arguments_of(models.load, given)


def all_is_imported() -> None:
    gc.freeze()  # it stays: nothing to look through again and again
    gc.enable()


def texts(given: Given, phase: Phase) -> "Sequence[Sample]":
    with phase("text"):
        from data import chosen_texts

        candidates = chosen_texts.candidates(**arguments_of(chosen_texts.candidates, given))
        chosen_texts.refuse_several_of_one(candidates, given["num_samples"])
        return candidates


def beside(given: Given, phase: Phase) -> dict[str, Any]:
    """Of `from_cache.run`: what the cost of methods on top of a saved cache is measured with, where
    that was asked for."""
    if given["mode"] not in OF_ITS_COST or given["model"] is None:
        return {}
    is_given = given["prompt"] is not None or given["text_file"] is not None
    return {
        "load": partial(model, given, phase),
        "candidates": texts(given, phase) if is_given else None,
    }
