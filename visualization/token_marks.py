"""What pictures of tokens share: names of tokens, marks of the sinks, and the shade over those that
few queries can see."""

from collections.abc import Sequence, Sized

import pandas as pd
from matplotlib.axes import Axes

import config
from analysis.sinks import SINK, are_too_few, sinks
from visualization.bands import spread
from visualization.lettering import isolated
from visualization.style import ACCENT, Look, shown

SINK_COLOUR = "#6b4c9a"
LONGEST_WORD = 14  # characters of a token that are written in a list


def word(row: pd.Series) -> str:
    """A token as it is written in a list: nothing where texts have different ones there."""
    token = row["token"]
    return isolated(shown(token)[:LONGEST_WORD]) if isinstance(token, str) else ""


def named(row: pd.Series) -> str:
    """A token by its position and its word."""
    return f"{row['position']}: {word(row)}" if word(row) else f"{row['position']}"


def shade(ax: Axes, table: pd.DataFrame) -> None:
    """Over the tokens that too few queries can see to be ranked."""
    seen = table[table["well_seen"]]
    last = seen["position"].max()
    if last < table["position"].max():
        note = f"seen by < {seen['seen_by'].min()} queries: not ranked"
        ax.axvspan(last + 0.5, table["position"].max() + 0.5, color="#f3e3d3", zorder=0, label=note)


def mark(ax: Axes, rows: pd.DataFrame, column: str, marker: str, colour: str, label: str) -> None:
    """Marks at some tokens, at their height; none of no tokens. Diamonds are hollow, so that what
    else is marked there shows."""
    if len(rows):
        look: Look = {"color": colour, "ms": 6, "clip_on": False, "label": label}
        look |= {"mfc": "none", "mew": 1.8, "ms": 8} if marker == "D" else {}
        ax.plot(rows["position"], rows[column], marker, **look)


def sink_label(n: int) -> str:
    return f"sink{'s' if n > 1 else ''} (≥ {SINK} × the even share)"


def sink_list(table: pd.DataFrame, received: str = "mean_received") -> list[str]:
    """The sinks, or why none are named and which tokens receive most; each with its share of
    attention, and that as a multiple of the even share."""
    tokens = table[table["well_seen"]].drop_duplicates("position")
    most = tokens.sort_values(received, ascending=False, kind="stable")
    many = sinks(table, received)
    if len(many):
        title = [f"Sinks: {SINK} times the even", f"share or more ({len(many)})"]
    elif most["even_share"].isna().all():
        title = ["Most attended in the windows"]
    elif are_too_few(most["even_share"].iloc[0]):
        title = ["Too few tokens to tell sinks.", "Most attended:"]
    else:
        title = [f"No sinks: none has {SINK} times", "the even share. Most attended:"]
    rows = many if len(many) else most
    listed = [_attended(row, received) for _, row in rows[: config.TOP_TOKENS].iterrows()]
    more = len(many) - config.TOP_TOKENS
    return [*title, "", *listed, *([f"and {more} more"] if more > 0 else [])]


def _attended(row: pd.Series, received: str) -> str:
    times = row[received] / row["even_share"]
    form = ".0f" if times >= SINK else ".1f"
    multiple = f" = {times:{form}} × even" if times > 0 else ""
    return f"{named(row)}\n    {spread(row, received, '.1%')}{multiple}"


def write(ax: Axes, lines: Sequence[str], x: float = 1.01) -> None:
    """A list beside a panel, from its top."""
    look: Look = {"va": "top", "fontsize": 9, "color": ACCENT}
    ax.text(x, 1.0, "\n".join(lines), transform=ax.transAxes, **look)


def alone(points: Sized) -> str:
    """The mark of a line of one point, which would not be seen."""
    return "" if len(points) > 1 else "o"
