"""The pictures of a folder, each with what it shows, how to read it, when it misleads, and what its
table says in this run."""

import base64
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from visualization.report.cells import number
from visualization.report.results import Results

BYTES = 7_000_000  # of pictures in one page; larger ones are left beside it, and named
TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
WHERE = ("choice", "label", "method", "settings", "heuristic", "damage", "stage", "part", "pattern",
         "layer", "layer_a", "layer_b", "head", "head_a", "head_b", "position", "position_a",
         "position_b", "token", "dim", "dim_a", "dim_b", "depth", "bin_right", "token_rank",
         "embedding_rank", "kind")  # fmt: skip
SHARES = ("sparsity", "sparsity_mean", "mean_received", "share_of_dim", "energy_share",
          "probability")  # fmt: skip
KINDS = {"key": "keys", "value": "values", "unrotated key": "unrotated keys"}
UNITS = {"kl_mean_nats": " nats per token", "delta_perplexity_percent": " %"}
CALLED = {"kl_mean_nats": "KL", "delta_perplexity_percent": "change of perplexity",
          "mean_received": "attention received, mean over layers",
          "share_of_dim": "effective rank"}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """source: of an image element; empty for what is only beside the page, as `why` says. finding:
    from the numbers of the table, which also stand for the picture where it is not seen."""

    stem: str
    file: str
    title: str
    shows: str
    read: str
    misleads: str
    finding: str
    source: str
    why: str = ""

    @property
    def alt(self) -> str:
        return f"{self.title}. {self.finding or self.shows}"


@cache
def explanations() -> dict[str, dict[str, str]]:
    """By the name of a picture, its folder left out where it is the same in all."""
    file = Path(__file__).with_name("explanations.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def explained(stem: str) -> dict[str, str]:
    """Of a picture that has none of its own, its name alone."""
    found = explanations().get(stem) or explanations().get(stem.rpartition("/")[2])
    return found or {"title": stem.rpartition("/")[2].replace("_", " ").capitalize()}


def pictures(results: Results, room: int = BYTES) -> dict[str, list[Picture]]:
    """mode -> its pictures. room: bytes of all together; the largest ones go first."""
    within = _within(results, room)
    found: dict[str, list[Picture]] = {}
    for run in results.runs:
        stems = dict.fromkeys(f[:-4] for f in run.files if f.endswith((".png", ".svg", ".pdf")))
        shown = {stem: results.picture(stem) for stem in stems}
        all_of = [
            _picture(results, stem, file, within)
            for stem, file in shown.items()
            if file is not None
        ]
        if all_of:
            found[run.mode] = all_of
    return found


def extremes(table: pd.DataFrame, measure: str) -> str:
    """Where a measure is largest and smallest in a table; pairs of a thing with itself, and the
    untouched cache, are no news and left out."""
    rows = table[table[measure].notna()]
    if "method" in rows:
        rows = rows[rows["method"] != "none"]
    twins = [name for name in rows if name.endswith("_a") and f"{name[:-2]}_b" in rows]
    if twins:
        same = [rows[name] == rows[f"{name[:-2]}_b"] for name in twins if name != "order_a"]
        rows = rows[~pd.concat(same, axis=1).all(axis=1)]
    if rows.empty:
        return ""
    values = rows[measure].astype(float)
    high, low = (rows.loc[at] for at in (values.idxmax(), values.idxmin()))
    name = CALLED.get(measure, measure.replace("_", " "))
    if high[measure] == low[measure]:
        return f"{_sentence(name)} is {_said(measure, high[measure])} everywhere."
    return (
        f"{_sentence(name)} is highest at {_where(high, measure)} with "
        f"{_said(measure, high[measure])}, lowest at {_where(low, measure)} with "
        f"{_said(measure, low[measure])}; the mean of {len(rows):,} is "
        f"{_said(measure, values.mean())}."
    )


def _within(results: Results, room: int) -> set[str]:
    """The pictures that find room, smaller ones first, so that as few as can be are left out."""
    files = [f for f in map(results.picture, results.stems()) if f and f[-4:] in TYPES]
    paths = {file: results.path(file) for file in files}
    sizes = {file: path.stat().st_size for file, path in paths.items() if path is not None}
    kept: set[str] = set()
    for file, size in sorted(sizes.items(), key=lambda pair: pair[1]):
        room -= size
        if room >= 0:
            kept.add(file)
    return kept


def _picture(results: Results, stem: str, file: str, within: set[str]) -> Picture:
    said = explained(stem)
    table, measure = results.table(stem), said.get("measure", "")
    finding = extremes(table, measure) if table is not None and measure in table else ""
    path = results.path(file)
    source, why = "", ""
    if file in within and path is not None:
        body = base64.b64encode(path.read_bytes()).decode()
        source = f"data:{TYPES[file[-4:]]};base64,{body}"
    elif file[-4:] in TYPES:
        why = (
            f"The pictures of this folder are more than {BYTES / 1e6:.0f} MB, and the largest "
            "are left beside the page."
        )
    else:
        why = "A page cannot show this kind of file."
    texts = {name: said.get(name, "") for name in ("shows", "read", "misleads")}
    return Picture(stem, file, said["title"], **texts, finding=finding, source=source, why=why)


def _where(row: "pd.Series[Any]", measure: str) -> str:
    """layer 3, head 1, key"""
    names = [name for name in WHERE if name in row and name != measure and not pd.isna(row[name])]
    if "label" in names or "choice" in names:
        names = [name for name in names if name not in ("method", "settings")]
    parts = [_part(name, row[name]) for name in names if row[name] != ""]
    return ", ".join(parts) or "one place"


def _part(name: str, value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if name == "kind":
        return KINDS.get(value, str(value))
    if name == "bin_right":
        return f"magnitudes up to {number(value)}"
    if name == "token":
        return f"“{value}”"
    if isinstance(value, str):
        return value
    return f"{name.replace('_a', '').replace('_b', '').replace('_', ' ')} {value}"


def _said(measure: str, value: float) -> str:
    if measure in SHARES:
        return f"{100 * value:.3g} %"
    return f"{number(value)}{UNITS.get(measure, '')}"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
