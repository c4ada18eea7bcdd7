"""The tables of each focus, and what is said of them."""

import pytest
import torch

from analysis.findings import key_findings, recommendations
from analysis.measures import sweep
from analysis.tables import FOCUSES, Subject, tables
from tests import caches
from tests.caches import PERCENTAGE, random_attention, with_attention, words


def subject():
    cache = caches.alike()
    watched = with_attention(cache, random_attention(cache))
    return Subject(sweep(watched, PERCENTAGE), words(cache))


def test_all_is_every_focus_together():
    a_subject = subject()
    separate = {stem for focus in FOCUSES for stem in tables(a_subject, focus)}
    assert set(tables(a_subject, "all")) == separate


@pytest.mark.parametrize("focus", ["all", *FOCUSES])
def test_findings_speak_of_what_was_looked_at(focus):
    made = tables(subject(), focus)
    found = " ".join(key_findings(made, 0.8, 0.2, 3))
    advice = recommendations(made, 0.8)
    spoken = {"layers": "layers by", "heads": "KV head", "tokens": "tokens", "embeddings": "dim"}
    for name, phrase in spoken.items():
        assert (phrase in found) == (focus in ("all", name)), name
    assert len(advice) == (4 if focus == "all" else 1)


def test_findings_name_the_planted_winners():
    cache = caches.cache(*(caches.layer(i, 3, 100, (8, 8)) for i in range(4)))
    for i, layer in enumerate(cache.layers):
        layer.keys[1] *= 0.01  # head 1 is sparse in every layer
        layer.values[:, :, 5] = 0  # dimension 5 of the values is empty
        if i == 2:
            layer.keys[:] *= 0.01
            layer.values[:] *= 0.01
    attention = [torch.zeros(3, 100) for _ in cache.layers]
    for received in attention:
        received[:, 4] = 1.0  # everybody looks at token 4
    made = tables(Subject(sweep(with_attention(cache, attention), 1.0), words(cache)), "all")
    found = key_findings(made, 0.8, 0.2, 1)
    assert found[0].startswith("Most prunable layers by key sparsity: 2 (")
    assert any("position 4 “w4”, which queries give 100.0%" in line for line in found)
    assert any("Value dimensions: 1 of 8 are sparse" in line for line in found)
    assert any(
        "try removing 0 of the keys and 1 of the values" in a for a in recommendations(made, 0.8)
    )


def test_an_even_spread_of_attention_has_no_sinks():
    cache = caches.alike()
    even = torch.full((3, 10), 0.1)
    made = tables(Subject(sweep(with_attention(cache, [even] * 4), 1.0), words(cache)), "tokens")
    assert any("No attention sinks" in line for line in key_findings(made, 0.8, 0.2, 1))


def test_a_constant_cache_is_described_without_its_undefined_measures():
    cache = caches.alike()
    for layer in cache.layers:
        layer.keys.zero_()
        layer.values.zero_()
    made = tables(Subject(sweep(cache, 1.0), words(cache)), "layers")
    assert "100.0%" in key_findings(made, 0.8, 0.2, 1)[0]
    assert recommendations(made, 0.8)
