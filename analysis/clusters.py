"""What belongs together: tables of pairs as matrices, clusters of them, and the nearest pair.

A pair can be merged when one of its two is close to a multiple of the other, so merging goes by
|cosine|: a scale, also a negative one, is cheap to store beside what is shared.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from analysis.margins import tied


@dataclass(frozen=True)
class Level:
    """What one table compares: the columns that name a member, without their _a and _b, the
    column that says how similar two are, and words for both."""

    names: tuple[str, ...]
    measure: str
    words: str
    measure_words: str


LEVELS = {
    "layers": Level(("layer",), "cosine", "layers {} and {}", "cosine"),
    "heads": Level(("layer", "head"), "cosine", "heads {} and {} (layer:head)", "cosine"),
    "tokens": Level(("position",), "cosine", "tokens {} and {}", "cosine"),
    "dimensions": Level(
        ("dim",), "mean_abs_correlation", "dimensions {} and {}", "mean |correlation|"
    ),
}


def _distances(similarity: np.ndarray) -> np.ndarray:
    """Condensed 1 - similarity, never negative; what cannot be compared is not similar."""
    distance = np.clip(1 - np.nan_to_num(similarity, nan=0.0), 0, None).astype(np.float64)
    np.fill_diagonal(distance, 0)
    condensed: np.ndarray = squareform(distance, checks=False)
    return condensed


def clusters(similarity: np.ndarray, threshold: float) -> np.ndarray:
    """(items,) labels 0, 1, ...: hierarchical clusters (average linkage on 1 - similarity) whose
    mean similarity is at least `threshold`. similarity: (items, items), NaN counts as 0."""
    if len(similarity) < 2:
        return np.zeros(len(similarity), dtype=int)
    tree = hierarchy.linkage(_distances(similarity), method="average")
    labels = hierarchy.fcluster(tree, 1 - threshold, criterion="distance")
    _, first, label = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[label]  # numbered as they first appear


def leaf_order(similarity: np.ndarray) -> np.ndarray:
    """(items,) the items in the order in which the tree of their clusters lists them, so that
    similar ones are drawn side by side."""
    if len(similarity) < 2:
        return np.arange(len(similarity))
    tree = hierarchy.linkage(_distances(similarity), method="average")
    leaves: np.ndarray = hierarchy.leaves_list(tree)
    return leaves


def nearest_pair(similarity: np.ndarray) -> tuple[int, int, float] | None:
    """The two different items that are most similar, i < j, and how similar they are; None where
    no two can be compared."""
    i, j = np.triu_indices(len(similarity), 1)
    values = similarity[i, j]
    if np.isnan(values).all():
        return None
    best = np.nanargmax(values)
    return int(i[best]), int(j[best]), float(values[best])


def similarity_matrix(
    table: pd.DataFrame, level: str, kind: str, more: str = ""
) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """The members of a table of pairs, and (members, members) of its measure of one kind, as
    signed as in the table. The table has each member beside itself, other pairs once or twice.
    more: `_se` for the standard errors of the measure."""
    rows = table[table["kind"] == kind]
    names, measure = LEVELS[level].names, rows[LEVELS[level].measure + more].to_numpy()
    pairs = [pd.MultiIndex.from_frame(rows[[f"{name}_{x}" for name in names]]) for x in "ab"]
    members = pairs[0].unique().sort_values()
    a, b = (members.get_indexer(pair) for pair in pairs)
    matrix = np.full((len(members), len(members)), np.nan)
    matrix[a, b] = matrix[b, a] = measure
    return members.to_list(), matrix


def groups_of(
    table: pd.DataFrame, level: str, kind: str, threshold: float
) -> list[list[tuple[int, ...]]]:
    """Clusters of two members or more by the magnitude of the level's measure (see `clusters`),
    members and groups in the table's order."""
    members, matrix = similarity_matrix(table, level, kind)
    labels = clusters(np.abs(matrix), threshold)
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [[members[i] for i in group] for group in groups if len(group) > 1]


def nearest(table: pd.DataFrame, level: str, kind: str) -> str | None:
    """The pair whose measure is largest in magnitude, in words such as "layers 3 and 4 (cosine
    0.41)", over several texts with its error and how many pairs are as near within theirs; None
    where no two can be compared."""
    members, matrix = similarity_matrix(table, level, kind)
    pair = nearest_pair(np.abs(matrix))
    if pair is None:
        return None
    i, j, _ = pair
    named = LEVELS[level].words.format(*(":".join(map(str, members[k])) for k in (i, j)))
    said = f"{named} ({LEVELS[level].measure_words} {matrix[i, j]:z.2f}"
    if f"{LEVELS[level].measure}_se" not in table:
        return f"{said})"
    _, errors = similarity_matrix(table, level, kind, "_se")
    a, b = np.triu_indices(len(matrix), 1)
    highest = np.abs(matrix[a, b]) + np.nan_to_num(errors[a, b])
    n = int((highest >= abs(matrix[i, j]) - np.nan_to_num(errors[i, j])).sum()) - 1
    return f"{said} ± {errors[i, j]:.2f}){tied(n)}"
