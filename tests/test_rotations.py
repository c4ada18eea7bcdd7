"""What rotated a model's keys, against what its own projections gave before that."""

import dataclasses

import pytest
import torch

from config import UsageError
from data import rotations
from data.extraction import generate, prefill
from data.rotary import NOT_ROTATED
from tests import families
from tests.families import WINDOW

N = 40
WITHOUT_POSITIONS = {  # family -> slots whose keys nothing rotates
    **{name: {1} for name in ("smollm3", "cohere2", "exaone4", "afmoe", "flint", "llama4")},
    **{name: {0, 1} for name in ("gpt2", "opt", "deepseek_v2", "deepseek_v3")},
    "zamba": {1, 3},
    "granite_hybrid": {1},
    **{name: {0, 1} for name in families.INDEXED},
    **{name: {0, 2} for name in ("kimi_linear", "bailing")},  # latents
}
# family -> the module of each layer that gives its keys as they are before rotary embedding
PROJECTED = {
    **dict.fromkeys(
        ["llama_gqa", "mistral", "gemma2", "gpt_oss", "bamba", "zamba", "zamba2"], "k_proj"
    ),
    **dict.fromkeys(["hrm_text", "smollm3", "cohere2", "phi", "stablelm", "gptj"], "k_proj"),
    **dict.fromkeys(["llama4", "nanochat", "granite_hybrid"], "k_proj"),
    **dict.fromkeys(["exaone4", "afmoe", "flint", "qwen3", "gemma3", "qwen3_next"], "k_norm"),
    "persimmon": "k_layernorm",
    "codegen": "qkv_proj",
}
NORMED_AFTER = {"llama4", "nanochat"}  # all of a key alike, which turns nothing


def projected(loaded, ids: torch.Tensor, name: str) -> list[torch.Tensor]:
    """(heads, tokens, dim) of each call of the modules called `name`, in the order of calls."""
    outputs = []
    hooks = [
        module.register_forward_hook(lambda *call: outputs.append(call[-1]))
        for path, module in loaded.model.named_modules()
        if path.endswith("." + name)
    ]
    result = prefill(loaded, ids)
    for hook in hooks:
        hook.remove()
    own = []
    for layer, output in zip(result.cache.layers, outputs, strict=False):
        n_heads, head_dim = layer.n_heads, layer.keys.shape[-1]
        if name == "qkv_proj":  # of CodeGen: queries, values and keys of each of four parts
            output = output.unflatten(-1, (4, 3, -1))[..., 2, :]
        if output.ndim == 4 and output.shape[1] == n_heads:
            own.append(output[0])
        else:
            own.append(output.reshape(len(ids), n_heads, head_dim).transpose(0, 1))
    return own


@pytest.mark.parametrize("name", PROJECTED)
def test_unrotated_keys_are_the_models_own_before_rotary_embedding(name):
    loaded, ids = families.fresh(name), families.token_ids(N)
    layers = prefill(loaded, ids).cache.layers  # after which the model is not tried any more
    own = projected(loaded, ids, PROJECTED[name])
    assert len(own) == len(layers)
    for layer, expected in zip(layers, own, strict=True):
        keys, expected = layer.unrotated_keys(), expected[:, layer.positions]
        if name in NORMED_AFTER:
            keys, expected = (torch.nn.functional.normalize(x, dim=-1) for x in (keys, expected))
        torch.testing.assert_close(keys, expected, atol=1e-5, rtol=1e-4)
        again = layer.rotary.rotated(layer.unrotated_keys(), layer.positions)
        torch.testing.assert_close(again, layer.keys, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(set(families.SETTINGS) - families.UNKNOWN_ROTATION))
def test_layers_without_positions_are_told_from_those_with_them_in_every_dtype(name, dtype):
    loaded = families.fresh(name)
    exact = rotations.rotations(loaded, N)
    still = {slot for slot, rotary in exact.items() if rotary == NOT_ROTATED}
    assert still == WITHOUT_POSITIONS.get(name, set()) and None not in exact.values()
    loaded.model.to(dtype)
    found = rotations.rotations(loaded, N)
    for slot, rotary in exact.items():
        other = dataclasses.replace(found[slot], frequencies=rotary.frequencies)
        assert other == rotary and len(found[slot].frequencies) == len(rotary.frequencies)


def test_the_energy_of_keys_is_in_fewer_directions_where_nothing_is_turned():
    loaded, ids = families.fresh("smollm3"), families.token_ids(N)
    layer = prefill(loaded, ids).cache.layers[1]
    turned = families.fresh("llama_gqa")
    by_tables = prefill(turned, ids).cache.layers[0].rotary

    def share(keys):
        spectrum = torch.linalg.svdvals(keys.flatten(0, 1)).square()
        return float(spectrum[:4].sum() / spectrum.sum())

    assert torch.equal(layer.unrotated_keys(), layer.keys)
    assert share(layer.unrotated_keys()) > share(by_tables.unrotated(layer.keys, layer.positions))


def rope(kind: str, **more) -> dict:
    of_kind = {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 32}
    return {"rope_parameters": of_kind | more}


SCALED = {
    "yarn": rope("yarn", factor=4.0),
    "llama3": rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
    "linear": rope("linear", factor=4.0),
    "dynamic": rope("dynamic", factor=4.0),  # which changes beyond all positions that there are
    "longrope": rope("longrope", factor=4.0, long_factor=[3.0] * 8, short_factor=[1.0] * 8),
}


@pytest.mark.parametrize("n_tokens", [20, 32, 33, 120])  # the tables of some follow from it
@pytest.mark.parametrize("kind", SCALED)
def test_scaled_frequencies_are_those_of_a_text_of_that_length(kind, n_tokens):
    model = families.model("llama_gqa", SCALED[kind])
    loaded = dataclasses.replace(families.fresh("llama_gqa"), model=model)
    ids = families.token_ids(n_tokens)
    layers = prefill(loaded, ids).cache.layers
    for layer, own in zip(layers, projected(loaded, ids, "k_proj"), strict=True):
        torch.testing.assert_close(layer.unrotated_keys(), own, atol=1e-5, rtol=1e-4)
    if kind in ("yarn", "longrope"):
        assert layers[0].rotary.scaling > 1.05


@pytest.mark.parametrize(("kind", "n_known"), [("yarn", 2), ("dynamic", 2), ("longrope", 0)])
def test_keys_of_before_and_after_a_change_of_frequencies_are_not_undone_as_one(kind, n_known):
    model = families.model("llama_gqa", SCALED[kind])
    loaded = dataclasses.replace(families.fresh("llama_gqa"), model=model)
    grown = generate(loaded, prefill(loaded, families.token_ids(30)), 5)
    assert sum(layer.rotary is not None for layer in grown.layers) == n_known


def test_keys_that_are_weighted_after_rotation_are_not_undone():
    settings = {**families.SETTINGS["llama_gqa"][1], "head_dim": 16}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.SETTINGS, "hunyuan", ("hunyuan_v1_dense", settings))
        alike, weighted = families.fresh("hunyuan"), families.fresh("hunyuan")
    for layer in weighted.model.model.layers:
        layer.self_attn.key_layernorm.weight.data.uniform_(0.2, 2.0)
    assert None not in rotations.rotations(alike, N).values()
    assert rotations.rotations(weighted, N) == {0: None, 1: None}
    with pytest.raises(UsageError, match="cannot be undone exactly"):
        prefill(weighted, families.token_ids(N)).cache.layers[0].unrotated_keys()


@pytest.mark.parametrize("name", ["llama_gqa", "gemma3"])
def test_a_model_that_does_not_heed_its_positions_is_not_believed(name):
    deaf, untold = families.fresh(name), families.fresh(name)
    run, run_untold = deaf.model.forward, untold.model.forward
    deaf.model.forward = lambda *args, position_ids=None, **rest: run(*args, **rest)

    def forward(input_ids, past_key_values=None, use_cache=None):
        return run_untold(input_ids, past_key_values=past_key_values, use_cache=use_cache)

    untold.model.forward = forward
    for loaded in (deaf, untold):
        assert rotations.rotations(loaded, N) == {0: None, 1: None}


def test_without_anything_to_rotate_by_and_positions_nothing_is_rotated():
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"vocab_size": 300, "hidden_size": 64, "n_layer": 2, "n_head": 4}
        patch.setitem(families.SETTINGS, "bloom", ("bloom", sizes))  # biases by distance
        loaded = families.fresh("bloom")
    assert rotations.rotations(loaded, N) == {0: NOT_ROTATED, 1: NOT_ROTATED}


@pytest.mark.parametrize("n", [2 * rotations.PAIRS, WINDOW, 100, 4096])
def test_tokens_are_looked_at_once_and_again_up_to_the_last_position(n):
    places = rotations._places(n).tolist()
    assert max(places) == n - 1 and min(places) == 0 and len(set(places)) == len(places)
    gaps = [b - a for a, b in zip(places[:8], places[8:], strict=True)]
    assert gaps == sorted(gaps, reverse=True) and len(set(gaps)) == len(gaps)


def test_a_model_is_looked_at_once_for_a_length(monkeypatch):
    loaded = families.fresh("llama_gqa")
    first = rotations.rotations(loaded, N)
    monkeypatch.setattr(rotations, "forward_at", None)
    assert rotations.rotations(loaded, N) is first


def test_a_model_that_runs_on_one_text_at_a_time_is_analysed_without(caplog):
    loaded = families.fresh("llama_gqa")
    run = loaded.model.forward

    def of_one(input_ids, position_ids=None, **rest):
        return run(input_ids.reshape(1, -1, input_ids.shape[1]), position_ids=position_ids, **rest)

    def one_at_a_time(input_ids, **rest):
        return (run if len(input_ids) == 1 else of_one)(input_ids, **rest)

    loaded.model.forward = one_at_a_time
    grown = generate(loaded, prefill(loaded, families.token_ids(N)), 2)
    assert [layer.rotary for layer in grown.layers] == [None, None]
    assert "cannot be run on several texts at once" in caplog.text
