"""What every study is: what it was asked for, what it decides on the first text, what it reports.

A study is a frozen dataclass whose fields are its settings, as plain arguments; the command line
fills them from flags of the same names. `run.py` prefills each text once, lets the study `look` at
the first, scores the methods of the plan that it gives, and hands the scores to the plan's
`report`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, TypedDict

import pandas as pd

import config
from compression.base import Calibration, Compressor
from config import UsageError
from data.cache import KVCache

if TYPE_CHECKING:  # it brings in transformers, and not every run has a model
    from compression.evaluate import Judge
    from compression.studies.examined import Examined
    from compression.studies.work import Model

Tables = dict[str, pd.DataFrame]
INVENTORY = "cache_inventory"  # the table of all that the model keeps, in every mode


@dataclass(frozen=True)
class Report:
    """What was found out.

    tables: by their file's name without its ending. lines: in sentences. continued: texts that the
    model goes on with, by what it goes on from. refused: what a person asked for and cannot have,
    told after all results are written.
    """

    tables: Tables
    lines: list[str]
    continued: dict[str, str] = field(default_factory=dict)
    refused: UsageError | None = None


@dataclass(frozen=True)
class Learned:
    """What was learned on texts that are not scored: the model's calibrations, each by what it is
    called (see `registry.learns`), and the caches of some of them by name; where the study asks
    for them.

    uncalibrated: why there is none of those, where the model cannot be calibrated."""

    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    caches: tuple[tuple[str, KVCache], ...] = ()
    uncalibrated: Mapping[str, UsageError] = field(default_factory=dict)


class Plan(ABC):
    """What a study has decided to do with its texts. methods: scored on each of them. looked: the
    tables of what was seen in the first text and is looked at in the others as well (see
    `Study.see`), before `report` those over all texts. named: what the tables of tokens and of
    bytes call each method, see details.py; empty where there are to be none. examined: before
    `report` what came of the tasks, where the study has any. prefill_s: what it takes to read the
    first text anew, where the study times that."""

    methods: list[Compressor]
    named: Mapping[Compressor, str] = MappingProxyType({})
    examined: "Examined | None" = None
    looked: Mapping[str, pd.DataFrame] = MappingProxyType({})
    prefill_s: float | None = None

    @abstractmethod
    def report(
        self, rows: pd.DataFrame, summary: pd.DataFrame, needles: pd.DataFrame, model: "Model"
    ) -> Report:
        """rows: one per method and text; summary: their means, see `evaluate.summary`; needles: one
        per method and hidden fact, empty where none were sought."""

    def shown(self, summary: pd.DataFrame) -> tuple[str, Compressor] | None:
        """The method, and what it is called, of which is shown what the model says through it."""
        return None


@dataclass(frozen=True, kw_only=True)
class Study(ABC):
    """context_tokens: whose cache is compressed. score_tokens: after them, to score. num_samples:
    texts that are scored. What is None is as config.py says.

    Making one raises UsageError for settings that cannot work, before any work is done.
    """

    title: ClassVar[str]
    probes: ClassVar[bool] = False  # whether caches come with the attention that tokens receive
    times_prefill: ClassVar[bool] = False  # whether loading is to be held against prefilling anew
    context_tokens: int | None = None
    score_tokens: int | None = None
    num_samples: int | None = None

    def __post_init__(self) -> None:
        refuse_counts(
            context_tokens=self.context_tokens,
            score_tokens=self.score_tokens,
            num_samples=self.num_samples,
        )

    @property
    def context(self) -> int:
        return self.context_tokens or config.CONTEXT_TOKENS

    @property
    def n_scored(self) -> int:
        return self.score_tokens or config.SCORE_TOKENS

    @property
    def n_texts(self) -> int:
        return self.num_samples or config.NUM_SAMPLES

    @property
    def n_learned(self) -> int:
        """How many texts that are not scored it wants to see."""
        return 0

    @property
    def learns(self) -> frozenset[str]:
        """Which calibrations of the model it needs."""
        return frozenset()

    @property
    def calibrates(self) -> bool:
        """Whether it needs any."""
        return bool(self.learns)

    @property
    def examines(self) -> bool:
        """Whether methods sit exams, tasks made by rule, as well."""
        return False

    @property
    def n_papers(self) -> int:
        """Contexts of each task."""
        return self.n_texts

    @property
    def seeks(self) -> bool:
        """Whether facts hidden in the text are to be found as well."""
        return False

    @property
    def n_shown(self) -> int:
        """Tokens to generate after the first text."""
        return 0

    @abstractmethod
    def look(self, judge: "Judge", learned: Learned) -> Plan:
        """Look at the first text, and decide what to score."""

    def see(self, judge: "Judge") -> Tables:
        """Look at another text as at the first: its tables of `Plan.looked`."""
        return {}


def refuse_counts(**counts: int | None) -> None:
    """Raise UsageError for a count that is given and below 1."""
    for name, given in counts.items():
        if given is not None and given < 1:
            raise UsageError(f"`{name}` is {given}", "it takes 1 or more")


class Ends(TypedDict):
    """How many first and most recent tokens stay plain."""

    sink_tokens: int
    recent_tokens: int


def plain_ends(sink_tokens: int | None, recent_tokens: int | None) -> Ends:
    """How many first and most recent tokens stay plain; as config.py says where not given."""
    return {
        "sink_tokens": config.SINK_TOKENS if sink_tokens is None else sink_tokens,
        "recent_tokens": config.RECENT_TOKENS if recent_tokens is None else recent_tokens,
    }


def errors(row: pd.Series) -> str:
    """The relative errors of a setting."""
    return f"{row['key_error']:.3f} of keys and {row['value_error']:.3f} of values"


def spread(row: pd.Series) -> str:
    """A measured KL with its standard error, where there is one."""
    error = "" if row["texts"] < 2 else f" ± {row['kl_mean_nats_se']:z.4f}"
    return f"{row['kl_mean_nats']:z.4f}{error}"
