"""What the tables of a run say, in sentences.

Where tables are means over texts, numbers come with their standard errors, and what is called most
or highest says how many others are so within the errors; what comes next is named beside it. A text
that is too short for a sentence gets one that says so.
"""

from collections.abc import Iterable

import pandas as pd

import config
from analysis import entry_findings, spectrum_findings
from analysis.margins import error, first_of, not_apart, runner_up, span, spread, tied, told_apart
from analysis.sinks import SINK, are_too_few, sinks
from data.cache import KINDS

Tables = dict[str, pd.DataFrame]


def key_findings(tables: Tables, sparse: float, dense: float, top: int) -> list[str]:
    """One sentence for each thing worth knowing. tables: picture stem -> its table, those of the
    run only; sparse, dense: the shares that make a dimension sparse or dense."""
    sentences = _means_of(tables)
    if (table := tables.get("layers/layer_statistics")) is not None:
        sentences += _layer_findings(table, top)
    if (table := tables.get("heads/head_pruning_potential")) is not None:
        sentences += _head_findings(table)
    if (table := tables.get("tokens/token_position_importance")) is not None:
        sentences += _token_findings(table, top)
    if len(table := tables.get("tokens/attention_sinks", ())):
        sentences.append(_sink_finding(table, top))
    if (table := tables.get("embeddings/embedding_consistency")) is not None:
        sentences += _dim_findings(table, sparse, dense, top)
    if (table := tables.get("tokens/generation_stages_comparison")) is not None:
        sentences += _stage_findings(table)
    if (table := tables.get("cache/keys")) is not None:
        of_first = "Of the first text: " if _means_of(tables) else ""
        sentences += entry_findings.said(table, tables["cache/values"], of_first)
    if (table := tables.get("spectrum/ranks")) is not None:
        sentences += spectrum_findings.said(table, tables["spectrum/subspace_overlap"])
    return sentences


def _means_of(tables: Tables) -> list[str]:
    """That all that follows is of means, where it is."""
    several = [table["texts"].max() for table in tables.values() if "texts" in table]
    if not several:
        return []
    return [
        f"Numbers are means over {max(several)} texts, ± their standard errors, each text under "
        "its own sparsity threshold."
    ]


def _layer_findings(table: pd.DataFrame, top: int) -> list[str]:
    sentences = []
    for kind in KINDS:
        layers = _most(table[table["kind"] == kind], "sparsity", top, "layer")
        sentences.append(f"Sparsest layers by {kind}s: {layers}.")
    if table[["kurtosis", "hoyer_sparsity"]].isna().all().any():
        return sentences  # constant layers have neither
    sentences.append(
        "Free of the threshold, which one outlier can move: highest kurtosis (normal: 3) "
        f"{_highest(table, 'kurtosis', digits=1)}; highest Hoyer sparsity "
        f"{_highest(table, 'hoyer_sparsity', digits=2)}."
    )
    return sentences


def _highest(table: pd.DataFrame, column: str, digits: int) -> str:
    """The keys or values of which layer have most of something, and which come next."""
    ordered = table.dropna(subset=column).sort_values(column, ascending=False, kind="stable")
    form = f".{told_apart(ordered[column].tolist(), digits)}f"
    said = [
        f"{spread(row, column, form)} in layer {row['layer']}'s {row['kind']}s"
        for _, row in ordered.head(2).iterrows()
    ]
    first, others = ordered.iloc[0], ordered.iloc[1:]
    return runner_up(said) + tied(not_apart(others, column, first))


def _most(rows: pd.DataFrame, column: str, top: int, name: str) -> str:
    """The rows with most of a share, by name, never more than half of all; which comes next, and
    how many others have as much within the errors."""
    n = min(top, max(1, len(rows) // 2))
    ordered = rows.sort_values(column, ascending=False, kind="stable")
    said = [f"{row[name]} ({spread(row, column, '.1%')})" for _, row in ordered[: n + 1].iterrows()]
    rest = not_apart(ordered[n:], column, ordered.iloc[n - 1])
    return runner_up([_listed(said[:n]), *said[n:]]) + tied(rest)


def sparsest_layers(statistics: pd.DataFrame, n: int) -> list[int]:
    """Those with the most sparse entries, keys and values together."""
    means = statistics.groupby("layer")["sparsity"].mean()
    return [int(layer) for layer in means.nlargest(n).index]


def _head_findings(table: pd.DataFrame) -> list[str]:
    heads = _over_kinds(table)
    if len(heads) == 1:
        mean, std = (_own(heads.iloc[0], name) for name in ("sparsity_mean", "sparsity_std"))
        return [f"The one KV head: sparsity {mean}, standard deviation over layers {std}."]
    head, _, _ = steady_head(table)
    own, others = heads.loc[head], heads.drop(head)
    mean, std = _own(own, "sparsity_mean"), _own(own, "sparsity_std")
    average = heads["sparsity_mean"].mean()
    high = rivals(table)
    if high.empty:
        return [
            f"Of {len(heads)} KV heads only {head} is sparser than their mean of {average:.1%}: "
            f"{mean}, with a standard deviation of {std} over layers (others: "
            f"{span(others['sparsity_std'], '.1%')})."
        ]
    next_head = high["sparsity_std"].idxmin()
    return [
        f"Of the {len(high) + 1} of {len(heads)} KV heads that are as sparse as their mean of "
        f"{average:.1%} or more, {head} varies least over layers: sparsity {mean} with a standard "
        f"deviation of {std}; next {next_head} with {_own(high.loc[next_head], 'sparsity_std')}"
        f"{tied(not_apart(high, 'sparsity_std', own, least=True))}."
    ]


def _own(head: pd.Series, column: str) -> str:
    return spread(head, column, ".1%")


def _over_kinds(table: pd.DataFrame) -> pd.DataFrame:
    """By head the means of keys and values; their errors are at most those means'."""
    names = ["sparsity_mean", "sparsity_std", "sparsity_mean_se", "sparsity_std_se"]
    means: pd.DataFrame = table.groupby("head")[[n for n in names if n in table]].mean()
    return means


def rivals(table: pd.DataFrame) -> pd.DataFrame:
    """By head, those beside the steady head that are as sparse as the mean of all or sparser,
    within the errors."""
    heads = _over_kinds(table)
    others = heads.drop(steady_head(table)[0])
    highest = others["sparsity_mean"] + error(others, "sparsity_mean")
    return others[highest >= heads["sparsity_mean"].mean() - 1e-12]


def steady_head(table: pd.DataFrame) -> tuple[int, float, float]:
    """Of the heads at or above the mean sparsity, the one that varies least over layers."""
    heads = _over_kinds(table)
    high = heads[heads["sparsity_mean"] >= heads["sparsity_mean"].mean() - 1e-12]
    head = high["sparsity_std"].idxmin()
    return int(head), heads["sparsity_mean"][head], heads["sparsity_std"][head]


def _token_findings(table: pd.DataFrame, top: int) -> list[str]:
    if is_short(table):
        return [
            f"Tokens are not ranked: of {len(table)} tokens too few are seen by "
            f"{config.MIN_QUERIES} queries, and a mean over fewer says little."
        ]
    rated = table[table["well_seen"]].sort_values("importance", ascending=False, kind="stable")
    said = [
        f"{row['position']}{_word(row)} ({spread(row, 'importance', '.2f')})"
        for _, row in rated[: top + 1].iterrows()
    ]
    rest = not_apart(rated[top:], "importance", rated[:top].iloc[-1])
    tokens = runner_up([_listed(said[:top]), *said[top:]])
    return [
        f"Most important tokens (seen by {rated['seen_by'].min()} or more queries): {tokens}"
        f"{tied(rest)}."
    ]


def is_short(tokens: pd.DataFrame) -> bool:
    """Whether a text has too few tokens that enough queries can see to rank them."""
    return bool(tokens.loc[tokens["well_seen"], "seen_by"].min() < config.MIN_QUERIES)


def _word(row: pd.Series) -> str:
    """The token at a position, where it is the same in all texts."""
    return f" “{row['token']}”" if isinstance(row["token"], str) else ""


def _sink_finding(table: pd.DataFrame, top: int) -> str:
    """A sink takes many times the attention that an even spread would give it."""
    tokens = table[table["well_seen"]].drop_duplicates("position")
    tokens = tokens.sort_values("mean_received", ascending=False, kind="stable")
    first = tokens.iloc[0]
    as_much = tied(not_apart(tokens[1:], "mean_received", first))
    if tokens["even_share"].isna().all():
        return f"Most attended token within the windows: {_attended(first)}{as_much}."
    if len(many := sinks(table)):
        named = first_of([_attended(row) for _, row in many.iterrows()], top)
        count = f"{len(many)} token{'s' if len(many) > 1 else ''}"
        return (
            f"Attention sinks, which receive {SINK} times the even share of attention or more: "
            f"{count}, position {named}{as_much}."
        )
    if are_too_few(first["even_share"]):
        return (
            f"Too few tokens to tell attention sinks: {SINK} times the even share would be more "
            f"than all attention. Position {_attended(first)} receives most{as_much}."
        )
    return (
        f"No attention sinks: no token receives {SINK} times the even share of attention; most "
        f"goes to position {_attended(first)}{as_much}."
    )


def _attended(row: pd.Series) -> str:
    """A token, and its share of the attention of the queries that can see it."""
    times = row["mean_received"] / row["even_share"]
    share = spread(row, "mean_received", ".1%")
    more = f", {times:.{0 if times >= SINK else 1}f} times the even share" if times > 0 else ""
    return f"{row['position']}{_word(row)} ({share} of the attention on average{more})"


def _dim_findings(table: pd.DataFrame, sparse: float, dense: float, top: int) -> list[str]:
    sentences = []
    for kind in KINDS:
        rows = table[table["kind"] == kind]
        n_dense = int((rows["sparsity"] < dense).sum())
        dims = _most(rows, "sparsity", top, "dim")
        sentences.append(
            f"{kind.capitalize()} dimensions, over all layers and heads: "
            f"{count_above(table, kind, sparse)} of {len(rows)} are sparse (above {sparse:.0%}), "
            f"{n_dense} dense (below {dense:.0%}); sparsest: {dims}."
        )
    return sentences


def count_above(table: pd.DataFrame, kind: str, share: float) -> int:
    return int(((table["kind"] == kind) & (table["sparsity"] > share)).sum())


def _stage_findings(table: pd.DataFrame) -> list[str]:
    moved, errors = drift(table), drift_errors(table)
    late = table[table["stage"] == "late"].set_index("kind")
    parts = [
        f"{kind}s {spread(late.loc[kind], 'sparsity_new_tokens', '.1%')} "
        f"({points(moved, errors, kind)})"
        for kind in KINDS
    ]
    return [f"Sparsity of the generated tokens against that of the text: {' and '.join(parts)}."]


def points(moved: dict[str, float], errors: dict[str, float], kind: str) -> str:
    more = f" ± {100 * errors[kind]:.1f}" if errors[kind] else ""
    return f"{100 * moved[kind]:+z.1f}{more} points"


def drift(table: pd.DataFrame) -> dict[str, float]:
    """New tokens' sparsity at the end less that of the text alone, per kind."""
    by_stage = table.set_index(["stage", "kind"])
    return {
        kind: by_stage.loc[("late", kind), "sparsity_new_tokens"]
        - by_stage.loc[("prefill", kind), "sparsity"]
        for kind in KINDS
    }


def drift_errors(table: pd.DataFrame) -> dict[str, float]:
    """At most: as if both moved against each other. 0 for one text."""
    by_stage = table.set_index(["stage", "kind"])
    late, before = (
        {kind: float(error(by_stage.loc[[(stage, kind)]], column).iloc[0]) for kind in KINDS}
        for stage, column in (("late", "sparsity_new_tokens"), ("prefill", "sparsity"))
    )
    return {kind: late[kind] + before[kind] for kind in KINDS}


def _listed(items: Iterable[str]) -> str:
    return ", ".join(items)
