"""What the rows of a study sum up, for who wants to know where a cost comes from: what each scored
token costs through each method."""

from collections.abc import Mapping, Sequence

import pandas as pd

from compression.base import Compressor
from compression.evaluate import TOKENS, Scored
from compression.studies.base import Tables

SCORED_TOKENS = "compare/scored_tokens"


def details(
    named: Mapping[Compressor, str], indexes: Sequence[int], scored: Sequence[Scored]
) -> Tables:
    """named: the methods with their labels; indexes: of the texts; scored: what each method costs
    on each text, those of a text after each other.

    SCORED_TOKENS: label, settings, text_index, then the columns of `ScoredTokens.table`.
    """
    cases = [(index, *each) for index in indexes for each in named.items()]
    parts = [
        one.tables[TOKENS][[]]
        .assign(label=label, settings=method.words(), text_index=index)
        .join(one.tables[TOKENS])
        for (index, method, label), one in zip(cases, scored, strict=True)
    ]
    return {SCORED_TOKENS: pd.concat(parts, ignore_index=True)} if parts else {}
