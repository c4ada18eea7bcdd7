"""What energy spectra say, in sentences."""

import pandas as pd

NAMES = {"key": "keys", "unrotated_key": "keys before rotary embedding", "value": "values"}
MARGIN = 0.01  # of the dimension by which an extreme layer has to stand out to be named


def said(ranks: pd.DataFrame, overlap: pd.DataFrame) -> list[str]:
    """ranks, overlap: the tables of `analysis.spectrum`."""
    sentences = [_rests_on(ranks), *_too_few(ranks), _dims_needed(ranks), _effective(ranks)]
    sentences.append(
        "Of the energy, what is left when every token is their mean, mean over heads: "
        f"{_each(ranks, 'mean_energy_share')}."
    )
    return sentences + _between_texts(ranks) + _between_layers(overlap)


def _rests_on(ranks: pd.DataFrame) -> str:
    least, most = ranks["tokens"].min(), ranks["tokens"].max()
    tokens = _counted(most, "token") if least == most else f"{least} to {most} tokens"
    return f"Energy spectra rest on {_texts(ranks)}, in which a head holds {tokens}."


def _texts(ranks: pd.DataFrame) -> str:
    return _counted(ranks["texts"].iloc[0], "text")


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _too_few(ranks: pd.DataFrame) -> list[str]:
    few = ranks[ranks["tokens"] < ranks["dim"]].drop_duplicates(["layer", "head"])
    if few.empty:
        return []
    n_heads = len(ranks.drop_duplicates(["layer", "head"]))
    return [
        f"Too few tokens: {len(few)} of {n_heads} heads hold fewer than they have dimensions, and "
        "no rank is above the tokens that it rests on; read more tokens, or more texts."
    ]


def _dims_needed(ranks: pd.DataFrame) -> str:
    needs = "To hold 95% of the energy, a head needs"
    if ranks["dim"].nunique() > 1:
        shares = ranks.assign(share=ranks["rank_95"] / ranks["dim"])
        return f"{needs}, of its dimensions, {_each(shares, 'share')} (mean over heads)."
    means = ranks.groupby("kind")["rank_95"].mean()
    counts = _listed([f"{means[kind]:.1f} for {NAMES[kind]}" for kind in NAMES if kind in means])
    return f"{needs}, of {ranks['dim'].iloc[0]} dimensions, {counts} (mean over heads)."


def _each(ranks: pd.DataFrame, column: str) -> str:
    """The mean over heads of each kind's shares."""
    means = ranks.groupby("kind")[column].mean()
    return _listed([f"{means[kind]:.0%} for {NAMES[kind]}" for kind in NAMES if kind in means])


def _effective(ranks: pd.DataFrame) -> str:
    parts = []
    for kind in NAMES:
        rows = ranks[ranks["kind"] == kind]
        if len(rows):
            by_layer = rows.groupby("layer")["share_of_dim"].mean().sort_values()
            parts.append(f"{by_layer.mean():.0%} for {NAMES[kind]}{_range(by_layer)}")
    return f"Effective rank as a share of the dimension, mean over layers: {_listed(parts)}."


def _range(by_layer: pd.Series) -> str:
    """From the lowest to the highest layer, which are named where they stand out."""
    if len(by_layer) < 2:
        return ""
    low, high = f"{by_layer.iloc[0]:.0%}", f"{by_layer.iloc[-1]:.0%}"
    if by_layer.iloc[1] - by_layer.iloc[0] > MARGIN:
        low += f" in layer {by_layer.index[0]}"
    if by_layer.iloc[-1] - by_layer.iloc[-2] > MARGIN:
        high += f" in layer {by_layer.index[-1]}"
    return f" (from {low} to {high})"


def _between_texts(ranks: pd.DataFrame) -> list[str]:
    if ranks["text_effective_rank_se"].isna().all():
        return []
    means = ranks.groupby("kind")[["text_effective_rank", "text_effective_rank_se"]].mean()
    moves = [
        f"{means.loc[kind, 'text_effective_rank']:.1f} ± "
        f"{means.loc[kind, 'text_effective_rank_se']:.1f} for {NAMES[kind]}"
        for kind in NAMES
        if kind in means.index
    ]
    return [
        "Effective rank of one text alone, mean over heads and its standard error over "
        f"{_texts(ranks)}: {_listed(moves)}."
    ]


def _between_layers(overlap: pd.DataFrame) -> list[str]:
    """Of heads of different layers."""
    pairs = overlap[(overlap["layer_a"] < overlap["layer_b"]) & overlap["overlap"].notna()]
    if pairs.empty:
        return []
    means = pairs.groupby("kind")[["overlap", "chance"]].mean()
    found = [
        f"{means.loc[kind, 'overlap']:.2f} for {NAMES[kind]} (chance: "
        f"{means.loc[kind, 'chance']:.2f})"
        for kind in NAMES
        if kind in means.index
    ]
    return [f"Leading directions of heads of two layers overlap by {_listed(found)}."]


def _listed(items: list[str]) -> str:
    return ", ".join(items[:-1]) + " and " + items[-1] if len(items) > 1 else items[0]
