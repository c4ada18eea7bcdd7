"""Text into token ids: of a long text no more is read than its first tokens need."""

from collections.abc import Callable

Encode = Callable[[str], list[int]]

CHARACTERS = 8  # per token, of the first beginning that is tried; more than most languages have
MARGIN = 64  # tokens ahead of a cut that the cut may have changed


def first_ids(encode: Encode, text: str, most: int | None = None) -> list[int]:
    """The first `most` token ids of a text, or all.

    Beginnings of the text are tokenised, each twice as long as the one before, until two agree in
    the first `most` ids with MARGIN more before the cut of the shorter. These are the ids of the
    whole text for tokenizers that decide by what is near, as BPE, WordPiece and Unigram do; one
    that decided by the far end of a text would have to be given all of it.
    """
    length, before = CHARACTERS * ((most or 0) + MARGIN), list[int]()
    while most is not None and length < len(text):
        ids = encode(text[:length])
        if len(before) >= most + MARGIN and before[:most] == ids[:most]:
            return ids[:most]
        length, before = 2 * length + 1, ids
    return encode(text)[:most]
