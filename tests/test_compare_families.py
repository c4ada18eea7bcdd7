"""The comparison of everything on models that not every setting fits."""

import json

import pandas as pd
import pytest

from compression import presets
from config import UsageError
from data import needle
from data.extraction import prefill
from tests import families
from tests.commands import run

LENGTHS = ["--context_tokens", "80", "--score_tokens", "6", "--num_samples", "1"]


@pytest.fixture
def compared(monkeypatch, tmp_path):
    """Exit code and output folder of a comparison, with the steps of `coded` cut to two."""
    monkeypatch.setenv("KV_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(needle, "DEPTHS", (0.5,))
    for family in ("coded", "coded_fixed"):
        few = dict(list(presets.FAMILIES[family].items())[:2])
        monkeypatch.setitem(presets.FAMILIES, family, few)

    def go(name: str, *flags: str):
        families.save(families.model(name), tmp_path / name)
        where = ["--model", str(tmp_path / name), "--device", "cpu", "--no-use_wikitext"]
        out = tmp_path / "out"
        code = run("--mode", "compare", *where, *LENGTHS, *flags, "--output_dir", str(out))
        return code, out

    return go


def left_out(folder) -> dict[str, str]:
    """label -> why, as the verdict says it."""
    said = json.loads((folder / "compare.json").read_text())["verdict"]
    found = {}
    for line in said:
        if line.startswith("Left out: "):
            for part in line.removeprefix("Left out: ").removesuffix(").").split("); "):
                labels, why = part.removesuffix(")").split(" (", 1)
                found |= dict.fromkeys(labels.split(", "), why)
    return found


EVERYTHING = {
    "llama_mqa": {"tucker 32/32": "too small for these ranks"},
    "mistral": {"kivi-4": "stay plain", "tucker 32/32": "stay plain", "svd 0.5": "stay plain"},
    "deepseek_v3": {"tucker 128/64": "too small for these ranks"},
    "gpt_oss": {"tucker 64/48": "too small for these ranks"},
    "qwen3_next": {"tucker 32/32": "too small for these ranks"},
    "falcon": {
        "snapkv 0.5": "be hidden",
        "recent 0.25": "be hidden",
        "snapkv 0.5 + kivi-4": "be hidden",
        "tucker 32/32": "too small for these ranks",
    },
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_setting_is_measured_or_named_as_left_out(compared, name):
    code, folder = compared(name)
    assert code == 0
    measured = set(pd.read_csv(folder / "compare/compare.csv")["label"])
    missing = left_out(folder)
    every = {label for settings in presets.FAMILIES.values() for label in settings}
    assert measured | set(missing) == every and not measured & set(missing)
    for label, why in EVERYTHING[name].items():
        assert why in missing[label]
    assert {"none", "fp8", "int8", *presets.FAMILIES["coded"]} <= measured
    assert set(pd.read_csv(folder / "compare/needle.csv")["label"]) == measured


@pytest.mark.parametrize("name", ["gpt2", "gemma4", "llama_mqa", "deepseek_v3"])
@pytest.mark.parametrize("n_tokens", [69, 75, 100, 140])
def test_what_is_left_out_is_what_cannot_be_encoded_or_would_stay_plain(name, n_tokens):
    cache = prefill(families.loaded(name), families.token_ids(n_tokens), probe=True).cache
    cache = cache.in_16_bits()
    for settings in presets.FAMILIES.values():
        for label, setting in settings.items():
            if presets.calibrated(setting[0]):
                continue
            method = presets.made(setting, None)
            reason = presets.unfit(method, cache)
            try:
                idle = all(key.startswith("ends.") for key in method.encode(cache))
            except UsageError:
                assert reason is not None, label
            else:
                assert (reason is not None) == idle, label


def test_where_nothing_fits_it_says_why(compared, capsys):
    code, folder = compared("llama_mqa", "--methods", "tucker,tucker_quantised")
    assert code == 2
    said = capsys.readouterr().err
    assert (
        "tucker 128/64 int4 (layer 0 is too small for these ranks" in said and "--embed" not in said
    )
    assert "are 1 x 12 x 16)" in said and not (folder / "compare.json").exists()
