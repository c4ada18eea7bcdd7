"""Where bytes go: what the parts of a few methods are called, and of which layers they are."""

import pytest

from compression.coded.calibration import calibrate
from compression.ledger import COLUMNS, HEADER, ledger
from compression.methods.low_rank import CrossLayerSVD
from compression.methods.merging import MergedHeads
from compression.parts import in_words
from compression.registry import make
from tests import caches


def parts(method, cache) -> dict[tuple[str, str, str], int]:
    table = ledger(method.compress(cache))
    assert tuple(table) == COLUMNS
    rows = table[~table["once_per_model"] & (table["part"] != HEADER.words)]
    return {(r.layers, r.kind, r.part): r.bytes for r in rows.itertuples()}


@pytest.mark.parametrize("told", [[], [4], [0, 1, 2], [0, 2, 4, 5, 6, 9], [7, 8, 11, 12]])
def test_layers_in_words_are_these_layers(told):
    back = []
    for run in filter(None, in_words(reversed(told)).split(", ")):
        first, _, last = run.partition("-")
        back += range(int(first), int(last or first) + 1)
    assert back == told


def test_layers_that_share_a_factor_are_named_together():
    cache = caches.mixed()  # layers 0, 2, 3 and 5 of the model, of which 0 holds fewer tokens
    found = parts(CrossLayerSVD(group=2, sink_tokens=2), cache)
    layers = {layer for layer, kind, part in found if part == "factor of tokens"}
    assert layers == {"0", "2-3", "5"}
    assert found["5", "key", "plain tokens"] == 2 * 8 * 2  # tokens x dims x bytes
    idle = parts(CrossLayerSVD(group=4, recent_tokens=6), cache)
    assert not [key for key in idle if key[0] == "0" and key[2] != "plain tokens"]


def test_heads_that_are_merged_are_of_their_layers():
    found = parts(MergedHeads(key_groups=(((0, 1), (3, 2)),)), caches.alike())
    assert found["0, 3", "key", "merged heads"] == 10 * 8 * 2
    assert found["0, 3", "key", "scales"] == 2 * 2
    assert found["0", "key", "heads that are not merged"] == 2 * 10 * 8 * 2


def test_what_is_coded_together_is_of_all_layers_and_means_are_of_their_group():
    cache = caches.watched(caches.alike())
    calibration = calibrate([caches.random_gradients(cache)], "random gradients")
    coded = make("coded", {"step": 0.03}, calibration)
    found = parts(coded, cache)
    assert found["0-3", "both", "magnitudes of columns"] > 0
    assert found["0-3", "both", "integers"] > found["0-3", "both", "states of the entropy coder"]
    assert found["", "", "precision of tokens"] == cache.n_tokens
    assert found["2", "value", "plain tokens"] == 3 * 8 * 2  # heads x dims x bytes, of one token
    table = ledger(coded.compress(cache))
    once = table[table["once_per_model"]]
    assert once["bytes"].sum() == coded.per_model_nbytes
    assert {"basis", "tables of the entropy coder"} < set(once["part"])


def test_parts_of_a_long_text_are_counted_together(monkeypatch):
    cache = caches.watched(caches.alike())
    calibration = calibrate([caches.random_gradients(cache)], "random gradients")
    coded = make("coded_fixed", {"step": 0.03}, calibration)
    whole = parts(coded, cache)
    monkeypatch.setattr("compression.coded.segments.MOST_ENTRIES", cache.n_entries // 2)
    assert whole.keys() == parts(coded, cache).keys()


def test_an_eviction_and_what_follows_it_name_their_own_parts():
    eviction = {"name": "key_diff", "keep": 0.5, "recent_tokens": 0, "sink_tokens": 0}
    method = make("composed", {"eviction": eviction, "then": {"name": "int8"}})
    found = parts(method, caches.alike())
    assert found["1", "both", "mask of tokens"] == 4  # 3 heads x 10 tokens, in bits
    assert found["1", "key", "integers"] == 3 * 5 * 8
    assert found["1", "value", "scales"] == 3 * 5 * 2
