import pytest
import torch

from config import UsageError
from data import self_test
from data.extraction import prefill
from data.forward import one_by_one
from data.scoring import Continuation
from data.self_test import refuse_wrong_cache
from tests import families

FORGETFUL = {"zamba"}  # its state, when several tokens follow


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", families.SETTINGS)
def test_every_family_is_right_by_far(name, dtype):
    loaded = families.fresh(name)
    loaded.model.to(dtype)
    at_once, stepwise = self_test.differences(loaded)
    assert stepwise < (1e-5 if dtype == torch.float32 else 0.02)
    assert name in FORGETFUL or at_once < (1e-5 if dtype == torch.float32 else 0.02)


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
    loaded = families.fresh("llama_gqa")
    prefill(loaded, families.token_ids(20))
    monkeypatch.setattr(self_test, "differences", None)
    prefill(loaded, families.token_ids(20))
    with pytest.raises(TypeError):
        refuse_wrong_cache(families.fresh("llama_gqa"))


def test_a_model_that_cannot_go_on_from_its_cache_is_refused_with_its_reason():
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "dim_head": 16}
        sizes |= {"num_attention_heads": 4, "dim_ff": 96}
        patch.setitem(families.SETTINGS, "cpmant", ("cpmant", sizes))  # its bias has no past
        loaded = families.fresh("cpmant")
    with pytest.raises(
        UsageError, match=r"cannot be run both .* \(RuntimeError: The size of tenso"
    ):
        prefill(loaded, families.token_ids(20))


USUAL = families.SETTINGS["llama_gqa"][1]
KINDS = ["linear_attention", "full_attention"]
AT_ONCE_WRONG = {
    "zamba": families.SETTINGS["zamba"],
    "jamba": (
        "jamba",
        USUAL
        | {"mamba_d_state": 8, "mamba_dt_rank": 4, "num_experts": 2, "initializer_range": 0.1}
        | {"attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    # takes the length of the past from its first layer, where that keeps a state: tokens fed
    # together after it see each other both ways
    "minimax": ("minimax", USUAL | {"num_local_experts": 4, "head_dim": 16, "layer_types": KINDS}),
}


@pytest.mark.parametrize("name", AT_ONCE_WRONG)
def test_what_is_wrong_for_several_tokens_at_once_is_fed_one_by_one(name, monkeypatch):
    monkeypatch.setitem(families.SETTINGS, name, AT_ONCE_WRONG[name])
    loaded, ids = families.sharp(name), families.token_ids(30)
    with torch.no_grad():
        logits = loaded.model(ids[None], use_cache=False).logits[0].float()
    whole = torch.log_softmax(logits, -1)[20:-1]
    start = prefill(loaded, ids[:20])
    continuation = Continuation(loaded, start.past, ids[20:])
    found = continuation.log_probabilities(start.cache)
    torch.testing.assert_close(found, whole, atol=1e-3, rtol=1e-3)
    one_by_one.discard(loaded.model)  # so it was on the tree of before
    assert (continuation.log_probabilities(start.cache) - whole).abs().max() > 1e-2
