"""What the rows of a study sum up, for who wants to know where a cost comes from: what each scored
token costs through each method, and which part of what is stored its bytes are."""

from collections.abc import Mapping, Sequence

import pandas as pd

from compression.base import Compressor
from compression.evaluate import LEDGER, TOKENS, Scored
from compression.studies.base import Tables

SCORED_TOKENS, BYTE_LEDGER = "compare/scored_tokens", "compare/byte_ledger"


def details(
    named: Mapping[Compressor, str], indexes: Sequence[int], scored: Sequence[Scored]
) -> Tables:
    """named: the methods with their labels; indexes: of the texts; scored: what each method costs
    on each text, those of a text after each other.

    SCORED_TOKENS: label, settings, text_index, then the columns of `ScoredTokens.table`.
    BYTE_LEDGER, of the first text: label, settings, then the columns of `ledger`.
    """
    return {
        SCORED_TOKENS: _by_token(named, indexes, scored),
        BYTE_LEDGER: _of_first(named, scored),
    }


def _by_token(
    named: Mapping[Compressor, str], indexes: Sequence[int], scored: Sequence[Scored]
) -> pd.DataFrame:
    cases = [(index, *each) for index in indexes for each in named.items()]
    parts = [
        one.tables[TOKENS][[]]
        .assign(label=label, settings=method.words(), text_index=index)
        .join(one.tables[TOKENS])
        for (index, method, label), one in zip(cases, scored, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)


def _of_first(named: Mapping[Compressor, str], scored: Sequence[Scored]) -> pd.DataFrame:
    parts = [
        one.tables[LEDGER][[]].assign(label=label, settings=method.words()).join(one.tables[LEDGER])
        for (method, label), one in zip(named.items(), scored, strict=False)
    ]
    return pd.concat(parts, ignore_index=True)
