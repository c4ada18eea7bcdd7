"""What the tables of a run say, in sentences, and what to try because of it.

Every recommendation here follows from how the cache looks, not from what pruning it costs.
"""

from collections.abc import Iterable

import pandas as pd

import config
from analysis.tokens import SINK
from data.cache import KINDS

Tables = dict[str, pd.DataFrame]


def key_findings(tables: Tables, sparse: float, dense: float, top: int) -> list[str]:
    """One sentence for each thing worth knowing. tables: picture stem -> its table, those of the
    run only; sparse, dense: the shares that make a dimension sparse or dense."""
    sentences = []
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
    return sentences


def recommendations(tables: Tables, sparse: float) -> list[str]:
    """What the heuristics of the pictures suggest, one line per level that the run looked at."""
    advice = []
    if (table := tables.get("layers/layer_statistics")) is not None:
        layers = _listed(map(str, sparsest_layers(table, config.PRUNED_LAYERS)))
        advice.append(f"Layers: try {layers} first, the sparsest in keys and values.")
    if (table := tables.get("heads/head_pruning_potential")) is not None:
        head, _, _ = steady_head(table)
        advice.append(f"Heads: try KV head {head} first, sparse and alike in all layers.")
    if (table := tables.get("tokens/token_position_importance")) is not None:
        advice.append(_token_advice(table))
    if (table := tables.get("embeddings/embedding_consistency")) is not None:
        advice.append(_dim_advice(table, sparse))
    if (table := tables.get("tokens/generation_stages_comparison")) is not None:
        drift = _drift(table)
        kind = max(drift, key=lambda k: abs(drift[k]))
        verb = "treat new tokens apart" if abs(drift[kind]) > 0.05 else "one setting may serve all"
        advice.append(
            f"Generation: new {kind}s differ from the text's by {100 * drift[kind]:+.1f} points "
            f"of sparsity: {verb}."
        )
    return advice


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
        rows = table[table["kind"] == kind].nlargest(top, "sparsity")
        layers = _listed([f"{r.layer} ({r.sparsity:.1%})" for r in rows.itertuples()])
        sentences.append(f"Most prunable layers by {kind} sparsity: {layers}.")
    if table[["kurtosis", "hoyer_sparsity"]].isna().all().any():
        return sentences  # constant layers have neither
    odd = table.loc[table["kurtosis"].idxmax()]
    hoyer = table.loc[table["hoyer_sparsity"].idxmax()]
    sentences.append(
        "Free of the threshold, which one outlier can move: highest kurtosis "
        f"{odd['kurtosis']:.1f} (normal: 3) in layer {odd['layer']}'s {odd['kind']}s, highest "
        f"Hoyer sparsity {hoyer['hoyer_sparsity']:.2f} in layer {hoyer['layer']}'s "
        f"{hoyer['kind']}s."
    )
    return sentences


def sparsest_layers(statistics: pd.DataFrame, n: int) -> list[int]:
    """Those with the most sparse entries, keys and values together."""
    means = statistics.groupby("layer")["sparsity"].mean()
    return [int(layer) for layer in means.nlargest(n).index]


def _head_findings(table: pd.DataFrame) -> list[str]:
    head, mean, std = steady_head(table)
    return [
        f"Most consistent prunable head: KV head {head}, sparsity {mean:.1%} with a standard "
        f"deviation of {std:.1%} over layers."
    ]


def steady_head(table: pd.DataFrame) -> tuple[int, float, float]:
    """Of the heads at or above the mean sparsity, the one that varies least over layers."""
    heads = table.groupby("head")[["sparsity_mean", "sparsity_std"]].mean()
    high = heads[heads["sparsity_mean"] >= heads["sparsity_mean"].mean() - 1e-12]
    head = high["sparsity_std"].idxmin()
    return int(head), heads["sparsity_mean"][head], heads["sparsity_std"][head]


def _token_findings(table: pd.DataFrame, top: int) -> list[str]:
    rated = table[table["well_seen"]]
    rows = rated.nlargest(top, "importance")
    tokens = _listed([f"{r.position} “{r.token}” ({r.importance:.2f})" for r in rows.itertuples()])
    return [f"Most important tokens (seen by {rated['seen_by'].min()} or more queries): {tokens}."]


def _sink_finding(table: pd.DataFrame) -> str:
    """A sink takes many times the attention that an even spread would give it."""
    tokens = table[table["well_seen"]].drop_duplicates("position")
    top = tokens.loc[tokens["mean_received"].fillna(0).idxmax()]
    strongest = (
        f"position {top['position']} “{top['token']}”, which queries give "
        f"{top['mean_received']:.1%} of their attention on average"
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
        first = rows.nlargest(top, "sparsity")
        dims = _listed([f"{r.dim} ({r.sparsity:.1%})" for r in first.itertuples()])
        sentences.append(
            f"{kind.capitalize()} dimensions: {_count_above(table, kind, sparse)} of {len(rows)} "
            f"are sparse (above {sparse:.0%}), {n_dense} dense (below {dense:.0%}); "
            f"sparsest: {dims}."
        )
    return sentences


def _count_above(table: pd.DataFrame, kind: str, share: float) -> int:
    return int(((table["kind"] == kind) & (table["sparsity"] > share)).sum())


def _stage_findings(table: pd.DataFrame) -> list[str]:
    drift = _drift(table)
    late = table[table["stage"] == "late"].set_index("kind")
    parts = [
        f"{kind}s {late.loc[kind, 'sparsity_new_tokens']:.1%} ({100 * drift[kind]:+.1f} points)"
        for kind in KINDS
    ]
    return [f"Sparsity of the generated tokens against that of the text: {' and '.join(parts)}."]


def _drift(table: pd.DataFrame) -> dict[str, float]:
    """New tokens' sparsity at the end less that of the text alone, per kind."""
    by_stage = table.set_index(["stage", "kind"])
    return {
        kind: by_stage.loc[("late", kind), "sparsity_new_tokens"]
        - by_stage.loc[("prefill", kind), "sparsity"]
        for kind in KINDS
    }


def _listed(items: Iterable[str]) -> str:
    return ", ".join(items)
