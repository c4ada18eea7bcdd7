"""What tasks show, in sentences, each from its tables alone."""

import pandas as pd

from compression.studies.exam_tables import FULL, LEAST

POINT = 0.01  # of accuracy
CHANCE = 0.05  # p-value from which a difference may be chance


def said(
    of_tasks: pd.DataFrame, overall: pd.DataFrame, continued: pd.DataFrame, filler: str
) -> list[str]:
    return [
        _asked(of_tasks, filler),
        *_apart(of_tasks),
        *(_of_label(row) for _, row in overall.iterrows() if row["label"] != FULL),
        *_kept(of_tasks),
        *_lost(of_tasks),
        *_idle(of_tasks),
        *_went_on(continued),
    ]


def _asked(of_tasks: pd.DataFrame, filler: str) -> str:
    full = of_tasks[of_tasks["label"] == FULL]
    return (
        f"{len(full)} tasks, {full['exams'].sum()} contexts with {full['questions'].sum()} "
        f"questions, facts hidden in noise, in others of their kind or in {filler}. Each context "
        "was compressed before any of its questions was known, and all of them were asked of the "
        "same compressed cache."
    )


def _apart(of_tasks: pd.DataFrame) -> list[str]:
    full = of_tasks[of_tasks["label"] == FULL]
    low, high = full[~full["counted"]], full[full["counted"]]
    lines = []
    if len(high):
        named = ", ".join(f"{r.task} {r.accuracy:.0%}" for r in high.itertuples())
        lines.append(f"The untouched cache: {named}; in the mean {high['accuracy'].mean():.1%}.")
    if len(low):
        named = ", ".join(f"{r.task} ({r.accuracy:.0%})" for r in low.itertuples())
        lines.append(
            f"Not averaged, for the model itself gets less than {LEAST:.0%} of them: {named}."
        )
    return lines


def _of_label(row: pd.Series) -> str:
    error = "" if pd.isna(row["difference_se"]) else f" ± {100 * row['difference_se']:.1f}"
    chance = "" if row["p_value"] < CHANCE else ", which may be chance"
    return (
        f"{row['label']}, {row['ratio']:.1f} x: {row['accuracy']:.1%}, "
        f"{100 * row['difference']:+z.1f}{error} points over {_counted(row['tasks'], 'task')}; of "
        f"{row['exams']} contexts {row['better']} better and {row['worse']} worse "
        f"(p = {row['p_value']:.2g}{chance}); probability of the right answer "
        f"{row['probability']:.3f}, untouched {row['probability_full']:.3f}."
    )


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _kept(of_tasks: pd.DataFrame) -> list[str]:
    """The smallest setting that engaged and is as good as untouched in each task."""
    counted = of_tasks[of_tasks["counted"] & (of_tasks["label"] != FULL)]
    if counted.empty:
        return []
    by_label = counted.groupby("label", sort=False)
    whole = by_label["difference"].min() >= -POINT
    ratios = by_label["ratio"].min()[whole & by_label["engaged"].all()]
    if ratios.empty:
        return ["No setting is within one point of the untouched cache in each of these tasks."]
    best = ratios.idxmax()
    return [
        "Within one point of the untouched cache in each of these tasks: "
        f"{', '.join(ratios.index)}; the smallest is {best}, {ratios[best]:.1f} x or more."
    ]


def _lost(of_tasks: pd.DataFrame) -> list[str]:
    """Tasks that are worse by more than chance, one by one."""
    lost = of_tasks[of_tasks["counted"] & (of_tasks["difference"] < 0)]
    lost = lost[lost["p_value"] < CHANCE]
    return [
        f"Lost with {label}: "
        + ", ".join(f"{r.task} ({r.accuracy_full:.0%} to {r.accuracy:.0%})" for r in t.itertuples())
        + "."
        for label, t in lost.groupby("label", sort=False)
    ]


def _idle(of_tasks: pd.DataFrame) -> list[str]:
    others = of_tasks[of_tasks["label"] != FULL]
    idle = others[~others["engaged"]]
    return [
        f"{label} did not engage in {', '.join(rows['task'])}: what it restored is the untouched "
        "cache bit for bit, so its figures there say nothing of it."
        for label, rows in idle.groupby("label", sort=False)
    ]


def _went_on(continued: pd.DataFrame) -> list[str]:
    if continued.empty:
        return []
    lines = []
    for n, rows in continued[continued["label"] != FULL].groupby("tokens"):
        parts = (
            f"{r.label} {r.equal_share:.0%} equal, the first {r.first_difference:.0f} throughout, "
            f"KL p50 {r.kl_p50_nats:z.4f}, p99 {r.kl_p99_nats:z.3f}, largest {r.kl_max_nats:z.2f}"
            for r in rows.itertuples()
        )
        lines.append(f"Of {n} tokens that the model itself goes on with: {'; '.join(parts)}.")
    return lines
