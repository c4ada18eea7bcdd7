"""Text into token ids: of a long text no more is read than its first tokens need."""

import re
from collections.abc import Callable

Encode = Callable[[str], list[int]]

CHARACTERS = 8  # per token, of the first beginning that is tried; more than most languages have
MARGIN = 64  # tokens ahead of a cut that the cut may have changed
BLANKS = re.compile(r"\s*")


def first_ids(encode: Encode, text: str, most: int | None = None) -> list[int]:
    """The first `most` token ids of a text, or all.

    Beginnings of the text are tokenised, each twice as long as the one before and none ending
    within blanks, until two agree in the first `most` ids with MARGIN more before the cut of the
    shorter. These are the ids of the whole text for tokenizers that decide by what is near, as BPE
    and WordPiece do, and Unigram but for a repetition of thousands of letters without a blank,
    where equally likely ways of cutting it may change places. One that decided by the far end of a
    text would have to be given all of it.
    """
    if most is None:
        return encode(text)
    length, before = CHARACTERS * (most + MARGIN), list[int]()
    while (end := _end_of_blanks(text, length)) < len(text):
        ids = encode(text[:end])
        if len(before) >= most + MARGIN and before[:most] == ids[:most]:
            return ids[:most]
        length, before = 2 * end + 1, ids
    return encode(text)[:most]


def _end_of_blanks(text: str, place: int) -> int:
    """`place`, or the end of the blanks that it lies within."""
    match = BLANKS.match(text, place)
    return match.end() if match else place
