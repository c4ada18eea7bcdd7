"""What a value may be: the same rules for flags and for constants of config.py."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import config

MOST = 10**9  # of anything that is counted: more is a slip of the finger


@dataclass(frozen=True)
class Rule:
    """holds: whether a value will do. words: which values do. read: a value from what is typed;
    raises ValueError. shown: what stands for it in a line of help. values: all of them, where they
    are a few words."""

    holds: Callable[[Any], bool]
    words: str
    read: Callable[[str], Any] = str
    shown: str = "TEXT"
    values: tuple[str, ...] = ()


def is_number(value: object, low: float, high: float) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return low <= value <= high and value != math.inf  # false of NaN, and any integer will do


def number(low: float, high: float, words: str, shown: str = "NUMBER") -> Rule:
    return Rule(lambda value: is_number(value, low, high), words, float, shown)


def above_zero(words: str, shown: str) -> Rule:
    return Rule(lambda value: is_number(value, 0, math.inf) and value > 0, words, float, shown)


def count(low: int, of: str = "", high: int = MOST, shown: str = "") -> Rule:
    """A whole number in this range, `of` something."""
    words = f"{low} or more" if high == MOST else f"{low} to {high}"
    return Rule(
        lambda value: isinstance(value, int) and is_number(value, low, high),
        f"{words} {of}".strip() + (" (a billion at most)" if high == MOST else ""),
        int,
        shown or of.upper() or "N",
    )


def several(rule: Rule, words: str, shown: str = "") -> Rule:
    """A tuple or list, typed with commas, of values that each follow a rule."""
    return Rule(
        lambda v: isinstance(v, tuple | list) and len(v) > 0 and all(map(rule.holds, v)),
        words,
        lambda text: tuple(rule.read(part) for part in text.split(",")),
        shown or f"{rule.shown},...",
    )


def one_of(*allowed: str) -> Rule:
    shown = f"{{{','.join(allowed)}}}"
    words = f"one of {', '.join(allowed)}"
    return Rule(lambda value: value in allowed, words, shown=shown, values=allowed)


def is_text(value: object) -> bool:
    """Whether it says something, in characters that are whole."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_path(value: object) -> bool:
    if not isinstance(value, str) or not is_text(value):
        return False
    try:
        config.user_path(value, "")
    except config.UsageError:
        return False
    return True


def path(words: str, shown: str) -> Rule:
    return Rule(_is_path, f"{words}, in UTF-8 and without a zero byte", shown=shown)


def optional(rule: Rule, words: str) -> Rule:
    """The same, or None."""
    return replace(rule, holds=lambda value: value is None or rule.holds(value), words=words)


SWITCH = Rule(lambda value: isinstance(value, bool), "True or False")
WORDS = Rule(is_text, "some text in UTF-8")
SHARE = number(0, 1, "a share between 0 and 1", "SHARE")
SOME = Rule(
    lambda value: is_number(value, 0, 1) and value > 0,
    "a share above 0, at most 1",
    float,
    "SHARE",
)
