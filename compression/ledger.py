"""Where the bytes of a method go: with each text, once for the model, and into a file's header."""

from collections import Counter

import pandas as pd

from compression.base import Compressed
from compression.parts import Part, in_words

COLUMNS = ("layers", "kind", "part", "bytes", "once_per_model")
HEADER = Part("header of a file")


def ledger(compressed: Compressed) -> pd.DataFrame:
    """COLUMNS. layers: in words such as 0-4, empty as is kind where a part belongs to none. The
    bytes that are not stored once for the model are the `stored_nbytes` of what is compressed."""
    header = Counter({HEADER: compressed.stored_nbytes - compressed.nbytes})
    rows = [
        (in_words(part.layers), part.kind, part.words, n, once)
        for parts, once in (
            (compressed.ledger, False),
            (header, False),
            (compressed.learned, True),
        )
        for part, n in parts.items()
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(("layers", "kind", "part"), "str"))
