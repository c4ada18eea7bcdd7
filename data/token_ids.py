"""Text into token ids: of a long text no more is read than its first tokens need."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

Encode = Callable[[str], list[int]]

CHARACTERS = 8  # per token, of the first beginning that is tried; more than most languages have
MARGIN = 64  # tokens ahead of a cut that the cut may have changed
PROBE = "a"  # any text, to see what is put around it
BLANKS = re.compile(r"\s*")

log = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """What is asked of a tokenizer of transformers."""

    def __call__(
        self, text: str, *, add_special_tokens: bool = True
    ) -> Mapping[str, list[int]]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Reader:
    """Reads texts with the tokenizer of the model `name`: they begin as that begins every text, and
    do not end as it ends one, for a text here is always gone on from."""

    tokenizer: Tokenizer
    name: str

    def ids(self, text: str, most: int | None = None, special_tokens: bool = True) -> list[int]:
        """The first `most` token ids, or all. special_tokens: False for a piece of text that is put
        after another."""
        return first_ids(self._text if special_tokens else self._plain, text, most)

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after every text; what comes after is told of."""
        before, after = around(self._whole, self._plain)
        if after:
            log.warning(
                "The tokenizer of %s ends every text with %s, which is left out here: a text is "
                "gone on from.",
                self.name,
                ascii(self.tokenizer.decode(after)),
            )
        return before, after

    def _text(self, text: str) -> list[int]:
        return without_end(self._whole(text), self.around[1])

    def _whole(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


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
