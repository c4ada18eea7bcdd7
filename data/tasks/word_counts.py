"""Common words and frequent words, after RULER (arXiv 2404.06654): which words occur most often."""

import string
from random import Random

from data.tasks.base import Exam, Filler, Maker, Question, several, words

COMMON = 10  # words that are asked for, ...
OFTEN, SELDOM = 30, 3  # ... how often they and others occur, in a context of ...
USUAL_TOKENS = 4096  # ... so many tokens or more; in shorter ones in proportion
LIST = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{text}\n"
)
ASKED_COMMON = (
    "Question: What are the 10 most common words in the above list? Answer: The top 10 words that "
    "appear most often in the list are:"
)
CODED = "Read the following coded text and track the frequency of each coded word. {text}\n"
ASKED_FREQUENT = (
    "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text? Answer: According to the coded text "
    "above, the three most frequently appeared words are:"
)
ALPHA = 2.0  # of the zeta distribution that coded words are drawn in the shares of
ASKED_WORDS = 3
FEWEST = 80  # words in all, in which the three asked for occur oftener than others
DOTS = "...."  # the most frequent word, which is noise


def _coded(rng: Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=6))


def common_words(rng: Random, filler: Filler, size: int, n_tokens: int) -> Exam:
    """size: words that occur seldom."""
    share = min(1.0, n_tokens / USUAL_TOKENS)
    often, seldom = max(3, round(OFTEN * share)), max(1, int(SELDOM * share))
    pool = list(words("noun") + words("adjective") + words("verb"))
    rng.shuffle(pool)
    pool = list(dict.fromkeys(pool))[: COMMON + size]
    listed = pool[:COMMON] * often + pool[COMMON:] * seldom
    rng.shuffle(listed)
    text = " ".join(f"{i}. {word}" for i, word in enumerate(listed, 1))
    return Exam(LIST.format(text=text), (Question(ASKED_COMMON, tuple(pool[:COMMON])),))


def frequent_words(rng: Random, filler: Filler, size: int, n_tokens: int) -> Exam:
    """size: words in all, beyond FEWEST."""
    n = FEWEST + size
    shares = [rank**-ALPHA for rank in range(1, n)]
    counts = [max(1, round(n * share / sum(shares))) for share in shares]
    ranked = [DOTS, *several(rng, _coded, n)]
    text: list[str] = []
    for word, count in zip(ranked, counts, strict=False):
        text += [word] * min(count, n - len(text))
    rng.shuffle(text)
    answers = tuple(ranked[1 : 1 + ASKED_WORDS])
    return Exam(CODED.format(text=" ".join(text)), (Question(ASKED_FREQUENT, answers),))


TASKS: dict[str, Maker] = {"common_words": common_words, "frequent_words": frequent_words}
