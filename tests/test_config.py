import math
import pickle
import subprocess
import sys

import pytest

import config
from compression.methods.evictions import EVICTIONS
from compression.registry import METHODS
from compression.studies import presets
from compression.studies.compare import CompareStudy
from compression.studies.compress import CompressStudy
from compression.studies.prune import PruneStudy
from compression.studies.similarity import SimilarityStudy
from compression.studies.tucker import TuckerStudy
from config import UsageError
from data import vocabulary
from tests.commands import ROOT, modules_after
from visualization.terminal import command_line, config_check
from visualization.terminal.modes import MODES

STRANGE = [
    *(None, True, -1, 0, 1, 10**400, 10**5000, 1e400, math.nan, "x", b"x", "\udcff"),
    *([], (), [1], {}, {1}, [[1]], {"key": math.nan}, set, object(), lambda: 0),
]


def test_the_defaults_are_in_order():
    assert config_check.check() is None


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
        ("OUTPUT_DIR", "a\0b"),
        ("CACHE_FOLDER", "a\udcffb"),
        ("DEVICE", ["cpu"]),
        ("LEVELS", {0.5}),
        ("TOKEN_SCORES", ("loud",)),
    ],
)
def test_edited_nonsense_is_named(monkeypatch, name, nonsense):
    monkeypatch.setattr(config, name, nonsense)
    with pytest.raises(UsageError, match=rf"config\.py: {name} is .*: it takes "):
        config_check.check()


@pytest.mark.parametrize("name", config_check.RULES)
def test_any_value_of_a_constant_is_taken_or_refused_in_a_sentence(monkeypatch, name):
    refused = 0
    for value in STRANGE:
        monkeypatch.setattr(config, name, value)
        try:
            config_check.check()
        except UsageError as refusal:
            refused += 1
            named = (name, "DENSE_DIM_SHARE") if name == "SPARSE_DIM_SHARE" else (name,)
            assert str(refusal).startswith(tuple(f"config.py: {each} is " for each in named))
            assert len(str(refusal)) < 300
    assert refused > 10


@pytest.mark.parametrize("name", config_check.RULES)
def test_a_missing_constant_is_named(monkeypatch, name):
    monkeypatch.delattr(config, name)
    with pytest.raises(UsageError, match=rf"config\.py: {name} is missing: it takes "):
        command_line.parse(["--mode", "list_samples"])


def test_a_misspelt_constant_is_named_with_what_it_may_mean(monkeypatch):
    monkeypatch.setattr(config, "TOKEN_RNKS", (1,), raising=False)
    with pytest.raises(UsageError, match=r"TOKEN_RNKS is no .*: perhaps TOKEN_RANKS is meant"):
        command_line.parse([])


@pytest.mark.parametrize(
    "edited", ["LEVELS = (0.5", "TOKEN_RANK = thirty", "1 / 0", "import this_"]
)
def test_a_file_that_does_not_run_is_told_of_in_a_sentence(tmp_path, edited):
    (tmp_path / "config.py").write_text(edited)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import main"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert (
        ended.stderr.startswith("main.py: config.py") and "is no Python that runs" in ended.stderr
    )


def test_no_module_reads_a_constant_before_it_is_checked():
    """A constant that is missing is told of by the check, and not by whoever is brought in."""
    code = """if True:
        import config
        for name in [name for name in vars(config) if name.isupper()]:
            delattr(config, name)
        import main
        assert main.main(["--mode", "compare", "--prompt", "x"]) == 2
        from compression import prompts, run_tucker_analysis
        from compression.studies import compare, compress, prune, similarity, tucker
        from visualization import catalogue, delivery
    """
    assert "torch" in modules_after(code)


@pytest.mark.parametrize("name", ["LEVELS", "TOKEN_RANKS", "EMBEDDING_RANKS", "TOKEN_SCORES"])
def test_a_list_is_as_good_as_a_tuple(monkeypatch, name):
    monkeypatch.setattr(config, name, list(getattr(config, name)))
    assert all(command_line.parse(["--mode", mode])["mode"] == mode for mode in MODES)
    for study in (CompareStudy, CompressStudy, PruneStudy, SimilarityStudy, TuckerStudy):
        assert study().context > 0


def test_the_words_that_flags_take_are_those_of_the_library():
    assert set(vocabulary.EVICTIONS) == {eviction.name for eviction in EVICTIONS}
    assert all(METHODS[eviction.name] is eviction for eviction in EVICTIONS)
    assert len(set(vocabulary.EVICTIONS)) == len(vocabulary.EVICTIONS)
    assert tuple(presets.families()) == vocabulary.FAMILIES


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
