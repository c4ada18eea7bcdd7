"""What the comparison of `--mode compare` says, in sentences, each from its table alone."""

from collections.abc import Mapping

import pandas as pd

import config
from compression.studies import presets
from compression.studies.base import spread
from compression.studies.frontier import bits_by_family, fitting

QUICK = "Quick: fewer settings were measured, and no needles were sought."
QUANTISERS = ("fp8", "int8", "kivi", "rotated")


def taken(table: pd.DataFrame, best: pd.Series | None, budget: Mapping[str, float]) -> list[str]:
    """What to take, first of all: `best`, which fits the budget, or without one the smallest that
    is cheap. Nothing where a budget fits nothing: that is refused."""
    if best is None:
        return [] if budget else [_nothing_cheap(table)]
    if budget:
        limits = " and ".join(f"`{name}` {limit:g}" for name, limit in budget.items())
        why = f"within {limits}"
    else:
        why = f"the smallest measured that costs {config.ACCEPTABLE_KL:g} nats or less"
    n_tokens = best["stored_bytes"] / best["bytes_per_token"]
    line = (
        f"Take {best['label']}, {why}: {best['bytes_per_token']:.0f} bytes per token "
        f"({best['ratio']:.2f} x smaller, {best['bits_per_value']:.2f} bits per value), costs KL "
        f"{spread(best)} nats per token, perplexity {best['delta_perplexity_percent']:+z.2f} %; "
        f"{_once(best)}{best['restore_s']:.2f} s to restore {n_tokens:,.0f} tokens."
    )
    return [line, _today(table, best, budget)]


def loading(table: pd.DataFrame, best: pd.Series | None, prefill_s: float) -> str:
    """From which bandwidth on a stored context is there sooner than a prefilled one; `table` with
    the columns of `compare.bandwidths`."""
    plain = table[table["family"] == "none"].iloc[0]
    n_tokens = plain["stored_bytes"] / plain["bytes_per_token"]
    ways = [f"in 16 bits from {_rate(plain['beats_prefill_from'])} on"]
    if best is not None:
        below = ""
        if pd.notna(best["beats_plain_below"]):
            below = f", and before 16 bits below {_rate(best['beats_plain_below'])}"
        ways.append(f"as {best['label']} {_from(best, prefill_s)}{below}")
    return (
        f"Reading {n_tokens:,.0f} tokens anew takes {prefill_s:.2f} s here. Loaded from disk or "
        f"network they are there sooner {', '.join(ways)}."
    )


def _from(row: pd.Series, prefill_s: float) -> str:
    if row["restore_s"] >= prefill_s:
        return f"never (restoring takes {row['restore_s']:.2f} s)"
    return f"from {_rate(row['beats_prefill_from'])} on"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:,.2f} MB/s"


def _once(best: pd.Series) -> str:
    """What is stored once for the model, and from which length it pays."""
    once = best["per_model_bytes"]
    if not once:
        return ""
    both = best["original_bytes"] / (best["stored_bytes"] + once)
    return (
        f"needs {once / 2**20:.1f} MiB once for the model (with them {both:.2f} x here; they pay "
        f"from {best['pays_from_tokens']:,.0f} tokens) and "
    )


def _nothing_cheap(table: pd.DataFrame) -> str:
    saving = table[table["ratio"] > 1]
    if saving.empty:
        return "Take none: no setting measured saves bytes."
    least = saving.loc[saving["kl_mean_nats"].idxmin()]
    return (
        f"Take none: no setting measured that saves bytes costs {config.ACCEPTABLE_KL:g} nats or "
        f"less; least costs {least['label']}, KL {spread(least)} nats per token at "
        f"{least['ratio']:.2f} x."
    )


def _today(table: pd.DataFrame, best: pd.Series, budget: Mapping[str, float]) -> str:
    """What engines have today: the setting that was taken, or the best of theirs that fits."""
    if best["label"] in presets.ENGINES:
        return f"In engines today: {presets.ENGINES[best['label']]}."
    theirs = table[table["label"].isin(presets.ENGINES)]
    fit = fitting(theirs, **(budget or {"max_kl": config.ACCEPTABLE_KL})) if len(theirs) else None
    if fit is None:
        return "No engine has it today, and none of their settings measured here fits as well."
    return (
        f"No engine has it today; of their settings measured here take {fit['label']} "
        f"({presets.ENGINES[fit['label']]}): {fit['bytes_per_token']:.0f} bytes per token "
        f"({fit['ratio']:.2f} x smaller), costs KL {spread(fit)} nats per token."
    )


def learned_from(said: str, rows: pd.DataFrame) -> str:
    line = f"Calibrated methods learned from {said}"
    if any(source in said for source in rows["text_source"].unique()):
        return line + ", where the scored texts are from too: on other text they cost more."
    return line + "."


def frontier(table: pd.DataFrame) -> str:
    rows = table[table["frontier"]]
    named = [f"{r.label} ({r.ratio:.2f} x, KL {r.kl_mean_nats:z.4f})" for r in rows.itertuples()]
    return f"Frontier, smallest first: {', '.join(named)}."


def dominated(table: pd.DataFrame) -> str:
    rows = table[~table["frontier"]]
    if rows.empty:
        return "No setting is dominated."
    named = [f"{row.label} by {row.dominated_by}" for row in rows.itertuples()]
    return f"Dominated, as large and as costly at least: {', '.join(named)}."


def by_reason(left_out: dict[str, str]) -> str:
    """Labels with the reason that they share, as `a, b (why); c (why)`."""
    labels: dict[str, list[str]] = {}
    for label, why in left_out.items():
        labels.setdefault(why, []).append(label)
    return "; ".join(f"{', '.join(each)} ({why})" for why, each in labels.items())


def checked(table: pd.DataFrame) -> list[str]:
    """That the path adds nothing of its own, and how much of a KL is chance."""
    again = table.loc[table["family"] == "none", "kl_mean_nats"].iloc[0]
    line = f"Check: the untouched cache through the same path costs KL {again:g}."
    typical = table[table["kl_mean_nats"] > 0].sort_values("kl_mean_nats")
    if typical.empty:
        return [line]
    row = typical.iloc[len(typical) // 2]
    if row["texts"] < 2:
        several = "`num_samples` 2 or more, or saved caches of several"
        return [line, f"Noise: not known from one text; more tell it ({several})."]
    share = row["kl_mean_nats_se"] / row["kl_mean_nats"]
    return [
        line,
        f"Noise: over {row['texts']} texts the KL of {row['label']}, the median setting, is "
        f"{spread(row)}, a standard error of {share:.0%} of itself.",
    ]


def ahead(table: pd.DataFrame) -> list[str]:
    """How far ahead of the best quantiser `coded` is at the losses of its own settings."""
    lines = []
    for loss in (0.003, config.ACCEPTABLE_KL):
        bits = bits_by_family(table, loss)
        mine = bits.get("coded")
        theirs = min((bits[family] for family in QUANTISERS if family in bits), default=None)
        if mine is not None and theirs is not None:
            lines.append(
                f"At KL {loss:g} (between measured settings), coded stores {mine:.2f} bits per "
                f"value, the best quantiser {theirs:.2f}: {theirs / mine:.1f} times as much."
            )
    return lines


def lost_needles(table: pd.DataFrame) -> str:
    shares = table.groupby("label", sort=False)["right"].mean()
    fewer = shares[shares < shares["none"]]
    lost = ", ".join(f"{label} ({share:.0%})" for label, share in fewer.items())
    line = f"Needles: the untouched cache finds {shares['none']:.0%} of them"
    return f"{line}; fewer are found with {lost}." if lost else f"{line}; no setting finds fewer."


def engines(table: pd.DataFrame) -> list[str]:
    return [
        f"Nearest in engines: {setting}: as {row['label']} here, {row['bits_per_value']:.2f} bits "
        f"per value, KL {spread(row)}."
        for label, setting in presets.ENGINES.items()
        for _, row in table[table["label"] == label].iterrows()
    ]


def on_a_card(
    table: pd.DataFrame,
    best: pd.Series | None,
    weight_nbytes: int,
    memory_gib: float,
    context: int,
    max_positions: int | None,
    has_budget: bool,
) -> str:
    """How long a context could be on a card. best: the setting to take; has_budget: whether it is
    the one that fits a budget, or else the smallest that is called cheap."""
    weights = f"{weight_nbytes / 2**30:.2f} GiB"
    room = memory_gib * 2**30 - weight_nbytes
    if room <= 0:
        return (
            f"A card of {memory_gib:g} GiB does not hold the weights alone, {weights} in 16 bits."
        )
    full = table["original_bytes"].iloc[0] / context
    beside = (
        f"On {memory_gib:g} GiB, beside the weights in 16 bits ({weights}) and nothing else, "
        f"{room / full:,.0f} tokens of uncompressed cache"
    )
    if best is None:
        return beside + "."
    label, once = best["label"], best["per_model_bytes"]
    if not has_budget:
        label += f", the smallest that costs at most KL {config.ACCEPTABLE_KL:g},"
    if room <= once:
        return (
            f"{beside}; what {label} stores once for the model, {once / 2**20:.1f} MiB, does not "
            "fit beside the weights."
        )
    tokens = (room - once) / best["bytes_per_token"]
    several = ""
    if max_positions is not None and tokens > max_positions:
        several = f"; of several texts, since the model has {max_positions} positions"
    return (
        f"{beside}; with {label} {tokens:,.0f} (bytes per token as measured at {context} "
        f"tokens{several}). A text that is in use is restored in full, and takes its uncompressed "
        "room beside them."
    )


def nothing_to_show(has_budget: bool) -> str:
    """Why nothing is generated side by side."""
    within = "the budget" if has_budget else f"{config.ACCEPTABLE_KL:g} nats of KL"
    return (
        f"Nothing is generated side by side, for no setting is within {within}: `show_generation` "
        "takes the smallest that is; allow more with `max_kl`."
    )
