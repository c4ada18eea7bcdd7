"""Wrappers that show images to a causal model are run as that model, on text alone."""

import json

import pytest
import torch

from config import UsageError
from data import models
from data.attention import wrapped_attention
from data.extraction import generate, prefill
from data.forward import forward
from data.model_classes import auto_class
from data.resume import as_past
from data.scoring import Continuation
from tests import families
from tests.commands import PROMPT, run


@pytest.fixture(scope="module", params=families.WRAPPERS)
def wrapped(request, folder_of):
    return models.load(folder_of(request.param), device="cpu")


def test_a_wrapper_is_loaded_with_all_its_weights(wrapped):
    ids = families.token_ids(20)[None]
    with torch.no_grad():
        expected = families.model(wrapped.name)(ids).logits[0, -1]
        torch.testing.assert_close(wrapped.model(ids).logits[0, -1], expected)
    assert wrapped.vocabulary == families.VOCABULARY and wrapped.max_positions == 256


@torch.no_grad()
def test_its_cache_is_that_of_a_text_and_is_gone_on_from(wrapped):
    ids = families.token_ids(47)
    start = prefill(wrapped, ids[:40], probe=True)
    assert all(layer.attention is not None for layer in start.cache.layers)
    continuation = Continuation(wrapped, start.past, ids[40:])
    found = continuation.log_probabilities(start.cache)
    plain = torch.log_softmax(wrapped.model(ids[None], use_cache=False).logits[0].float(), -1)
    torch.testing.assert_close(found, plain[40:-1], atol=2e-4, rtol=1e-3)
    past = as_past(wrapped, start.cache)
    resumed = wrapped.model(ids[None, 40:41], past_key_values=past).logits[0, -1]
    torch.testing.assert_close(torch.log_softmax(resumed.float(), -1), found[0])
    assert generate(wrapped, start, 3).n_tokens == 43


def test_every_mode_runs_on_a_wrapper(folder_of, tmp_path, empty_cache):
    usual = ["--model", folder_of("qwen2_5_vl"), "--device", "cpu", "--prompt", PROMPT]
    out = ["--output_dir", str(tmp_path / "out")]
    short = ["--context_tokens", "80", "--score_tokens", "8"]
    assert run(*usual, *out, "--mode", "analyze", "--analysis_focus", "layers") == 0
    assert run(*usual, *out, *short, "--mode", "compare", "--methods", "svd", "--quick") == 0
    file = str(tmp_path / "a.kv")
    assert run(*usual, "--mode", "store", "--save_compressed", file, "--methods", "int8") == 0


@pytest.mark.parametrize(
    ("model_type", "says"),
    [("blip", "is no causal language model"), ("udop", "is an encoder-decoder")],
)
def test_what_cannot_do_with_text_alone_is_refused(tmp_path, model_type, says):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    families.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=says):
        models.load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("name", families.SETTINGS)
def test_a_causal_model_is_loaded_as_one(name):
    settings = families.model(name).config
    assert auto_class(settings).__name__ == "AutoModelForCausalLM"


def test_layers_without_a_cache_of_their_own_are_watched_on_every_query():
    """Gemma 4 runs them on the last query alone where one logit is asked for as a number."""
    loaded, ids, seen = families.loaded("gemma4"), families.token_ids(40), []

    def watch(call):
        seen.append(call.query.shape[2])
        return call.run()

    with torch.no_grad(), wrapped_attention(loaded.model, watch):
        logits = forward(loaded, ids, last_only=True).logits
        assert seen == [40, 40, 40, 40] and logits.shape[1] == 1
        loaded.model(ids[None], logits_to_keep=1)
    assert seen[4:] == [40, 40, 1, 1]
