"""What the rows of a study sum up, for who wants to know where a cost comes from: what each scored
token costs through each method, which part of what is stored its bytes are, and on which tokens its
bits are spent."""

from collections.abc import Mapping, Sequence

import pandas as pd

from compression import token_bits
from compression.base import Compressor
from compression.evaluate import LEDGER, TOKEN_BITS, TOKENS, Scored
from compression.studies.base import Tables

SCORED_TOKENS, BYTE_LEDGER = "compare/scored_tokens", "compare/byte_ledger"
BITS_BY_TOKEN = "compare/bits_by_token"


def details(
    named: Mapping[Compressor, str], indexes: Sequence[int], scored: Sequence[Scored]
) -> Tables:
    """named: the methods with their labels; indexes: of the texts; scored: what each method costs
    on each text, those of a text after each other.

    SCORED_TOKENS: label, settings, text_index, then the columns of `ScoredTokens.table`.
    BYTE_LEDGER, of the first text: label, settings, then the columns of `ledger`.
    BITS_BY_TOKEN, of the first text: label, text_index, then the columns of `token_bits`; only of
    methods that spend more on some tokens than on others, and not there without any.
    """
    tables = {
        SCORED_TOKENS: _by_token(named, indexes, scored),
        BYTE_LEDGER: _of_first(named, scored),
    }
    spent = [
        one.tables[TOKEN_BITS].assign(label=label, text_index=indexes[0])
        for label, one in zip(named.values(), scored, strict=False)
        if TOKEN_BITS in one.tables
    ]
    if spent:
        columns = ["label", "text_index", *token_bits.COLUMNS]
        tables[BITS_BY_TOKEN] = pd.concat(spent, ignore_index=True)[columns]
    return tables


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
