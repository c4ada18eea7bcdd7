"""Settings, budgets, kept rows, needles, and what a comparison says."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

import config
from compression.evaluate import Judge
from compression.ledger import HEADER
from compression.prompts import chosen as stored_as
from compression.registry import METHODS
from compression.scored_tokens import QUANTILES, WORST
from compression.studies import comparison_words, presets
from compression.studies.compare import CompareStudy
from compression.studies.needle import DEPTHS, needles
from compression.studies.run import run as carried_out
from config import UsageError
from data import extraction
from data.corpora import reference_samples
from data.extraction import prefill
from data.scoring import Continuation
from tests import families
from tests.families import scored


def test_every_preset_names_a_method_and_its_settings():
    every = presets.families()
    for family, each in every.items():
        for label, (name, values) in each.items():
            fields = {field.name for field in dataclasses.fields(METHODS[name])}
            assert set(values) <= fields, (family, label)
    labels = [label for each in every.values() for label in each]
    assert len(labels) == len(set(labels))
    for family, kept in presets.QUICK.items():
        assert set(kept) <= set(every[family])
    with pytest.raises(UsageError, match="zip of `methods` is not known: take some of none, coded"):
        presets.chosen(["zip"])
    assert list(presets.chosen(["recent"])) == ["none", "recent"]
    at = presets.chosen(["recent", "kivi"], levels=(0.3,))
    assert list(at["recent"]) == ["recent 0.3"] and len(at["kivi"]) == 3
    assert at["recent"]["recent 0.3"][1]["keep"] == 0.3


def test_quick_takes_fewer_settings_of_families_that_are_named_too():
    every = presets.families()
    quick = presets.chosen(None, quick=True)
    assert set(quick) == {f for f in every if presets.QUICK.get(f, True)}
    assert set(presets.chosen(None, quick=True, levels=(0.3,))) == set(quick)
    assert presets.chosen(None, quick=True, levels=config.LEVELS) == quick  # as the flag says
    for family, settings in every.items():
        (found,) = [v for k, v in presets.chosen([family], True).items() if k == family]
        few = presets.QUICK.get(family, tuple(settings)) or tuple(settings)[:1]
        assert tuple(found) == few
    at = presets.chosen(["key_diff"], quick=True, levels=(0.3, 0.2))
    assert list(at["key_diff"]) == ["key_diff 0.3", "key_diff 0.2"]


def test_constants_of_config_reach_the_presets_as_they_are_now(monkeypatch):
    monkeypatch.setattr(config, "SINK_TOKENS", 3)
    monkeypatch.setattr(config, "RECENT_TOKENS", 17)
    monkeypatch.setattr(config, "LEVELS", (0.9, 0.1))
    every = CompareStudy().settings
    ends = {"sink_tokens": 3, "recent_tokens": 17}
    for family in ("rotated", "svd", "cross_layer_svd", "tucker", "tucker_quantised"):
        for _, settings in every[family].values():
            assert ends.items() <= settings.items(), family
    assert {settings["recent_tokens"] for _, settings in every["kivi"].values()} == {17}
    for family in presets.COMPARED_EVICTIONS:
        assert list(every[family]) == [f"{family} 0.9", f"{family} 0.1"]
        assert {settings["sink_tokens"] for _, settings in every[family].values()} == {3}
    assert presets.smallest_context() == 21
    assert CompareStudy(context_tokens=21).context == 21


@pytest.mark.parametrize("methods", [None, ("coded",), ("coded 3.5e-05",)])
def test_a_prompt_is_stored_in_the_usual_setting_of_coded_however_that_is_asked_for(methods):
    assert stored_as(methods) == ("coded", {"step": 3.5e-5})


def test_quick_means_fewer_texts_and_tokens_unless_they_are_asked_for(monkeypatch):
    def lengths(**given) -> tuple[int, int, int, bool]:
        study = CompareStudy(quick=True, methods=("recent",), **given)
        return study.context, study.n_scored, study.n_texts, study.seeks

    assert lengths() == (512, 128, 2, False)
    assert lengths(context_tokens=100, score_tokens=10) == (100, 10, 2, False)
    # What is asked for counts, even where it is what there would be without --quick
    asked = {"num_samples": config.NUM_SAMPLES, "score_tokens": config.SCORE_TOKENS}
    assert lengths(**asked) == (512, config.SCORE_TOKENS, config.NUM_SAMPLES, False)
    whole = CompareStudy(methods=("recent",))
    assert (whole.context, whole.n_scored) == (config.CONTEXT_TOKENS, config.SCORE_TOKENS)
    assert whole.n_texts == config.NUM_SAMPLES and whole.seeks


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


BITS = {"max_bits": 0.01}
LENGTHS = ["--context_tokens", "100", "--score_tokens", "12", "--num_samples", "2"]
ASKED = ["--methods", "recent,svd,int8", "--max_bits", "10", "--memory_gib", "1"]


@pytest.fixture(scope="module")
def compared(ended):
    return ended("compare", *LENGTHS, *ASKED, "--show_generation", "5")


def test_compare_measures_and_draws(compared):
    stems = [f"compare/{name}" for name in ("pareto", "perplexity", "needle")]
    tables = {"compare/compare.csv", "compare/texts.csv", "cache_inventory.csv", "compare.json"}
    tables |= {"compare/scored_tokens.csv", "compare/byte_ledger.csv"}
    tables |= {"compare/bits_by_token.csv", "report.html"}
    assert compared.code == 0
    assert compared.files == {f"{s}.{end}" for s in stems for end in ("png", "csv")} | tables
    table = compared.table("compare/compare")
    assert set(table["family"]) == {"none", "recent", "svd", "int8"}
    assert (table["texts"] == 2).all() and len(compared.manifest("compare")["texts"]) == 2
    assert set(compared.table("compare/needle")["label"]) == set(table["label"])
    np.testing.assert_allclose(table["bytes_per_token"], table["stored_bytes"] / 100)


def test_what_a_comparison_says_are_the_numbers_of_its_tables(compared):
    table, needle = compared.table("compare/compare"), compared.table("compare/needle")
    said = compared.manifest("compare")["verdict"]
    frontier = table[table["frontier"]]
    named = [f"{r.label} ({r.ratio:.2f} x, KL {r.kl_mean_nats:.4f})" for r in frontier.itertuples()]
    assert said[2].startswith("Reading 100 tokens anew takes ")
    assert said[3] == f"Frontier, smallest first: {', '.join(named)}."
    beaten = table[~table["frontier"]]
    named = [f"{r.label} by {r.dominated_by}" for r in beaten.itertuples()]
    assert said[4].endswith(f": {', '.join(named)}.") and len(beaten)
    assert "Check: the untouched cache through the same path costs KL 0." in said
    costly = table[table["kl_mean_nats"] > 0].sort_values("kl_mean_nats")
    median = costly.iloc[len(costly) // 2]
    share = median["kl_mean_nats_se"] / median["kl_mean_nats"]
    (noise,) = [line for line in said if line.startswith("Noise: over 2 texts")]
    assert f"of {median['label']}, the median" in noise and f"error of {share:.0%} of" in noise
    fits = table[(table["family"] != "none") & (table["bits_per_value"] <= 10)]
    best = fits.loc[fits["kl_mean_nats"].idxmin()]
    assert said[0].startswith(
        f"Take {best['label']}, within --max_bits 10: {best['bytes_per_token']:.0f} bytes per "
        f"token ({best['ratio']:.2f} x smaller, {best['bits_per_value']:.2f} bits per value), "
        f"costs KL {best['kl_mean_nats']:z.4f} ±"
    )
    room = 2**30 - 2 * sum(w.numel() for w in families.model("llama_gqa").parameters())
    (card,) = [line for line in said if line.startswith("On 1 GiB")]
    assert f"with {best['label']} {room / best['bytes_per_token']:,.0f} (" in card
    found = needle.groupby("label")["right"].mean()
    assert f"Needles: the untouched cache finds {found['none']:.0%} of them" in " ".join(said)
    assert f"From {best['label']}, " in compared.printed
    assert all(f"  - {line}" in compared.printed for line in said if "`" not in line)


def test_nothing_is_measured_twice(compared, ended, monkeypatch):
    """Rows of texts and needles are kept: again, only the first text is read, to decide what fits
    it. Times are among the numbers, so that equal tables say that nothing was measured anew."""
    reads, measured = [], []
    genuine = Judge.scored, Judge.recall, extraction.prefill
    monkeypatch.setattr(
        extraction, "prefill", lambda *a, **k: reads.append(a) or genuine[2](*a, **k)
    )
    monkeypatch.setattr(Judge, "scored", lambda *a: measured.append(a) or genuine[0](*a))
    monkeypatch.setattr(Judge, "recall", lambda *a: measured.append(a) or genuine[1](*a))
    again = ended("compare", *LENGTHS, *ASKED)
    assert again.code == 0 and len(reads) == 1 and measured == []
    stems = ["compare", "needle", "texts", "scored_tokens", "byte_ledger", "bits_by_token"]
    for stem in (f"compare/{stem}" for stem in stems):
        pd.testing.assert_frame_equal(compared.table(stem), again.table(stem))


def test_what_tokens_cost_makes_the_figures_of_their_text(compared):
    tokens, texts = compared.table("compare/scored_tokens"), compared.table("compare/texts")
    n_scored = int(texts["scored_tokens"].iloc[0])
    assert len(tokens) == n_scored * len(texts)
    labels = compared.table("compare/compare")[["method", "settings", "label"]]
    texts = texts.fillna("").merge(labels.fillna(""), on=["method", "settings"])
    texts = texts.set_index(["label", "index"]).sort_index()
    groups = tokens.groupby(["label", "text_index"])
    figures = {
        "kl_mean_nats": groups["kl_nats"].mean(),
        **{name: groups["kl_nats"].quantile(share) for name, share in QUANTILES.items()},
        "perplexity_full": np.exp(groups["nats_full"].mean()),
        "perplexity": np.exp(groups["nats"].mean()),
    }
    for name, figure in figures.items():
        np.testing.assert_allclose(figure.sort_index(), texts[name], rtol=1e-5, atol=1e-9)
    first, context = tokens["position"].min(), int(texts["context_tokens"].iloc[0])
    assert first == context + 1 and tokens["position"].max() == context + n_scored


def test_the_bytes_of_a_setting_are_those_of_its_parts(compared):
    parts, texts = compared.table("compare/byte_ledger"), compared.table("compare/texts")
    table = compared.table("compare/compare").set_index("label")
    first = texts[texts["index"] == texts["index"].iloc[0]]
    first = first.assign(label=[label(table, row) for row in first.to_dict("records")])
    assert set(parts["label"]) == set(table.index)
    own = parts[~parts["once_per_model"]]
    assert own.groupby("label")["bytes"].sum().to_dict() == dict(
        zip(first["label"], first["stored_bytes"], strict=True)
    )
    headers = parts[parts["part"] == HEADER.words].set_index("label")["bytes"]
    assert headers.pop("none") == 0 and len(headers) == len(table) - 1 and headers.min() > 0


def test_the_bits_of_tokens_are_those_that_a_setting_stores(compared):
    """Of the first text; int8, which spends as much on each of them, is not there."""
    bits, texts = compared.table("compare/bits_by_token"), compared.table("compare/texts")
    parts, labels = compared.table("compare/byte_ledger"), compared.table("compare/compare")
    stored = parts[~parts["once_per_model"]].groupby("label")["bytes"].sum()
    assert set(bits["label"]) == set(labels.loc[labels["family"].isin(["recent", "svd"]), "label"])
    assert set(bits["text_index"]) == {texts["index"].iloc[0]}
    for name, rows in bits.groupby("label"):
        assert rows["position"].tolist() == list(range(100)) and rows["token"].notna().all()
        assert rows["bits"].sum() == pytest.approx(8 * stored[name])
    recent = bits[bits["label"] == "recent 0.5"].set_index("position")["bits_per_value"]
    assert recent[99] > 16 > 1 > recent[config.SINK_TOKENS]


def label(table: pd.DataFrame, row: dict) -> str:
    same = (table["method"] == row["method"]) & (
        table["settings"].fillna("") == ("" if pd.isna(row["settings"]) else row["settings"])
    )
    (found,) = table.index[same]
    return found


def test_the_worst_tokens_alone_say_what_was_predicted(compared):
    tokens = compared.table("compare/scored_tokens")
    for _, rows in tokens.groupby(["label", "text_index"]):
        told = rows["top"].notna()
        assert told.sum() == min(WORST, len(rows)) and (told == rows["top_full"].notna()).all()
        if not told.all():
            assert rows.loc[told, "kl_nats"].min() >= rows.loc[~told, "kl_nats"].max()
        for said in (*rows.loc[told, "top"], *rows.loc[told, "top_full"]):
            words, shares = zip(*json.loads(said), strict=True)
            assert len(words) == 5 and sorted(shares, reverse=True) == list(shares)
            assert 0 < sum(shares) <= 1 + 1e-4 and all(word.isprintable() for word in words)
    untouched = tokens[tokens["label"] == "none"]
    assert untouched["kl_nats"].eq(0).all() and untouched["top"].equals(untouched["top_full"])


def test_near_the_end_of_the_positions_needles_are_left_out(empty_cache, caplog):
    study = CompareStudy(
        context_tokens=235, score_tokens=20, num_samples=1, methods=("int8",), show_generation=20
    )
    report = carried_out(study, families.loaded("llama_gqa"), reference_samples()).report
    assert [x for x in caplog.messages if "Needles are left out" in x] == caplog.messages[-1:]
    assert "compare/compare" in report.tables and "compare/needle" not in report.tables
    assert next(iter(report.continued)) == "From the untouched cache"


@pytest.mark.parametrize(("budget", "within"), [({}, "1e-30 nats of KL"), (BITS, "the budget")])
def test_where_nothing_can_be_shown_side_by_side_it_is_said(
    empty_cache, monkeypatch, budget, within
):
    monkeypatch.setattr(config, "ACCEPTABLE_KL", 1e-30)
    study = CompareStudy(
        context_tokens=80, score_tokens=8, methods=("svd",), quick=True, show_generation=5, **budget
    )
    report = carried_out(study, families.sharp("llama_gqa"), reference_samples()).report
    assert report.continued == {} and f"no setting is within {within}: " in report.lines[-1]


def test_a_budget_nobody_reaches_names_the_closest_and_keeps_the_results(mode, tmp_path, capsys):
    flags = [*LENGTHS, "--methods", "svd,int8", "--max_bits", "0.01", "--quick"]
    assert mode("compare", *flags) == 2
    table = pd.read_csv(tmp_path / "out/compare/compare.csv")
    least = table.loc[table["bits_per_value"].idxmin()]
    assert (
        f"No setting measured fits --max_bits 0.01; the closest is {least['label']} with "
        f"{least['bits_per_value']:.2f} bits per value" in capsys.readouterr().err
    )
    assert (tmp_path / "out/compare.json").exists()


CARD = {"weight_nbytes": 2**20, "context": 100, "max_positions": 256}


@pytest.mark.parametrize("has_budget", [False, True])
@pytest.mark.parametrize(
    ("mib", "says"),
    [
        (1, "does not hold the weights alone, 0.00 GiB in 16 bits."),
        (2, "what coded stores once for the model, 1.5 MiB, does not fit beside the weights."),
        (4, "coded{} 31,457 (bytes per token as measured at 100 tokens; of several texts, since"),
    ],
)
def test_tokens_on_a_card_are_what_the_bytes_beside_the_weights_hold(mib, says, has_budget):
    table = pd.DataFrame({"original_bytes": [100 * 400]})
    best = pd.Series({"label": "coded", "per_model_bytes": 1.5 * 2**20, "bytes_per_token": 50.0})
    said = comparison_words.on_a_card(
        table, best, memory_gib=mib / 1024, has_budget=has_budget, **CARD
    )
    smallest = f", the smallest that costs at most KL {config.ACCEPTABLE_KL:g},"
    label = "" if has_budget or mib == 1 else smallest
    assert says.replace("coded ", f"coded{label} ").replace("coded{}", f"coded{label}") in said
    if mib > 1:
        tokens = (mib - 1) * 2**20 / 400
        assert f"{tokens:,.0f} tokens of uncompressed cache" in said
    without = comparison_words.on_a_card(table, None, memory_gib=4 / 1024, has_budget=False, **CARD)
    assert without.endswith("tokens of uncompressed cache.")


def test_a_calibration_is_named_and_its_own_texts_are_told_of():
    rows = pd.DataFrame({"text_source": ["WikiText", "prompt"]})
    assert comparison_words.learned_from("9 texts of another", rows).endswith("of another.")
    said = comparison_words.learned_from("9 texts of WikiText", rows)
    assert said.endswith("where the scored texts are from too: on other text they cost more.")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--context_tokens", "300"], "beyond the 256 positions"),
        ([*LENGTHS, "--show_generation", "156"], "--show_generation 156 are beyond"),
    ],
)
def test_wrong_input(mode, capsys, arguments, says):
    assert mode("compare", *arguments) == 2
    assert says in capsys.readouterr().err


def test_a_method_that_is_calibrated_asks_for_it_and_others_do_not():
    assert CompareStudy(methods=("coded",)).calibrates and CompareStudy().calibrates
    assert not CompareStudy(methods=("kivi", "composed")).calibrates
    assert not presets.evicts("coded") and presets.evicts("snapkv") and presets.evicts("composed")
