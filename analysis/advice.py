"""What the pictures of a run suggest to try.

Every recommendation here follows from how the cache looks, not from what pruning it costs.
"""

import pandas as pd

import config
from analysis.findings import (
    Tables,
    count_above,
    drift,
    drift_errors,
    is_short,
    points,
    rivals,
    sparsest_layers,
    steady_head,
)
from analysis.margins import first_of, not_apart, tied
from analysis.sinks import sinks
from data.cache import KINDS


def recommendations(tables: Tables, sparse: float) -> list[str]:
    """One line per level that the run looked at. tables: as `findings.key_findings` takes them;
    sparse: the share from which a dimension is called sparse."""
    advice = []
    if (table := tables.get("layers/layer_statistics")) is not None:
        advice.append(_layers(table))
    if (table := tables.get("heads/head_pruning_potential")) is not None:
        advice.append(_heads(table))
    if (table := tables.get("tokens/token_position_importance")) is not None:
        advice.append(_tokens(table, tables.get("tokens/attention_sinks")))
    if (table := tables.get("embeddings/embedding_consistency")) is not None:
        advice.append(_dims(table, sparse))
    if (table := tables.get("tokens/generation_stages_comparison")) is not None:
        advice.append(_generation(table))
    return advice


def _layers(table: pd.DataFrame) -> str:
    sparsest = sparsest_layers(table, config.PRUNED_LAYERS)
    measured = [name for name in ("sparsity", "sparsity_se") if name in table]
    means = table.groupby("layer")[measured].mean()  # the error at most, for keys and values
    rest = not_apart(means.drop(sparsest), "sparsity", means.loc[sparsest[-1]])
    by_kind = table.pivot(index="layer", columns="kind", values="sparsity")
    ranks = by_kind.rank(ascending=False, method="min").astype(int).loc[sparsest]
    alone = " and ".join(f"{', '.join(map(str, ranks[kind]))} by {kind}s" for kind in KINDS)
    return (
        f"Layers: try {', '.join(map(str, sparsest))} first, of {len(means)} layers the sparsest "
        f"by the mean of keys and values (places {alone} alone){tied(rest)}."
    )


def _heads(table: pd.DataFrame) -> str:
    if table["head"].nunique() == 1:
        return "Heads: none to try, there is one KV head in a layer."
    head, _, _ = steady_head(table)
    if rivals(table).empty:
        return f"Heads: try KV head {head} first, the only one that is sparser than their mean."
    return (
        f"Heads: try KV head {head} first; it is as sparse as the mean of all or sparser, and of "
        "such heads varies least over layers."
    )


def _tokens(table: pd.DataFrame, attention: pd.DataFrame | None) -> str:
    keep = sinks(attention)["position"].tolist() if attention is not None and len(attention) else []
    named = first_of(list(map(str, keep)), config.TOP_TOKENS)
    sinks_first = f"keep the attention sinks exact (position {named}); " if keep else ""
    if is_short(table):
        return f"Tokens: {sinks_first}the text is too short to tell which others need few bits."
    rated = table[table["well_seen"] & ~table["position"].isin(keep)]
    lowest = rated["importance"].quantile(0.1)
    others = "others" if keep else "tokens"
    return (
        f"Tokens: {sinks_first}the tenth of the {others} that score below {lowest:.2f} might do "
        "with fewer bits."
    )


def _dims(table: pd.DataFrame, sparse: float) -> str:
    counts = {kind: count_above(table, kind, sparse) for kind in KINDS}
    where = f"above {sparse:.0%} sparsity over all layers and heads"
    if not any(counts.values()):
        return f"Dimensions: remove none; not one is {where}."
    parts = " and ".join(f"{n} of the {kind}s" for kind, n in counts.items())
    return f"Dimensions: try removing {parts}, those {where}."


def _generation(table: pd.DataFrame) -> str:
    moved, errors = drift(table), drift_errors(table)
    kind = max(moved, key=lambda k: abs(moved[k]))
    far, most = abs(moved[kind]), 0.05
    verb = "treat new tokens apart" if far > most else "one setting may serve all"
    if abs(far - most) <= errors[kind]:
        verb = "these texts do not tell whether one setting may serve all"
    return (
        f"Generation: new {kind}s differ from the text's by {points(moved, errors, kind)} of "
        f"sparsity: {verb}."
    )
