"""Which tokens are attention sinks: one rule, for sentences and for the marks in pictures."""

import pandas as pd

SINK = 10  # times the even share of attention that make a token a sink


def sinks(table: pd.DataFrame, received: str = "mean_received") -> pd.DataFrame:
    """The well-seen tokens whose column `received` is SINK times the even share or more, most
    first; a row for each. None where a window leaves the even share open."""
    tokens = table[table["well_seen"]].drop_duplicates("position")
    many = tokens[tokens[received] >= SINK * tokens["even_share"]]
    return many.sort_values(received, ascending=False, kind="stable")


def are_too_few(even_share: float | pd.Series) -> bool | pd.Series:
    """Whether tokens are so few that none can be a sink: SINK times the even share would be all
    attention or more."""
    return SINK * even_share >= 1
