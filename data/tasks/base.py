"""What a task consists of, and how it is fitted to a length."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
BOUND = 2**17  # of a size


@dataclass(frozen=True)
class Question:
    """asked: what follows the context, up to where the model goes on. answers: what it should say,
    in the order in which they stand in the context. rule: by which that is checked, of CHECKS.
    room: tokens that it may say where that does not follow from the answers."""

    asked: str
    answers: tuple[str, ...]
    rule: str = "holds all"
    room: int = 0

    def score(self, said: str) -> float:
        """From 0 to 1."""
        return CHECKS[self.rule](said, self.answers)

    @property
    def is_one_thing(self) -> bool:
        """Whether the right answer is the same text for whoever gives it, so that it has a
        probability."""
        return self.rule in ("holds all", "begins", "is")


@dataclass(frozen=True)
class Exam:
    """A context, and several questions that are each asked right after it, without the others."""

    context: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Filler:
    """Real text that facts are hidden in. name: of what it is."""

    name: str
    sentences: tuple[str, ...]

    @classmethod
    def of(cls, name: str, texts: Sequence[str]) -> "Filler":
        flat = " ".join(" ".join(text.split()) for text in texts)
        return cls(name, tuple(re.split(r"(?<=[.!?])\s+", flat)))

    def some(self, rng: Random, n: int) -> list[str]:
        """`n` sentences one after the other from a random one on, again from the first after the
        last."""
        start = rng.randrange(len(self.sentences))
        return [self.sentences[(start + i) % len(self.sentences)] for i in range(n)]


Made = Callable[[Random], str]
# A random source, the filler, how much of it, and the tokens in all -> an exam of that size
Maker = Callable[[Random, Filler, int, int], Exam]


def fitted(
    make: Maker, seed: str, filler: Filler, n_tokens: int, length: Callable[[str], int]
) -> Exam | None:
    """The largest exam of this seed whose context has at most `n_tokens` by `length`; None where
    not even the smallest fits."""

    def sized(size: int) -> Exam:
        return make(Random(seed), filler, size, n_tokens)

    def fits(size: int) -> bool:
        return length(sized(size).context) <= n_tokens

    if not fits(1):
        return None
    low, high = 1, 2
    while high < BOUND and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return sized(low)


def scattered(rng: Random, lines: Sequence[str], hidden: Sequence[str]) -> list[str]:
    """The lines with what is hidden among them, at random places and in its own order."""
    places = sorted(rng.randrange(len(lines) + 1) for _ in hidden)
    out, start = [], 0
    for place, fact in zip(places, hidden, strict=True):
        out += [*lines[start:place], fact]
        start = place
    return [*out, *lines[start:]]


def several(rng: Random, make: Made, n: int) -> list[str]:
    """n different ones."""
    found: dict[str, None] = {}
    while len(found) < n:
        found[make(rng)] = None
    return list(found)


@cache
def words(part: str) -> tuple[str, ...]:
    """Common English words of one part of speech: noun, adjective or verb."""
    from wonderwords import RandomWord, is_profanity

    every = RandomWord().filter(include_categories=[part])
    plain = {word for word in every if re.fullmatch("[a-z]{3,}", word)}
    return tuple(sorted(word for word in plain if not is_profanity(word)))


def _plain(text: str) -> str:
    return text.strip().strip(".,;:!?\"'*").lower()


def _holds_all(said: str, answers: Sequence[str]) -> float:
    """The share of the answers that are in it, as in RULER."""
    return sum(answer.lower() in said.lower() for answer in answers) / len(answers)


def _begins(said: str, answers: Sequence[str]) -> float:
    return float(bool(re.match(rf"{re.escape(answers[0])}\b", _plain(said), re.IGNORECASE)))


def _is(said: str, answers: Sequence[str]) -> float:
    return float(_plain(_first_line(said)) == answers[0].lower())


def _mentions(said: str, answers: Sequence[str]) -> float:
    return float(bool(re.search(rf"\b{re.escape(answers[0])}\b", _first_line(said), re.I)))


def _is_in_capitals(said: str, answers: Sequence[str]) -> float:
    line = _first_line(said)
    return float(len(re.findall("[A-Z]", line)) >= 3 and line == line.upper())


def _first_line(said: str) -> str:
    return said.strip().split("\n")[0]


CHECKS: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "holds all": _holds_all,
    "begins": _begins,
    "is": _is,
    "mentions": _mentions,
    "is in capitals": _is_in_capitals,
}
