"""The cache from the first token to the last that was generated: lengths and directions of its
entries by layer and position."""

from typing import Any

import numpy as np

from visualization.report.cells import column
from visualization.report.results import Results

TABLE = "cache/norms_in_time"
MEASURES = ("norm", "cosine_to_mean")
NEEDED = ("layer", "position", "tokens", "stage", "kind", *MEASURES)
KINDS = ("key", "unrotated key", "value")


def in_time(results: Results) -> dict[str, Any] | None:
    """Of each kind its MEASURES, layers by bins of positions."""
    table = results.table(TABLE)
    if table is None or not set(NEEDED) <= set(table) or table.empty:
        return None
    kinds = {kind: rows for kind, rows in table.groupby("kind") if kind in KINDS}
    generated = table.loc[table["stage"] == "generated", "position"]
    return {
        "generated_from": None if generated.empty else int(generated.min()),
        "kinds": {
            kind: {
                "layer": column(rows["layer"]),
                "position": column(rows["position"]),
                "tokens": column(rows["tokens"]),
                **{measure: column(rows[measure]) for measure in MEASURES},
                "generated": [int(stage == "generated") for stage in rows["stage"]],
            }
            for kind, rows in sorted(kinds.items(), key=lambda pair: KINDS.index(pair[0]))
        },
        "measures": MEASURES,
        "rotation_keeps_norms": _same(kinds),
        "n_layers": int(table["layer"].nunique()),
        "n_tokens": int((table["position"] + table["tokens"]).max()),
    }


def _same(kinds: dict[Any, Any]) -> bool:
    """Whether keys have the same norms with and without rotary embedding, as a rotation leaves
    them."""
    if not {"key", "unrotated key"} <= set(kinds):
        return False
    rotated, plain = (kinds[kind]["norm"].to_numpy() for kind in ("key", "unrotated key"))
    return len(rotated) == len(plain) and bool(np.allclose(rotated, plain, rtol=0.01))
