"""The Tucker pictures, by their artists and values, at awkward sizes."""

import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from compression.methods.tucker import Tucker
from compression.studies.tucker_tables import components
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
        own=table["token_rank"].eq(8) & table["embedding_rank"].eq(16),
    )


def chosen_by_layer() -> pd.DataFrame:
    """With a run whose ranks are chosen layer by layer."""
    table = by_rank().assign(own=False)
    row = table.iloc[[0]].assign(token_rank=np.nan, embedding_rank=np.nan, own=True)
    return pd.concat([table, row.assign(bits_per_value=9.0)], ignore_index=True)


TABLES = {
    "components": ("tucker/tucker_components", lambda: parts(3, 12, 8)),
    "components of a long text": ("tucker/tucker_components", lambda: parts(2, 3000, 8)),
    "components of many heads": ("tucker/tucker_components", lambda: parts(32, 12, 4)),
    "layers": ("tucker/layer_sensitivity", lambda: by_layer(30)),
    "many layers": ("tucker/layer_sensitivity", lambda: by_layer(80)),
    "one layer, not measured": ("tucker/layer_sensitivity", lambda: by_layer(1, measured=False)),
    "ranks": ("tucker/rank_sensitivity", by_rank),
    "ranks chosen by layer": ("tucker/rank_sensitivity", chosen_by_layer),
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
    shown = figure.axes[5].images[0].get_array()
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


def test_a_cost_is_claimed_only_where_it_was_measured():
    measured, not_measured = (
        PICTURES["tucker/layer_sensitivity"](by_layer(5, given), ABOUT).texts[0].get_text()
        for given in (True, False)
    )
    assert "measured cost" in measured
    assert "was not measured" in not_measured and "measured cost" not in not_measured


def test_the_energy_that_ranks_keep_is_drawn_with_the_ranks_of_the_run():
    table = parts(3, 12, 8)
    figure = PICTURES["tucker/tucker_components"](table, ABOUT)
    for ax, kind in ((figure.axes[3], "key"), (figure.axes[7], "value")):
        rows = table[table["kind"] == kind].set_index("part")
        for line, part in ((ax.lines[0], "kept_by_tokens"), (ax.lines[2], "kept_by_dims")):
            np.testing.assert_allclose(line.get_ydata(), rows.loc[part, "value"])
        at_rank_2 = [ax.lines[i].get_xydata()[0] for i in (1, 3)]
        assert [x for x, _ in at_rank_2] == [2, 2]
        both = rows.loc["kept", "value"]
        assert ax.lines[4].get_ydata()[0] == both
        said = " ".join(text.get_text() for text in ax.get_legend().get_texts())
        assert (
            "2 of 12 token comp" in said
            and "2 of 8 embedding comp" in said
            and f"{both:.1%}" in said
        )


def test_colour_bars_of_components_are_labelled_and_show_that_they_are_clipped():
    figure = PICTURES["tucker/tucker_components"](parts(3, 12, 8), ABOUT)
    bars = [ax for ax in figure.axes if ax.get_ylabel().startswith("Entry")]
    assert len(bars) == 6
    for bar in bars:
        top = bar.get_ylim()[1]
        assert bar.get_ylabel() == f"Entry (darkest: {top:.2g} or more)"


def test_costs_are_drawn_over_what_is_stored():
    table = by_rank()
    _, right = PICTURES["tucker/rank_sensitivity"](table, ABOUT).axes
    rows = table[table["embedding_rank"] == 16]
    line = next(line for line in right.lines if line.get_label() == "16")
    np.testing.assert_allclose(line.get_xdata(), rows["bits_per_value"])
    np.testing.assert_allclose(line.get_ydata(), rows["kl_mean_nats"])
    named = Counter(text.get_text() for text in right.texts)
    assert all(named[rank] == 2 for rank in ("4", "8", "16"))


def test_a_ring_is_around_the_setting_of_the_run():
    left, right = PICTURES["tucker/rank_sensitivity"](by_rank(), ABOUT).axes
    assert [points.get_offsets().tolist() for points in left.collections] == [
        [[8, pytest.approx(1 / 128)]],
        [[8, pytest.approx(2 / 128)]],
    ]
    assert right.collections[-1].get_offsets().tolist() == [
        [pytest.approx(0.16 * 128), pytest.approx(3 / 128)]
    ]
    left, right = PICTURES["tucker/rank_sensitivity"](chosen_by_layer(), ABOUT).axes
    assert right.collections[-1].get_offsets()[0, 0] == 9.0
    assert right.collections[-1].get_label() == "this run (ranks chosen by layer)"
