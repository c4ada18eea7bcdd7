"""What methods cost on top of a saved cache is what they cost on top of the model's own, as far as
the two are the same; and a cache of anything else is refused."""

import json
from dataclasses import dataclass, replace
from functools import cache as once

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors.torch import save_file

from compression.registry import make
from compression.studies import from_cache
from compression.studies.compare import CompareStudy
from compression.studies.in_place import in_place
from compression.studies.measured_from_cache import OnSavedCache, of_length
from compression.studies.run import run
from compression.studies.work import judge_of
from config import UsageError
from data import extraction, saving, scored_texts, sensitivity
from data.cache import KVCache
from data.corpora import reference_samples
from data.loaded_model import LoadedModel
from data.saved_cache import load, save
from data.texts import Sample
from tests import commands, families

FAMILIES = ("llama_gqa", "gemma2", "deepseek_v3", "qwen3_next")  # full, sliding, latent, hybrid
SAVED, CONTEXT, SCORED = 100, 80, 8  # tokens
LENGTHS = {"context_tokens": CONTEXT, "score_tokens": SCORED}
METHODS = ("int8", "kivi", "svd", "snapkv", "recent")
STUDY = CompareStudy(**LENGTHS, num_samples=1, methods=METHODS, needles=False)
BYTES = ["original_bytes", "stored_bytes", "per_model_bytes", "bits_per_value"]
COSTS = ["key_error", "value_error", "kl_mean_nats", "kl_max_nats", "perplexity_full", "perplexity"]
LAYOUT = {"format": "vllm", "head_dim": 16, "kv_heads": 2}


@dataclass(frozen=True)
class Made:
    """A model, a text, and the file that `save_cache` makes of its first tokens."""

    loaded: LoadedModel
    sample: Sample
    ids: torch.Tensor
    file: str


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("saved")

    @once
    def of(name: str) -> Made:
        loaded, file = families.sharp(name), str(home / f"{name}.cache")
        ((sample, ids),) = scored_texts.long_enough(loaded, reference_samples(), SAVED - 1, 0, 1)
        saving.save_text(loaded, sample, file, SAVED)
        return Made(loaded, sample, ids, file)

    return of


def measured(made: Made, file: str = "", given: Sample | None = None, study=STUDY, layout=None):
    candidates = None if given is None else [given]
    beside = {"load": lambda: made.loaded, "candidates": candidates}
    return from_cache.run(study, file or made.file, layout, **beside)


def rows(found) -> pd.DataFrame:
    return found.tables["compare/texts"].set_index(["method", "settings"])


def changed(made: Made, tmp_path, change) -> str:
    """The file of the saved cache after a change to it."""
    cache = change(load(made.file).cache)
    save(tmp_path / "changed.cache", cache, model={"name": cache.model})
    return str(tmp_path / "changed.cache")


def louder(cache: KVCache) -> KVCache:
    layers = (replace(_plain(layer), values=1.1 * layer.values) for layer in cache.layers)
    return replace(cache, layers=tuple(layers))


def _plain(layer):
    """What a saved layer holds, in memory."""
    names = ("keys", "values", "positions", "index", "kind", "rotary")
    return replace(layer, **{name: getattr(layer, name) for name in names}).between(slice(None))


def assert_the_same(here: pd.DataFrame, there: pd.DataFrame) -> None:
    """Bytes exactly, and costs up to what rounding in 16 bits moves."""
    assert list(here.index) == list(there.index) and len(here) > 6
    assert_frame_equal(here[BYTES], there[BYTES], check_exact=True)
    assert_frame_equal(here[COSTS], there[COSTS], rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_cache_costs_what_its_text_costs_with_the_model_alone(made, name, empty_cache):
    here = made(name)
    there = run(STUDY, here.loaded, [here.sample]).rows.set_index(["method", "settings"])
    found = measured(here)
    assert_the_same(rows(found), there)
    untouched = rows(found).loc["none"].iloc[0]
    assert untouched["kl_mean_nats"] == untouched["kl_max_nats"] == 0
    assert (rows(found)["kl_mean_nats"] > 0).sum() > 4
    assert found.facts["saved_cache"]["key_error"] < 1e-3  # 16 bits of the model's 32
    assert found.text.title == here.sample.title and found.model.name == name


def test_coded_too_by_what_it_has_learned_of_the_model(made, empty_cache, monkeypatch):
    monkeypatch.setattr(sensitivity, "CONTEXTS", (60, 40))
    monkeypatch.setattr(sensitivity, "SCORED", 8)
    here, study = made("llama_gqa"), replace(STUDY, methods=("coded",), quick=True)
    there = run(study, here.loaded, [here.sample]).rows.set_index(["method", "settings"])
    found = rows(measured(here, study=study))
    assert list(found.index) == list(there.index) and "coded" in found.index.get_level_values(0)
    # A number that is rounded the other way may take a bit more
    assert_frame_equal(found[BYTES], there[BYTES], check_exact=False, rtol=5e-3)
    assert_frame_equal(found[COSTS], there[COSTS], rtol=5e-2, atol=1e-5)


@pytest.mark.parametrize("name", ["llama_gqa", "gemma2"])
def test_it_is_the_saved_numbers_that_are_judged(made, name, tmp_path, empty_cache):
    """Held against a judge whose cache is changed by hand."""
    here = made(name)
    found = rows(measured(here, changed(here, tmp_path, louder)))
    judge = judge_of(here.loaded, here.ids[: CONTEXT + 1 + SCORED], CONTEXT)
    loud = []
    for layer in judge.cache.layers:
        since = layer.positions >= SAVED - families.WINDOW + 1  # what the window still held
        times = torch.where(since | torch.tensor(layer.kind == "full"), 1.1, 1.0)
        loud.append(replace(layer, values=layer.values.float() * times[None, :, None]))
    by_hand = type(judge)(replace(judge.cache, layers=tuple(loud)), judge.continuation)
    for method in (make("none", {}), make("int8", {})):
        expected = by_hand.score(method)
        row = found.loc[(method.name, method.words())]
        assert row["stored_bytes"] == expected["stored_bytes"]
        assert row["perplexity_full"] == pytest.approx(expected["perplexity_full"], rel=1e-3)
        assert row["kl_mean_nats"] == pytest.approx(expected["kl_mean_nats"], rel=0.05, abs=1e-7)
    untouched = judge.score(make("none", {}))["perplexity_full"]
    assert found["perplexity_full"].iloc[0] != pytest.approx(untouched, rel=1e-3)


def test_kept_rows_are_those_of_the_saved_numbers(made, tmp_path, empty_cache):
    here = made("llama_gqa")
    first, again = rows(measured(here)), rows(measured(here))
    assert_frame_equal(first, again, check_exact=True)  # with the seconds: they are kept
    own = run(STUDY, here.loaded, [here.sample]).rows.set_index(["method", "settings"])
    assert not own["compress_s"].equals(first["compress_s"])
    other = rows(measured(here, changed(here, tmp_path, louder)))
    assert not (other["perplexity"] == first["perplexity"]).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_says_what_token_ids_say(made, name, empty_cache):
    here, saved = made(name), load(made(name).file)
    unknown = torch.full((SAVED,), -1)
    saved = replace(saved, cache=replace(saved.cache, token_ids=unknown), text={})
    by_text = OnSavedCache(STUDY, saved, "file", here.sample).run(here.loaded)
    by_ids = rows(measured(here))[BYTES + COSTS]
    assert_frame_equal(rows(by_text)[BYTES + COSTS], by_ids, check_exact=True)
    short = Sample(0, "short", "prompt", here.sample.text[: SAVED - 1])
    with pytest.raises(UsageError, match=f"has {SAVED - 1} tokens, and the saved cache holds"):
        OnSavedCache(STUDY, saved, "file", short).run(here.loaded)


def test_a_cache_that_is_off_by_more_than_rounding_is_told_of(made, tmp_path, empty_cache):
    here = made("llama_gqa")
    assert "more than storing it" not in " ".join(measured(here).facts["verdict"])
    found = measured(here, changed(here, tmp_path, louder))  # values times 1.1
    assert found.facts["saved_cache"]["value_error"] == pytest.approx(0.1, rel=1e-2)
    assert found.facts["saved_cache"]["key_error"] < 1e-3
    assert "more than storing it in 8 or 16 bits explains" in " ".join(found.facts["verdict"])


def test_a_text_that_the_cache_says_is_another_is_refused(made):
    here = made("llama_gqa")
    other = Sample(0, "other", "prompt", here.sample.text[:9] + "~" + here.sample.text[10:])
    with pytest.raises(UsageError, match="is not that of the saved cache, from token 9 on"):
        measured(here, given=other)


REFUSED = r"relative error is [1-9]\S* of keys and [1-9]\S* of values, at most \S+, of the"


def test_a_cache_of_another_text_is_refused_with_the_figures(made, tmp_path):
    here = made("llama_gqa")
    ids = here.loaded.ids_of(here.sample.text[SAVED:], SAVED)
    with pytest.raises(UsageError, match=REFUSED):
        measured(here, changed(here, tmp_path, lambda cache: replace(cache, token_ids=ids)))


def test_a_cache_of_other_weights_or_of_swapped_layers_is_refused(made, tmp_path):
    here = made("llama_gqa")
    torch.manual_seed(7)
    other = families.fresh("llama_gqa")
    for weights in other.model.parameters():
        torch.nn.init.normal_(weights, std=0.02)
    with pytest.raises(UsageError, match=REFUSED):
        measured(replace(here, loaded=other))

    def swapped(cache: KVCache) -> KVCache:
        first, second = map(_plain, cache.layers)
        return replace(cache, layers=(replace(second, index=0), replace(first, index=1)))

    with pytest.raises(UsageError, match="relative error"):
        measured(here, changed(here, tmp_path, swapped))


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("llama_mqa", {}, "Layer 0 of the cache has 2 KV heads .* and that of llama_mqa has 1 KV"),
        ("llama_gqa", {"num_hidden_layers": 4}, "of layers 0, 1, and llama_gqa .* layers 0 to 3"),
    ],
)
def test_a_cache_of_another_shape_is_refused(made, name, settings, says):
    other = LoadedModel(families.model(name, settings), families.tokenizer(), name, "random")
    with pytest.raises(UsageError, match=says):
        measured(replace(made("llama_gqa"), loaded=other))


def test_evicted_entries_and_those_that_are_no_numbers_are_refused(made):
    here = made("llama_gqa")
    own = extraction.prefill(here.loaded, here.ids[:CONTEXT]).cache
    first, second = own.layers
    keep = torch.ones(first.keys.shape[:2], dtype=torch.bool)
    with pytest.raises(UsageError, match="Entries of layer 1 of the cache were evicted"):
        in_place(own, replace(own, layers=(first, replace(second, keep=keep))))
    broken = replace(second, values=torch.full_like(second.values, torch.nan))
    with pytest.raises(UsageError, match="values of layer 1 of llama_gqa hold NaN or Inf in the"):
        in_place(own, replace(own, layers=(first, broken)))


def test_what_a_window_has_forgotten_is_the_models_own_and_said(made, empty_cache):
    found = measured(made("gemma2"))
    held = CONTEXT - (SAVED - families.WINDOW + 1)  # of the window's tokens, at the end of the text
    layers = extraction.prefill(made("gemma2").loaded, made("gemma2").ids[:CONTEXT]).cache.layers
    own = sum(
        x.n_entries * (x.n_tokens - max(held, 0)) / x.n_tokens for x in layers if x.kind != "full"
    )
    facts = found.facts["saved_cache"]
    assert facts["models_own_entries"] == own > 0
    assert (
        f"does not hold {own / facts['entries']:.1%} of the entries" in found.facts["verdict"][-1]
    )


def test_a_cache_of_windows_alone_that_have_moved_on_is_refused(tmp_path):
    loaded, file = families.loaded("mistral"), str(tmp_path / "a.cache")
    sample = reference_samples()[0]
    saving.save_text(loaded, sample, file, SAVED)
    with pytest.raises(UsageError, match=r"Of the first 80 tokens the cache holds nothing.*score"):
        from_cache.run(STUDY, file, load=lambda: loaded)
    long = replace(STUDY, context_tokens=SAVED - 1 - SCORED)  # some are still there
    found = from_cache.run(long, file, load=lambda: loaded)
    assert (
        0
        < found.facts["saved_cache"]["models_own_entries"]
        < found.facts["cache"]["keys_and_values_bytes_in_16_bits"]
    )


def every_token(loaded: LoadedModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """(2, tokens, heads, dim) of each layer, as engines hold them: windows forget nothing."""
    layers: dict[int, dict[int, torch.Tensor]] = {}
    for end in {*range(families.WINDOW - 1, len(ids), families.WINDOW - 1), len(ids)}:
        for layer in extraction.prefill(loaded, ids[:end]).cache.layers:
            both = torch.stack([layer.keys, layer.values]).permute(2, 0, 1, 3)
            found = zip(layer.positions.tolist(), both, strict=True)
            layers.setdefault(layer.index, {}).update(found)
    at_all = (torch.stack([each[i] for i in range(len(ids))]) for each in layers.values())
    return [each.transpose(0, 1).half() for each in at_all]


@pytest.mark.parametrize("name", ["llama_gqa", "gemma2"])
@pytest.mark.parametrize("engine", ["vllm", "lmcache"])
def test_what_an_engine_has_left_costs_the_same(made, name, engine, tmp_path, empty_cache):
    here = made(name)
    layers = every_token(here.loaded, here.ids[:SAVED])
    if engine == "vllm":
        layout = LAYOUT
        for i, layer in enumerate(layers):
            save_file({"kv_cache": layer.contiguous()}, tmp_path / f"layers.{i}.attn.safetensors")
    else:
        layout = LAYOUT | {"format": engine, "layers": len(layers), "dtype": "float16"}
        raw = torch.stack(layers, 1).contiguous().flatten().view(torch.uint8)
        (tmp_path / "text.data").write_bytes(raw.numpy().tobytes())
    with pytest.raises(UsageError, match=r"token ids of the saved cache are not known.*`prompt`"):
        measured(here, str(tmp_path), layout=json.dumps(layout))
    found = measured(here, str(tmp_path), here.sample, layout=json.dumps(layout))
    known = measured(here, str(tmp_path), layout=json.dumps(layout | {"token_ids": ids(here)}))
    assert found.facts["saved_cache"]["models_own_entries"] == 0
    assert found.text.title == here.sample.title and known.text.title == "not known"
    there = run(STUDY, here.loaded, [here.sample]).rows.set_index(["method", "settings"])
    for each in (found, known):
        assert_the_same(rows(each), there)


def ids(made: Made) -> list[int]:
    return made.ids[:SAVED].tolist()


@pytest.mark.parametrize(
    ("n_tokens", "asked", "context", "scored"),
    [
        (512, {}, 383, 128),  # a quarter
        (4096, {}, 3839, 256),  # as config.py says
        (92, {}, 69, 22),  # the ends that stay plain, and a token
        (80, {}, 69, 10),
        (78, {"quick": True}, 69, 8),
        (77, {}, None, None),
        (100, {"context_tokens": 80}, 80, 19),
        (100, {"context_tokens": 91}, 91, 8),
        (100, {"context_tokens": 92}, None, None),
        (100, {"score_tokens": 3}, 96, 3),
        (100, {"score_tokens": 31}, None, None),
        (100, {"context_tokens": 80, "score_tokens": 20}, None, None),
        (100, {"context_tokens": 80, "score_tokens": 19}, 80, 19),
    ],
)
def test_lengths_fit_into_the_cache_or_are_refused(n_tokens, asked, context, scored):
    if context is None:
        with pytest.raises(UsageError, match=f"holds {n_tokens} tokens, and a context of"):
            of_length(CompareStudy(**asked), n_tokens)
        return
    study = of_length(CompareStudy(**asked), n_tokens)
    assert (study.context, study.n_scored, study.n_texts) == (context, scored, 1)


def test_the_command_line_measures_where_the_model_is_named(folder_of, tmp_path, empty_cache):
    model, file, out = folder_of("gemma2"), str(tmp_path / "a.cache"), tmp_path / "out"
    text = ["--no-use_wikitext", "--context_tokens", str(SAVED)]
    on = ["--model", model, "--device", "cpu"]
    assert commands.run("--mode", "store", *on, *text, "--save_cache", file) == 0
    given = ["--mode", "compare", "--load_cache", file, *on, "--methods", "int8,kivi"]
    flags = ["--context_tokens", "80", "--score_tokens", "8", "--show_generation", "3"]
    done = commands.done(out, *given, *flags, "--max_kl", "1", "--output_dir", str(out))
    assert done.code == 0, done.said
    table, manifest = done.table("compare/compare"), done.manifest("compare")
    assert set(table["family"]) == {"none", "int8", "kivi"} and "kl_mean_nats" in table
    assert manifest["text"]["saved_in"] == "a.cache" and manifest["text"]["tokens_read"] == 80
    assert "What is called untouched is the saved cache" in done.printed
    assert "of its 100 tokens the first 80 are compressed" in " ".join(manifest["verdict"])
    assert "No needles were sought" in done.printed and "within --max_kl 1" in done.printed


def test_tasks_are_refused_with_it(made):
    with pytest.raises(UsageError, match="`tasks` are set to the model anew"):
        measured(made("llama_gqa"), study=replace(STUDY, tasks=True))
