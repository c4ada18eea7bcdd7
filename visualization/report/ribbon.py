"""The text, token by token, with what each receives: for the ribbon."""

import json
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from visualization.report.cells import column, packed, packed_logs, text
from visualization.report.results import Results

TABLE = "tokens/token_position_importance"
ATTENTION = "tokens/attention.safetensors"
SHOWN = ("attention_received", "importance", "key_norm", "value_norm", "seen_by")


def ribbon(results: Results) -> dict[str, Any] | None:
    """Tokens of the first text with their means, and by layer and head where that was kept."""
    table = results.table(f"{TABLE}_texts")
    table = (
        results.table(TABLE) if table is None else table[table["index"] == table["index"].iat[0]]
    )
    if table is None or not {"position", "token", "importance"} <= set(table):
        return None
    return {
        "token": [text(token) for token in table["token"]],
        "position": column(table["position"]),
        **{name: column(table[name]) for name in SHOWN if name in table},
        "well_seen": [bool(seen) for seen in table["well_seen"]] if "well_seen" in table else None,
        "by_head": _by_head(results, table["position"]),
    }


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
