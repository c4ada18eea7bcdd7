import math

import pytest

import config
from config import RunConfig, UsageError
from data import config_check, flags


def test_the_defaults_are_in_order():
    assert config_check.check() is None


def test_every_field_of_a_run_has_its_flag_and_default():
    found = vars(flags.parser(["analyze"]).parse_args([]))
    assert found == vars(RunConfig())


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
        ("OUTPUT_DIR", " "),
        ("FIGURE_DPI", math.nan),
    ],
)
def test_edited_nonsense_is_named(monkeypatch, name, nonsense):
    monkeypatch.setattr(config, name, nonsense)
    with pytest.raises(UsageError, match=rf"config\.py: {name} is .*: it takes "):
        config_check.check()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"sequence_length": 0}, "--sequence_length is 0"),
        ({"sequence_length": -5}, "--sequence_length is -5"),
        ({"new_tokens": 0}, "--new_tokens is 0"),
        ({"wikitext_index": -1}, "--wikitext_index is -1"),
        ({"prompt": "a", "text_file": "b"}, "both given"),
    ],
)
def test_flags_that_cannot_work_are_refused(flags, says):
    with pytest.raises(UsageError, match=says):
        RunConfig(**flags)


def test_the_environment_goes_before_the_constant(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "CACHE_FOLDER", str(tmp_path / "constant"))
    monkeypatch.delenv("KV_CACHE_HOME", raising=False)
    assert config.cache_folder() == tmp_path / "constant"
    monkeypatch.setenv("KV_CACHE_HOME", str(tmp_path / "environment"))
    assert config.cache_folder() == tmp_path / "environment"
    monkeypatch.setattr(config, "CACHE_FOLDER", None)
    monkeypatch.delenv("KV_CACHE_HOME")
    assert config.cache_folder().name == "kv-cache-visualization"
