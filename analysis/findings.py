"""What the tables of a run say, in sentences, and what to try because of it.

Every recommendation here follows from how the cache looks, not from what pruning it costs. Where
tables are means over texts, numbers come with their standard errors, and what is called most or
highest says how many others are so within the errors.
"""

from collections.abc import Iterable

import pandas as pd

import config
from analysis import spectrum_findings
from analysis.margins import error, not_apart, spread, tied
from analysis.tokens import SINK
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
        sentences.append(_sink_finding(table))
    if (table := tables.get("embeddings/embedding_consistency")) is not None:
        sentences += _dim_findings(table, sparse, dense, top)
    if (table := tables.get("tokens/generation_stages_comparison")) is not None:
        sentences += _stage_findings(table)
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


def recommendations(tables: Tables, sparse: float) -> list[str]:
    """What the heuristics of the pictures suggest, one line per level that the run looked at."""
    advice = []
    if (table := tables.get("layers/layer_statistics")) is not None:
        advice.append(_layer_advice(table))
    if (table := tables.get("heads/head_pruning_potential")) is not None:
        head, _, _ = steady_head(table)
        advice.append(f"Heads: try KV head {head} first, sparse and alike in all layers.")
    if (table := tables.get("tokens/token_position_importance")) is not None:
        advice.append(_token_advice(table))
    if (table := tables.get("embeddings/embedding_consistency")) is not None:
        advice.append(_dim_advice(table, sparse))
    if (table := tables.get("tokens/generation_stages_comparison")) is not None:
        advice.append(_stage_advice(table))
    return advice


def _layer_advice(table: pd.DataFrame) -> str:
    sparsest = sparsest_layers(table, config.PRUNED_LAYERS)
    measured = [name for name in ("sparsity", "sparsity_se") if name in table]
    means = table.groupby("layer")[measured].mean()  # the error at most, for keys and values
    rest = not_apart(means.drop(sparsest), "sparsity", means.loc[sparsest[-1]])
    layers = _listed(map(str, sparsest))
    return f"Layers: try {layers} first, the sparsest in keys and values{tied(rest)}."


def _stage_advice(table: pd.DataFrame) -> str:
    drift, errors = _drift(table), _drift_errors(table)
    kind = max(drift, key=lambda k: abs(drift[k]))
    far, most = abs(drift[kind]), 0.05
    verb = "treat new tokens apart" if far > most else "one setting may serve all"
    if abs(far - most) <= errors[kind]:
        verb = "these texts do not tell whether one setting may serve all"
    return (
        f"Generation: new {kind}s differ from the text's by {_points(drift, errors, kind)} of "
        f"sparsity: {verb}."
    )


def _token_advice(table: pd.DataFrame) -> str:
    rated = table[table["well_seen"]]
    lowest = rated["importance"].quantile(0.1)
    keep = rated["attention_received"].fillna(rated["importance"]).idxmax()
    return (
        f"Tokens: keep position {table['position'][keep]} exact; the tenth of the tokens that "
        f"score below {lowest:.2f} might do with fewer bits."
    )


def _dim_advice(table: pd.DataFrame, sparse: float) -> str:
    counts = {kind: _count_above(table, kind, sparse) for kind in KINDS}
    if not any(counts.values()):
        return f"Dimensions: remove none; not one is above {sparse:.0%} sparsity."
    parts = " and ".join(f"{n} of the {kind}s" for kind, n in counts.items())
    return f"Dimensions: try removing {parts}, those above {sparse:.0%} sparsity."


def _layer_findings(table: pd.DataFrame, top: int) -> list[str]:
    sentences = []
    for kind in KINDS:
        layers = _most(table[table["kind"] == kind], "sparsity", top, "layer")
        sentences.append(f"Most prunable layers by {kind} sparsity: {layers}.")
    if table[["kurtosis", "hoyer_sparsity"]].isna().all().any():
        return sentences  # constant layers have neither
    odd = table.loc[table["kurtosis"].idxmax()]
    hoyer = table.loc[table["hoyer_sparsity"].idxmax()]
    sentences.append(
        "Free of the threshold, which one outlier can move: highest kurtosis "
        f"{spread(odd, 'kurtosis', '.1f')} (normal: 3) in layer {odd['layer']}'s {odd['kind']}s"
        f"{tied(not_apart(table.drop(odd.name), 'kurtosis', odd))}, highest "
        f"Hoyer sparsity {spread(hoyer, 'hoyer_sparsity', '.2f')} in layer {hoyer['layer']}'s "
        f"{hoyer['kind']}s{tied(not_apart(table.drop(hoyer.name), 'hoyer_sparsity', hoyer))}."
    )
    return sentences


def _most(rows: pd.DataFrame, column: str, top: int, name: str) -> str:
    """The rows with most of a share, by name, and how many others have as much."""
    first = rows.nlargest(top, column)
    listed = _listed(f"{row[name]} ({spread(row, column, '.1%')})" for _, row in first.iterrows())
    return listed + tied(not_apart(rows.drop(first.index), column, first.iloc[-1]))


def sparsest_layers(statistics: pd.DataFrame, n: int) -> list[int]:
    """Those with the most sparse entries, keys and values together."""
    means = statistics.groupby("layer")["sparsity"].mean()
    return [int(layer) for layer in means.nlargest(n).index]


def _head_findings(table: pd.DataFrame) -> list[str]:
    head, _, _ = steady_head(table)
    heads = _over_kinds(table)
    own, others = heads.loc[head], heads.drop(head)
    least = heads["sparsity_mean"].mean() - 1e-12
    high = others[others["sparsity_mean"] + error(others, "sparsity_mean") >= least]
    mean, std = spread(own, "sparsity_mean", ".1%"), spread(own, "sparsity_std", ".1%")
    as_steady = not_apart(high, "sparsity_std", own, least=True)
    return [
        f"Most consistent prunable head: KV head {head}, sparsity {mean} with a standard "
        f"deviation of {std} over layers{tied(as_steady)}."
    ]


def _over_kinds(table: pd.DataFrame) -> pd.DataFrame:
    """By head the means of keys and values; their errors are at most those means'."""
    names = ["sparsity_mean", "sparsity_std", "sparsity_mean_se", "sparsity_std_se"]
    means: pd.DataFrame = table.groupby("head")[[n for n in names if n in table]].mean()
    return means


def steady_head(table: pd.DataFrame) -> tuple[int, float, float]:
    """Of the heads at or above the mean sparsity, the one that varies least over layers."""
    heads = _over_kinds(table)
    high = heads[heads["sparsity_mean"] >= heads["sparsity_mean"].mean() - 1e-12]
    head = high["sparsity_std"].idxmin()
    return int(head), heads["sparsity_mean"][head], heads["sparsity_std"][head]


def _token_findings(table: pd.DataFrame, top: int) -> list[str]:
    rated = table[table["well_seen"]]
    rows = rated.nlargest(top, "importance")
    tokens = _listed(
        f"{row['position']}{_word(row)} ({spread(row, 'importance', '.2f')})"
        for _, row in rows.iterrows()
    )
    rest = not_apart(rated.drop(rows.index), "importance", rows.iloc[-1])
    return [
        f"Most important tokens (seen by {rated['seen_by'].min()} or more queries): {tokens}"
        f"{tied(rest)}."
    ]


def _word(row: pd.Series) -> str:
    """The token at a position, where it is the same in all texts."""
    return f" “{row['token']}”" if isinstance(row["token"], str) else ""


def _sink_finding(table: pd.DataFrame) -> str:
    """A sink takes many times the attention that an even spread would give it."""
    tokens = table[table["well_seen"]].drop_duplicates("position")
    top = tokens.loc[tokens["mean_received"].fillna(0).idxmax()]
    others = tokens.drop(top.name)
    strongest = (
        f"position {top['position']}{_word(top)}, which queries give "
        f"{spread(top, 'mean_received', '.1%')} of their attention on average"
        f"{tied(not_apart(others, 'mean_received', top))}"
    )
    times = tokens["mean_received"] / tokens["even_share"]
    if times.isna().all():
        return f"Most attended token within the windows: {strongest}."
    if times.max() < SINK:
        return f"No attention sinks: no token receives {SINK} times the even share of attention."
    return (
        f"Attention sinks: {(times >= SINK).sum()} tokens receive {SINK} times the even share or "
        f"more; the strongest is {strongest} ({times[top.name]:.0f} times)."
    )


def _dim_findings(table: pd.DataFrame, sparse: float, dense: float, top: int) -> list[str]:
    sentences = []
    for kind in KINDS:
        rows = table[table["kind"] == kind]
        n_dense = int((rows["sparsity"] < dense).sum())
        dims = _most(rows, "sparsity", top, "dim")
        sentences.append(
            f"{kind.capitalize()} dimensions: {_count_above(table, kind, sparse)} of {len(rows)} "
            f"are sparse (above {sparse:.0%}), {n_dense} dense (below {dense:.0%}); "
            f"sparsest: {dims}."
        )
    return sentences


def _count_above(table: pd.DataFrame, kind: str, share: float) -> int:
    return int(((table["kind"] == kind) & (table["sparsity"] > share)).sum())


def _stage_findings(table: pd.DataFrame) -> list[str]:
    drift, errors = _drift(table), _drift_errors(table)
    late = table[table["stage"] == "late"].set_index("kind")
    parts = [
        f"{kind}s {spread(late.loc[kind], 'sparsity_new_tokens', '.1%')} "
        f"({_points(drift, errors, kind)})"
        for kind in KINDS
    ]
    return [f"Sparsity of the generated tokens against that of the text: {' and '.join(parts)}."]


def _points(drift: dict[str, float], errors: dict[str, float], kind: str) -> str:
    more = f" ± {100 * errors[kind]:.1f}" if errors[kind] else ""
    return f"{100 * drift[kind]:+.1f}{more} points"


def _drift(table: pd.DataFrame) -> dict[str, float]:
    """New tokens' sparsity at the end less that of the text alone, per kind."""
    by_stage = table.set_index(["stage", "kind"])
    return {
        kind: by_stage.loc[("late", kind), "sparsity_new_tokens"]
        - by_stage.loc[("prefill", kind), "sparsity"]
        for kind in KINDS
    }


def _drift_errors(table: pd.DataFrame) -> dict[str, float]:
    """At most: as if both moved against each other. 0 for one text."""
    by_stage = table.set_index(["stage", "kind"])
    late, before = (
        {kind: float(error(by_stage.loc[[(stage, kind)]], column).iloc[0]) for kind in KINDS}
        for stage, column in (("late", "sparsity_new_tokens"), ("prefill", "sparsity"))
    )
    return {kind: late[kind] + before[kind] for kind in KINDS}


def _listed(items: Iterable[str]) -> str:
    return ", ".join(items)
