"""`--mode tasks`: what a smaller cache costs on tasks made by rule, beside running text."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from compression.studies import presets
from compression.studies.base import Learned, Report, Study
from compression.studies.compare import ComparePlan, CompareStudy

if TYPE_CHECKING:
    from compression.evaluate import Judge
    from compression.studies.work import Model


@dataclass(frozen=True, kw_only=True)
class TaskStudy(Study):
    """methods: families of presets.py; some settings of a few families where not given. quick:
    fewer settings, texts and tokens. levels: shares of the tokens that evictions keep.
    num_samples: contexts of each task, and texts that are scored."""

    title: ClassVar[str] = "Tasks"
    probes: ClassVar[bool] = True
    methods: tuple[str, ...] | None = None
    quick: bool = False
    levels: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.compared  # noqa: B018 (which refuses what cannot be compared)

    @cached_property
    def compared(self) -> "Compared":
        """The comparison that goes with it."""
        return Compared(
            context_tokens=self.context_tokens,
            score_tokens=self.score_tokens,
            num_samples=self.num_samples,
            methods=self.methods,
            quick=self.quick,
            levels=self.levels,
            needles=False,
            tasks=True,
        )

    @property
    def context(self) -> int:
        return self.compared.context

    @property
    def n_scored(self) -> int:
        return self.compared.n_scored

    @property
    def n_texts(self) -> int:
        return self.compared.n_texts

    @property
    def learns(self) -> frozenset[str]:
        return self.compared.learns

    @property
    def examines(self) -> bool:
        return True

    def look(self, judge: "Judge", learned: Learned) -> "TaskPlan":
        plan = self.compared.look(judge, learned)
        return TaskPlan(self.compared, plan.labels, plan.left_out)


class Compared(CompareStudy):
    @property
    def settings(self) -> presets.Families:
        if self.methods is not None or self.quick:
            return super().settings
        every = presets.families(self.levels)
        evictions = presets.COMPARED_EVICTIONS if self.levels else ()
        return {
            family: {
                label: every[family][label]
                for label in (every[family] if family in evictions else labels)
            }
            for family, labels in presets.EXAMINED.items()
        }


class TaskPlan(ComparePlan):
    def report(
        self, rows: pd.DataFrame, summary: pd.DataFrame, needles: pd.DataFrame, model: "Model"
    ) -> Report:
        tables, lines = self.of_tasks()
        table = self.labelled(summary)
        kl = ", ".join(
            f"{r.label} {r.kl_mean_nats:z.4f}" for r in table.itertuples() if r.label != "none"
        )
        lines.append(f"On running text, KL in nats per token: {kl}.")
        lines += self.told_left_out()
        return Report(tables | {"tasks/running_text": table}, lines)
