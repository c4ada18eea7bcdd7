"""What `coded` learns from and what it must not, and how a calibration is kept."""

import logging

import pytest
import torch

from compression import sealed
from compression.base import Calibration
from compression.coded import calibration_files, kept_calibrations, learned_text
from compression.coded.calibration_files import file_of, folder_of
from compression.coded.kept_calibrations import calibration_of, earlier_calibration
from compression.coded.learned_windows import learned_windows
from compression.coded.method import Coded
from config import UsageError
from data import corpus_texts, sensitivity
from data.corpora import reference_samples
from data.extraction import prefill
from tests import families


@pytest.fixture
def tiny(empty_cache, monkeypatch):
    monkeypatch.setattr(sensitivity, "CONTEXTS", (60, 40))
    monkeypatch.setattr(sensitivity, "SCORED", 8)
    return families.loaded("llama_gqa")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """What a file of the tiny model's calibration holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KV_CACHE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(sensitivity, "CONTEXTS", (60, 40))
        patch.setattr(sensitivity, "SCORED", 8)
        model = families.loaded("llama_gqa")
        calibration_of(model)
        return sealed.read(next(folder_of(model.identity).iterdir()))


def test_nothing_that_is_left_for_scoring_is_learned_from():
    known = "\n\n".join(learned_text.calibration_texts())
    assert len(learned_text.reference_text()) > 100_000  # characters: contexts enough
    for sample in reference_samples()[: learned_text.FIRST_SAMPLE]:
        long = [p for p in learned_text.paragraphs(sample.text) if len(p) >= learned_text.TELLING]
        assert long and not any(p in known for p in long)


def test_the_reference_and_each_other_kind_of_text_are_learned_from_by_turns(monkeypatch):
    contexts = (60, 40, 50, 30, 60, 40)
    monkeypatch.setattr(sensitivity, "CONTEXTS", contexts)
    model = families.loaded("llama_gqa")
    chosen = learned_windows(model)
    assert [n_context for _, n_context in chosen] == [n for n in contexts for _ in range(2)]
    reference = sensitivity.windows(model, learned_text.reference_text(), contexts)
    for (ids, _), (expected, _) in zip(chosen[::2], reference, strict=True):
        assert torch.equal(ids, expected)
    texts = corpus_texts.corpus_texts()
    for (ids, _), text in zip(chosen[1::2], texts, strict=True):
        beginning = model.ids_of(text, special_tokens=False)
        n = len(ids) - len(model.beginning)
        assert torch.equal(ids[len(model.beginning) :], beginning[:n])
    files = sorted(file.name for file in corpus_texts.FOLDER.glob("*"))
    assert sorted(f"{kind}.txt" for kind in corpus_texts.KINDS_OF_TEXT) == files
    assert len(texts) == len(sensitivity.CONTEXTS)


def test_whoever_scores_what_was_learned_from_is_told_of_each_text(caplog):
    samples = reference_samples()
    assert learned_text.leak(samples[: learned_text.FIRST_SAMPLE]) == []
    late = [s for s in samples[learned_text.FIRST_SAMPLE :] if learned_text.leaked([s])]
    assert len(late) > 5
    (said,) = learned_text.leak([samples[0], *late[:2]])
    assert caplog.messages == [said]
    assert late[0].name in said and late[1].name in said and samples[0].name not in said


def test_a_calibration_is_kept_until_its_text_or_code_changes(tiny, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    first = calibration_of(tiny)
    again = calibration_of(tiny)
    assert again.identity == first.identity and len(caplog.messages) == 1
    monkeypatch.setattr(calibration_files, "recipe", lambda: "another")
    calibration_of(tiny)
    assert "Calibrating" in caplog.messages[1]


def test_a_damaged_calibration_is_made_anew_and_said_so(tiny, empty_cache, caplog):
    first = calibration_of(tiny)
    (file,) = (empty_cache / "calibrations").glob("*/*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    caplog.clear()
    assert calibration_of(tiny).tensors.keys() == first.tensors.keys()
    assert "damaged" in caplog.messages[0] and "calibrating anew" in caplog.messages[0]


def without(tensors, name):
    return {other: x for other, x in tensors.items() if other != name}


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {},
        lambda tensors: without(tensors, "scales"),
        lambda tensors: without(tensors, "tables"),
        lambda tensors: tensors | {"more": torch.zeros(1)},
        lambda tensors: tensors | {"scales": tensors["scales"][:-1].clone()},
        lambda tensors: tensors | {"scales": 0 * tensors["scales"]},
        lambda tensors: tensors | {"weights": tensors["weights"] * torch.nan},
        lambda tensors: tensors | {"tables": tensors["tables"] + 1},
        lambda tensors: tensors | {"layers.0": tensors["layers.0"] + 7},
        lambda tensors: tensors | {"layers.0": tensors["layers.0"][:0].clone()},
        lambda tensors: tensors | {"roots.0.key": 0 * tensors["roots.0.key"]},
        lambda tensors: tensors | {"basis.0.steps": -tensors["basis.0.steps"]},
        lambda tensors: tensors | {"basis.0.words": tensors["basis.0.words"][1:].clone()},
        lambda tensors: tensors | {"basis.0.7": torch.zeros(3, dtype=torch.uint8)},
        lambda tensors: tensors | {"basis_tables": tensors["basis_tables"] + 1},
        lambda tensors: tensors | {"joined.0": tensors["joined.0"] + 1},
        lambda tensors: tensors | {"joined.0": tensors["joined.0"][:0].clone()},
        lambda tensors: tensors | {"joined.0": -tensors["joined.0"] - 1},
        lambda tensors: tensors | {"turn.7.steps": torch.zeros(3, dtype=torch.float16)},
    ],
)
def test_a_sealed_calibration_that_does_not_fit_its_model_is_made_anew(
    tiny, calibrated, empty_cache, monkeypatch, caplog, change
):
    tensors, header = calibrated
    file = file_of(tiny.identity)
    file.parent.mkdir(parents=True)
    sealed.write(file, change(tensors), header)
    monkeypatch.setattr(
        kept_calibrations, "_calibrated", lambda _: Calibration(tensors, header["learned_from"])
    )
    assert calibration_of(tiny).tensors is tensors
    (said,) = caplog.messages
    assert str(file) in said and "calibrating anew" in said
    assert calibration_of(tiny).identity == Calibration(tensors, "").identity
    assert len(caplog.messages) == 1


def test_words_of_a_calibration_that_are_none_are_not_shown(tiny, calibrated, tmp_path):
    tensors, header = calibrated
    sealed.write(tmp_path / "a", tensors, header | {"learned_from": "\x1b[31m"})
    with pytest.raises(ValueError, match="does not say what it was learned from"):
        calibration_files.read(tmp_path / "a", tiny.identity, {})


def test_what_was_compressed_needs_the_calibration_it_was_compressed_with(tiny, monkeypatch):
    first = calibration_of(tiny)
    monkeypatch.setattr(calibration_files, "recipe", lambda: "another")
    monkeypatch.setattr(sensitivity, "CONTEXTS", (40, 60))
    assert calibration_of(tiny).identity != first.identity
    assert earlier_calibration(tiny, first.identity).identity == first.identity
    with pytest.raises(UsageError, match="copy that folder"):
        earlier_calibration(tiny, "0" * 64)


def test_what_is_learned_is_what_coded_works_with(tiny):
    calibration = calibration_of(tiny)
    assert calibration.learned_from == (
        "4 stretches of up to 60 tokens from #8 on of the Python language reference (offline) and "
        "of texts of several kinds in data/corpus"
    )
    cache = prefill(tiny, families.token_ids(50), probe=True).cache.in_16_bits()
    assert 0 < Coded(calibration=calibration).compress(cache).nbytes < cache.nbytes


def test_where_it_cannot_be_kept_a_run_goes_on_but_not_one_that_is_for_keeping(tiny, caplog):
    folder = folder_of(tiny.identity)
    folder.parent.parent.mkdir(parents=True)
    folder.parent.write_text("a file in the way")
    assert calibration_of(tiny).tensors
    assert any("is not kept" in said for said in caplog.messages)
    with pytest.raises(UsageError, match="KV_CACHE_HOME"):
        calibration_of(tiny, must_keep=True)
