"""One study on several models: each in a folder of its own, and their tables side by side."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import config
from compression.studies.base import Report, spread
from compression.studies.run import Outcome
from compression.studies.work import Model
from config import UsageError
from data.sources import resolve

TABLE = "models/models"


def apart(models: Sequence[str], output_dir: str) -> list[dict[str, str]]:
    """For each model its `model` and an `output_dir` below the common one. Raises UsageError for
    models that are named twice, or that cannot be, before any of them is worked on."""
    for name in models:
        if list(models).count(name) > 1:
            raise UsageError(f"`models` names {name} twice", "leave one out")
        resolve(name)
    folders: list[str] = []
    for name in models:
        plain = re.sub(r"[^\w.-]+", "-", Path(name).name or name).strip(".-") or "model"
        same = sum(folder == plain or folder.startswith(f"{plain}-") for folder in folders)
        folders.append(f"{plain}-{same + 1}" if same else plain)
    return [
        {"model": name, "output_dir": str(Path(output_dir) / "models" / folder)}
        for name, folder in zip(models, folders, strict=True)
    ]


def over_models(outcomes: Sequence[Outcome]) -> Outcome:
    """The table has the summaries of all models, in their order."""
    tables = [outcome.summary.assign(model=outcome.model.name) for outcome in outcomes]
    table = pd.concat(tables, ignore_index=True)
    table = table[["model", *(column for column in table if column != "model")]]
    lines = [_cheapest(str(name), rows) for name, rows in table.groupby("model", sort=False)]
    first = outcomes[0]
    return Outcome(
        Report({TABLE: table}, lines),
        pd.concat([each.rows.assign(model=each.model.name) for each in outcomes]),
        table,
        first.samples,
        first.context,
        first.learned_on,
        _together([outcome.model for outcome in outcomes]),
        None,
    )


def _together(models: Sequence[Model]) -> Model:
    """What is said of them in one breath."""

    def each(name: str) -> str:
        return ", ".join(dict.fromkeys(model.facts[name] for model in models))

    return Model(
        name=", ".join(model.name for model in models),
        facts={name: each(name) for name in models[0].facts},
        max_positions=None,
        weight_nbytes=sum(model.weight_nbytes for model in models),
        device_peak_nbytes=max(model.device_peak_nbytes for model in models),
    )


def _cheapest(name: str, rows: pd.DataFrame) -> str:
    """The largest ratio of what is called cheap on a model."""
    bound = config.ACCEPTABLE_KL
    cheap = rows[(rows["kl_mean_nats"] <= bound) & (rows["method"] != "none")]
    if cheap.empty:
        return f"{name}: no setting measured costs {bound:g} nats per token or less."
    best = cheap.loc[cheap["ratio"].idxmax()]
    return (
        f"{name}: of the settings that cost {bound:g} nats per token or less the smallest is "
        f"{best['method']} {best['settings']}, {best['ratio']:.2f} x smaller than 16 bits, at "
        f"measured KL {spread(best)}."
    )
