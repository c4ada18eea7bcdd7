"""The model and the texts that the flags of a run name; what reads them is brought in by then."""

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from visualization.terminal.flags import Given, arguments_of

if TYPE_CHECKING:
    from data.models import LoadedModel
    from data.texts import Sample


def model(given: Given) -> "LoadedModel":
    from data import models

    loaded = models.load(**arguments_of(models.load, given))
    gc.freeze()  # what was imported stays: nothing to look through again and again
    gc.enable()
    return loaded


def model_and_texts(
    given: Given, phase: Callable[[str], AbstractContextManager[None]]
) -> "tuple[LoadedModel, tuple[Sample, ...]]":
    with phase("load"):
        loaded = model(given)
    with phase("text"):
        from data import texts

        return loaded, texts.candidates(**arguments_of(texts.candidates, given))
