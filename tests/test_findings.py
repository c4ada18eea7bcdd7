"""The tables of each focus, and what is said of them."""

from itertools import chain

import pandas as pd
import pytest
import torch

from analysis.advice import recommendations
from analysis.findings import key_findings, steady_head
from analysis.margins import told_apart
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
    separate = {focus: tables(a_subject, focus) for focus in FOCUSES}
    whole = tables(a_subject, "all")
    sentences = [key_findings(made, 0.8, 0.2, 3) for made in separate.values()]
    assert all(sentences) and key_findings(whole, 0.8, 0.2, 3) == list(chain(*sentences))
    advice = {focus: recommendations(made, 0.8) for focus, made in separate.items()}
    assert advice.pop("cache") == []  # which shows, and recommends nothing
    assert [len(lines) for lines in advice.values()] == [1] * len(advice)
    assert recommendations(whole, 0.8) == list(chain(*advice.values()))


def test_layers_and_heads_are_named_with_their_numbers():
    made = tables(subject(), "all")
    statistics = made["layers/layer_statistics"].query("kind == 'key'")
    best = statistics.loc[statistics["sparsity"].idxmax()]
    first = key_findings(made, 0.8, 0.2, 1)[0]
    second = statistics.nlargest(2, "sparsity").iloc[1]
    assert first == (
        f"Sparsest layers by keys: {best['layer']} ({best['sparsity']:.1%}); "
        f"next {second['layer']} ({second['sparsity']:.1%})."
    )
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
    assert found[0].startswith("Sparsest layers by keys: 2 (")
    assert any("position 4 “w4” (100.0% of the attention on average" in line for line in found)
    assert any(
        "Value dimensions, over all layers and heads: 1 of 8 are sparse" in line for line in found
    )
    assert any(
        "try removing 0 of the keys and 1 of the values" in a for a in recommendations(made, 0.8)
    )


def tokens_of(n_tokens: int, received: torch.Tensor):
    """Tables of a cache of one layer and head whose tokens receive this attention."""
    cache = caches.cache(caches.layer(0, 1, n_tokens, (8, 8)))
    watched = with_attention(cache, [received[None]])
    return tables(Subject(sweep(watched, 1.0), words(cache)), "tokens")


def sink_line(made) -> str:
    (line,) = [line for line in key_findings(made, 0.8, 0.2, 2) if "even share" in line]
    return line


def even_shares(n_tokens: int) -> torch.Tensor:
    """Mean over the queries that can see a token of the share that it has of an even spread."""
    seen = torch.ones(n_tokens, n_tokens, dtype=torch.float64).tril()
    return (seen / seen.sum(1, keepdim=True)).sum(0) / seen.sum(0)


def test_an_even_spread_of_attention_has_no_sinks():
    line = sink_line(tokens_of(200, even_shares(200).float()))
    assert line.startswith("No attention sinks: ") and "1.0 times the even share" in line


def test_in_a_short_text_it_is_not_denied_that_there_are_sinks():
    received = torch.full((10,), 0.03)
    received[0] = 0.74
    line = sink_line(tokens_of(10, received))
    assert line.startswith("Too few tokens to tell attention sinks: ")
    assert "Position 0 “w0” (74.0% of the attention on average, 2.5 times the even share)" in line


def test_all_sinks_are_named_and_kept():
    received = even_shares(400).float() / 2
    received[[0, 7, 9]] = torch.tensor([0.3, 0.2, 0.25])
    made = tokens_of(400, received)
    line = sink_line(made)
    assert "3 tokens, position 0 “w0” (30.0% " in line
    assert ", 9 “w9” (25.0% " in line and "and 1 more" in line
    (advice,) = [line for line in recommendations(made, 0.8) if line.startswith("Tokens")]
    assert "keep the attention sinks exact (position 0, 9, 7); " in advice
    table = made["tokens/token_position_importance"]
    others = table[table["well_seen"] & ~table["position"].isin([0, 7, 9])]["importance"]
    assert f"score below {others.quantile(0.1):.2f}" in advice


def test_a_short_text_ranks_no_tokens():
    made = tokens_of(50, torch.full((50,), 0.02))
    assert any(
        line.startswith("Tokens are not ranked: of 50 ") for line in key_findings(made, 0.8, 0.2, 5)
    )
    assert any("too short to tell" in line for line in recommendations(made, 0.8))
    assert any(
        "Most important" in x
        for x in key_findings(tokens_of(128, torch.full((128,), 0.02)), 0.8, 0.2, 5)
    )


def heads_table(*heads: tuple[float, float]) -> pd.DataFrame:
    """head_pruning_potential of heads of these sparsities and deviations, keys and values alike."""
    rows = [
        {"head": i, "kind": kind, "sparsity_mean": mean, "sparsity_std": std}
        for i, (mean, std) in enumerate(heads)
        for kind in ("key", "value")
    ]
    return pd.DataFrame(rows)


def test_the_steadiest_head_is_called_so_only_among_those_it_is_compared_with():
    def said(*heads):
        return key_findings({"heads/head_pruning_potential": heads_table(*heads)}, 0.8, 0.2, 5)[0]

    alone = said((0.3, 0.09), (0.1, 0.01), (0.1, 0.02))
    assert alone.startswith("Of 3 KV heads only 0 is sparser than their mean of 16.7%: 30.0%, ")
    assert "deviation of 9.0% over layers (others: 1.0% to 2.0%)" in alone
    of_two = said((0.3, 0.09), (0.3, 0.04), (0.1, 0.01))
    assert of_two.startswith("Of the 2 of 3 KV heads that are as sparse as their mean of 23.3% or")
    assert "1 varies least" in of_two and of_two.endswith("next 0 with 9.0%.")
    assert said((0.3, 0.09)).startswith("The one KV head: sparsity 30.0%")


def test_the_head_to_try_is_named_with_why():
    def advised(*heads):
        return recommendations({"heads/head_pruning_potential": heads_table(*heads)}, 0.8)

    assert advised((0.3, 0.1), (0.1, 0.1)) == [
        "Heads: try KV head 0 first, the only one that is sparser than their mean."
    ]
    (of_two,) = advised((0.3, 0.1), (0.3, 0.05), (0.1, 0.0))
    assert "try KV head 1 first; it is as sparse" in of_two and "varies least" in of_two
    assert advised((0.3, 0.1)) == ["Heads: none to try, there is one KV head in a layer."]


def test_layers_are_advised_with_their_places_by_keys_and_by_values():
    sparsity = {"key": [0.1, 0.4, 0.3, 0.2], "value": [0.9, 0.3, 0.1, 0.0]}
    table = pd.DataFrame(
        [
            {"layer": i, "kind": kind, "sparsity": x}
            for kind, each in sparsity.items()
            for i, x in enumerate(each)
        ]
    )
    (line,) = recommendations({"layers/layer_statistics": table}, 0.8)
    assert line == (
        "Layers: try 0, 1, 2 first, of 4 layers the sparsest by the mean of keys and values "
        "(places 4, 1, 2 by keys and 1, 2, 3 by values alone)."
    )


def test_a_constant_cache_is_described_without_its_undefined_measures():
    cache = caches.alike()
    for layer in cache.layers:
        layer.keys.zero_()
        layer.values.zero_()
    made = tables(Subject(sweep(cache, 1.0), words(cache)), "layers")
    assert "100.0%" in key_findings(made, 0.8, 0.2, 1)[0]
    assert recommendations(made, 0.8)


@pytest.mark.parametrize(
    ("numbers", "digits"),
    [([0.391, 0.388], 3), ([0.41, 0.39], 2), ([0.39004, 0.39001], 2), ([0.39], 2), ([0.3, 0.3], 2)],
)
def test_what_comes_next_reads_differently_where_four_digits_can_tell(numbers, digits):
    assert told_apart(numbers, 2) == digits
