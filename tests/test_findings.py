"""The tables of each focus, and what is said of them."""

from itertools import chain

import torch

from analysis.findings import key_findings, recommendations, steady_head
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


def test_what_is_said_of_all_is_what_is_said_of_each_focus():
    a_subject = subject()
    separate = [tables(a_subject, focus) for focus in FOCUSES]
    whole = tables(a_subject, "all")
    sentences = [key_findings(made, 0.8, 0.2, 3) for made in separate]
    assert all(sentences) and key_findings(whole, 0.8, 0.2, 3) == list(chain(*sentences))
    advice = [recommendations(made, 0.8) for made in separate]
    assert [len(lines) for lines in advice] == [1] * len(FOCUSES)
    assert recommendations(whole, 0.8) == list(chain(*advice))


def test_layers_and_heads_are_named_with_their_numbers():
    made = tables(subject(), "all")
    statistics = made["layers/layer_statistics"].query("kind == 'key'")
    best = statistics.loc[statistics["sparsity"].idxmax()]
    first = key_findings(made, 0.8, 0.2, 1)[0]
    assert first.endswith(f"key sparsity: {best['layer']} ({best['sparsity']:.1%}).")
    heads = made["heads/head_pruning_potential"].groupby("head")[["sparsity_mean", "sparsity_std"]]
    means = heads.mean()
    steadiest = means[means["sparsity_mean"] >= means["sparsity_mean"].mean()]["sparsity_std"]
    head, mean, deviation = steady_head(made["heads/head_pruning_potential"])
    assert head == steadiest.idxmin() and deviation == steadiest.min()
    assert mean == means["sparsity_mean"][head]


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
