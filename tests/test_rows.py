"""What rows are kept under, and when two models are the same."""

import shutil

import pytest
import torch

from compression.base import Uncompressed
from compression.evaluate import Judge
from compression.methods import METHODS
from config import RunConfig
from data.extraction import prefill
from data.models import load
from data.rows import Rows, model_identity
from tests import families
from tests.test_scoring import scored

CPU = torch.device("cpu")


def test_rows_are_kept_by_all_that_they_depend_on(empty_cache):
    ids = torch.arange(9)
    rows = Rows("model", ids, 5, CPU)
    one, other = METHODS["pca"](0.5), METHODS["pca"](0.25)
    assert rows.get(one) is None
    rows.put(one, {"kl": 0.5})
    assert rows.get(one) == {"kl": 0.5} and rows.get(other) is None
    assert rows.complete([one]) and not rows.complete([one, other])
    for elsewhere in (
        Rows("other", ids, 5, CPU),
        Rows("model", ids, 4, CPU),
        Rows("model", ids + 1, 5, CPU),
        Rows("model", ids, 5, torch.device("cuda")),
    ):
        assert elsewhere.get(one) is None
    (file,) = (empty_cache / "rows").iterdir()
    file.write_text("{")
    assert rows.get(one) is None


def test_kept_rows_are_taken_and_new_ones_kept(empty_cache):
    _, ids, start, continuation = scored("llama_gqa")
    judge, rows = Judge(start.cache, continuation), Rows("m", ids, 40, CPU)
    first = judge.scores([Uncompressed()], rows)
    rows.put(Uncompressed(), first[0] | {"ratio": 7})
    again = judge.scores([Uncompressed(), METHODS["pca"]()], rows)
    assert again[0]["ratio"] == 7 and rows.complete([METHODS["pca"]()])


def identity(name: str, settings: dict | None = None, **changes) -> str:
    return model_identity(families.loaded(name, settings=settings, **changes))


def test_a_models_identity_follows_its_weights():
    same = families.loaded("llama_gqa")
    assert model_identity(same) == identity("llama_gqa")
    same.model.lm_head.weight.data[0, 0] += 1
    assert model_identity(same) != identity("llama_gqa")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("mistral", {"sliding_window": 2 * families.WINDOW}),
        ("llama_gqa", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("llama_gqa", {"rms_norm_eps": 1e-3}),
        ("llama_gqa", {"max_position_embeddings": 512}),
        ("gemma2", {"attn_logit_softcapping": 7.0}),
    ],
)
def test_equal_weights_under_other_settings_are_another_model(name, setting):
    one, other = families.model(name), families.model(name, setting)
    weights = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert identity(name) != identity(name, setting)


def test_a_buffer_that_no_checkpoint_holds_is_part_of_the_identity():
    other = families.loaded("falcon_h1")
    other.model.model.layers[0].mamba.mup_vector += 1
    assert "mup_vector" not in "".join(other.model.state_dict())
    assert model_identity(other) != identity("falcon_h1")


def test_the_kind_of_attention_is_no_part_of_the_identity():
    assert identity("llama_gqa", attn_implementation="eager") == identity("llama_gqa")


@pytest.mark.parametrize("name", families.SETTINGS)
def test_a_copy_of_a_models_folder_is_the_same_model(name, tmp_path):
    families.save(families.model(name), tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    found = {
        model_identity(load(RunConfig(model=str(tmp_path / folder), device="cpu")))
        for folder in ("one", "one", "copy")
    }
    assert len(found) == 1


LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
}


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("llama_gqa", {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}),
        ("phi3", LONG_ROPE),
    ],
)
def test_a_model_stays_the_same_while_a_long_text_renews_its_frequencies(name, rope):
    changed = {"rope_parameters": rope, "max_position_embeddings": 64}
    if name == "phi3":
        changed["original_max_position_embeddings"] = 32
    loaded = families.loaded(name, settings=changed)
    before, turning = model_identity(loaded), loaded.model.model.rotary_emb.inv_freq.clone()
    prefill(loaded, families.token_ids(100))
    assert not torch.equal(loaded.model.model.rotary_emb.inv_freq, turning)
    assert model_identity(loaded) == before
