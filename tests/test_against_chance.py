"""A choice is called better or worse than chance only where paired differences say so."""

import numpy as np
import pytest

from compression.studies.against_chance import against_chance

TEXTS = np.array([0.1, 1.0, 10.0, 100.0])  # KL of one setting: texts differ far more than draws


@pytest.mark.parametrize(
    ("chosen", "draws", "says"),
    [
        (TEXTS, [TEXTS + 0.5, TEXTS + 0.6], "better than chance"),
        (TEXTS, [TEXTS - 0.05, TEXTS - 0.06], "worse than chance"),
        (TEXTS, [TEXTS - 0.05, TEXTS + 0.5], "not told apart from chance"),
        (TEXTS, [TEXTS], "not told apart from chance"),
        (TEXTS, [TEXTS * [1.5, 0.9, 1.4, 0.9]], "not told apart from chance"),
    ],
)
def test_paired_differences_decide(chosen, draws, says):
    said = against_chance(chosen, np.array(draws))
    assert said.startswith(f"{says}: as much at random costs ")
    many = "1 draw" if len(draws) == 1 else f"{len(draws)} draws"
    assert f"({many}, paired over 4 texts)" in said


def test_from_one_text_nothing_is_compared():
    said = against_chance(np.array([1.0]), np.array([[5.0], [6.0]]))
    assert said == (
        "as much at random costs 5.0000 to 6.0000 (2 draws; one text does not tell which costs "
        "less)"
    )


def test_chance_is_seldom_called_better_or_worse_than_itself():
    rng = np.random.default_rng(0)
    tries = [rng.gamma(2.0, size=(4, 8)) for _ in range(400)]
    claims = [not against_chance(x[0], x[1:]).startswith("not told") for x in tries]
    assert np.mean(claims) < 0.05
