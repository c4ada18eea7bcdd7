"""How methods do on tasks beside the untouched cache: accuracy and probability by task, differences
paired by exam, with their standard error and an exact test."""

import math

import numpy as np
import pandas as pd

FULL = "none"  # the label of the untouched cache
LEAST = 0.20  # accuracy of the untouched cache from which a task is averaged
SIZES = ("bits_per_value", "stored_bytes", "original_bytes")
CONTINUED = ("equal_share", "first_difference", "kl_p50_nats", "kl_p99_nats", "kl_max_nats")


def by_task(answers: pd.DataFrame) -> pd.DataFrame:
    """task, label, accuracy (mean score of its questions), accuracy_full, difference and its
    standard error over exams (empty for one), better, worse (exams) and p_value, probability and
    probability_full, exams, questions, counted (whether the task is averaged), engaged, and what is
    stored."""
    exams = _exams(answers)
    rows = []
    for (task, label), own in exams.groupby(["task", "label"], sort=False):
        full = exams[(exams["task"] == task) & (exams["label"] == FULL)]
        rows.append({"task": task, "label": label, **_paired(own, full), **_sizes(own)})
    table = pd.DataFrame(rows)
    return table.assign(counted=table["accuracy_full"] >= LEAST)


def over_tasks(answers: pd.DataFrame, of_tasks: pd.DataFrame) -> pd.DataFrame:
    """The same over all tasks that are counted, each with the same weight; the test counts all
    their exams."""
    counted = of_tasks[of_tasks["counted"]]
    exams = _exams(answers)
    exams = exams[exams["task"].isin(counted["task"])]
    rows = []
    for label, own in exams.groupby("label", sort=False):
        full = exams[exams["label"] == FULL]
        rows.append({"label": label, **_paired(own, full), **_sizes(own)})
        of_label = counted[counted["label"] == label]
        for name in ("accuracy", "accuracy_full", "probability", "probability_full", "difference"):
            rows[-1][name] = of_label[name].mean()
        rows[-1]["difference_se"] = _error_of_mean(of_label["difference_se"])
        rows[-1]["tasks"] = len(of_label)
    return pd.DataFrame(rows)


def _error_of_mean(errors: pd.Series) -> float:
    """Standard error of the mean of numbers with these errors, which are of different exams."""
    return math.sqrt(float((errors**2).sum(skipna=False))) / len(errors)


def _exams(answers: pd.DataFrame) -> pd.DataFrame:
    """One row per label and exam: questions of one cache are not chance apart."""
    groups = answers.groupby(["label", "task", "exam"], sort=False)
    means = groups[["score", "probability", *SIZES]].mean()
    return means.assign(questions=groups.size(), engaged=groups["engaged"].all()).reset_index()


def _paired(own: pd.DataFrame, full: pd.DataFrame) -> dict[str, float]:
    pairs = own.merge(full, on=["task", "exam"], suffixes=("", "_full"))
    off = (pairs["score"] - pairs["score_full"]).to_numpy()
    better, worse = int((off > 0).sum()), int((off < 0).sum())
    return {
        "accuracy": pairs["score"].mean(),
        "accuracy_full": pairs["score_full"].mean(),
        "difference": off.mean(),
        "difference_se": off.std(ddof=1) / math.sqrt(len(off)) if len(off) > 1 else np.nan,
        "better": better,
        "worse": worse,
        "p_value": sign_test(better, worse),
        "probability": pairs["probability"].mean(),
        "probability_full": pairs["probability_full"].mean(),
        "exams": len(pairs),
        "questions": int(pairs["questions"].sum()),
    }


def _sizes(own: pd.DataFrame) -> dict[str, float]:
    """Bytes over all exams; whether anything was changed in any of them."""
    stored, original = own["stored_bytes"].sum(), own["original_bytes"].sum()
    return {
        "bits_per_value": 16 * stored / original,
        "ratio": original / stored,
        "engaged": bool(own["engaged"].any()),
    }


def sign_test(better: int, worse: int) -> float:
    """Two-sided and exact: how likely so uneven a split of those that differ would be if either
    side were as likely. For exams that are right or wrong it is McNemar's test."""
    n, fewer = better + worse, min(better, worse)
    return float(min(1, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n))


def going_on(continued: pd.DataFrame) -> pd.DataFrame:
    """label, tokens: shares, counts and nats as means over texts, the largest nats of all texts;
    always_equal: texts that stay the same throughout."""
    groups = continued.groupby(["label", "tokens"], sort=False)
    table = groups[["bits_per_value", *CONTINUED]].mean()
    table["kl_max_nats"] = groups["kl_max_nats"].max()
    table["always_equal"] = groups["equal_share"].apply(lambda each: int((each == 1).sum()))
    return table.assign(texts=groups.size()).reset_index()
