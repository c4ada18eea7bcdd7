"""The frontier, budgets, kept rows, needles, and going on from a restored cache."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch

from compression import presets
from compression.evaluate import Judge
from compression.frontier import bits_at, fitting, with_frontier
from compression.methods import METHODS
from config import UsageError
from data.extraction import prefill
from data.needle import DEPTHS, needles
from data.scoring import Continuation
from tests import families
from tests.commands import files_below
from tests.test_scoring import scored


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


def test_bits_at_a_loss_lie_between_the_settings_next_to_it():
    table = settings([(1, 0.1), (2, 0.01), (4, 0.001)])
    assert bits_at(table, 0.01) == pytest.approx(2)
    assert bits_at(table, 10**-2.5) == pytest.approx(3)
    assert np.isnan(bits_at(table, 0.5)) and np.isnan(bits_at(table, 1e-5))


def test_every_preset_names_a_method_and_its_settings():
    for family, each in presets.FAMILIES.items():
        for label, (name, values) in each.items():
            fields = METHODS[name].__dataclass_fields__
            assert set(values) <= set(fields), (family, label)
    labels = [label for each in presets.FAMILIES.values() for label in each]
    assert len(labels) == len(set(labels))
    for family, kept in presets.QUICK.items():
        assert set(kept) <= set(presets.FAMILIES[family])
    with pytest.raises(UsageError, match="--methods: zip is none of none, coded"):
        presets.chosen(["zip"], quick=False)
    assert list(presets.chosen(["recent"], quick=False)) == ["none", "recent"]
    at = presets.chosen(["recent", "kivi"], quick=False, levels=(0.3,))
    assert list(at["recent"]) == ["recent 0.3"] and len(at["kivi"]) == 3
    assert at["recent"]["recent 0.3"][1]["keep"] == 0.3


def test_needles_stand_at_their_depths_and_the_answer_ends_the_question():
    loaded = families.loaded("llama_gqa")
    ids = families.token_ids(150)
    for needle, depth in zip(needles(loaded, ids, 150), DEPTHS, strict=True):
        assert len(needle.context) == 150 and needle.depth == depth
        text = loaded.tokenizer.decode(needle.context)
        answer = loaded.tokenizer.decode(needle.follows[-needle.n_answer :]).strip()
        assert answer.isdigit() and f"is {answer}. Remember it." in text
        fact = len("\nThe secret number of Amber is 12345. Remember it.\n")
        at = next(i for i in range(150) if not torch.equal(needle.context[: i + 1], ids[: i + 1]))
        assert abs(at - depth * (150 - fact)) <= 4


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama_gqa"])
def test_needles_end_with_the_models_positions(name, caplog):
    loaded, ids = families.loaded(name), families.token_ids(256)
    caplog.clear()  # of what loading had to say
    asked = max(len(needle.follows) for needle in needles(loaded, ids, 100))
    most = loaded.max_positions - asked
    (*_, last) = needles(loaded, ids, most)
    start = prefill(loaded, last.context)
    judge = Judge(start.cache, Continuation(loaded, start.past, last.follows))
    assert 0 <= judge.recall(judge.cache, last.n_answer)[1] <= 1
    assert not caplog.messages
    assert needles(loaded, ids, most + 1) == []
    assert needles(loaded, ids, 20) == []
    beyond, short = caplog.messages
    assert f"({asked}) are beyond the 256 positions of {name}" in beyond
    assert "longer than the context of 20" in short


def test_recall_is_the_models_own_probability_of_the_answer():
    _, ids, start, continuation = scored("llama_gqa")
    judge = Judge(start.cache, continuation)
    right, probability = judge.recall(judge.cache, 3)
    logs = continuation.log_probabilities(judge.cache)[-3:]
    expected = sum(logs[i, ids[-3 + i]].item() for i in range(3))
    assert probability == pytest.approx(np.exp(expected), rel=1e-4) and not right


LENGTHS = ["--context_tokens", "120", "--score_tokens", "12", "--num_samples", "2"]


def test_compare_measures_draws_and_repeats_from_kept_rows(mode, tmp_path, capsys):
    flags = [*LENGTHS, "--methods", "recent,svd,int8", "--max_bits", "10", "--memory_gib", "1"]
    assert mode("compare", *flags, "--show_generation", "5") == 0
    out = tmp_path / "out"
    stems = [f"compare/{name}" for name in ("pareto", "perplexity", "needle")]
    assert files_below(out) == {f"{stem}.{end}" for stem in stems for end in ("png", "csv")} | {
        "compare/compare.csv",
        "compare/texts.csv",
        "compare.json",
    }
    printed = capsys.readouterr().out
    for said in ("Frontier", "Noise floor", "Within the budget", "On 1 GiB", "Needles", "From the"):
        assert said in printed
    table = pd.read_csv(out / "compare/compare.csv")
    assert set(table["family"]) == {"none", "recent", "svd", "int8"}
    assert mode("compare", *flags) == 0
    again = pd.read_csv(out / "compare/compare.csv")
    pd.testing.assert_frame_equal(table, again)  # times and all: nothing was measured anew
    manifest = json.loads((out / "compare.json").read_text())
    assert len(manifest["texts"]) == 2


def test_near_the_end_of_the_positions_needles_are_left_out(mode, tmp_path, capsys):
    flags = ["--context_tokens", "235", "--score_tokens", "20", "--num_samples", "1"]
    assert mode("compare", *flags, "--methods", "int8", "--show_generation", "20") == 0
    said = capsys.readouterr()
    assert said.err.count("Needles are left out") == 1 and "From the untouched" in said.out
    assert (tmp_path / "out/compare/compare.csv").exists()
    assert not (tmp_path / "out/compare/needle.png").exists()


def test_quick_means_fewer_texts_and_tokens_unless_they_are_asked_for(mode, tmp_path):
    assert mode("compare", "--quick", "--methods", "recent", "--context_tokens", "100") == 0
    rows = pd.read_csv(tmp_path / "out/compare/texts.csv")
    assert rows["title"].nunique() == 2 and (rows["scored_tokens"] == 128).all()
    flags = ["--quick", "--methods", "recent", "--context_tokens", "100", "--score_tokens", "10"]
    assert mode("compare", *flags) == 0
    rows = pd.read_csv(tmp_path / "out/compare/texts.csv")
    assert (rows["scored_tokens"] == 10).all()


def test_a_budget_nobody_reaches_names_the_closest_and_keeps_the_results(mode, tmp_path, capsys):
    flags = [*LENGTHS, "--methods", "svd", "--max_bits", "0.01", "--quick"]
    assert mode("compare", *flags) == 2
    assert "No setting measured fits --max_bits 0.01; the closest is svd" in capsys.readouterr().err
    assert (tmp_path / "out/compare.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare", "--methods", "zip"], "--methods: zip is none of"),
        (["compare", "--max_bits", "-1"], "--max_bits is -1"),
        (["compare", "--context_tokens", "50"], "too short to compare"),
        (["compare", "--context_tokens", "300"], "beyond the 256 positions"),
        (["compare", "--show_generation", "-1"], "--show_generation is -1"),
        (["compare", *LENGTHS, "--show_generation", "136"], "--show_generation 136 are beyond"),
    ],
)
def test_wrong_input(mode, capsys, arguments, says):
    assert mode(*arguments) == 2
    assert says in capsys.readouterr().err
