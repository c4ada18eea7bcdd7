"""The comparison of everything on models that not every setting fits."""

import pytest

from compression.registry import make, needs_calibration
from compression.studies import needle, presets
from compression.studies.compare import CompareStudy
from compression.studies.run import run
from config import UsageError
from data import sensitivity
from data.corpora import reference_samples
from data.extraction import prefill
from tests import families


@pytest.fixture
def compared(monkeypatch, empty_cache):
    """A comparison on a family's model, with the steps of `coded` cut to two, and its calibration
    and the needles to what is needed to have some."""
    monkeypatch.setattr(needle, "DEPTHS", (0.5,))
    monkeypatch.setattr(presets, "CODED_STEPS", (5e-5, 1.4e-4, 2e-4))
    monkeypatch.setattr(sensitivity, "CONTEXTS", (90, 60))
    monkeypatch.setattr(sensitivity, "SCORED", 8)

    def go(name: str, **settings):
        study = CompareStudy(context_tokens=80, score_tokens=6, num_samples=1, **settings)
        return run(study, families.loaded(name), reference_samples()).report

    return go


def left_out(lines: list[str]) -> dict[str, str]:
    """label -> why, as the verdict says it."""
    found = {}
    for line in lines:
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
        "composed snapkv 0.5 + kivi-4": "be hidden",
        "tucker 32/32": "too small for these ranks",
    },
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_setting_is_measured_or_named_as_left_out(compared, name):
    report = compared(name)
    measured = set(report.tables["compare/compare"]["label"])
    missing = left_out(report.lines)
    every = {label for settings in presets.families().values() for label in settings}
    assert measured | set(missing) == every and not measured & set(missing)
    for label, why in EVERYTHING[name].items():
        assert why in missing[label]
    assert {"none", "fp8", "int8", *presets.families()["coded"]} <= measured
    assert set(report.tables["compare/needle"]["label"]) == measured


@pytest.mark.parametrize("name", ["gpt2", "gemma4", "llama_mqa", "deepseek_v3"])
def test_what_is_left_out_is_what_cannot_be_encoded_or_would_stay_plain(name):
    loaded = families.loaded(name)
    for n_tokens in (69, 75, 100, 140):
        cache = prefill(loaded, families.token_ids(n_tokens), probe=True).cache.in_16_bits()
        for settings in presets.families().values():
            for label, setting in settings.items():
                if needs_calibration(*setting):
                    continue
                method = make(*setting)
                reason = presets.unfit(method, cache)
                try:
                    idle = all(key.startswith("ends.") for key in method.encode(cache))
                except UsageError:
                    assert reason is not None, (label, n_tokens)
                else:
                    assert (reason is not None) == idle, (label, n_tokens)


def test_where_nothing_fits_it_says_why(compared):
    with pytest.raises(UsageError) as refusal:
        compared("llama_mqa", methods=("tucker", "tucker_quantised"))
    said = str(refusal.value)
    assert "tucker_quantised 128/64 int4 (layer 0 is too small for these ranks" in said
    assert "are 1 x 12 x 16)" in said and "`embed" not in said


def test_where_a_model_cannot_be_calibrated_the_rest_is_compared(compared):
    """Only who asks for nothing else is refused."""
    report = compared("deepseek_v4", methods=("coded", "coded_fixed", "int8"), needles=False)
    assert set(report.tables["compare/compare"]["label"]) == {"none", "int8"}
    missing = left_out(report.lines)
    assert missing.keys() == {
        label for name in ("coded", "coded_fixed") for label in presets.families()[name]
    }
    assert all("deepseek_v4 cannot be calibrated" in why for why in missing.values())
    with pytest.raises(UsageError, match="deepseek_v4 cannot be calibrated"):
        compared("deepseek_v4", methods=("coded", "coded_fixed"), needles=False)


@pytest.mark.parametrize("name", families.LINEAR_AFTER)
def test_coded_is_measured_where_linear_attention_follows_attention(compared, name):
    report = compared(name, methods=("coded",), needles=False)
    kl = report.tables["compare/compare"].set_index("label")["kl_mean_nats"]
    assert kl["none"] == 0 and len(kl) == 4
    assert (kl.drop("none") > 0).all() and kl["coded 5.0e-05"] < kl["coded 2.0e-04"]
