"""What tells the families of settings apart in every picture that compares them, and what is
written beside their points."""

import pandas as pd

from visualization.naming import Name
from visualization.style import Look

COLOURS = (  # as many as families that `compare` has, no two alike
    "#c0392b", "#2f6db3", "#2e8b57", "#d9822b", "#6b4c9a", "#00a5b5", "#7b7d7d", "#b7950b",
    "#e377c2", "#14284b", "#8b5a2b", "#7cb518", "#000000", "#b0127b", "#5f6b1c", "#8f86dc",
    "#58a9e8", "#2438e6", "#d63af9",
)  # fmt: skip
MARKERS = "osD^vP*X<>"  # no factor in common with colours, so that a look comes back late


def look(i: int) -> Look:
    """Colour and marker of the i-th family."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "ls": "none"}


def short(label: str, family: str) -> str:
    """A setting's name beside a point that has the look of its family."""
    return label.removeprefix(family).strip(" -,") or label


def names(rows: pd.DataFrame, column: str, colours: dict[str, str]) -> list[Name]:
    """Of the points of a table over bits per value, those on the frontier first and by their whole
    name."""
    ordered = rows.sort_values("frontier", ascending=False, kind="stable")
    return [
        Name(
            row["label"] if row["frontier"] else short(row["label"], row["family"]),
            row["bits_per_value"],
            row[column],
            colours[row["family"]],
        )
        for _, row in ordered.iterrows()
    ]


def once_per_model(rows: pd.DataFrame) -> str:
    """What a family stores beside the texts, for its line in a legend; nothing where it does not.

    The smallest of the numbers of tokens from which that pays, and the largest.
    """
    rows = rows[rows["per_model_bytes"] > 0]
    if rows.empty:
        return ""
    pays = rows["pays_from_tokens"][rows["pays_from_tokens"] > 0]
    mib = "–".join(dict.fromkeys(f"{x / 2**20:.3g}" for x in _ends(rows["per_model_bytes"])))
    if pays.empty:
        return f"\n+ {mib} MiB once per model, never paid back"
    tokens = "–".join(dict.fromkeys(f"{x:,.0f}" for x in _ends(pays)))
    return f"\n+ {mib} MiB once per model,\n   pays from {tokens} tokens"


def _ends(values: pd.Series) -> tuple[float, float]:
    return values.min(), values.max()
