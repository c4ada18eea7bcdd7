"""One study on several models: each in a folder of its own, and their tables side by side."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

import config
from compression.studies.base import Report, spread
from compression.studies.run import Outcome
from compression.studies.work import Model
from config import UsageError
from data.sources import resolve

TABLE = "models/models"

log = logging.getLogger(__name__)


def apart(models: Sequence[str], output_dir: str) -> list[dict[str, str]]:
    """For each model its `model` and an `output_dir` below the common one. Raises UsageError for
    models that are named twice, or that cannot be, before any of them is worked on."""
    meant: list[tuple[str, str | None]] = []
    for name in models:
        means = _means(name)
        if means in meant:
            raise UsageError(f"`models` names {name} twice", "leave one out")
        meant.append(means)
    folders: list[str] = []
    for name in models:
        plain = re.sub(r"[^\w.-]+", "-", Path(name).name or name).strip(".-") or "model"
        same = sum(folder == plain or folder.startswith(f"{plain}-") for folder in folders)
        folders.append(f"{plain}-{same + 1}" if same else plain)
    return [
        {"model": name, "output_dir": str(Path(output_dir) / "models" / folder)}
        for name, folder in zip(models, folders, strict=True)
    ]


def _means(name: str) -> tuple[str, str | None]:
    """The folder or repository of a name, and which file of it: ./a and a are the same."""
    try:
        source = resolve(name)
    except UsageError as refusal:
        reason = refusal.reason.replace("`model`", "`models`")
        raise UsageError(reason, refusal.advice) from None
    place = str(source.arguments["pretrained_model_name_or_path"])
    return str(source.folder.resolve()) if source.folder else place, source.gguf


def each_alone(
    apart: Sequence[Mapping[str, str]], carry_out: Callable[[Mapping[str, str]], Outcome]
) -> tuple[list[Outcome], UsageError | None]:
    """What comes of each model, in their order, and the refusal to be told of those that nothing
    came of, which cost the others nothing. Raises UsageError where nothing came of any."""
    outcomes, refused = [], {}
    for one in apart:
        try:
            outcomes.append(carry_out(one))
        except UsageError as refusal:
            refused[one["model"]] = refusal
            if len(apart) > 1:
                log.warning("%s is left out: %s", one["model"], refusal)
    refusals = list(refused.values())
    if refusals and not outcomes:
        raise refusals[0]
    if not refusals:
        return outcomes, None
    reasons = "; ".join(f"{name} ({refusal.reason})" for name, refusal in refused.items())
    advice = dict.fromkeys(refusal.advice for refusal in refusals if refusal.advice)
    return outcomes, UsageError(
        f"Of `models` all but these are done: {reasons}", "; ".join(advice) or "leave them out"
    )


def over_models(outcomes: Sequence[Outcome]) -> Outcome:
    """The table has the summaries of all models, in their order."""
    names = _told_apart([outcome.model.name for outcome in outcomes])
    tables = [
        _labelled(outcome).assign(model=name) for name, outcome in zip(names, outcomes, strict=True)
    ]
    table = pd.concat(tables, ignore_index=True)
    table = table[["model", *(column for column in table if column != "model")]]
    lines = [_cheapest(str(name), rows) for name, rows in table.groupby("model", sort=False)]
    first = outcomes[0]
    return Outcome(
        Report({TABLE: table}, lines),
        pd.concat(
            [each.rows.assign(model=name) for name, each in zip(names, outcomes, strict=True)]
        ),
        table,
        first.samples,
        first.context,
        first.learned_on,
        _together([outcome.model for outcome in outcomes]),
        None,
    )


def _labelled(outcome: Outcome) -> pd.DataFrame:
    """The summary with the label that a table of the study gives each setting, where one does."""
    keys = ["method", "settings"]
    for table in outcome.report.tables.values():
        if {*keys, "label"} <= set(table) and not table.duplicated(keys).any():
            return outcome.summary.merge(table[[*keys, "label"]], how="left", on=keys)
    return outcome.summary


def _told_apart(names: Sequence[str]) -> list[str]:
    """The same names; one that was there before with which it is."""
    nth = [list(names[: i + 1]).count(name) for i, name in enumerate(names)]
    return [name if n == 1 else f"{name} ({n})" for name, n in zip(names, nth, strict=True)]


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
    setting = best.get("label", f"{best['method']} {best['settings']}")
    return (
        f"{name}: of the settings that cost {bound:g} nats per token or less the smallest is "
        f"{setting}, {best['ratio']:.2f} x smaller than 16 bits, at "
        f"measured KL {spread(best)}."
    )
