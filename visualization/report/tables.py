"""The tables of a folder, as far as a page shows them."""

from typing import Any

from visualization.report.cells import columns
from visualization.report.pictures import explained
from visualization.report.results import Results

ROWS = 300  # of a table in the page; the CSV file beside it has all
SAME = ("model", "text_source", "text_index", "text_title")  # of all rows: said above them
HIDDEN = ("token_id",)


def tables(results: Results, room: int = ROWS) -> list[dict[str, Any]]:
    """Of each its first rows, and how many there are."""
    return [_shown(results, stem, room) for stem in _stems(results)]


def _stems(results: Results) -> list[str]:
    """Names of the tables that can be read, those with the same rows as one before left out."""
    seen: list[str] = []
    for stem in results.stems():
        table = results.table(stem)
        if table is None:
            continue
        folder = stem.rpartition("/")[0]
        twins = (results.table(s) for s in seen if s.rpartition("/")[0] == folder)
        if not any(twin is not None and twin.equals(table) for twin in twins):
            seen.append(stem)
    return seen


def _shown(results: Results, stem: str, room: int) -> dict[str, Any]:
    table = results.table(stem)
    if table is None:
        raise ValueError(f"{stem} cannot be read, and is not among those that are shown")
    first = table.head(room)
    same = [name for name in SAME if name in table and table[name].nunique(dropna=False) == 1]
    names = [name for name in table.columns if name not in (*same, *HIDDEN)]
    return {
        "stem": stem,
        "title": explained(stem)["title"],
        "about": " · ".join(str(table[name].iloc[0]) for name in same) if len(table) else "",
        "n_rows": len(table),
        "shown": len(first),
        "columns": columns(first, names),
    }
