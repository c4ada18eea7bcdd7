"""Settings, budgets, kept rows, needles, and going on from a restored cache."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import config
from compression import presets
from compression.base import Uncompressed
from compression.evaluate import Judge
from compression.methods import METHODS
from compression.pruning import EvictedParts
from config import UsageError
from data.extraction import prefill
from data.needle import DEPTHS, needles
from data.resume import as_past, greedy, side_by_side
from data.rows import Rows, model_identity
from tests import families
from tests.commands import files_below, run
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


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KV_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_rows_are_kept_by_all_that_they_depend_on(empty_cache):
    ids = torch.arange(9)
    rows = Rows("model", ids, 5)
    one, other = METHODS["pca"](0.5), METHODS["pca"](0.25)
    assert rows.get(one) is None
    rows.put(one, {"kl": 0.5})
    assert rows.get(one) == {"kl": 0.5} and rows.get(other) is None
    assert rows.complete([one]) and not rows.complete([one, other])
    for elsewhere in (Rows("other", ids, 5), Rows("model", ids, 4), Rows("model", ids + 1, 5)):
        assert elsewhere.get(one) is None
    (file,) = (empty_cache / "rows").iterdir()
    file.write_text("{")
    assert rows.get(one) is None


def test_kept_rows_are_taken_and_new_ones_kept(empty_cache):
    _, ids, start, continuation = scored("llama_gqa")
    judge, rows = Judge(start.cache, continuation), Rows("m", ids, 40)
    first = judge.scores([Uncompressed()], rows)
    rows.put(Uncompressed(), first[0] | {"ratio": 7})
    again = judge.scores([Uncompressed(), METHODS["pca"]()], rows)
    assert again[0]["ratio"] == 7 and rows.complete([METHODS["pca"]()])


def test_a_models_identity_follows_its_weights():
    one, same = families.loaded("llama_gqa"), families.loaded("llama_gqa")
    assert model_identity(one) == model_identity(same)
    same.model.lm_head.weight.data[0, 0] += 1
    assert model_identity(one) != model_identity(same)


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


def test_recall_is_the_models_own_probability_of_the_answer():
    _, ids, start, continuation = scored("llama_gqa")
    judge = Judge(start.cache, continuation)
    right, probability = judge.recall(judge.cache, 3)
    logs = continuation.log_probabilities(judge.cache)[-3:]
    expected = sum(logs[i, ids[-3 + i]].item() for i in range(3))
    assert probability == pytest.approx(np.exp(expected), rel=1e-4) and not right


CONTINUES = ["gpt2", "llama_gqa", "mistral", "gemma3", "qwen3", "deepseek_v3", "phi3", "gpt_oss"]


@pytest.mark.parametrize("name", CONTINUES)
def test_generate_takes_a_restored_cache(name):
    loaded, ids = families.loaded(name), families.token_ids(41)
    restored = Uncompressed().compress(prefill(loaded, ids[:40]).cache).restore()
    with torch.no_grad():
        direct = loaded.model.generate(
            ids[None], max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        resumed = loaded.model.generate(
            ids[None],
            past_key_values=as_past(loaded, restored),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    assert direct.tolist() == resumed.tolist()
    found = greedy(loaded, as_past(loaded, restored), int(ids[-1]), 6)
    assert found == direct[0, 41:].tolist()


def test_what_cannot_be_gone_on_from_is_refused():
    loaded = families.loaded("llama_gqa")
    cache = prefill(loaded, families.token_ids(20)).cache
    with pytest.raises(UsageError, match="evicted entries"):
        as_past(loaded, EvictedParts((0,)).compress(cache).restore())
    hybrid = families.loaded("qwen3_next")
    with pytest.raises(UsageError, match="keeps more than keys and values"):
        as_past(hybrid, prefill(hybrid, families.token_ids(20)).cache)


def test_two_continuations_are_marked_where_they_part():
    loaded = families.loaded("llama_gqa")
    letters = loaded.tokenizer("abcdef")["input_ids"]
    (_, one), (title, two) = side_by_side(loaded, letters[:4], [*letters[:2], *letters[4:]], "x")
    assert (one, two) == ("ab >> cd", "ab >> ef") and "differs at token 3" in title
    (_, one), (title, two) = side_by_side(loaded, letters, letters, "x")
    assert one == two == "abcdef" and "the same throughout" in title


@pytest.fixture
def mode(tiny_model, tmp_path, empty_cache):
    def go(name: str, *flags: str) -> int:
        out = ["--output_dir", str(tmp_path / "out")]
        where = ["--model", str(tiny_model), "--device", "cpu", "--no-use_wikitext"]
        return run("--mode", name, *where, *out, *flags)

    return go


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
    assert gib in (1e-4, 1) or 0 < room <= once  # each of the three is met once


def verdict(folder) -> list[str]:
    return json.loads((folder / "out/compare.json").read_text())["verdict"]


def test_a_stored_prompt_goes_on_as_the_prompt_itself_would(mode, tmp_path, capsys):
    file = tmp_path / "prompt.kv"
    text = ["--prompt", "The cache of a model holds keys and values. " * 3]
    assert mode("store", *text, "--save_compressed", str(file), "--methods", "none") == 0
    assert "1.00 x smaller" in capsys.readouterr().out
    assert mode("store", "--load_compressed", str(file), "--new_tokens", "8") == 0
    said = capsys.readouterr().out
    assert said.strip()
    file.write_bytes(file.read_bytes()[:-1])
    assert mode("store", "--load_compressed", str(file)) == 2
    assert "cannot be read as a compressed cache" in capsys.readouterr().err


def test_a_stored_prompt_of_another_model_is_refused(mode, tmp_path, capsys):
    file = tmp_path / "prompt.kv"
    flags = ["--prompt", "abc", "--save_compressed", str(file), "--methods", "none"]
    assert mode("store", *flags) == 0
    families.save(families.model("gpt2"), tmp_path / "gpt2")
    capsys.readouterr()
    assert mode("store", "--load_compressed", str(file), "--model", str(tmp_path / "gpt2")) == 2
    assert "was made with tiny-llama" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare", "--methods", "zip"], "--methods: zip is none of"),
        (["compare", "--methods", "none"], "give a method to compare with it"),
        (["compare", "--max_bits", "-1"], "--max_bits is -1"),
        (["compare", "--context_tokens", "50"], "too short to compare"),
        (["compare", "--context_tokens", "300"], "beyond the 256 positions"),
        (["compare", "--show_generation", "-1"], "--show_generation is -1"),
        (["store"], "--mode store takes either"),
        (["store", "--load_compressed", "nowhere.kv"], "cannot be read as a compressed cache"),
        (["store", "--save_compressed", "x", "--prompt", "a", "--methods", "none"], "of one token"),
        (["store", "--save_compressed", "x", "--methods", "zip"], "zip is none of"),
    ],
)
def test_wrong_input(mode, capsys, arguments, says):
    assert mode(*arguments) == 2
    assert says in capsys.readouterr().err
