"""What changed: the cost of each scored token under each setting, and the predictions there."""

import json
from typing import Any

import numpy as np
import pandas as pd

from visualization.report.cells import column, text
from visualization.report.results import Results

TABLE = "compare/scored_tokens"
NEEDED = ("label", "text_index", "position", "token", "kl_nats", "nats_full", "nats")
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
TAIL_POINTS = 24  # of a line from the median to the worst token


def changed(results: Results) -> dict[str, Any] | None:
    """Of each setting, the smallest first, its quantiles and its cost at each token."""
    table = results.table(TABLE)
    if table is None or not set(NEEDED) <= set(table) or table.empty:
        return None
    table = table.sort_values(["text_index", "position"], kind="stable")
    groups = dict(list(table.groupby("label", sort=False)))
    labels = [label for label in by_size(results, list(groups)) if label != "none"]
    if not labels:
        return None
    tokens = groups[labels[0]]
    before: dict[str, list[Any]] = {}
    for row in table[table["top_full"].map(text) != ""].itertuples():
        before[f"{row.text_index}:{row.position}"] = _top(row.top_full)
    return {
        "tokens": {
            "text": column(tokens["text_index"]),
            "position": column(tokens["position"]),
            "token": [text(token) for token in tokens["token"]],
            "nats_full": column(tokens["nats_full"]),
        },
        "before": before,
        "settings": [_setting(label, groups[label], tokens) for label in labels],
    }


def quantiles(kl: pd.Series) -> dict[str, float]:
    """p50, p99, p99.9 and max: each is the cost of a token, none lies between two."""
    return {
        name: float(np.quantile(kl, share, method="inverted_cdf"))
        for name, share in QUANTILES.items()
    }


def tail(kl: pd.Series) -> dict[str, list[float]]:
    """share, kl: which share of the tokens costs at least so much, from the median to the worst."""
    largest = np.sort(kl.to_numpy())[::-1]
    n = len(largest)
    counts = np.unique(np.geomspace(1, max(1, n // 2), TAIL_POINTS).round().astype(int))
    kept = [k for k in counts if largest[k - 1] > 0]
    return {"share": [float(k / n) for k in kept], "kl": column(largest[k - 1] for k in kept)}


def _setting(label: str, rows: pd.DataFrame, tokens: pd.DataFrame) -> dict[str, Any]:
    """Its costs in the order of the tokens; positions of all settings are the same."""
    if not np.array_equal(rows["position"].to_numpy(), tokens["position"].to_numpy()):
        raise ValueError(f"{label} was scored at other tokens than {tokens['label'].iloc[0]}")
    filled = rows["top"].map(text) != ""
    tops = {int(i): _top(rows["top"].iloc[i]) for i in np.flatnonzero(filled)}
    return {
        "label": label,
        "kl": column(rows["kl_nats"]),
        "nats": column(rows["nats"]),
        "quantiles": {name: column([q])[0] for name, q in quantiles(rows["kl_nats"]).items()},
        "tail": tail(rows["kl_nats"]),
        "after": tops,
    }


def _top(told: str) -> list[list[Any]]:
    """Pairs of a token and its probability."""
    pairs = json.loads(told)
    return [[str(token), column([float(probability)])[0]] for token, probability in pairs]


def by_size(results: Results, labels: list[str]) -> list[str]:
    """Settings as the frontier orders them; those that it does not have last."""
    table = results.table("compare/compare")
    if table is None or not {"label", "bytes_per_token"} <= set(table):
        return labels
    order = table.sort_values("bytes_per_token", kind="stable")["label"].tolist()
    return sorted(labels, key=lambda label: order.index(label) if label in order else len(order))
