"""What every mode that compresses asks for; main.py does the rest: it prefills each text once,
scores `methods` on it, and draws and prints what the study makes of the scores."""

from abc import ABC, abstractmethod
from typing import ClassVar

import pandas as pd

import config
from compression.base import Compressor, ModelSide
from compression.evaluate import Judge
from config import RunConfig
from data.cache import KVCache

Tables = dict[str, pd.DataFrame]


class BaseStudy(ABC):
    """context: tokens whose cache is compressed. probes: whether caches come with the attention
    that tokens receive. n_learned: how many other texts `learn` is shown before. methods: what is
    scored on every text, decided by `prepare` or `look`. calibrates: whether methods need what was
    learned of the model, which `prepare` is given. keeps_rows: whether finished rows are kept for
    the next run. seeks: whether facts hidden in the text are to be found as well."""

    title: ClassVar[str]
    calibrates: bool = False
    keeps_rows: ClassVar[bool] = False
    seeks: bool = False
    probes: bool = False
    n_learned: int = 0

    def __init__(self, run: RunConfig) -> None:
        """Raises UsageError for flags that cannot work, before any work is done."""
        self.run = run
        self.context = run.context(config.CONTEXT_TOKENS)
        self.methods: list[Compressor] = []

    def prepare(self, model_side: ModelSide | None) -> None:
        """Take what was learned of the model; None where nothing had to be."""
        self.model_side = model_side

    def continued(self) -> list[tuple[str, str]]:
        """Texts that the model goes on with, each with what it goes on from."""
        return []

    def refused(self) -> str | None:
        """What a person asked for and cannot have, told after all results are written."""
        return None

    def learn(self, cache: KVCache, name: str) -> None:
        """See the cache of a text that is not scored; only where `n_learned` asks for some."""
        raise NotImplementedError

    @abstractmethod
    def look(self, judge: Judge) -> None:
        """Look at the first text, and decide on `methods`."""

    @abstractmethod
    def tables(self, rows: pd.DataFrame, summary: pd.DataFrame) -> Tables:
        """Tables by their file's name without ending; rows: a row per method and text."""

    @abstractmethod
    def verdict(self, rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
        """What was found, in sentences."""


def spread(row: pd.Series) -> str:
    """A measured KL with its standard error, where there is one."""
    error = "" if row["texts"] < 2 else f" ± {row['kl_mean_nats_se']:.4f}"
    return f"{row['kl_mean_nats']:.4f}{error}"
