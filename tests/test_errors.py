"""The picture of settings whose cost to the model is not known, by its artists and values."""

import numpy as np
import pandas as pd
import pytest

from tests.drawn import is_within
from visualization.catalogue import PICTURES

ABOUT = "tiny (random) · text not known · 10 tokens"


def settings(n_families: int, n_settings: int, zero: bool = False) -> pd.DataFrame:
    rows = [
        {"family": f"family {i}", "label": f"family {i} {j}", "method": "m", "evicts": i % 2 == 1}
        for i in range(n_families)
        for j in range(n_settings)
    ]
    table = pd.DataFrame(rows)
    errors = np.geomspace(1e-5, 1, len(table)) * (not zero)
    bits = np.geomspace(16.5, 0.1, len(table))
    return table.assign(bits_per_value=bits, key_error=errors, value_error=errors[::-1])


@pytest.mark.parametrize("stem", [stem for stem in PICTURES if stem.endswith("bits_and_errors")])
@pytest.mark.parametrize(
    ("families", "each", "zero"), [(1, 1, False), (16, 7, False), (3, 2, True)]
)
def test_every_setting_is_within_the_picture(stem, families, each, zero):
    table = settings(families, each, zero)
    figure = PICTURES[stem](table, ABOUT)
    assert is_within(figure)
    for ax in figure.axes:
        drawn = [line for line in ax.get_lines() if len(line.get_xdata())]
        points = [line for line in drawn if line.get_marker() != "None"]
        assert len(drawn) == len(points) + 1  # the line at 16 bits
        assert sum(len(line.get_xdata()) for line in points) == len(table)
        low, high = ax.get_ylim()
        assert all(low <= y <= high for line in points for y in line.get_ydata())
    hollow = [line for line in figure.axes[0].get_lines() if line.get_mfc() == "none"]
    assert bool(hollow) == table["evicts"].any()


def test_the_untouched_cache_is_no_point_of_it():
    table = settings(2, 2)
    none = table.iloc[:1].assign(family="none", label="none", method="none", key_error=0.0)
    figure = PICTURES["compare/bits_and_errors"](pd.concat([table, none]), ABOUT)
    named = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert named == ["family 0", "family 1"]
