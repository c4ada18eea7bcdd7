"""Which values make sense, for flags and for constants of config.py alike."""

import math
from collections.abc import Callable
from typing import Any

Rule = tuple[Callable[[Any], bool], str]  # whether a value will do, and which values do


def is_number(value: object, low: float, high: float) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return low <= value <= high and value != math.inf  # false of NaN, and any integer will do


def number(low: float, high: float, words: str) -> Rule:
    return (lambda value: is_number(value, low, high)), words


def count(low: int, high: float = math.inf) -> Rule:
    """A whole number in this range."""
    words = f"a whole number from {low}" if high == math.inf else f"{low} to {high}"
    return (lambda value: isinstance(value, int) and is_number(value, low, high)), words


def above_zero(words: str) -> Rule:
    return (lambda value: is_number(value, 0, math.inf) and value > 0), words


def several(rule: Rule, words: str) -> Rule:
    holds, _ = rule
    return (lambda v: isinstance(v, tuple | list) and len(v) > 0 and all(map(holds, v))), words


def one_of(*allowed: object) -> Rule:
    return (lambda value: value in allowed), f"one of {', '.join(map(str, allowed))}"


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


SWITCH: Rule = ((lambda value: isinstance(value, bool)), "True or False")
SHARE = number(0, 1, "a share between 0 and 1")
SOME: Rule = ((lambda value: is_number(value, 0, 1) and value > 0), "a share above 0, at most 1")
