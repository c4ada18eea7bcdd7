"""Letters that can be read: from the right in lines that are read from the left, and on colours."""

import unicodedata
from collections.abc import Sequence

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


def letters_on(ground: Sequence[float]) -> str:
    """Black or white, whichever stands out more from a colour (by the contrast of WCAG 2)."""
    return "black" if (luminance(ground) + 0.05) ** 2 > 1.05 * 0.05 else "white"


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour, from 0 to 1."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]
    )
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)
