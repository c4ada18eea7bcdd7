import itertools

import pandas as pd
import pytest
import tensorly
import torch
from tensorly.decomposition import partial_tucker

import config
from compression.evaluate import Judge
from compression.methods.place_by_place import content
from compression.methods.tucker import Tucker
from compression.methods.tucker_math import rebuilt, tucker2
from compression.methods.tucker_ranks import _energy_table, choose_ranks, stored_bytes
from compression.studies.base import Learned
from compression.studies.tucker import TuckerStudy, with_own
from compression.studies.tucker_tables import components, layer_sensitivity
from config import UsageError
from data.cache import KINDS
from tests import caches, families

SHAPES = [(2, 3, 10, 8), (1, 1, 7, 5), (3, 2, 4, 6), (1, 4, 50, 3)]


def smooth(*shape) -> torch.Tensor:
    """Random tensors with a falling spectrum, as caches have."""
    x = torch.randn(*shape)
    tokens = torch.randn(shape[0], shape[2], shape[2]) * 0.6 ** torch.arange(shape[2])
    return tokens[:, None] @ x


def relative_error(x: torch.Tensor, parts) -> torch.Tensor:
    return (x - rebuilt(*parts)).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_restores_within_rounding(shape):
    x = smooth(*shape)
    full = min(shape[2], shape[1] * shape[3])
    assert relative_error(x, tucker2(x, full, shape[3], sweeps=2)).max() < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_orthonormal_and_the_core_is_the_projection(shape):
    x = smooth(*shape)
    core, tokens, dims = tucker2(x, 2, 2, sweeps=3)
    eye = torch.eye(2).expand(shape[0], 2, 2)
    torch.testing.assert_close(tokens.transpose(1, 2) @ tokens, eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(dims.transpose(1, 2) @ dims, eye, atol=1e-5, rtol=0)
    expected = torch.einsum("lhtd,ltr,lde->lhre", x, tokens, dims)
    torch.testing.assert_close(core, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("shape", "ranks"), [(SHAPES[0], (3, 4)), (SHAPES[2], (3, 3))])
def test_the_error_is_that_of_tensorly(shape, ranks):
    tensorly.set_backend("numpy")
    x = smooth(*shape)
    ours = relative_error(x, tucker2(x, *ranks, sweeps=30, tolerance=0))
    for layer, error in zip(x, ours, strict=True):
        (core, factors), _ = partial_tucker(
            layer.numpy(), rank=list(ranks), modes=[1, 2], init="svd", tol=1e-10
        )
        back = tensorly.tenalg.multi_mode_dot(core, factors, modes=[1, 2])
        theirs = ((layer.numpy() - back) ** 2).sum() ** 0.5 / layer.norm().item()
        assert error.item() <= 1.001 * theirs + 1e-6


def test_more_sweeps_and_more_rank_never_err_more():
    x = smooth(2, 3, 30, 12)
    by_sweeps = [relative_error(x, tucker2(x, 5, 4, sweeps=n, tolerance=0)) for n in (1, 2, 5)]
    by_rank = [relative_error(x, tucker2(x, r, r, sweeps=4)) for r in (1, 3, 6, 12)]
    for worse, better in [*itertools.pairwise(by_sweeps), *itertools.pairwise(by_rank)]:
        assert (better <= worse + 1e-5).all()


def test_layers_do_not_mix():
    x = smooth(3, 2, 12, 6)
    together = rebuilt(*tucker2(x, 3, 2, sweeps=3, tolerance=0))
    for i in range(3):
        alone = rebuilt(*tucker2(x[i : i + 1], 3, 2, sweeps=3, tolerance=0))
        torch.testing.assert_close(together[i], alone[0], atol=1e-4, rtol=1e-4)


def test_a_long_text_needs_no_tokens_by_tokens_matrix():
    x = torch.randn(1, 1, 200_000, 2)  # whose square would be 160 GB
    assert relative_error(x, tucker2(x, 2, 2, sweeps=1)).max() < 1e-4


def test_a_zero_tensor_stays_zero():
    back = rebuilt(*tucker2(torch.zeros(1, 2, 6, 4), 2, 2, sweeps=2))
    assert torch.equal(back, torch.zeros_like(back))


def test_stored_bytes_are_core_and_both_factors_in_16_bits():
    # 8 heads x 512 tokens x 128 dims at rank 32: 4.2 million numbers become 28672
    cache = caches.cache(caches.layer(0, 8, 512, (128, 128))).in_16_bits()
    small = Tucker(32, 32).compress(cache)
    per_tensor = 8 * 32 * 32 + 512 * 32 + 128 * 32
    assert small.nbytes == 2 * 2 * per_tensor
    assert cache.nbytes / small.nbytes == pytest.approx(8 * 512 * 128 / per_tensor)


def test_first_and_recent_tokens_are_kept_exactly_and_counted():
    cache = caches.alike().in_16_bits()
    small = Tucker(1, 1, sink_tokens=2, recent_tokens=3).compress(cache)
    back = small.restore()
    for a, b in zip(cache.layers, back.layers, strict=True):
        for kind in KINDS:
            x, y = a.tensor(kind), b.tensor(kind)
            assert torch.equal(x[:, :2], y[:, :2]) and torch.equal(x[:, -3:], y[:, -3:])
            assert not torch.equal(x[:, 2:-3], y[:, 2:-3])
    plain = sum(t.numel() for name, t in small.stored.items() if name.startswith("ends."))
    assert plain == 4 * 2 * 3 * 5 * 8  # layers, kinds, heads, tokens, dims


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_an_energy_is_kept_by_the_cheapest_ranks(energy):
    x = smooth(1, 2, 9, 5)[0]
    ranks = choose_ranks({"x": x}, energy=energy)["x"]
    table = _energy_table(x)
    every = {
        (t, e): stored_bytes(x.shape, t, e)
        for t in range(1, table.shape[0] + 1)
        for e in range(1, table.shape[1] + 1)
        if table[t - 1, e - 1] >= energy and t <= 2 * e
    }
    assert stored_bytes(x.shape, *ranks) == min(every.values())
    error = relative_error(x[None], tucker2(x[None], *ranks, sweeps=4)).item()
    assert error**2 <= 1 - energy + 1e-5


@pytest.mark.parametrize("ratio", [1.5, 3.0, 6.0])
def test_a_target_ratio_is_met_and_spent(ratio):
    tensors = {i: smooth(1, 3, 200, 16)[0] for i in range(4)}
    ranks = choose_ranks(tensors, target_ratio=ratio)
    total = sum(stored_bytes(x.shape, *ranks[i]) for i, x in tensors.items())
    budget = sum(2 * x.numel() for x in tensors.values()) / ratio
    assert 0.9 * budget < total <= budget


def test_a_ratio_that_no_rank_reaches_is_refused_with_the_largest():
    with pytest.raises(UsageError, match=r"at most \d+\.\d here"):
        choose_ranks({0: smooth(1, 3, 20, 8)[0]}, target_ratio=1e6)


def test_a_setting_that_changes_nothing_is_refused():
    with pytest.raises(UsageError, match="leave none of the 10 cached tokens"):
        Tucker(1, 1, sink_tokens=4, recent_tokens=6).refuse_idle(caches.alike())
    _, _, start, _ = families.scored("gpt2")
    with pytest.raises(UsageError, match="are not rotated"):
        Tucker(1, 1, unrotated_keys=True).refuse_idle(start.cache)


def test_bytes_go_where_the_error_falls_fastest():
    hard, easy = torch.randn(2, 100, 16), smooth(1, 2, 100, 16)[0]
    ranks = choose_ranks({"hard": hard, "easy": easy}, target_ratio=3.0)
    share = {k: _energy_table(x)[ranks[k][0] - 1, ranks[k][1] - 1] for k, x in
             {"hard": hard, "easy": easy}.items()}  # fmt: skip
    assert share["easy"] > 0.9 > share["hard"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"embedding_rank": 9}, r"`embedding_rank` 9 is none .* 8 dimensions .*: give 1 to 8"),
        (
            {"token_rank": 11, "embedding_rank": 8},
            r"11 is none .* 10 tokens .*: give 1 to 10",
        ),
        (
            {"token_rank": 7, "embedding_rank": 2},
            r"`token_rank` 7 is none .* rank 2: give 1 to 6",
        ),
    ],
)
def test_ranks_beyond_a_mode_are_refused_with_the_largest_allowed(settings, says):
    method = Tucker(**({"token_rank": 2, "embedding_rank": 2} | settings))
    with pytest.raises(UsageError, match=says):
        method.compress(caches.alike().in_16_bits())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"energy": 0.9, "target_ratio": 2.0}, "were both given"),
        ({"energy": 1.5}, "`energy` is 1.5"),
        ({"target_ratio": 0.5}, "`target_ratio` is 0.5"),
        ({"target_ratio": float("nan")}, "`target_ratio` is nan"),
        ({"target_ratio": float("inf")}, "`target_ratio` is inf"),
        ({"token_rank": 0}, "`token_rank` is 0"),
        ({"sink_tokens": -1}, "`sink_tokens` is -1"),
        ({"token_rank": None}, "needs both ranks"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, says):
    with pytest.raises(UsageError, match=says):
        Tucker(**settings)


def test_sensitivity_measures_one_part_at_a_time():
    _, _, start, continuation = families.scored("llama_gqa")
    judge = Judge(start.cache, continuation)
    method = Tucker(2, 4)
    table = layer_sensitivity(judge, method)
    assert list(zip(table["layer"], table["kind"], strict=True)) == [
        (0, "key"), (0, "value"), (1, "key"), (1, "value")
    ]  # fmt: skip
    assert (table["kl_mean_nats"] > 0).all()
    together = judge.score(method)["kl_mean_nats"]
    assert table["kl_mean_nats"].max() < 3 * together
    assert layer_sensitivity(judge, method, measured=False)["kl_mean_nats"].isna().all()


def test_components_are_the_stored_numbers():
    cache = caches.alike().in_16_bits()
    method = Tucker(3, 2)
    stored = method.compress(cache).stored
    table = components(method, cache, 2)
    core = table[(table["kind"] == "value") & (table["part"] == "core")]
    assert len(core) == 3 * 3 * 2
    for row in core.itertuples():
        assert row.value == stored["2.value.core"][int(row.head), row.row, row.column].item()
    assert table.loc[table["part"] != "core", "head"].isna().all()


@pytest.mark.parametrize("unrotated", [False, True])
def test_kept_energy_is_that_of_the_singular_values_and_of_the_error(unrotated):
    cache = caches.alike().in_16_bits()
    method = Tucker(3, 2, sink_tokens=1, recent_tokens=2, unrotated_keys=unrotated)
    table = components(method, cache, 1)
    for kind in KINDS:
        x = content(cache.layers[1], kind, unrotated)[:, 1:-2]
        rows = table[table["kind"] == kind].set_index("part")
        by_mode = {"kept_by_tokens": x.transpose(0, 1).flatten(1), "kept_by_dims": x.flatten(0, 1)}
        for part, unfolded in by_mode.items():
            energy = torch.linalg.svdvals(unfolded).square()
            assert list(rows.loc[part, "row"]) == list(range(1, 1 + len(energy)))
            assert rows.loc[part, "value"].to_numpy() == pytest.approx(
                (energy.cumsum(0) / energy.sum()).numpy(), abs=1e-5
            )
        kept = rows.loc["kept"]
        assert (kept["row"], kept["column"]) == (3, 2)
        restored = method.compress(cache).restore().layers[1]
        error = content(restored, kind, unrotated)[:, 1:-2] - x
        assert kept["value"] == pytest.approx(1 - (error.norm() / x.norm()).item() ** 2, abs=5e-3)
        for part, rank in (("kept_by_tokens", 3), ("kept_by_dims", 2)):
            assert kept["value"] <= rows.loc[part, "value"].iloc[rank - 1] + 1e-3


def ranks_tried(*ranks: tuple[int, int]) -> pd.DataFrame:
    table = pd.DataFrame(ranks, columns=["token_rank", "embedding_rank"])
    return table.assign(bits_per_value=2.0, kl_mean_nats=0.5, kl_mean_nats_se=0.1, texts=2)


def test_the_setting_of_the_run_is_marked_among_the_ranks_tried_or_added():
    own = pd.Series({"bits_per_value": 3.0, "kl_mean_nats": 0.2, "kl_mean_nats_se": 0.01, "x": "y"})
    own["texts"] = 2
    tried = ranks_tried((2, 4), (8, 4))
    among = with_own(tried, own, Tucker(8, 4))
    pd.testing.assert_frame_equal(among.drop(columns="own"), tried)
    assert list(among["own"]) == [False, True]
    added = with_own(tried, own, Tucker(8, 8))
    assert added["own"].tolist() == [False, False, True]
    assert added[["token_rank", "embedding_rank", "bits_per_value"]].iloc[2].tolist() == [8, 8, 3.0]
    assert list(added) == [*tried, "own"]
    by_layer = with_own(tried, own, Tucker(None, None, energy=0.9))
    assert by_layer["own"].tolist() == [False, False, True]
    assert by_layer[["token_rank", "embedding_rank"]].iloc[2].isna().all()


def test_a_close_look_skips_ranks_that_do_not_exist(monkeypatch):
    _, _, start, continuation = families.scored("llama_gqa")
    monkeypatch.setattr(config, "TOKEN_RANKS", (2, 500))
    monkeypatch.setattr(config, "EMBEDDING_RANKS", (4,))
    ends = {"sink_tokens": 0, "recent_tokens": 0}
    study = TuckerStudy(token_rank=2, embedding_rank=4, no_sensitivity=True, **ends)
    plan = study.look(Judge(start.cache, continuation), Learned())
    assert list(plan.looked["tucker/rank_sensitivity"]["token_rank"]) == [2]
    assert plan.components["layer"].nunique() == 1
