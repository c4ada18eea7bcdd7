"""Whether a choice costs less than as much chosen at random, as far as the texts tell.

Texts differ far more from each other than settings do on one text, so differences are paired: the
same texts under the choice and under each random draw.
"""

import numpy as np
from scipy.stats import t as student_t

from analysis.margins import span

SURE = 0.95  # two-sided, of each draw apart


def against_chance(chosen: np.ndarray, draws: np.ndarray) -> str:
    """The words for it. chosen: (texts,) KL in nats; draws: (draws, texts), as much at random.

    A choice is called cheaper or dearer than chance where its paired difference from every draw is
    surely of one sign; from one text nothing is compared.
    """
    n, texts = draws.shape
    many = f"{n} draw{'s' if n > 1 else ''}"
    at_random = f"as much at random costs {span(draws.mean(1), '.4f')} ({many}"
    if texts < 2:
        return f"{at_random}; one text does not tell which costs less)"
    at_random += f", paired over {texts} texts)"
    differences = chosen - draws  # (draws, texts)
    mean = differences.mean(1)
    reach = student_t.ppf(0.5 + SURE / 2, texts - 1) * differences.std(1, ddof=1) / np.sqrt(texts)
    if (mean + reach < 0).all():
        return f"better than chance: {at_random}"
    if (mean - reach > 0).all():
        return f"worse than chance: {at_random}"
    return f"not told apart from chance: {at_random}"
