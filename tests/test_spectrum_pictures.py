"""The pictures of energy spectra, by their artists and values, at awkward sizes."""

from functools import reduce

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from analysis.moments import KINDS
from analysis.spectrum import Spectrum
from data.cache import KVCache
from tests import caches
from tests.drawn import ABOUT, is_within
from visualization.catalogue import MODULES, PICTURES
from visualization.spectrum import KIND_COLOURS, TOO_FEW


def big(layers: int, heads: int, tokens: int, dims: int) -> KVCache:
    return caches.cache(*(caches.layer(i, heads, tokens, (dims, dims)) for i in range(layers)))


SIZES = {
    **caches.SHAPES,
    "usual": lambda: big(12, 3, 40, 8),
    "deep": lambda: big(80, 1, 12, 4),
    "deep and wide": lambda: big(80, 64, 12, 4),
    "wide": lambda: big(2, 1, 200, 128),
}
STEMS = [stem for stem, module in MODULES.items() if module == "spectrum"]
every_picture = pytest.mark.parametrize("stem", STEMS)


def tables(*texts: KVCache) -> dict[str, pd.DataFrame]:
    return reduce(Spectrum.__add__, map(Spectrum.of, texts)).tables(4)


def drawn(stem: str, *texts: KVCache):
    table = tables(*texts)[stem]
    return table, PICTURES[stem](table, ABOUT)


@every_picture
@pytest.mark.parametrize("size", SIZES)
def test_nothing_leaves_the_figure(stem, size):
    table, figure = drawn(stem, SIZES[size]())
    assert is_within(figure)
    panels = [ax for ax in figure.axes if ax.get_xlabel()]
    assert len(panels) == table["kind"].nunique() + (stem == "spectrum/ranks")
    assert panels[0].get_ylabel()


@every_picture
def test_titles_say_how_many_texts_and_tokens(stem):
    one = [t.get_text() for t in drawn(stem, SIZES["usual"]())[1].texts]
    assert any(": 1 text, 40 tokens" in t for t in one)
    two = [t.get_text() for t in drawn(stem, SIZES["usual"](), big(12, 3, 10, 8))[1].texts]
    assert any(": 2 texts, 50 tokens" in t for t in two)
    mixed = [t.get_text() for t in drawn(stem, caches.mixed())[1].texts]
    assert any("6 to 10 tokens" in t for t in mixed)


@pytest.mark.parametrize("stem", STEMS[:3])
def test_too_few_tokens_are_marked(stem):
    def marked(cache):
        return any(TOO_FEW in t.get_text().replace("\n", " ") for t in drawn(stem, cache)[1].texts)

    assert marked(big(2, 2, 7, 8)) and not marked(big(2, 2, 8, 8))


def test_each_layer_has_a_line_of_its_heads_mean():
    table, figure = drawn("spectrum/energy_spectrum", SIZES["usual"]())
    for ax, kind in zip(figure.axes, KINDS, strict=False):
        lines = [line for line in ax.lines if len(line.get_xdata()) == 8]
        assert len(lines) == 12 and len({to_hex(line.get_color()) for line in lines}) == 12
        rows = table[(table["kind"] == kind) & (table["layer"] == 5)]
        expected = rows.groupby("component")["cumulative"].mean()
        np.testing.assert_allclose(lines[5].get_ydata(), expected)
        np.testing.assert_allclose(lines[5].get_xdata(), np.arange(1, 9))
        assert ax.get_ylim() == figure.axes[0].get_ylim()


def test_ranks_are_drawn_as_shares_of_the_dimension():
    table, figure = drawn("spectrum/ranks", SIZES["usual"]())
    effective, *panels = figure.axes
    colours = [to_hex(line.get_color()) for line in effective.lines]
    assert colours == [KIND_COLOURS[kind] for kind in KINDS]
    for kind, ax, line in zip(KINDS, panels, effective.lines, strict=True):
        rows = table[table["kind"] == kind].groupby("layer")
        np.testing.assert_allclose(line.get_ydata(), rows["share_of_dim"].mean())
        drawn_lines = [x for x in ax.lines if len(x.get_xdata())]
        for level, found in zip((90, 95, 99), drawn_lines, strict=True):
            np.testing.assert_allclose(found.get_ydata(), rows[f"rank_{level}"].mean() / 8)


def test_tokens_bound_the_ranks_where_there_are_fewer_than_dimensions():
    _, figure = drawn("spectrum/ranks", big(3, 2, 6, 8))
    for ax in figure.axes[1:]:
        assert ax.lines[-1].get_ydata().tolist() == [6 / 8] * 3


@pytest.mark.parametrize(
    ("stem", "value", "index", "columns"),
    [
        ("spectrum/effective_rank_by_head", "share_of_dim", "layer", "head"),
        ("spectrum/subspace_overlap", "overlap", "layer_a", "layer_b"),
    ],
)
def test_heat_maps_show_the_table_on_one_scale(stem, value, index, columns):
    table, figure = drawn(stem, caches.mixed())
    for ax, kind in zip(figure.axes, KINDS, strict=False):
        grid = table[table["kind"] == kind].pivot(index=index, columns=columns, values=value)
        shown = np.ma.asarray(ax.images[0].get_array()).filled(np.nan)
        np.testing.assert_allclose(shown, grid)
        assert ax.images[0].get_clim() == figure.axes[0].images[0].get_clim()
        assert ax.images[0].get_clim()[0] == 0


def test_overlap_says_what_chance_gives():
    _, figure = drawn("spectrum/subspace_overlap", SIZES["usual"]())
    assert "(2 directions; chance: 0.25)" in figure.axes[0].get_title()
