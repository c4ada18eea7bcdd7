"""Text into token ids: of a long text no more is read than its first tokens need."""

import re
from collections.abc import Callable

Encode = Callable[[str], list[int]]

CHARACTERS = 8  # per token, of the first beginning that is tried; more than most languages have
MARGIN = 64  # tokens ahead of a cut that the cut may have changed
PROBE = "a"  # any text, to see what is put around it
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


def around(encode: Encode, plain: Encode) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before and after every text: what `encode` adds to `plain`,
    which adds nothing."""
    within, bare = encode(PROBE), plain(PROBE)
    for start in range(len(within) - len(bare) + 1):
        end = start + len(bare)
        if within[start:end] == bare:
            return within[:start], within[end:]
    return [], []


def without_end(ids: list[int], end: list[int]) -> list[int]:
    """Ids without the last ones, where these are `end`."""
    n = len(ids) - len(end)
    return ids[:n] if end and ids[n:] == end else ids


def _end_of_blanks(text: str, place: int) -> int:
    """`place`, or the end of the blanks that it lies within."""
    match = BLANKS.match(text, place)
    return match.end() if match else place
