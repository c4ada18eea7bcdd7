"""Pictures of the cache itself: the table's entries, on a scale for outliers and the rest."""

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.cached_entries import USUAL, Shown, cached_entries
from data.cache import KVCache
from tests import caches
from tests.drawn import ABOUT, is_within, texts_of
from visualization.catalogue import PICTURES


def tables(cache: KVCache, shown: Shown = USUAL) -> dict[str, pd.DataFrame]:
    return cached_entries(cache, caches.words(cache), shown)


def picture(stem: str, cache: KVCache):
    return PICTURES[stem](tables(cache)[stem], ABOUT)


def with_outliers(tokens: int = 300) -> KVCache:
    """Dimension 5 is large everywhere, dimension 2 at one token alone."""
    layer = caches.layer(0, 1, tokens, (32, 32))
    layer.keys[..., 5] += 60
    layer.keys[:, 7, 2] = 90
    return caches.cache(layer)


def test_the_pictures_show_the_entries_of_the_tables():
    cache = with_outliers()
    table = tables(cache)["cache/keys"]
    stored, undone = picture("cache/keys", cache).axes[:2]
    for ax, kind in ((stored, "key"), (undone, "unrotated_key")):
        expected = table[table["kind"] == kind].filter(regex=r"^dim_\d+$")
        np.testing.assert_array_equal(ax.images[0].get_array(), expected)
    assert stored.images[0].norm is undone.images[0].norm
    (values, *_) = picture("cache/values", cache).axes
    np.testing.assert_array_equal(values.images[0].get_array(), cache.layers[0].values[0])


def test_outliers_are_seen_and_the_rest_is_not_flattened():
    ax = picture("cache/keys", with_outliers()).axes[0]
    image = ax.images[0]
    assert image.norm(0) == pytest.approx(0.5) and image.norm.vmin == -image.norm.vmax
    colour = image.cmap(image.norm(image.get_array()))[..., :3].sum(-1)  # 3 is white
    usual = np.delete(image.get_array().data, 5, axis=1)[10:]
    ends = np.percentile(usual, [10, 90])  # on an even scale they would look alike
    assert np.ptp(image.norm(ends).data) > 10 * np.ptp(ends) / (2 * image.norm.vmax)
    assert colour[:, 5].max() < 1 < np.median(colour)


def test_channels_that_are_large_everywhere_are_named_and_those_at_one_token_are_not():
    written = texts_of(picture("cache/keys", with_outliers()))
    (stored,) = [t for t in written if t.startswith("outlier dimensions") and t.endswith(": 5")]
    assert stored
    values = texts_of(picture("cache/values", with_outliers()))
    assert "no dimension's median is above 3 times the usual" in values


def test_rows_name_their_tokens_or_how_many_they_are_of():
    few = picture("cache/values", caches.alike()).axes[0]
    assert [t.get_text() for t in few.get_yticklabels()] == [f"{i}: w{i}" for i in range(10)]
    many = picture("cache/values", caches.cache(caches.layer(0, 1, 2000, (4, 4)))).axes[0]
    assert "each row: of 4 neighbours, the entry farthest from 0" in many.get_ylabel()
    many.figure.canvas.draw()
    places = {t.get_text() for t in many.get_yticklabels() if t.get_text()}
    assert places and all(int(place) % 4 == 0 for place in places)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("none", "This model does not rotate its keys"),
        ("not known", "What rotated these keys is not known"),
    ],
)
def test_it_is_said_why_there_are_no_unrotated_keys(state, says):
    table = tables(caches.alike())["cache/keys"]
    table = table[table["kind"] == "key"].assign(rotary=state)
    assert says in " ".join(texts_of(PICTURES["cache/keys"](table, ABOUT)))


def zeros() -> KVCache:
    layer = caches.layer(0, 1, 5, (4, 4))
    layer.keys.zero_(), layer.values.zero_()
    return caches.cache(layer)


AWKWARD = {
    "zeros": zeros,
    "evicted": lambda: caches.with_keep(caches.alike(), torch.zeros(10, dtype=torch.bool)),
    "one entry a head": caches.SHAPES["one entry a head"],
    "wide": lambda: caches.cache(caches.layer(0, 1, 40, (576, 64))),
    "long": lambda: caches.cache(caches.layer(0, 1, 8192, (64, 64))),
}


@pytest.mark.parametrize("stem", ["cache/keys", "cache/values"])
@pytest.mark.parametrize("shape", AWKWARD)
def test_it_keeps_within_its_figure(shape, stem):
    figure = picture(stem, AWKWARD[shape]())
    assert is_within(figure)
    assert max(len(ax.images[0].get_array()) for ax in figure.axes if ax.images) <= 512
