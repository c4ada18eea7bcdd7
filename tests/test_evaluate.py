"""What the judge says of a method, against what it is defined as."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

from compression.base import Uncompressed
from compression.costs import relative_errors
from compression.evaluate import MEASURES, Judge, summary
from compression.methods.tucker import Tucker
from config import UsageError
from data.extraction import prefill
from tests import families
from tests.caches import with_keep
from tests.families import CONTEXT, SCORED, scored


@cache
def judge(name: str) -> Judge:
    _, _, start, continuation = scored(name)
    return Judge(start.cache, continuation)


@pytest.mark.parametrize("name", families.SETTINGS)
def test_none_costs_nothing_at_all_and_damage_costs_something(name):
    row = judge(name).score(Uncompressed())
    assert row["kl_mean_nats"] == 0 and row["kl_p99_nats"] == 0
    assert row["top1_agreement"] == 1 and row["delta_perplexity_percent"] == 0
    assert row["key_error"] == 0 and row["value_error"] == 0
    assert row["ratio"] == 1 and row["bits_per_value"] == 16
    assert row["stored_bytes"] == row["original_bytes"] == judge(name).cache.nbytes
    assert (row["context_tokens"], row["scored_tokens"]) == (CONTEXT, SCORED)
    damaged = judge(name).score(Tucker(1, 1))
    assert damaged["kl_mean_nats"] > 0 and damaged["key_error"] > 0.01
    assert damaged["stored_bytes"] < damaged["original_bytes"]


def test_a_verdict_is_what_it_is_defined_as():
    _, ids, start, continuation = scored("llama_gqa")
    restored = Tucker(2, 4).compress(start.cache).restore()
    found = judge("llama_gqa").verdict(restored)
    full = continuation.log_probabilities(start.cache.in_16_bits()).double()
    other = continuation.log_probabilities(restored).double()
    targets = ids[CONTEXT + 1 :]
    picked = [[p[i, t].item() for i, t in enumerate(targets)] for p in (full, other)]
    kl = (full.exp() * (full - other)).sum(-1)
    expected = {
        "perplexity_full": np.exp(-np.mean(picked[0])),
        "perplexity": np.exp(-np.mean(picked[1])),
        "kl_mean_nats": kl.mean().item(),
        "kl_p50_nats": np.quantile(kl.numpy(), 0.5),
        "kl_p99_nats": np.quantile(kl.numpy(), 0.99),
        "kl_p999_nats": np.quantile(kl.numpy(), 0.999),
        "kl_max_nats": kl.max().item(),
        "top1_agreement": (full.argmax(-1) == other.argmax(-1)).double().mean().item(),
    }
    expected["delta_perplexity_percent"] = 100 * (
        expected["perplexity"] / expected["perplexity_full"] - 1
    )
    assert found == pytest.approx(expected, rel=1e-4)


def test_results_do_not_depend_on_the_order_of_methods():
    methods = [Uncompressed(), Tucker(2, 4), Tucker(4, 8, sink_tokens=2)]
    forward = {m: judge("llama_gqa").score(m) for m in methods}
    backward = {m: judge("llama_gqa").score(m) for m in reversed(methods)}
    for m in methods:
        for name in ("kl_mean_nats", "perplexity", "stored_bytes", "key_error"):
            assert forward[m][name] == backward[m][name]


def test_a_loss_that_is_not_finite_is_an_error():
    _, _, start, continuation = scored("llama_gqa")
    broken = start.cache.in_16_bits()
    broken.layers[1].values.fill_(float("nan"))
    with pytest.raises(UsageError, match="loss on top of it is not finite"):
        Judge(start.cache, continuation).verdict(broken, "it")


def test_relative_errors_are_frobenius_and_an_evicted_entry_is_zero():
    cache = prefill(families.loaded("llama_gqa"), families.token_ids(8)).cache
    keep = torch.tensor([True] * 7 + [False])
    table = relative_errors(cache, with_keep(cache, keep)).set_index(["layer", "kind"])
    for layer in cache.layers:
        lost = layer.keys[:, 7].norm() / layer.keys.norm()
        assert table.loc[(layer.index, "key"), "relative_error"] == pytest.approx(lost.item())


def test_a_summary_is_the_mean_over_texts_and_its_standard_error():
    row = dict.fromkeys(MEASURES, 1.0)
    each = ((1.0, 2.0), (2.0, 4.0), (6.0, 16.0))
    rows = pd.DataFrame(
        [
            {"method": "m", "settings": "s", **row, "kl_mean_nats": kl, "perplexity": perplexity}
            for kl, perplexity in each
        ]
    )
    found = summary(rows).iloc[0]
    assert found["texts"] == 3 and found["kl_mean_nats"] == 3.0
    assert found["kl_mean_nats_se"] == pytest.approx(pd.Series([1.0, 2.0, 6.0]).std() / 3**0.5)
    assert found["perplexity"] == pytest.approx((2.0 * 4.0 * 16.0) ** (1 / 3))  # of all tokens
    assert found["delta_perplexity_percent"] == pytest.approx(100 * (found["perplexity"] - 1))
