"""What runs from a saved cache says what the run with the model beside it says, without the
model."""

import json
from dataclasses import dataclass
from functools import cache as once

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors.torch import save_file

from compression.coded import calibration_files, learned_text
from compression.costs import COSTS
from compression.studies import from_cache
from compression.studies.analyze import Analysis
from compression.studies.compare import CompareStudy
from compression.studies.compress import CompressStudy
from compression.studies.from_cache import ASKED, Sight, run
from compression.studies.prune import PruneStudy
from compression.studies.run import run as with_model
from compression.studies.similarity import SimilarityStudy
from compression.studies.tucker import TuckerStudy
from config import UsageError
from data import extraction, scored_texts, sensitivity
from data.corpora import reference_samples
from data.saved_cache import load, save
from data.texts import visible
from tests import caches, commands, families
from tests.commands import modules_after
from visualization.terminal.flags import BY_NAME, NEED_A_MODEL
from visualization.terminal.rules import SWITCH

FAMILIES = ("llama_gqa", "gemma2", "deepseek_v3", "qwen3_next")  # full, sliding, latent, hybrid
SHORT = {"context_tokens": 72, "score_tokens": 4, "num_samples": 1}
ENDS = {"sink_tokens": 2, "recent_tokens": 8}
STUDIES = {
    "analyze_similarity": SimilarityStudy(**SHORT, **ENDS),
    "tucker": TuckerStudy(**SHORT, **ENDS, token_rank=4, embedding_rank=4, no_sensitivity=True),
    "compress": CompressStudy(**SHORT, **ENDS, levels=(0.5, 0.25)),
    "prune": PruneStudy(**SHORT),
    "prune tokens": PruneStudy(**SHORT, prune_method="token", keep_tokens=0.5),
    "compare": CompareStudy(**SHORT, quick=True, needles=False, methods=("int8", "svd", "snapkv")),
}
FOLDERS = {
    "analyze_similarity": "similarity",
    "tucker": "tucker",
    "compress": "embeddings",
    "prune": "pruning",
    "prune tokens": "pruning",
    "compare": "compare",
}
EXACT = [name for name in COSTS if not name.endswith("_s")]


@dataclass(frozen=True)
class Made:
    """Files of one text's cache, with and without the attention that tokens receive."""

    probed: str
    plain: str


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Of a family: the text that its studies score, in files."""
    home = tmp_path_factory.mktemp("saved")

    @once
    def of(name: str) -> Made:
        loaded = families.loaded(name)
        text = scored_texts.long_enough(loaded, reference_samples(), 72, 4, 1)[0]
        sample, ids = text
        files = []
        for probe in (True, False):
            files.append(str(home / f"{name}-{probe}.cache"))
            start = extraction.prefill(loaded, ids[:72], probe=probe)
            words = [visible(loaded.tokenizer.decode([i])) for i in ids[:72].tolist()]
            facts = {"name": loaded.name, "identity": loaded.identity}
            said = {"source": sample.source, "index": str(sample.index), "title": sample.title}
            save(files[-1], start.cache, words, facts, said, as_computed=True)
        return Made(*files)

    return of


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("mode", STUDIES)
def test_bytes_errors_and_all_that_is_seen_are_those_of_the_run_with_the_model(
    saved, name, mode, empty_cache
):
    study = STUDIES[mode]
    beside = with_model(study, families.loaded(name), reference_samples())
    file = saved(name).probed if study.probes else saved(name).plain
    found = run(study, file)
    table = found.tables[f"{FOLDERS[mode]}/bits_and_errors"]
    keys = ["method", "settings"]
    here = table.set_index(keys)[EXACT]
    there = beside.rows.set_index(keys)[EXACT]
    there = there.drop("calibrated_pca", level=0, errors="ignore")
    assert len(there) and not set(there.index) - set(here.index)
    assert_frame_equal(here.loc[there.index], there, check_exact=True)
    assert not [column for column in table if "kl_" in column or "perplexity" in column]
    for stem, seen in found.tables.items():
        if stem in beside.report.tables and stem != "cache_inventory":
            assert_frame_equal(seen, beside.report.tables[stem], check_exact=True)
    lines = " ".join(found.facts["verdict"])
    assert "cannot be known without the model" in lines and "KL" not in lines


@pytest.mark.parametrize("name", FAMILIES)
def test_analyze_shows_what_it_shows_with_the_model(saved, name):
    beside = Analysis(context_tokens=72, new_tokens=1).run(
        families.loaded(name), reference_samples()
    )
    found = run(Sight(), saved(name).probed)
    of_generation = {"tokens/generation_stages_comparison", "cache/norms_in_time"}
    assert found.tables.keys() == beside.tables.keys() - of_generation
    for stem in found.tables.keys() - {"cache_inventory"}:
        assert_frame_equal(found.tables[stem], beside.tables[stem], check_exact=True)
    assert found.facts["thresholds"] == beside.facts["thresholds"]
    without = [line for line in beside.findings if not line.startswith(("Keys and", "Sparsity of"))]
    assert [line for line in found.facts["findings"] if not line.startswith("Keys and")] == without
    assert [*found.facts["recommendations_not_measured"]] == beside.recommendations[:-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_cache_itself_is_that_of_the_run_with_the_model(saved, name):
    asked = {"analysis_focus": "cache", "layer": None, "head": 0}
    beside = Analysis(context_tokens=72, **asked).run(families.loaded(name), reference_samples())
    found = run(Sight(**asked), saved(name).plain)
    for stem in ("cache/keys", "cache/values"):
        assert_frame_equal(found.tables[stem], beside.tables[stem], check_exact=True)
    assert found.facts["thresholds"] == beside.facts["thresholds"]


def test_a_layer_that_a_saved_cache_lacks_is_refused_before_its_entries_are_read(file):
    for name in ("cache", "all"):
        with pytest.MonkeyPatch.context() as patch:
            for reads in ("thresholds", "sweep"):
                patch.setattr(from_cache, reads, lambda *_: pytest.fail("entries were read"))
            with pytest.raises(UsageError, match=r"`layer` is 4, .*: it takes 0, 2, 3 or 5"):
                run(Sight(analysis_focus=name, layer=4), file)
    assert set(run(Sight("cache", 5), file).tables["cache/values"]["layer"]) == {5}


@pytest.fixture
def file(tmp_path):
    """A small cache of every kind of layer, with attention."""
    cache = caches.watched(caches.mixed())
    save(tmp_path / "a.cache", cache, caches.words(cache), {"name": "owner/random"})
    return str(tmp_path / "a.cache")


FLAGS_OF = {
    "analyze": ["--analysis_focus", "heads"],
    "tucker": ["--token_rank", "1", "--embedding_rank", "1"],
    "compare": ["--methods", "int8,recent"],
}


@pytest.mark.parametrize("mode", ASKED)
def test_a_mode_runs_in_a_process_that_never_brings_in_transformers(mode, tmp_path):
    cache = caches.cache(*(caches.layer(i, 2, 100, (8, 8)) for i in range(2)))
    save(tmp_path / "a.cache", caches.watched(cache), caches.words(cache))
    out = tmp_path / "out"
    given = ["--mode", mode, "--load_cache", str(tmp_path / "a.cache"), "--output_dir", str(out)]
    arguments = [*given, *FLAGS_OF.get(mode, [])]
    code = f"import main; assert main.main({arguments!r}, workers=0) == 0"
    assert not {"transformers", "datasets"} & modules_after(code)
    manifest = json.loads((out / f"{mode}.json").read_text())
    assert manifest["text"]["saved_in"] == "a.cache" and manifest["model"] == {"name": "random"}
    assert manifest["settings"]["model"] is None and manifest["text"]["tokens_read"] == 100
    pictures = [each for each in manifest["files"] if each.endswith(".png")]
    assert pictures and all((out / picture).stat().st_size for picture in pictures)


@pytest.mark.parametrize("mode", ASKED)
def test_flags_that_need_the_model_are_refused_beside_a_cache_in_one_sentence(mode, file, capsys):
    refused = [flag for flag in map(BY_NAME.get, NEED_A_MODEL) if mode in flag.modes]
    assert refused
    for flag in refused:
        value = [] if flag.rule is SWITCH else [EXAMPLES.get(flag.name, "1")]
        given = ["--mode", mode, "--load_cache", file, f"--{flag.name}", *value]
        assert commands.run(*given) == 2
        said = capsys.readouterr().err.strip()
        assert f"--{flag.name}" in said and "--load_cache" in said and said.count("\n") == 0


EXAMPLES = {
    "device": "cpu",
    "dtype": "float32",
    "device_map": "auto",
    "cache_offload": "memory",
    "prompt": "a text",
    "text_file": "a.txt",
}


def test_stages_of_generation_need_the_model(file, capsys):
    assert commands.run("--mode", "analyze_generation", "--load_cache", file) == 2
    assert "--mode analyze_generation does not take it" in capsys.readouterr().err
    with pytest.raises(UsageError, match="of a cache alone"):
        Sight("generation")


def test_a_layout_without_a_cache_is_refused(capsys):
    assert commands.run("--mode", "compare", "--cache_layout", "x") == 2
    assert "only with --load_cache" in capsys.readouterr().err


def test_a_cache_is_held_against_the_model_that_is_named(file, tmp_path):
    assert run(Sight("layers"), file, model="owner/random").tables
    with pytest.raises(UsageError, match=r"one of owner/random, and `model` is owner/other"):
        run(Sight("layers"), file, model="owner/other")
    out = ["--output_dir", str(tmp_path / "out")]
    given = ["--mode", "analyze", "--load_cache", file, "--model", "smollm2-135m", *out]
    assert commands.run(*given) == 2


def test_methods_that_learn_of_the_model_are_left_out_with_the_reason(saved, empty_cache):
    found = run(CompareStudy(methods=("coded", "int8")), saved("llama_gqa").probed)
    reason = "no calibration of llama_gqa is kept on this machine"
    assert found.facts["left_out"] and set(found.facts["left_out"].values()) == {reason}
    with pytest.raises(UsageError, match=r"nothing can be compared.*no calibration"):
        run(CompareStudy(methods=("coded",)), saved("llama_gqa").probed)


@pytest.fixture
def calibrated(saved, empty_cache, monkeypatch):
    """The bytes and errors of `coded` with the model at hand, which is calibrated by then."""
    monkeypatch.setattr(sensitivity, "CONTEXTS", (60, 40))
    monkeypatch.setattr(sensitivity, "SCORED", 8)
    study = CompareStudy(**SHORT, quick=True, needles=False, methods=("coded",))
    rows = with_model(study, families.loaded("llama_gqa"), reference_samples()).rows
    return rows.set_index(["method", "settings"])[EXACT]


COMPARE_CODED = ["--mode", "compare", "--methods", "coded", "--quick", "--quiet"]


def test_coded_is_compared_without_transformers_by_the_calibration_that_is_kept(
    saved, calibrated, tmp_path
):
    out = tmp_path / "out"
    given = [*COMPARE_CODED, "--load_cache", saved("llama_gqa").probed, "--output_dir", str(out)]
    code = f"import main; assert main.main({given!r}, workers=0) == 0"
    assert not {"transformers", "datasets"} & modules_after(code)
    table = pd.read_csv(out / "compare" / "bits_and_errors.csv").fillna({"settings": ""})
    table = table.set_index(["method", "settings"])
    assert "coded" in table.index.get_level_values("method")
    assert not json.loads((out / "compare.json").read_text())["left_out"]
    assert_frame_equal(table[EXACT], calibrated.loc[table.index], check_dtype=False, rtol=1e-12)


def test_a_calibration_of_another_model_or_a_damaged_one_is_not_taken(
    saved, calibrated, empty_cache, caplog
):
    coded = CompareStudy(methods=("coded", "int8"))
    assert run(coded, saved("gemma2").probed).facts["left_out"]
    (file,) = (empty_cache / "calibrations").glob("*/*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert run(coded, saved("llama_gqa").probed).facts["left_out"]
    assert "cannot be used" in caplog.messages[-1]


def test_a_file_does_not_say_where_to_look_for_a_calibration(saved, calibrated, empty_cache):
    cache = load(saved("llama_gqa").probed).cache
    identity = next((empty_cache / "calibrations").iterdir()).name
    for said in ("", "..", f"../calibrations/{identity}", identity, "0" * 64):
        assert calibration_files.kept(cache, said) is None


def test_whoever_compares_what_coded_has_learned_from_is_told(saved, calibrated, monkeypatch):
    coded, file = CompareStudy(methods=("coded",)), saved("llama_gqa").probed
    assert not [line for line in run(coded, file).facts["verdict"] if "too good" in line]
    known = reference_samples()[0]
    monkeypatch.setattr(learned_text, "calibration_texts", lambda: (known.text,))
    assert "too good" in run(coded, file).facts["verdict"][0]


def test_evictions_that_need_attention_are_left_out_where_it_was_not_measured(saved):
    found = run(CompareStudy(methods=("snapkv", "recent")), saved("llama_gqa").plain)
    assert {label.split()[0] for label in found.facts["left_out"]} == {"snapkv"}


def test_a_budget_of_bytes_is_kept_or_refused_after_all_was_written(saved):
    file = saved("llama_gqa").plain
    table = run(CompareStudy(methods=("int8", "fp8")), file).tables["compare/bits_and_errors"]
    bits = table.set_index("label")["bits_per_value"]
    assert bits["fp8"] < bits["int8"]
    between = float(bits[["fp8", "int8"]].mean())
    found = run(CompareStudy(methods=("int8", "fp8"), max_bits=between), file)
    said = f"Within `max_bits` {between:g}, by bits per value: fp8 ({bits['fp8']:.2f}"
    assert said in " ".join(found.facts["verdict"]) and found.refused is None
    found = run(CompareStudy(methods=("int8", "fp8"), max_bits=2), file)
    assert "the smallest is fp8" in found.refused.reason and found.tables


def test_tokens_without_words_are_shown_by_their_id(tmp_path):
    save(tmp_path / "a.cache", caches.alike())
    found = run(Sight("tokens"), str(tmp_path / "a.cache"))
    tokens = found.tables["tokens/token_position_importance"]["token"]
    assert tokens.tolist() == [f"id{i}" for i in range(10)]


LAYOUT = '{"format": "vllm", "head_dim": 8, "kv_heads": 2}'


@pytest.mark.parametrize("mode", ASKED)
def test_what_another_program_has_dumped_runs_too(mode, tmp_path):
    for i in range(2):
        x = torch.randn(2, 100, 2, 8).half()  # keys and values, tokens, heads, dim
        save_file({"kv_cache": x}, tmp_path / f"model.layers.{i}.self_attn.attn.safetensors")
    out = tmp_path / "out"
    given = ["--mode", mode, "--load_cache", str(tmp_path), "--cache_layout", LAYOUT]
    done = commands.done(out, *given, "--output_dir", str(out), *FLAGS_OF.get(mode, []))
    assert done.code == 0, done.said
    assert "model not known" in done.printed and "text not known" in done.printed
    if mode == "analyze":
        return
    assert "cannot be known without the model" in done.printed


def test_positions_stand_for_tokens_that_are_not_known(tmp_path):
    x = torch.randn(2, 12, 2, 8).half()
    save_file({"kv_cache": x}, tmp_path / "model.layers.0.self_attn.attn.safetensors")
    found = run(Sight("tokens"), str(tmp_path), LAYOUT)
    tokens = found.tables["tokens/token_position_importance"]["token"]
    assert tokens.tolist() == [f"#{i}" for i in range(12)]
