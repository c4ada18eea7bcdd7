"""Variable tracking, after RULER (arXiv 2404.06654): chains of assignments hidden in noise."""

import string
from itertools import pairwise
from random import Random

from data.tasks.base import NOISE, Exam, Filler, Maker, Question, scattered, several

CONTEXT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{text}\n"
)
ASKED = (
    "Question: Find all variables that are assigned the value {value} in the text above. Answer: "
    "According to the chain(s) of variable assignment in the text above, {n} variables are "
    "assigned the value {value}, they are:"
)
CHAINS, HOPS, LETTERS = 2, 4, 5


def _variable(rng: Random) -> str:
    return "".join(rng.choices(string.ascii_uppercase, k=LETTERS))


def make(rng: Random, filler: Filler, size: int, n_tokens: int) -> Exam:
    """Each chain has its own value and is asked for apart."""
    every = several(rng, _variable, CHAINS * (HOPS + 1))
    values = rng.sample(range(10_000, 100_000), CHAINS)
    chains = [every[i::CHAINS] for i in range(CHAINS)]
    lines: list[str] = [NOISE] * size
    for chain, value in zip(chains, values, strict=True):
        links = [f"VAR {b} = VAR {a}" for a, b in pairwise(chain)]
        lines = scattered(rng, lines, [f"VAR {chain[0]} = {value}", *links])
    questions = tuple(
        Question(ASKED.format(value=value, n=len(chain)), tuple(chain))
        for chain, value in zip(chains, values, strict=True)
    )
    return Exam(CONTEXT.format(text="\n".join(lines)), questions)


TASKS: dict[str, Maker] = {"variable_tracking": make}
