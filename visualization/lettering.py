"""Text that is written from the right, in lines that are read from the left."""

import unicodedata

ISOLATE, END_OF_ISOLATE, LEFT_TO_RIGHT = "\u2068", "\u2069", "\u200e"  # not seen in a picture


def isolated(text: str) -> str:
    """`text` with a direction of its own: what is written from the right turns nothing beside it
    around."""
    return f"{ISOLATE}{text}{END_OF_ISOLATE}" if is_from_the_right(text) else text


def from_the_left(line: str) -> str:
    """A line whose parts follow each other from the left, whatever it begins with."""
    return LEFT_TO_RIGHT + line if is_from_the_right(line) else line


def is_from_the_right(text: str) -> bool:
    """Whether something in it is written from the right."""
    return any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)
