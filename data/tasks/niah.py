"""Needles in a haystack, after RULER (arXiv 2404.06654): magic numbers hidden among noise, in real
text, or among others of their kind."""

import uuid
from random import Random

from data.tasks.base import NOISE, Exam, Filler, Made, Maker, Question, scattered, several, words

NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
CONTEXT = (
    "Some special magic {kind}s are hidden within the following text. Make sure to memorize them. "
    "I will quiz you about the {kind}s afterwards.\n{text}\n"
)
ASKED_ONE = (
    "What is the special magic {kind} for {key} mentioned in the provided text? "
    "The special magic {kind} for {key} mentioned in the provided text is"
)
ASKED_ALL = (
    "What are all the special magic {kind}s for {key} mentioned in the provided text? "
    "The special magic {kind}s for {key} mentioned in the provided text are"
)
KEYS = 4  # of which one is asked for at a time, or all together
VALUES = 4  # of the one key of `niah_multivalue`


def _number(rng: Random) -> str:
    return str(rng.randrange(10**6, 10**7))


def _word(rng: Random) -> str:
    return f"{rng.choice(words('adjective'))}-{rng.choice(words('noun'))}"


def _uuid(rng: Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def maker(
    hay: str,
    n_keys: int = 1,
    n_values: int = 1,
    kind: str = "number",
    key: Made = _word,
    together: bool = False,
) -> Maker:
    """hay: noise, text or needles. together: all keys are asked for in one question."""
    value = {"number": _number, "uuid": _uuid}[kind]

    def make(rng: Random, filler: Filler, size: int, n_tokens: int) -> Exam:
        n_others = size if hay == "needles" else 0
        keys = several(rng, key, n_keys + n_others)
        values = several(rng, value, n_keys * n_values + n_others)
        facts = [
            (key, values[i * n_values + j]) for i, key in enumerate(keys[:n_keys])
            for j in range(n_values)
        ]  # fmt: skip
        others = zip(keys[n_keys:], values[n_keys * n_values :], strict=True)
        lines = {
            "noise": [NOISE] * size,
            "text": filler.some(rng, size) if hay == "text" else [],
            "needles": [NEEDLE.format(kind=kind, key=k, value=v) for k, v in others],
        }[hay]
        rng.shuffle(facts)
        hidden = [NEEDLE.format(kind=kind, key=k, value=v) for k, v in facts]
        between = " " if hay == "text" else "\n"
        text = between.join(scattered(rng, lines, hidden))
        return Exam(CONTEXT.format(kind=kind, text=text), _questions(facts, kind, together))

    return make


def _questions(facts: list[tuple[str, str]], kind: str, together: bool) -> tuple[Question, ...]:
    of_key: dict[str, list[str]] = {}
    for key, value in facts:
        of_key.setdefault(key, []).append(value)
    if together:
        *first, last = of_key
        named = f"{', '.join(first)}, and {last}"
        return (Question(ASKED_ALL.format(kind=kind, key=named), tuple(v for _, v in facts)),)
    return tuple(
        Question((ASKED_ONE if len(v) == 1 else ASKED_ALL).format(kind=kind, key=key), tuple(v))
        for key, v in of_key.items()
    )


TASKS: dict[str, Maker] = {
    "niah_single_1": maker("noise"),
    "niah_single_2": maker("text"),
    "niah_single_3": maker("text", kind="uuid"),
    "niah_multikey_1": maker("text", n_keys=KEYS),
    "niah_multikey_2": maker("needles", n_keys=KEYS),
    "niah_multikey_3": maker("needles", n_keys=KEYS, kind="uuid", key=_uuid),
    "niah_multivalue": maker("text", n_values=VALUES),
    "niah_multiquery": maker("text", n_keys=KEYS, together=True),
}
