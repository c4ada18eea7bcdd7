"""The frontier, what fits a budget and what is closest to it, and the benchmark that draws it."""

import itertools
import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks import frontier
from compression.studies.frontier import bits_at, bits_by_family, closest, fitting, with_frontier


def settings(pairs) -> pd.DataFrame:
    table = pd.DataFrame(pairs, columns=["bits_per_value", "kl_mean_nats"])
    table["label"] = [f"s{i}" for i in range(len(table))]
    return table.assign(bytes_per_token=100 * table["bits_per_value"])


def test_the_frontier_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 6, size=(40, 2)).astype(float)
    table = with_frontier(settings(pairs)).set_index("label")
    for i, j in itertools.product(range(40), repeat=2):
        a, b = pairs[i], pairs[j]
        beats = (b <= a).all() and (b < a).any()
        assert not (beats and table.loc[f"s{i}", "frontier"])
        if table.loc[f"s{i}", "dominated_by"] == f"s{j}":
            assert beats
    assert (table["frontier"] == (table["dominated_by"] == "")).all()
    assert table["frontier"].any()


def test_what_fits_a_budget():
    table = settings([(1, 0.5), (2, 0.1), (4, 0.02), (8, 0.001)])
    assert fitting(table, max_bits=4)["label"] == "s2"
    assert fitting(table, max_bytes_per_token=250)["label"] == "s1"
    assert fitting(table, max_kl=0.05)["label"] == "s2"
    assert fitting(table, max_bits=5, max_kl=0.5)["label"] == "s2"
    assert fitting(table, max_bits=0.5) is None and fitting(table, max_kl=1e-4) is None


def test_the_closest_to_a_budget_exceeds_it_by_the_least_factor():
    table = settings([(1, 0.5), (2, 0.1), (4, 0.02), (8, 0.001)])
    assert closest(table, max_bits=0.5)["label"] == "s0"
    assert closest(table, max_kl=1e-4)["label"] == "s3"
    # s0 is 5 times too large a loss, s1 twice too many bits, s2 four times
    assert closest(table, max_bits=1, max_kl=0.1)["label"] == "s1"
    rng = np.random.default_rng(1)
    table = settings(rng.uniform(0.1, 9, size=(30, 2)))
    limits = {"max_bits": 0.05, "max_bytes_per_token": 3.0, "max_kl": 0.01}
    assert fitting(table, **limits) is None
    columns = ("bits_per_value", "bytes_per_token", "kl_mean_nats")
    worst = [
        max(row[c] / limit for c, limit in zip(columns, limits.values(), strict=True))
        for _, row in table.iterrows()
    ]
    assert closest(table, **limits)["label"] == f"s{int(np.argmin(worst))}"


def test_bits_of_families_that_reach_over_a_loss_come_fewest_first():
    one, other = settings([(4, 0.1), (8, 0.001)]), settings([(1, 0.1), (2, 0.001)])
    short = settings([(3, 0.1), (5, 0.05)])
    named = {"one": one, "other": other, "short": short}
    table = pd.concat([rows.assign(family=name) for name, rows in named.items()])
    found = bits_by_family(table, 0.01)
    assert list(found) == ["other", "one"]
    assert found == {name: bits_at(named[name], 0.01) for name in found}


def test_bits_at_a_loss_lie_between_the_settings_next_to_it():
    table = settings([(1, 0.1), (2, 0.01), (4, 0.001)])
    assert bits_at(table, 0.01) == pytest.approx(2)
    assert bits_at(table, 10**-2.5) == pytest.approx(3)
    assert np.isnan(bits_at(table, 0.5)) and np.isnan(bits_at(table, 1e-5))


@pytest.fixture
def benchmark(tiny_model, tmp_path, monkeypatch):
    """Exit code of the benchmark on a file of this text."""
    monkeypatch.setenv("KV_CACHE_HOME", str(tmp_path / "home"))

    def go(text: str, *flags: str) -> int:
        file = tmp_path / "wiki.raw"
        file.write_text(text)
        where = ["--text_file", str(file), "--model", str(tiny_model), "--methods", "int8,recent"]
        where += ["--context_tokens", "80", "--score_tokens", "8"]
        where += ["--output_dir", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["frontier", *where, *flags])
        return frontier.main()

    return go


ARTICLE = "The cache of a model holds keys and values. " * 3


@pytest.mark.parametrize(
    ("text", "flags", "says"),
    [
        ("No title.\n", [], "has no line of the form ` = Title = `"),
        (" = One = \nToo short.\n", [], "need a text of 89 tokens, the longest here has 19"),
        (
            f" = One = \n{ARTICLE}\n",
            ["--skip_articles", "1"],
            "--skip_articles 1 leaves none of the 1 articles",
        ),
    ],
)
def test_the_benchmark_says_what_it_cannot_measure(benchmark, capsys, text, flags, says):
    assert benchmark(text, *flags) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_the_benchmark_skips_articles_and_says_so(benchmark, capsys, tmp_path):
    text = "".join(f" = Title {i} = \n{i} {ARTICLE}\n" for i in range(4))
    assert benchmark(text, "--skip_articles", "1", "--num_samples", "2") == 0
    rows = pd.read_csv(tmp_path / "out/frontier_80_texts.csv")
    assert set(rows["index"]) == {1, 2} and set(rows["title"]) == {"Title 1", "Title 2"}
    table = pd.read_csv(tmp_path / "out/frontier_80.csv")
    assert (table["texts"] == 2).all() and set(table["family"]) == {"none", "int8", "recent"}
    assert "2 articles from #1 on · 80 tokens" in capsys.readouterr().out
    assert benchmark(text, "--num_samples", "1", "--unspaced") == 0
    assert "1 articles, spaced as people write · 80 tokens" in capsys.readouterr().out
    assert (tmp_path / "out/frontier_80_unspaced.csv").exists()
