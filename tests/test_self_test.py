import pytest
import torch

from config import UsageError
from data import self_test
from data.extraction import prefill
from data.self_test import refuse_wrong_cache
from tests import families


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", families.SETTINGS)
def test_every_family_is_right_by_far(name, dtype):
    loaded = families.loaded(name)
    loaded.model.to(dtype)
    assert self_test._difference(loaded) < (1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("name", ["bamba", "llama_gqa", "gpt2", "qwen3_next"])
def test_a_model_that_goes_on_from_wrong_positions_is_refused_in_one_sentence(name, monkeypatch):
    loaded = families.sharp(name)
    run = loaded.model.forward

    def from_0_on_every_call(input_ids, position_ids=None, **rest):
        if position_ids is not None:
            position_ids = position_ids - position_ids[:, :1]
        return run(input_ids, position_ids=position_ids, **rest)

    monkeypatch.setattr(loaded.model, "forward", from_0_on_every_call)
    for _ in range(2):  # refused is not tried
        with pytest.raises(UsageError, match="predicts otherwise on top of its cache than without"):
            prefill(loaded, families.token_ids(20))


def test_a_model_is_tried_once(monkeypatch):
    loaded = families.loaded("llama_gqa")
    prefill(loaded, families.token_ids(20))
    monkeypatch.setattr(self_test, "_difference", None)
    prefill(loaded, families.token_ids(20))
    with pytest.raises(TypeError):
        refuse_wrong_cache(families.loaded("llama_gqa"))


def test_a_model_that_runs_with_a_cache_alone_is_refused_with_its_reason(monkeypatch):
    loaded = families.loaded("llama_gqa")
    run = loaded.model.forward

    def cached_only(*args, use_cache, **rest):
        return run(*args, use_cache=use_cache, **rest) if use_cache else int("no")

    monkeypatch.setattr(loaded.model, "forward", cached_only)
    monkeypatch.setattr("data.refusals._raised_in_ours", lambda error: False)
    with pytest.raises(UsageError, match=r"cannot be run without a cache \(ValueError: invalid"):
        refuse_wrong_cache(loaded)
