import pytest
import torch

from config import UsageError
from data.cache import LayerKV
from data.extraction import generate, prefill
from data.rotary import NOT_ROTATED, Rotary
from tests import families

STATES_BEFORE = {"qwen3_next", "bamba", "zamba", "zamba2", "granite_hybrid"}  # of the same word
LATENT = {"deepseek_v2", "deepseek_v3", "kimi_linear", "bailing", *families.INDEXED}
NOT_ROTATED_FIRST = {"gpt2", "opt", *STATES_BEFORE, *LATENT, *families.UNKNOWN_ROTATION}
ROTATED_FIRST_LAYER = sorted(families.SETTINGS.keys() - NOT_ROTATED_FIRST)
SOME = Rotary((1.0, 0.3, 0.01), scaling=1.3)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [6, 9])
def test_undoing_undoes_and_leaves_the_rest_of_the_width_alone(interleaved, dim):
    rotary = Rotary(SOME.frequencies, SOME.scaling, interleaved)
    x, positions = torch.randn(2, 50, dim), torch.arange(7, 57)
    turned = rotary.rotated(x, positions)
    torch.testing.assert_close(rotary.unrotated(turned, positions), x, atol=1e-5, rtol=1e-5)
    assert torch.equal(turned[..., 6:], x[..., 6:])
    norms = turned[..., :6].norm(dim=-1)
    torch.testing.assert_close(norms, 1.3 * x[..., :6].norm(dim=-1))


def test_scores_depend_on_the_distance_alone():
    query, key = torch.randn(1, 1, 6), torch.randn(1, 1, 6)
    plain = Rotary(SOME.frequencies)

    def score(at, to):
        places = torch.tensor([at]), torch.tensor([to])
        return (plain.rotated(query, places[0]) * plain.rotated(key, places[1])).sum().item()

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)


@pytest.mark.parametrize("name", ROTATED_FIRST_LAYER)
def test_the_same_word_has_the_same_unrotated_key_everywhere(name):
    # The first layer sees nothing but the word: what still differs over positions is rotation.
    cache = prefill(families.loaded(name), torch.full((40,), 17)).cache
    first = cache.layers[0]
    assert first.index == 0 and not torch.allclose(first.keys[:, :1], first.keys, atol=1e-3)
    keys = first.unrotated_keys()
    torch.testing.assert_close(keys, keys[:, :1].expand_as(keys), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ROTATED_FIRST_LAYER)
def test_every_layer_is_undone_and_redone(name):
    loaded = families.loaded(name)
    start = prefill(loaded, families.token_ids(40))
    for layer in generate(loaded, start, 3).layers:  # at positions beyond those of the prefill
        again = layer.rotary.rotated(layer.unrotated_keys(), layer.positions)
        torch.testing.assert_close(again, layer.keys, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "opt", "deepseek_v2", "deepseek_v3"])
def test_keys_that_nothing_rotated_are_returned_as_they_are(name):
    for layer in prefill(families.fresh(name), families.token_ids(12)).cache.layers:
        assert layer.rotary == NOT_ROTATED
        assert torch.equal(layer.unrotated_keys(), layer.keys)


@pytest.mark.parametrize("name", ["llama_gqa", "gpt_oss", "gemma3", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_models_are_undone_as_well(name, dtype):
    loaded = families.fresh(name)
    exact = prefill(loaded, families.token_ids(40)).cache.layers
    loaded.model.to(dtype)
    for layer, reference in zip(
        prefill(loaded, families.token_ids(40)).cache.layers, exact, strict=True
    ):
        assert layer.rotary.interleaved == reference.rotary.interleaved
        assert layer.rotary.scaling == pytest.approx(reference.rotary.scaling, rel=1e-3)


def test_what_is_not_known_is_not_undone():
    keys = torch.zeros(1, 3, 4)
    layer = LayerKV(keys, keys, torch.arange(3), 5)
    with pytest.raises(UsageError, match="rotary embedding of layer 5 cannot be undone"):
        layer.unrotated_keys()
