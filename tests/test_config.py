import inspect
import math
import pickle

import pytest

import config
from compression.coded import kept_calibrations
from compression.methods.evictions import EVICTIONS
from compression.prompts import refuse, save
from compression.registry import METHODS
from compression.studies.analyze import Analysis
from compression.studies.compare import CompareStudy
from compression.studies.compress import CompressStudy
from compression.studies.prune import PruneStudy
from compression.studies.similarity import SimilarityStudy
from compression.studies.tucker import TuckerStudy
from config import UsageError
from data import models, texts
from visualization.terminal import config_check, flags, listing

MODES = ("analyze", "prune")


def test_the_defaults_are_in_order():
    assert config_check.check() is None


def test_a_flag_that_is_not_given_is_as_config_says_now(monkeypatch):
    given = flags.parse(MODES, [])
    assert given["mode"] == "analyze"
    constants = {f.name: f.default for f in flags.FLAGS if str(f.default).isupper()}
    assert len(constants) > 10
    assert {name: given[name] for name in constants} == {
        name: getattr(config, constant) for name, constant in constants.items()
    }
    monkeypatch.setattr(config, "WIKITEXT_INDEX", 3)
    monkeypatch.setattr(config, "LEVELS", (0.9,))
    given = flags.parse(MODES, [])
    assert (given["wikitext_index"], given["levels"]) == (3, (0.9,))


def test_every_flag_is_an_argument_of_what_a_mode_calls():
    takers = [Analysis, CompareStudy, CompressStudy, PruneStudy, SimilarityStudy, TuckerStudy]
    takers += [models.load, texts.candidates, kept_calibrations.calibration_of]
    takers += [refuse, save, listing.listing]
    taken = {name for each in takers for name in inspect.signature(each).parameters}
    # main.py itself reads these
    taken |= {"sequence_length", "analysis_focus", "continuation", "output_dir", "quiet"}
    assert {flag.name for flag in flags.FLAGS} <= taken


def test_a_function_is_handed_the_flags_of_its_arguments():
    given = flags.parse(MODES, ["--prune_heads", "4:0,2", "--prompt", "a", "--levels", "0.5,1"])
    found = flags.arguments_of(PruneStudy, given)
    assert found["prune_heads"] == ((4, 0), (None, 2)) and found["levels"] == (0.5, 1.0)
    assert "prompt" not in found and "needles" not in flags.arguments_of(CompareStudy, given)
    assert flags.arguments_of(texts.candidates, given)["prompt"] == "a"


def test_arguments_are_shown_as_the_flags_that_they_came_from():
    said = flags.as_flags("`prompt` and `text_file`; `--mode store`, `keep` and `a b` are no flags")
    assert said == "--prompt and --text_file; `--mode store`, `keep` and `a b` are no flags"


@pytest.mark.parametrize(
    ("name", "nonsense"),
    [
        ("DEFAULT_MODEL", ""),
        ("DEFAULT_MODEL", None),
        ("DEVICE", "gpu"),
        ("DTYPE", "int8"),
        ("TRUST_REMOTE_CODE", "yes"),
        ("CACHE_FOLDER", 3),
        ("USE_WIKITEXT", 1),
        ("WIKITEXT_INDEX", -1),
        ("MIN_SAMPLE_CHARACTERS", 0),
        ("HUB_PATIENCE_S", math.inf),
        ("SEQUENCE_LENGTH", 10.5),
        ("NEW_TOKENS", True),
        ("SPARSITY_THRESHOLD_PERCENTAGE", 0),
        ("SPARSITY_THRESHOLD_PERCENTAGE", 101),
        ("SPARSITY_THRESHOLD_PERCENTAGE", "1"),
        ("IMPORTANCE_WEIGHTS", {"key": 1}),
        ("IMPORTANCE_WEIGHTS", {"key": 0, "value": 0, "energy": 0}),
        ("IMPORTANCE_WEIGHTS", {"key": -1, "value": 1, "energy": 1}),
        ("SPARSE_DIM_SHARE", "80 %"),
        ("DENSE_DIM_SHARE", 0.9),
        ("PATTERN_DIMS", 0),
        ("TOP_TOKENS", None),
        ("MIN_QUERIES", 0),
        ("LEVELS", ()),
        ("LEVELS", (0.5, 0)),
        ("SINK_TOKENS", -1),
        ("OUTPUT_DIR", " "),
        ("FIGURE_DPI", math.nan),
    ],
)
def test_edited_nonsense_is_named(monkeypatch, name, nonsense):
    monkeypatch.setattr(config, name, nonsense)
    with pytest.raises(UsageError, match=rf"config\.py: {name} is .*: it takes "):
        config_check.check()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sequence_length", "0"], "`sequence_length` is 0: it takes 1 or more"),
        (["--sequence_length", "-5"], "`sequence_length` is -5"),
        (["--context_tokens", "0"], "`context_tokens` is 0"),
        (["--sequence_length", "9", "--context_tokens", "9"], "were both given"),
        (["--score_tokens", "0"], "`score_tokens` is 0"),
        (["--new_tokens", "0"], "`new_tokens` is 0"),
        (["--new_tokens", "many"], "--new_tokens: invalid int value"),
        (["--wikitext_index", "-1"], "`wikitext_index` is -1"),
        (["--keep_tokens", "0"], "`keep_tokens` is 0: it takes a share above 0"),
        (["--levels", "1.5"], "`levels` is 1.5: it takes shares above 0"),
        (["--levels", "0.5,zero"], "'0.5,zero' was given: it takes shares such as"),
        (["--prune_layers", "a"], "'a' was given: it takes layers such as"),
        (["--max_bits", "-1"], "`max_bits` is -1: it takes a number above 0"),
        (["--max_kl", "nan"], "`max_kl` is nan"),
        (["--memory_gib", "inf"], "`memory_gib` is inf"),
        (["--show_generation", "-1"], "`show_generation` is -1"),
        (["--output_dir", " "], "`output_dir` is empty"),
        (["--mode", "compress_all"], "invalid choice: 'compress_all'"),
        (["--analysis_focus", "neurons"], "invalid choice: 'neurons'"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--token_score", "loud"], "invalid choice: 'loud'"),
        (["--seq", "5"], "unrecognized arguments"),
    ],
)
def test_flags_that_cannot_work_are_refused(arguments, says):
    with pytest.raises(UsageError) as refusal:
        flags.parse(MODES, arguments)
    assert says in str(refusal.value)


def test_the_evictions_of_the_flags_are_those_of_the_registry():
    assert set(config.EVICTIONS) == {eviction.name for eviction in EVICTIONS}
    assert all(METHODS[eviction.name] is eviction for eviction in EVICTIONS)
    assert set(config.TOKEN_SCORES) <= set(config.EVICTIONS)
    assert len(set(config.EVICTIONS)) == len(config.EVICTIONS)


@pytest.mark.parametrize("advice", ["", "take another"])
def test_a_refusal_is_the_same_sentence_on_the_way_back_from_another_process(advice):
    refusal = UsageError("`prompt` is 3", advice)
    back = pickle.loads(pickle.dumps(refusal))
    assert type(back) is UsageError and str(back) == str(refusal)
    assert (back.reason, back.advice) == ("`prompt` is 3", advice)


def test_the_environment_goes_before_the_constant(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "CACHE_FOLDER", str(tmp_path / "constant"))
    monkeypatch.delenv("KV_CACHE_HOME", raising=False)
    assert config.cache_folder() == tmp_path / "constant"
    monkeypatch.setenv("KV_CACHE_HOME", str(tmp_path / "environment"))
    assert config.cache_folder() == tmp_path / "environment"
    monkeypatch.setattr(config, "CACHE_FOLDER", None)
    monkeypatch.delenv("KV_CACHE_HOME")
    assert config.cache_folder().name == "kv-cache-visualization"
