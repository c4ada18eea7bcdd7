"""Axes of what a setting stores and what it costs, the same in every picture that has them."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

import config
from visualization.style import SAFE, plain_log

UNCOMPRESSED = 16  # bits per value
CHANGES = (0, *(sign * x for sign in (-1, 1) for k in range(7) for x in (10**k, 3 * 10**k)))
STEPS = {  # of a decade, for as many times from the least to the most
    4: (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0),
    100: (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    float("inf"): (1.0, 2.0, 5.0),
}


def bits_axis(ax: Axes, bits: pd.Series) -> None:
    """Stored bits per value, logarithmic, with a line at those of 16 bits."""
    low, high = bits.min() / 1.15, 1.12 * max(UNCOMPRESSED, bits.max())
    ax.set_xlim(low, high)
    ax.set_xscale("log")
    plain_log(ax.xaxis, steps=next(steps for most, steps in STEPS.items() if high / low < most))
    ax.axvline(UNCOMPRESSED, color="#999999", lw=1)
    ax.text(
        UNCOMPRESSED, 1.0, "16: uncompressed", transform=ax.get_xaxis_transform(), fontsize=8,
        color="#777777", ha="right", va="bottom",
    )  # fmt: skip
    ax.set_xlabel("Stored bits per value (logarithmic)")


def cheap_line(ax: Axes) -> None:
    """What is called cheap, where it is in sight."""
    low, high = ax.get_ylim()
    if low <= config.ACCEPTABLE_KL <= high:
        cheap = f"{config.ACCEPTABLE_KL:g} nats: called cheap"
        ax.axhline(config.ACCEPTABLE_KL, color=SAFE, ls=":", lw=1.3, label=cheap)


def perplexity_axis(ax: Axes, table: pd.DataFrame) -> None:
    """Change of perplexity: even from -1 to 1 %, logarithmic beyond, as far as error bars go."""
    change, error = (table[f"delta_perplexity_percent{x}"].fillna(0) for x in ("", "_se"))
    low, high = float((change - error).min()), float((change + error).max())
    ax.set_yscale("symlog", linthresh=1)
    ax.set_ylim(min(1.4 * low, -0.3), max(1.5 * high, 1))
    ticks = [x for x in sorted(CHANGES) if ax.get_ylim()[0] <= x <= ax.get_ylim()[1]]
    ax.set_yticks(ticks, [f"{x:+,d} %" if x else "0 %" for x in ticks])
    ax.yaxis.set_minor_locator(NullLocator())
    full = table["perplexity_full"].iloc[0]
    ax.axhline(0, color="#555555", ls=":", lw=1.3, label=f"untouched: {full:.2f}")
    ax.set_ylabel("Change of perplexity (even between -1 and +1 %, logarithmic beyond)")
