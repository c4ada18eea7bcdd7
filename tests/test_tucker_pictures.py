"""The Tucker pictures, by their artists and values, at awkward sizes."""

import itertools

import numpy as np
import pandas as pd
import pytest

from compression.methods.tucker import Tucker
from compression.studies.tucker import components
from tests import caches
from tests.drawn import is_within
from visualization.catalogue import PICTURES

ABOUT = "tiny (random) · test text #0 · 10 tokens"


def parts(heads: int, tokens: int, dim: int) -> pd.DataFrame:
    cache = caches.cache(caches.layer(7, heads, tokens, (dim, dim))).in_16_bits()
    return components(Tucker(2, 2), cache, 0).assign(layer=7)


def by_layer(n_layers: int, measured: bool = True) -> pd.DataFrame:
    rows = list(itertools.product(range(n_layers), ("key", "value")))
    table = pd.DataFrame(rows, columns=["layer", "kind"])
    table["relative_error"] = np.linspace(0.1, 0.6, len(rows))
    return table.assign(kl_mean_nats=np.linspace(0, 0.02, len(rows)) if measured else np.nan)


def by_rank() -> pd.DataFrame:
    table = pd.DataFrame(
        itertools.product((4, 8, 16), (8, 16)), columns=["token_rank", "embedding_rank"]
    )
    size = table["token_rank"] * table["embedding_rank"]
    return table.assign(
        ratio=100 / size,
        bits_per_value=0.16 * size,
        key_error=1 / size,
        value_error=2 / size,
        kl_mean_nats=3 / size,
        delta_perplexity_percent=1.0,
    )


TABLES = {
    "components": ("tucker/tucker_components", lambda: parts(3, 12, 8)),
    "components of a long text": ("tucker/tucker_components", lambda: parts(2, 3000, 8)),
    "components of many heads": ("tucker/tucker_components", lambda: parts(32, 12, 4)),
    "layers": ("tucker/layer_sensitivity", lambda: by_layer(30)),
    "many layers": ("tucker/layer_sensitivity", lambda: by_layer(80)),
    "one layer, not measured": ("tucker/layer_sensitivity", lambda: by_layer(1, measured=False)),
    "ranks": ("tucker/rank_sensitivity", by_rank),
}


@pytest.mark.parametrize("name", TABLES)
def test_nothing_written_leaves_the_figure(name):
    stem, table = TABLES[name]
    assert is_within(PICTURES[stem](table(), ABOUT))


def test_cores_stand_side_by_side_on_a_scale_around_zero():
    table = parts(3, 12, 8)
    figure = PICTURES["tucker/tucker_components"](table, ABOUT)
    image = figure.axes[0].images[0]
    low, high = image.get_clim()
    assert low == -high
    core = table[(table["kind"] == "key") & (table["part"] == "core")]
    expected = core.pivot(index="row", columns=["head", "column"], values="value")
    np.testing.assert_allclose(image.get_array(), expected)
    assert any("layer 7" in text.get_text() for text in figure.texts)


def test_a_long_token_factor_shows_the_largest_of_each_group():
    table = parts(2, 3000, 8)
    factor = table[(table["kind"] == "value") & (table["part"] == "tokens")]
    grid = factor.pivot(index="row", columns="column", values="value").to_numpy()
    figure = PICTURES["tucker/tucker_components"](table, ABOUT)
    shown = figure.axes[4].images[0].get_array()
    assert shown.shape == (250, 2)
    np.testing.assert_allclose(np.abs(shown[0]), np.abs(grid[:12]).max(0))


def test_bars_are_errors_above_and_measured_costs_below():
    table = by_layer(5)
    above, below = PICTURES["tucker/layer_sensitivity"](table, ABOUT).axes
    for ax, column in ((above, "relative_error"), (below, "kl_mean_nats")):
        heights = [bar.get_height() for bar in ax.patches]
        expected = [*table.loc[::2, column], *table.loc[1::2, column]]  # keys, then values
        assert heights == pytest.approx(expected)
    (only,) = PICTURES["tucker/layer_sensitivity"](by_layer(5, measured=False), ABOUT).axes
    assert only.get_ylabel().startswith("Relative error")


def test_costs_are_drawn_over_what_is_stored():
    table = by_rank()
    _, right = PICTURES["tucker/rank_sensitivity"](table, ABOUT).axes
    rows = table[table["embedding_rank"] == 16]
    np.testing.assert_allclose(right.lines[1].get_xdata(), rows["bits_per_value"])
    np.testing.assert_allclose(right.lines[1].get_ydata(), rows["kl_mean_nats"])
    assert [text.get_text() for text in right.texts] == ["4", "8", "16"] * 2
