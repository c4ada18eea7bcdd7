"""The text, token by token, with what each receives and what is spent on it: for the ribbon."""

import json
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from visualization.report.cells import column, packed, packed_logs, text
from visualization.report.changed import by_size
from visualization.report.results import Results

TABLE = "tokens/token_position_importance"
ATTENTION = "tokens/attention.safetensors"
SPENT = "compare/bits_by_token"
NEEDED = ("label", "position", "token", "bits_per_value")
SHOWN = ("attention_received", "importance", "key_norm", "value_norm", "seen_by")


def ribbon(results: Results) -> dict[str, Any] | None:
    """texts: the first that `analyze` read, and where it is another the first that `compare` read;
    each with its tokens, and what they are coloured by. named: what the text is called."""
    looked, spent = _looked(results), _spent(results)
    if looked is not None and spent is not None:
        both = _on_one_text(looked, spent)
        return {"texts": [looked, spent] if both is None else [both]}
    texts = [each for each in (looked, spent) if each is not None]
    return {"texts": texts} if texts else None


def _looked(results: Results) -> dict[str, Any] | None:
    """Means over layers and heads, and by layer and head where that was kept."""
    table = results.table(f"{TABLE}_texts")
    table = (
        results.table(TABLE) if table is None else table[table["index"] == table["index"].iat[0]]
    )
    if table is None or not {"position", "token", "importance"} <= set(table):
        return None
    return {
        "named": "The first text that analyze read",
        "token": [text(token) for token in table["token"]],
        "position": column(table["position"]),
        **{name: column(table[name]) for name in SHOWN if name in table},
        "well_seen": [bool(seen) for seen in table["well_seen"]] if "well_seen" in table else None,
        "by_head": _by_head(results, table["position"]),
        "bits": None,
    }


def _spent(results: Results) -> dict[str, Any] | None:
    """bits: of each setting that spends more on some tokens than on others, the smallest first, the
    bits per value of each token and their mean."""
    table = results.table(SPENT)
    if table is None or not set(NEEDED) <= set(table) or table.empty:
        return None
    groups = dict(list(table.groupby("label", sort=False)))
    labels = by_size(results, list(groups))
    texts = {
        label: (column(rows["position"]), [*map(text, rows["token"])])
        for label, rows in groups.items()
    }
    positions, tokens = texts[labels[0]]
    other = [label for label in labels if texts[label] != (positions, tokens)]
    if other:
        raise ValueError(f"{other[0]} has other tokens than {labels[0]} in {SPENT}")
    return {
        "named": "The first text that compare read",
        "token": tokens,
        "position": positions,
        "by_head": None,
        "bits": [_of_setting(label, groups[label]["bits_per_value"]) for label in labels],
    }


def _of_setting(label: str, per_value: "pd.Series[float]") -> dict[str, Any]:
    return {
        "label": label,
        "per_value": column(per_value),
        "mean": column([per_value.mean()])[0],
    }


def _on_one_text(looked: dict[str, Any], spent: dict[str, Any]) -> dict[str, Any] | None:
    """Both, where the tokens at the positions that both have are the same; None where they are not.
    One may have read more of the text."""
    places = {position: i for i, position in enumerate(spent["position"])}
    at = [places.get(position) for position in looked["position"]]
    pairs = [(i, j) for i, j in enumerate(at) if j is not None]
    if not pairs or any(looked["token"][i] != spent["token"][j] for i, j in pairs):
        return None
    bits = [
        {**one, "per_value": [None if j is None else one["per_value"][j] for j in at]}
        for one in spent["bits"]
    ]
    return {**looked, "bits": bits}


def _by_head(results: Results, positions: "pd.Series[int]") -> dict[str, Any] | None:
    """None where it was not kept, does not fit the table, or cannot be read, which `missing` then
    says."""
    path = results.path(ATTENTION) if ATTENTION in results.files else None
    if path is None:
        return None
    try:
        with safe_open(path, framework="np") as kept:
            layers = json.loads(kept.metadata()["layers"])
            names = ("received", "watcher", "watcher_weight")
            received, watcher, weight = (kept.get_tensor(name) for name in names)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        results.missing.append(f"{ATTENTION} ({type(error).__name__}: {error})")
        return None
    shapes_fit = (
        received.ndim == 3
        and watcher.shape == weight.shape == (len(layers), received.shape[2])
        and received.shape[0] == len(layers)
        and positions.max() < received.shape[2]
    )
    if not shapes_fit:
        results.missing.append(f"{ATTENTION} (its shapes do not fit {TABLE}.csv)")
        return None
    at = positions.to_numpy()
    return {
        "layers": [int(layer) for layer in layers],
        "heads": received.shape[1],
        "received": packed_logs(np.ascontiguousarray(received[:, :, at])),  # (layers, heads, rows)
        "watcher": packed(np.ascontiguousarray(watcher[:, at]).astype(np.int32)),  # (layers, rows)
        "watcher_weight": packed_logs(np.ascontiguousarray(weight[:, at])),
    }
