"""The similarity pictures, by their artists and values, at awkward sizes; and what is read off the
same matrices: clusters, groups and nearest pairs."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from analysis import clusters, similarity
from data.cache import KVCache
from tests import caches
from tests.drawn import ABOUT, is_within
from visualization import matrices
from visualization import similarity as pictures
from visualization.matrices import NAMES

MANY = 24
TABLES = {
    pictures.layer_similarity_matrix: lambda cache, kinds, positions: similarity.layer_similarity(
        cache, kinds, positions, 4
    ),
    pictures.head_similarity_matrix: similarity.head_similarity,
    pictures.token_similarity_matrix: similarity.token_similarity,
    pictures.token_kv_similarity_matrices: lambda *given: similarity.token_kv_similarity(
        *given, similarity.chosen_layers(given[0], 4)
    ),
    pictures.token_embedding_patterns: lambda cache, _, positions: (
        similarity.token_embedding_patterns(cache, positions)
    ),
    pictures.embedding_dimension_correlations: similarity.dimension_correlations,
}
every_picture = pytest.mark.parametrize("draw", TABLES, ids=lambda draw: draw.__name__)


def table_of(draw, cache: KVCache, most: int = MANY) -> pd.DataFrame:
    positions = similarity.shared_positions(cache, most)
    return TABLES[draw](cache, similarity.comparable_kinds(cache), positions)


def made(draw, cache: KVCache, most: int = MANY) -> tuple[pd.DataFrame, Figure]:
    table = table_of(draw, cache, most)
    return table, draw(table, ABOUT)


def big(layers: int, heads: int, tokens: int, dims: int) -> KVCache:
    return caches.cache(*(caches.layer(i, heads, tokens, (dims, dims)) for i in range(layers)))


def usual() -> KVCache:
    return big(12, 3, 24, 8)


SIZES = {
    **caches.SHAPES,
    "deep": lambda: big(80, 1, 12, 4),
    "many heads": lambda: big(12, 16, 12, 4),
    "long": lambda: big(2, 1, 8192, 4),
    "wide": lambda: big(1, 1, 12, 130),
}
AWKWARD = {
    pictures.layer_similarity_matrix: ("mixed", "one token", "deep"),
    pictures.head_similarity_matrix: ("mixed", "one token", "many heads"),
    pictures.token_similarity_matrix: ("one token", "long"),
    pictures.token_kv_similarity_matrices: ("one token", "long"),
    pictures.token_embedding_patterns: ("mixed", "one entry a head", "long"),
    pictures.embedding_dimension_correlations: ("mixed", "one entry a head", "wide"),
}


def panels(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.images]


def shown(ax) -> np.ndarray:
    return ax.images[0].get_array().filled(np.nan)


def image_of(figure: Figure, title: str):
    return next(ax for ax in panels(figure) if f"{ax.get_title()}{ax.get_title('left')}" == title)


def apart(matrix: np.ndarray) -> np.ndarray:
    """Without what each has with itself."""
    return np.where(np.eye(len(matrix)) > 0, np.nan, matrix)


def of_kind(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    return table[table["kind"] == kind]


@pytest.mark.parametrize(
    ("draw", "size"), [(draw, size) for draw in TABLES for size in AWKWARD[draw]]
)
def test_what_is_written_stays_in_the_figure_and_apart(draw, size):
    _, figure = made(draw, SIZES[size]())
    assert is_within(figure)
    renderer = figure.canvas.get_renderer()
    assert max(figure.get_size_inches()) <= 24
    assert ABOUT in " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    for ax in panels(figure):
        low, high = sorted(ax.get_xlim())
        labels = [t for t in ax.get_xticklabels() if low <= t.get_position()[0] <= high]
        boxes = [label.get_window_extent(renderer) for label in labels]
        assert labels and all(a.x1 < b.x0 for a, b in pairwise(boxes))
    titles = [ax.title.get_window_extent(renderer) for ax in panels(figure)]
    assert all(a.x1 < b.x0 or a.y0 != b.y0 for a, b in pairwise(titles))


@every_picture
def test_without_rotary_embedding_there_are_two_kinds(draw):
    table = table_of(draw, caches.alike())
    figure = draw(table[table["kind"] != "unrotated_key"], ABOUT)
    assert not any("rotated" in ax.get_title() for ax in figure.axes)


def test_a_row_for_each_measure_of_layers_on_one_scale_each():
    table, figure = made(pictures.layer_similarity_matrix, usual())
    names = {"cosine": "cosine", "cka": "CKA", "subspace": "subspaces"}
    for measure, limits in {"cosine": None, "cka": (0, 1), "subspace": (0, 1)}.items():
        for kind, words in NAMES.items():
            rows = of_kind(table, kind)
            chance = "" if measure == "cosine" else rows[f"{measure}_chance"].mean()
            title = f"{words}: {names[measure]}" + (f" (chance: {chance:.2f})" if chance else "")
            ax = image_of(figure, title)
            expected = rows.pivot(index="layer_a", columns="layer_b", values=measure).to_numpy()
            if measure == "cosine":
                expected = apart(expected)
                limits = limits or ax.images[0].get_clim()
            np.testing.assert_array_equal(shown(ax), expected)
            assert ax.images[0].get_clim() == limits
    assert len(panels(figure)) == 9 and len(figure.axes) == 12  # a colour bar for each row


def test_layers_are_numbered_as_in_the_model_and_what_differs_in_shape_is_grey():
    _, figure = made(pictures.layer_similarity_matrix, caches.mixed())
    first = panels(figure)[0]
    assert [t.get_text() for t in first.get_yticklabels()] == ["0", "2", "3", "5"]
    assert np.isnan(shown(first)[~np.eye(4, dtype=bool)]).all()
    bars = [ax.get_ylabel() for ax in figure.axes if ax not in panels(figure)]
    assert "itself" in bars[0] and "grey" not in bars[1] and "4 leading" in bars[2]
    assert "6 token positions" in figure.texts[0].get_text()


def test_where_nothing_varies_the_panel_says_so():
    _, figure = made(pictures.layer_similarity_matrix, caches.SHAPES["one token"]())
    cosine, cka = (panels(figure)[i] for i in (0, 3))
    assert np.isnan(shown(cosine)[0, 0]) and cka.texts[0].get_text() == "nothing to compare"
    assert "1 token position" in figure.texts[0].get_text()


def test_heads_stand_in_one_clustered_order_all_of_them_named_and_the_nearest_ringed():
    table, figure = made(pictures.head_similarity_matrix, big(5, 3, 20, 8))
    by_cka = of_kind(table, "key").assign(cosine=lambda rows: rows["cka"])
    members, cka = clusters.similarity_matrix(by_cka, "heads", "key")
    order = clusters.leaf_order(cka)
    names = ["{}:{}".format(*members[i]) for i in order]
    for kind, words in NAMES.items():
        rows = of_kind(table, kind)
        _, cka = clusters.similarity_matrix(rows.assign(cosine=rows["cka"]), "heads", kind)
        _, cosine = clusters.similarity_matrix(rows, "heads", kind)
        chance = f" (chance: {rows['cka_chance'].mean():.2f})"
        above = next(ax for ax in panels(figure) if ax.get_title().startswith(f"{words}: |cos"))
        below = next(ax for ax in panels(figure) if ax.get_title().startswith(f"{words}: CKA"))
        assert chance in below.get_title()
        np.testing.assert_array_equal(shown(below), cka[order][:, order])
        np.testing.assert_array_equal(shown(above), np.abs(apart(cosine[order][:, order])))
        for ax, matrix in ((above, np.abs(cosine)), (below, cka)):
            assert [t.get_text() for t in ax.get_xticklabels()] == names
            i, j, value = clusters.nearest_pair(matrix)
            nearest = ["{}:{}".format(*members[k]) for k in (i, j)]
            assert f"most alike: {' and '.join(nearest)} ({value:.2f})" in ax.get_title()
            ringed = {tuple(names[round(x)] for x in at) for at in ax.collections[0].get_offsets()}
            assert ringed == {tuple(nearest), tuple(nearest[::-1])}
        assert "clustered by CKA of keys as stored" in below.get_xlabel()
    said = clusters.nearest(table, "heads", "value")  # of the findings
    assert said.split(" (")[0].removeprefix("heads ") in above.get_title()


def test_ninety_heads_are_all_named():
    cache = big(30, 3, 12, 4)
    figure = pictures.head_similarity_matrix(
        table_of(pictures.head_similarity_matrix, cache), ABOUT
    )
    names = [t.get_text() for t in panels(figure)[0].get_yticklabels()]
    assert len(set(names)) == 90


def test_tokens_stand_at_their_positions():
    table, figure = made(pictures.token_similarity_matrix, big(3, 2, 101, 4), most=21)
    for kind, words in NAMES.items():
        ax = image_of(figure, words)
        _, expected = clusters.similarity_matrix(table, "tokens", kind)
        np.testing.assert_array_equal(shown(ax), apart(expected))
        assert ax.images[0].get_extent() == [-2.5, 102.5, 102.5, -2.5]  # every fifth token
        assert ax.images[0].get_clim() == panels(figure)[0].images[0].get_clim()


def test_tokens_of_each_chosen_layer():
    table, figure = made(pictures.token_kv_similarity_matrices, caches.mixed())
    assert len(panels(figure)) == 3 * 4
    for kind, words in NAMES.items():
        for layer in (0, 2, 3, 5):
            rows = table[table["layer"] == layer]
            _, expected = clusters.similarity_matrix(rows, "tokens", kind)
            np.testing.assert_array_equal(
                shown(image_of(figure, f"{words}, layer {layer}")), apart(expected)
            )


def colour_at(scale: matrices.Scale, value: float) -> np.ndarray:
    shades = scale.look["cmap"]
    shades = colormaps[shades] if isinstance(shades, str) else shades
    low, high = scale.look["vmin"], scale.look["vmax"]
    return np.array(shades((value - low) / (high - low)))[:3]


@pytest.mark.parametrize(("low", "high"), [(-0.9, 0.3), (-0.3, 0.9), (-0.6, 0.6), (-0.9, -0.1)])
def test_a_signed_scale_spans_its_numbers_around_a_white_zero(low, high):
    numbers = np.linspace(low, high, 101)
    scale = matrices.around_zero(numbers)
    assert low <= scale.look["vmin"] < low + 0.02 and high - 0.02 < scale.look["vmax"] <= high
    assert scale.extend == "both"
    if high > 0:
        assert colour_at(scale, 0.0).min() > 0.95
    red, _, blue = colour_at(scale, scale.look["vmin"])
    assert blue > red
    furthest = max(-low, high)  # equally far on both sides is equally dark
    if -low == high:
        assert colour_at(scale, furthest).max() == pytest.approx(
            colour_at(scale, low).max(), abs=0.1
        )


@pytest.mark.parametrize(("low", "high"), [(0.4, 0.9), (-0.02, 0.8)])
def test_numbers_of_one_sign_fill_a_scale_of_one_hue(low, high):
    scale = matrices.around_zero(np.linspace(low, high, 101))
    assert scale.look["cmap"] == "viridis"
    assert (scale.look["vmin"], scale.look["vmax"]) == pytest.approx((low, high), abs=0.01)


def test_a_scale_of_few_or_no_numbers_can_be_drawn():
    for scale_of in (matrices.around_zero, matrices.from_zero_to_most):
        for numbers in ([], [np.nan], [0.5], [0.0, 0.0], [-0.5, -0.5]):
            look = scale_of(np.array(numbers, float)).look
            assert look["vmin"] < look["vmax"]


def test_chosen_layers_are_named_as_in_the_model():
    assert similarity.chosen_layers(caches.mixed(), 4) == (0, 2, 3, 5)
    assert similarity.chosen_layers(caches.mixed(), 2) == (0, 5)
    many = caches.cache(*(caches.layer(i, 1, 2, (2, 2)) for i in range(30)))
    assert similarity.chosen_layers(many, 4) == (0, 10, 19, 29)
    assert similarity.chosen_layers(caches.SHAPES["one token"](), 4) == (0,)


def test_magnitudes_are_drawn_from_zero_or_on_a_log_scale_where_one_dominates():
    table, figure = made(pictures.token_embedding_patterns, usual())
    for kind in ("key", "value"):
        rows = of_kind(table, kind)
        ax = image_of(figure, NAMES[kind])
        expected = rows.pivot(index="dim", columns="position", values="mean_abs")
        np.testing.assert_array_equal(shown(ax), expected)
        assert ax.images[0].get_clim() == pytest.approx((0, rows["mean_abs"].max()))
    outlier = (table["kind"] == "key") & (table["dim"] == 3)
    table.loc[outlier, "mean_abs"] *= 100
    keys, values = panels(pictures.token_embedding_patterns(table, ABOUT))
    assert isinstance(keys.images[0].norm, LogNorm)
    assert not isinstance(values.images[0].norm, LogNorm)
    assert keys.images[0].get_clim()[1] == table["mean_abs"].max()


def test_dimensions_of_each_kind_on_a_scale_that_their_own_diagonal_does_not_stretch():
    table, figure = made(pictures.embedding_dimension_correlations, caches.mixed())
    others = table[table["dim_a"] != table["dim_b"]]["mean_abs_correlation"]
    for kind, words in NAMES.items():
        highest = of_kind(table, kind).query("dim_a != dim_b")["mean_abs_correlation"].max()
        ax = image_of(figure, f"{words} (highest: {highest:.2f})")
        _, expected = clusters.similarity_matrix(table, "dimensions", kind)
        np.testing.assert_array_equal(shown(ax), apart(expected))
        low, high = ax.images[0].get_clim()
        assert low == 0 and others.median() < high <= others.max()
    assert "|Correlation|" in figure.axes[-1].get_ylabel()


def test_clusters_hold_what_is_similar_in_the_mean():
    close = np.array([[1, 0.9, 0.1, 0], [0.9, 1, 0.2, 0], [0.1, 0.2, 1, 0.7], [0, 0, 0.7, 1]])
    assert clusters.clusters(close, 0.8).tolist() == [0, 0, 1, 2]
    assert clusters.clusters(close, 0.7 - 1e-9).tolist() == [0, 0, 1, 1]
    turned = close[::-1, ::-1]
    assert clusters.clusters(turned, 0.8).tolist() == [0, 1, 2, 2]
    assert clusters.clusters(np.ones((1, 1)), 0.9).tolist() == [0]
    unknown = np.where(np.eye(3) == 1, 1, np.nan)
    assert clusters.clusters(unknown, 0.5).tolist() == [0, 1, 2]


def test_leaves_stand_beside_what_they_are_similar_to():
    apart = np.kron(np.eye(2), np.ones((2, 2)))[[0, 2, 1, 3]][:, [0, 2, 1, 3]]
    order = clusters.leaf_order(apart)
    assert sorted(order[:2]) in ([0, 2], [1, 3])
    assert clusters.leaf_order(np.full((1, 1), np.nan)).tolist() == [0]


def test_the_nearest_pair_is_of_two_different_items():
    found = np.array([[1, 0.2, np.nan], [0.2, 1, 0.4], [np.nan, 0.4, 1]])
    assert clusters.nearest_pair(found) == (1, 2, 0.4)
    assert clusters.nearest_pair(np.ones((1, 1))) is None
    assert clusters.nearest_pair(np.full((2, 2), np.nan)) is None


def noise(seed: int) -> torch.Tensor:
    return torch.randn(3, 10, 8, generator=torch.Generator().manual_seed(seed))


def cache_of(*values: torch.Tensor) -> KVCache:
    """A layer for each values (3 heads, 10 tokens, 8 dims)."""
    layers = big(len(values), 3, 10, 8).layers
    pairs = zip(layers, values, strict=True)
    return caches.cache(*(replace(layer, values=value) for layer, value in pairs))


def test_groups_are_multiples_of_one_another_also_negative_ones():
    x, y = noise(0), noise(1)
    cache = cache_of(x, y, -3 * x, y + 0.01 * x, noise(2))
    table = table_of(pictures.layer_similarity_matrix, cache)
    assert clusters.groups_of(table, "layers", "value", 0.9) == [[(0,), (2,)], [(1,), (3,)]]
    assert clusters.groups_of(table, "layers", "key", 0.999) == []
    assert clusters.nearest(table, "layers", "value") == "layers 0 and 2 (cosine -1.00)"


def test_groups_of_heads_and_tokens_name_them_as_the_cache_does():
    x = noise(0)
    x[2] = 5 * x[0]
    x[:, 7] = -x[:, 3]
    cache = cache_of(noise(5), x)
    heads = similarity.head_similarity(cache, ("value",), torch.arange(10))
    assert clusters.groups_of(heads, "heads", "value", 0.99) == [[(1, 0), (1, 2)]]
    assert (
        clusters.nearest(heads, "heads", "value") == "heads 1:0 and 1:2 (layer:head) (cosine 1.00)"
    )
    tokens = similarity.token_similarity(cache_of(x), ("value",), torch.arange(1, 10))
    assert clusters.groups_of(tokens, "tokens", "value", 0.99) == [[(3,), (7,)]]
    assert clusters.nearest(tokens, "tokens", "value") == "tokens 3 and 7 (cosine -1.00)"


def test_where_nothing_can_be_compared_there_is_no_nearest_pair_and_no_group():
    cache = caches.SHAPES["one token"]()
    table = table_of(pictures.layer_similarity_matrix, cache)
    assert clusters.nearest(table, "layers", "key") is None
    assert clusters.groups_of(table, "layers", "key", 0.5) == []
    mixed = table_of(pictures.layer_similarity_matrix, caches.mixed())  # no two layers of one shape
    assert clusters.nearest(mixed, "layers", "key") is None
    assert clusters.groups_of(mixed, "layers", "key", 0.5) == []
