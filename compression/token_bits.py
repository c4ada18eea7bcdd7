"""How many bits a method spends on each token of a text, where it spends more on some."""

from collections.abc import Callable

import pandas as pd
import torch

from compression.shapes import CacheShape

COLUMNS = ("position", "token", "bits", "bits_per_value")


def token_bits(bits: torch.Tensor, shape: CacheShape, word: Callable[[int], str]) -> pd.DataFrame:
    """COLUMNS, a row for each token of the text. bits: (tokens,), which add up to all that is
    stored. bits_per_value: over the entries that layers hold of the token; empty where they hold
    none."""
    entries = shape.entries_by_token()
    table = pd.DataFrame(
        {
            "position": range(len(bits)),
            "token": pd.Series([word(i) for i in shape.token_ids], dtype="str"),
            "bits": bits.numpy(),
            "bits_per_value": (bits / entries).numpy(),
        }
    )
    return table.assign(bits_per_value=table["bits_per_value"].where(entries.numpy() > 0))
