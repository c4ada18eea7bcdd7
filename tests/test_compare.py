"""Settings, budgets, kept rows, needles, and going on from a restored cache."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import config
from compression import presets
from compression.evaluate import Judge
from compression.methods import METHODS
from config import UsageError
from data.extraction import prefill
from data.needle import DEPTHS, needles
from data.scoring import Continuation
from tests import families
from tests.commands import files_below
from tests.test_scoring import scored


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


def test_quick_takes_fewer_settings_of_families_that_are_named_too():
    quick = presets.chosen(None, quick=True)
    assert set(quick) == {f for f in presets.FAMILIES if presets.QUICK.get(f, True)}
    assert set(presets.chosen(None, quick=True, levels=(0.3,))) == set(quick)
    for family, settings in presets.FAMILIES.items():
        (found,) = [v for k, v in presets.chosen([family], True).items() if k == family]
        few = presets.QUICK.get(family, tuple(settings)) or tuple(settings)[:1]
        assert tuple(found) == few
    at = presets.chosen(["key_diff"], quick=True, levels=(0.3, 0.2))
    assert list(at["key_diff"]) == ["key_diff 0.3", "key_diff 0.2"]


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
    for said in (
        "Frontier",
        "Check: ",
        "Noise: over 2 texts",
        "Within the budget",
        "On 1 GiB",
        "Needles",
        "From the",
    ):
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


def test_quick_means_fewer_texts_and_tokens_unless_they_are_asked_for(mode, tmp_path, monkeypatch):
    assert mode("compare", "--quick", "--methods", "recent", "--context_tokens", "100") == 0
    rows = pd.read_csv(tmp_path / "out/compare/texts.csv")
    assert rows["title"].nunique() == 2 and (rows["scored_tokens"] == 128).all()
    flags = ["--quick", "--methods", "recent", "--context_tokens", "100", "--score_tokens", "10"]
    assert mode("compare", *flags) == 0
    rows = pd.read_csv(tmp_path / "out/compare/texts.csv")
    assert (rows["scored_tokens"] == 10).all()
    # What is asked for counts, even where it is what there would be without --quick
    monkeypatch.setattr(config, "NUM_SAMPLES", 3)
    monkeypatch.setattr(config, "SCORE_TOKENS", 12)
    asked = ["--num_samples", "3", "--score_tokens", "12"]
    assert mode("compare", *flags[:5], *asked) == 0
    rows = pd.read_csv(tmp_path / "out/compare/texts.csv")
    assert rows["title"].nunique() == 3 and (rows["scored_tokens"] == 12).all()


def test_a_budget_nobody_reaches_names_the_closest_and_keeps_the_results(mode, tmp_path, capsys):
    flags = [*LENGTHS, "--methods", "svd", "--max_bits", "0.01", "--quick"]
    assert mode("compare", *flags) == 2
    assert "No setting measured fits --max_bits 0.01; the closest is svd" in capsys.readouterr().err
    assert (tmp_path / "out/compare.json").exists()


@pytest.mark.parametrize("gib", [1e-4, 2.2e-4, 1])
def test_tokens_on_a_card_are_what_the_bytes_beside_the_weights_hold(mode, capsys, tmp_path, gib):
    flags = [*LENGTHS, "--methods", "coded", "--quick", "--memory_gib", str(gib)]
    assert mode("compare", *flags) == 0
    table = pd.read_csv(tmp_path / "out/compare/compare.csv")
    (said,) = [x for x in verdict(tmp_path) if "GiB" in x]
    n_weights = sum(w.numel() for w in families.model("llama_gqa").parameters())
    room = gib * 2**30 - 2 * n_weights
    once = table["per_model_bytes"].max()
    if room <= 0:
        assert "does not hold the weights alone" in said
    elif room <= once:
        assert "does not fit beside the weights" in said
    else:
        best = table[table["family"] != "none"].sort_values("stored_bytes").iloc[0]
        tokens = (room - once) / best["bytes_per_token"]
        assert (
            f"with {best['label']}, the smallest that costs at most KL 0.01, {tokens:,.0f} ("
            in said
        )
        assert tokens > 256 and "since the model has 256 positions" in said
    assert gib in (1e-4, 1) or 0 < room <= once  # each of the three is met once


def verdict(folder) -> list[str]:
    return json.loads((folder / "out/compare.json").read_text())["verdict"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare", "--methods", "zip"], "--methods: zip is none of"),
        (["compare", "--methods", "none"], "give a method to compare with it"),
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
