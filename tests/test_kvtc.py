"""KVTC: its plans against brute force, its bytes, and what it learns."""

import zlib
from dataclasses import replace

import pytest
import torch

from compression.base import Calibration
from compression.kvtc_calibration import kvtc_calibration_of
from compression.methods import kvtc_fit
from compression.methods.kvtc import KVTC, RATIOS
from compression.methods.kvtc_plan import (
    BLOCK,
    INTEGERS,
    best_plans,
    from_min_max,
    joined,
    min_max,
    possible_runs,
)
from config import UsageError
from tests import caches, families

N_BLOCKS = 5


def coefficients(n_tokens=40, n_blocks=N_BLOCKS):
    """Of falling size, as principal directions give them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n_tokens, n_blocks * BLOCK, generator=generator)
    return x * torch.logspace(1, -1, x.shape[1])


@pytest.fixture(scope="module")
def runs():
    x = coefficients()
    return list(possible_runs(x, 2 * x.abs().amax(0) / 448))


def every_plan(runs, start=0):
    """All ways to cover all blocks with these runs."""
    if start == N_BLOCKS:
        yield []
    for run in runs:
        if run.start == start:
            yield from ([run, *rest] for rest in every_plan(runs, start + run.blocks))


@pytest.mark.parametrize("budget", [0, 2, 5, 7, 12, 30])
def test_no_plan_within_a_budget_has_less_error(runs, budget):
    within = [p for p in every_plan(runs) if sum(run.cost for run in p) <= budget]
    least = min(within, key=lambda plan: sum(run.error for run in plan))
    (plan,) = best_plans(runs, N_BLOCKS, [budget])
    assert plan == joined((run.bits, run.blocks * BLOCK) for run in least)


def test_a_larger_budget_is_never_worse_and_all_are_found_at_once(runs):
    budgets = [30, 3, 11]
    together = best_plans(runs, N_BLOCKS, budgets)
    assert together == [best_plans(runs, N_BLOCKS, [b])[0] for b in budgets]
    spent = [sum(bits * columns for bits, columns in plan) for plan in together]
    assert spent[0] > spent[2] > spent[1]


def test_the_cost_of_a_run_is_what_is_stored_of_a_token(runs):
    for run in runs:
        side = 32 if run.bits in INTEGERS else 0
        assert 32 * run.cost == run.bits * run.blocks * BLOCK + side


def test_integers_are_within_half_a_step_and_ends_are_met():
    x = coefficients() * 1e6  # beyond float16
    for bits in INTEGERS:
        codes, step, zero = min_max(x, bits)
        assert int(codes.max()) == 2**bits - 1 and int(codes.min()) == 0
        off = (from_min_max(codes, step, zero) - x).abs()
        rounding = x.abs().amax(1, keepdim=True) / 128
        assert (off <= step.float() / 2 + rounding).all()


def test_runs_without_a_step_of_their_own_are_joined_and_a_tail_without_bits_goes():
    assert joined([(8, 16), (8, 16), (4, 16), (4, 16), (0, 16), (2, 64), (0, 16), (0, 16)]) == [
        (8, 32), (4, 16), (4, 16), (0, 16), (2, 64),
    ]  # fmt: skip


def low_rank_caches(n=3, noise=0.0):
    """Caches whose keys and values depend on few numbers of a token, over all heads and layers."""
    generator = torch.Generator().manual_seed(0)
    made, mixing = [], {}
    for _ in range(n):
        causes = torch.randn(200, 8, generator=generator)
        layers = []
        for i in range(4):
            layer = caches.layer(i, 2, 200, (16, 16))
            pair = []
            for kind in ("key", "value"):
                mix = mixing.setdefault((i, kind), torch.randn(8, 32, generator=generator))
                x = causes @ mix + noise * torch.randn(200, 32, generator=generator) + 5
                pair.append(x.view(200, 2, 16).transpose(0, 1).contiguous())
            keys = layer.rotary.rotated(pair[0], layer.positions)
            layers.append(replace(layer, keys=keys, values=pair[1]))
        made.append(caches.cache(*layers))
    return made


@pytest.fixture(scope="module")
def learned():
    return kvtc_fit.fitted(low_rank_caches()[:2], "two other texts")


def relative_error(cache, method):
    back = method.compress(cache).restore()
    pairs = zip(cache.in_16_bits().layers, back.layers, strict=True)
    squares = [
        ((a.tensor(k).float() - b.tensor(k).float()).square().sum(), a.tensor(k).square().sum())
        for a, b in pairs
        for k in ("key", "value")
    ]
    return (sum(s for s, _ in squares) / sum(n for _, n in squares)).sqrt().item()


def test_what_heads_and_layers_share_is_stored_once(learned):
    """Eight numbers a token stand behind 256: a budget of a 16th holds them in 8 bits."""
    cache = low_rank_caches()[2]
    method = KVTC(16, recent_tokens=0, sink_tokens=0, calibration=learned)
    assert relative_error(cache, method) < 0.03
    assert method.compress(cache).ratio > 14


def test_smaller_budgets_store_less_and_lose_more(learned):
    cache = low_rank_caches(noise=1.0)[2]
    fit = kvtc_fit.fitted(low_rank_caches(noise=1.0)[:2], "two other texts")
    methods = [KVTC(r, recent_tokens=0, calibration=fit) for r in RATIOS]
    sizes = [m.compress(cache).nbytes for m in methods]
    errors = [relative_error(cache, m) for m in methods]
    once = [m.per_model_nbytes for m in methods]
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors)
    assert once == sorted(once, reverse=True) and len(set(once)) > 1


def test_the_budget_holds_before_deflate(learned):
    """All but the tokens that are plain, by hand from the plans."""
    for ratio in RATIOS:
        method = KVTC(ratio, calibration=learned)
        for kind in ("key", "value"):
            plan = method.calibration.tensors[f"plan.{ratio}.0.{kind}"].tolist()
            bits = sum(b * size + (32 if b in INTEGERS else 0) for b, size in plan)
            assert bits <= 16 * 128 / ratio


def test_the_ends_of_the_paper_stay_plain(learned):
    cache = low_rank_caches()[2].in_16_bits()
    back = KVTC(64, calibration=learned).compress(cache).restore()
    for a, b in zip(cache.layers, back.layers, strict=True):
        same = (a.values == b.values).all(2).all(0)
        assert same[:4].all() and same[-128:].all() and not same[4:-128].all()


def test_the_bytes_are_a_deflate_stream(learned):
    stored = KVTC(8, calibration=learned).compress(low_rank_caches()[2]).stored
    for name in ("0.key", "0.value"):
        assert len(zlib.decompress(stored[name].numpy().tobytes())) > 0


@pytest.mark.parametrize("hurt", ["cut", "more", "flip", "bomb"])
def test_a_stream_that_is_not_its_own_is_refused(learned, hurt):
    small = KVTC(8, calibration=learned).compress(low_rank_caches()[2])
    stream = small.stored["0.key"].numpy().tobytes()
    broken = {
        "cut": stream[:-3],
        "more": stream + b"x",
        "flip": stream[:9] + bytes([stream[9] ^ 255]) + stream[10:],
        "bomb": zlib.compress(bytes(10**7)),
    }[hurt]
    small.stored["0.key"] = torch.frombuffer(bytearray(broken), dtype=torch.uint8)
    with pytest.raises(ValueError, match="inflated"):
        small.restore()


def test_a_part_of_what_was_learned_is_enough(learned):
    method = KVTC(32, calibration=learned)
    again = KVTC(32, calibration=method.calibration)
    assert again.calibration.identity == method.calibration.identity
    assert not [name for name in method.calibration.tensors if name.startswith("plan.16")]


def test_a_calibration_of_another_model_is_refused(learned):
    with pytest.raises(UsageError, match="does not fit this cache"):
        KVTC(8, sink_tokens=0, recent_tokens=0, calibration=learned).compress(caches.alike())
    with pytest.raises(UsageError, match="a ratio of 5: its bits are chosen for 4, 8, 16, 32, 64"):
        KVTC(5, calibration=learned)


def test_many_layers_are_joined_in_groups(monkeypatch):
    monkeypatch.setattr(kvtc_fit, "MOST_COLUMNS", 64)
    fit = kvtc_fit.fitted(low_rank_caches()[:2], "two other texts")
    assert [fit.tensors[f"layers.{g}"].tolist() for g in range(2)] == [[0, 1], [2, 3]]
    assert relative_error(low_rank_caches()[2], KVTC(4, calibration=fit)) < 0.03


def test_what_is_learned_of_a_model_is_kept(empty_cache, caplog):
    tiny = families.loaded("llama_gqa")
    first = kvtc_calibration_of(tiny)
    assert "Learning the basis of kvtc" in caplog.text
    caplog.clear()
    again = kvtc_calibration_of(tiny)
    assert again.identity == first.identity and not caplog.text
    assert "Python language reference" in first.learned_from
    (file,) = empty_cache.rglob("kvtc-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert kvtc_calibration_of(tiny).identity == first.identity
    assert "learning anew" in caplog.text


def test_a_folder_that_cannot_be_written_costs_no_result(empty_cache, caplog):
    empty_cache.write_text("a file stands where the folder is due")
    assert isinstance(kvtc_calibration_of(families.loaded("llama_gqa")), Calibration)
    assert "is not kept" in caplog.text
