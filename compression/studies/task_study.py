"""`--mode tasks`: what a smaller cache costs on tasks made by rule, beside running text."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from compression.studies import presets
from compression.studies.base import Learned, Report
from compression.studies.compare import ComparePlan, CompareStudy

if TYPE_CHECKING:
    from compression.evaluate import Judge
    from compression.studies.work import Model


@dataclass(frozen=True, kw_only=True)
class TaskStudy(CompareStudy):
    """Some settings of a few families where `methods` names none, else all of those families.
    num_samples: contexts of each task, and texts that are scored."""

    title: ClassVar[str] = "Tasks"
    tasks: bool = True
    needles: bool = False

    @property
    def settings(self) -> presets.Families:
        if self.methods is not None or self.quick:
            return super().settings
        every = presets.families(self.levels)
        return {
            family: {label: every[family][label] for label in labels}
            for family, labels in presets.EXAMINED.items()
        }

    def look(self, judge: "Judge", learned: Learned) -> "TaskPlan":
        plan = super().look(judge, learned)
        return TaskPlan(self, plan.labels, plan.left_out)


class TaskPlan(ComparePlan):
    def report(
        self, rows: pd.DataFrame, summary: pd.DataFrame, needles: pd.DataFrame, model: "Model"
    ) -> Report:
        tables, lines = self.of_tasks()
        table = self.labelled(summary)
        kl = ", ".join(
            f"{r.label} {r.kl_mean_nats:.4f}" for r in table.itertuples() if r.label != "none"
        )
        lines.append(f"On running text, KL in nats per token: {kl}.")
        lines += self.told_left_out()
        return Report(tables | {"tasks/running_text": table}, lines)
