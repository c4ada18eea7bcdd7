"""Energy spectra against singular values of all tokens stacked, and the laws that they keep."""

import itertools
from dataclasses import replace
from functools import reduce

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import spectrum
from analysis.moments import KINDS, HeadMoments, Moments
from analysis.spectrum import Spectrum
from analysis.spectrum_findings import said
from config import UsageError
from data.cache import KVCache, LayerKV
from data.extraction import prefill
from data.rotary import NOT_ROTATED
from tests import caches, families
from tests.commands import files_below, run

every_shape = pytest.mark.parametrize("name", caches.SHAPES)
DIM, HEADS = 8, 3
FLOATS = 100  # so few that every layer is read in several blocks


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def layer_of(values: torch.Tensor, index: int = 0, **more) -> LayerKV:
    """A layer whose keys and values are these (heads, tokens, dim), which nothing rotated."""
    rotary = more.pop("rotary", NOT_ROTATED)
    return LayerKV(values, values, torch.arange(values.shape[1]), index, rotary=rotary, **more)


def cache_of(*values: torch.Tensor, **more) -> KVCache:
    return caches.cache(*(layer_of(v, i, **more) for i, v in enumerate(values)))


def text(seed: int, n_tokens: int = 40) -> KVCache:
    """One of several texts of a model with two layers of three heads."""
    layers = (caches.layer(i, HEADS, n_tokens, (DIM, DIM), seed=seed) for i in range(2))
    return caches.cache(*layers)


def stacked(texts: list[KVCache], place: int, kind: str) -> np.ndarray:
    """(heads, tokens of all texts, dim)"""
    chosen = [cache.layers[place] for cache in texts]
    parts = [x.unrotated_keys() if kind == "unrotated_key" else x.tensor(kind) for x in chosen]
    return torch.cat(parts, 1).double().numpy()


def row(table: pd.DataFrame, layer: int, head: int, kind: str) -> pd.Series:
    chosen = (table["layer"] == layer) & (table["head"] == head) & (table["kind"] == kind)
    return table[chosen].squeeze()


def ranks_of(cache: KVCache) -> pd.DataFrame:
    return spectrum.ranks(Moments.of(cache))


def energies(cache: KVCache) -> torch.Tensor:
    """Of the only layer's keys."""
    return Moments.of(cache).parts[0].energies


def entropy_rank(singular: np.ndarray) -> float:
    p = singular[singular > 1e-9 * singular[0]] / singular.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


@every_shape
def test_energies_are_squared_singular_values(name):
    cache = caches.SHAPES[name]()
    for part in Moments.of(cache, FLOATS).parts:
        layer = next(x for x in cache.layers if x.index == part.layer)
        rotated = part.kind == "unrotated_key"
        x = layer.unrotated_keys() if rotated else layer.tensor(part.kind)
        expected = torch.linalg.svdvals(x.double()).square()
        n = expected.shape[1]
        largest = expected[:, :1]
        torch.testing.assert_close(
            part.energies[:, :n] / largest, expected / largest, atol=1e-12, rtol=1e-9
        )
        assert (part.energies[:, n:] == 0).all() and part.energies.dtype == torch.float64


def test_ranks_over_texts_are_those_of_all_tokens_stacked():
    texts = [text(seed, n) for seed, n in ((1, 40), (2, 7), (3, 25))]
    table = reduce(Spectrum.__add__, map(Spectrum.of, texts)).tables(4)["spectrum/ranks"]
    assert (table["texts"] == 3).all() and (table["tokens"] == 72).all()
    assert len(table) == 2 * HEADS * len(KINDS)
    for place, kind, head in itertools.product(range(2), KINDS, range(HEADS)):
        x = stacked(texts, place, kind)[head]
        singular = np.linalg.svd(x, compute_uv=False)
        shares = (singular**2).cumsum() / (singular**2).sum()
        found = row(table, place, head, kind)
        for level in (90, 95, 99):
            assert found[f"rank_{level}"] == 1 + (shares < level / 100).sum()
        assert found["effective_rank"] == pytest.approx(entropy_rank(singular))
        assert found["share_of_dim"] == pytest.approx(entropy_rank(singular) / DIM)
        mean = len(x) * (x.mean(0) ** 2).sum() / (x**2).sum()
        assert found["mean_energy_share"] == pytest.approx(mean)
        centred = np.linalg.svd(x - x.mean(0), compute_uv=False)
        assert found["centred_effective_rank"] == pytest.approx(entropy_rank(centred))


def test_texts_may_be_added_in_any_order_and_read_in_any_blocks():
    made = [Moments.of(text(seed), FLOATS + 97 * seed) for seed in range(3)]
    whole = reduce(Moments.__add__, (Moments.of(text(seed)) for seed in range(3)))
    nested = made[0] + (made[1] + made[2])
    for order in itertools.permutations(made):
        for added in (reduce(Moments.__add__, order), nested):
            assert added.texts == 3
            for one, other in zip(added.parts, whole.parts, strict=True):
                torch.testing.assert_close(one.squares, other.squares, rtol=1e-12, atol=1e-12)
                torch.testing.assert_close(one.sums, other.sums, rtol=1e-12, atol=1e-10)
                assert torch.equal(one.tokens, other.tokens)


def test_no_more_than_a_block_is_held_in_float64(monkeypatch):
    sizes = []
    double = torch.Tensor.double
    monkeypatch.setattr(torch.Tensor, "double", lambda x: (sizes.append(x.numel()), double(x))[1])
    Moments.of(text(0, 400), FLOATS)
    assert max(sizes) <= FLOATS and len(sizes) == 2 * len(KINDS) * 100


def test_moments_of_another_model_are_refused():
    two, other = Moments.of(text(0)), Moments.of(caches.mixed())
    with pytest.raises(UsageError, match="layer 0's keys of 3 KV heads x 8 cannot be added"):
        two + other
    with pytest.raises(UsageError, match="layer 1's keys of 3 KV heads x 8: add up texts of one"):
        Moments(two.parts[:3]) + two


def test_moments_where_it_is_not_known_what_rotated_are_not_added_to_those_where_it_is():
    cache = text(0)
    unknown = replace(cache, layers=tuple(replace(x, rotary=None) for x in cache.layers))
    with pytest.raises(UsageError, match="unrotated_keys"):
        Moments.of(unknown) + Moments.of(cache)


@pytest.mark.parametrize("rank", [1, 3, DIM])
def test_data_of_rank_k_has_rank_k(rank):
    x = noise(HEADS, 50, rank) @ noise(HEADS, rank, DIM, seed=1)
    table = ranks_of(cache_of(x))
    assert ((energies(cache_of(x)) > 0).sum(1) == rank).all()
    assert (table["rank_99"] <= rank).all() and (table["effective_rank"] <= rank + 1e-6).all()


def test_equal_energies_take_every_dimension_and_one_takes_one():
    equal = torch.eye(DIM).double().expand(1, -1, -1)
    found = ranks_of(cache_of(equal)).iloc[0]
    assert found["effective_rank"] == pytest.approx(DIM)
    assert [found[name] for name in spectrum.RANKS] == [8, 8, 8]
    ten = ranks_of(cache_of(torch.eye(10).double().expand(1, -1, -1))).iloc[0]
    assert [ten[name] for name in spectrum.RANKS] == [9, 10, 10]  # 9 of 10 hold exactly 90%
    one = ranks_of(cache_of(torch.ones(1, 20, DIM).double())).iloc[0]
    assert one["effective_rank"] == pytest.approx(1) and one["rank_99"] == 1
    assert one["mean_energy_share"] == pytest.approx(1) and one["centred_effective_rank"] == 0


def test_isotropic_data_has_an_effective_rank_near_the_dimension():
    assert (ranks_of(cache_of(noise(HEADS, 4000, DIM)))["share_of_dim"] > 0.99).all()


def test_a_cache_of_zeros_has_rank_0():
    table = ranks_of(cache_of(torch.zeros(2, 5, 4)))
    assert (table[[*spectrum.RANKS, "effective_rank", "mean_energy_share"]] == 0).all(axis=None)
    spectra = Spectrum.of(cache_of(torch.zeros(2, 5, 4))).tables(4)
    assert spectra["spectrum/energy_spectrum"]["cumulative"].eq(0).all()
    assert spectra["spectrum/subspace_overlap"]["overlap"].isna().all()


def test_an_orthogonal_transform_leaves_spectra_as_they_are():
    x = noise(HEADS, 30, DIM)
    turned = x @ torch.linalg.qr(noise(DIM, DIM, seed=1))[0]
    torch.testing.assert_close(energies(cache_of(turned)), energies(cache_of(x)))


def test_rotary_embedding_at_one_position_leaves_the_spectrum_and_at_all_changes_it():
    layer = caches.layer(0, HEADS, 30, (DIM, DIM))
    same_place = layer.rotary.rotated(layer.keys, torch.full((30,), 17))
    before = energies(cache_of(layer.keys))
    torch.testing.assert_close(energies(cache_of(same_place)), before, rtol=1e-5, atol=1e-5)
    everywhere = layer.rotary.rotated(layer.keys, layer.positions)
    assert not torch.allclose(energies(cache_of(everywhere)), before, rtol=1e-2)


def test_unrotated_keys_are_the_models_own_projections():
    loaded, ids = families.fresh("llama_gqa"), families.token_ids(40)
    projected = []
    for block in loaded.model.model.layers:
        block.self_attn.k_proj.register_forward_hook(lambda *args: projected.append(args[2]))
    cache = prefill(loaded, ids).cache
    parts = [x for x in Moments.of(cache).parts if x.kind == "unrotated_key"]
    own = [x for x in projected if x.shape[:2] == (1, 40)]
    assert len(parts) == len(own) == cache.n_layers
    for part, x in zip(parts, own, strict=True):
        by_head = x[0].unflatten(1, (len(part.sums), -1)).transpose(0, 1).double()
        expected = torch.linalg.svdvals(by_head).square()
        torch.testing.assert_close(part.energies, expected, rtol=1e-4, atol=1e-6)


def test_evicted_entries_are_left_out_whatever_stands_there():
    whole = text(0)
    keep = torch.zeros(40, dtype=torch.bool)
    keep[::3] = True
    evicted = caches.with_keep(whole, keep)
    for layer in evicted.layers:
        layer.keys[:, 1], layer.values[:, 1] = torch.nan, torch.inf
    for part in Moments.of(evicted, FLOATS).parts:
        x = stacked([whole], part.layer, part.kind)[:, keep.numpy()]
        expected = torch.from_numpy(np.einsum("htd,hte->hde", x, x))
        torch.testing.assert_close(part.squares, expected, rtol=1e-6, atol=1e-6)
        assert part.tokens.tolist() == [14] * HEADS


def test_heads_that_change_places_change_rows():
    x, order = noise(HEADS, 30, DIM), [2, 0, 1]
    one, other = ranks_of(cache_of(x)), ranks_of(cache_of(x[order]))
    for new, old in enumerate(order):
        pd.testing.assert_series_equal(
            row(other, 0, new, "key").drop("head"),
            row(one, 0, old, "key").drop("head"),
            check_names=False,
        )


def overlaps(*values: torch.Tensor, rank: int = 2) -> np.ndarray:
    """(layers, layers), of keys."""
    table = spectrum.subspace_overlap(Moments.of(cache_of(*values)), rank)
    return table[table["kind"] == "key"].pivot(index="layer_a", columns="layer_b", values="overlap")


def within(dims: list[int], seed: int, heads: int = HEADS) -> torch.Tensor:
    """(heads, tokens, dim) in the space of some axes."""
    x = torch.zeros(heads, 30, DIM).double()
    x[:, :, dims] = noise(heads, 30, len(dims), seed=seed)
    return x


def test_the_same_subspace_overlaps_by_1_and_orthogonal_ones_by_0():
    found = overlaps(within([0, 1], 1), within([0, 1], 2), within([2, 3], 3), within([1, 2], 4))
    expected = [[1, 1, 0, 0.5], [1, 1, 0, 0.5], [0, 0, 1, 0.5], [0.5, 0.5, 0.5, 1]]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_overlap_is_the_mean_over_pairs_of_heads():
    values = [noise(n, 30, DIM, seed=n) for n in (2, 3)]
    found, bases = overlaps(*values).to_numpy(), []
    for x in values:
        bases.append([np.linalg.svd(head)[2][:2].T for head in x.numpy()])

    def mean(pairs):
        return np.mean([(np.linalg.svd(a.T @ b)[1] ** 2).mean() for a, b in pairs])

    assert found[0, 1] == found[1, 0] == pytest.approx(mean(itertools.product(*bases)))
    assert found[1, 1] == pytest.approx(mean(itertools.permutations(bases[1], 2)))


def test_overlap_of_random_subspaces_is_chance():
    table = spectrum.subspace_overlap(
        Moments.of(cache_of(*(noise(20, 40, 16, seed=i) for i in range(4)))), 4
    )
    assert (table["chance"] == 4 / 16).all() and (table["rank"] == 4).all()
    np.testing.assert_allclose(table["overlap"], 0.25, atol=0.02)


def test_what_cannot_be_compared_is_empty():
    table = spectrum.subspace_overlap(Moments.of(caches.mixed()), 2)
    keys = table[table["kind"] == "key"].pivot(index="layer_a", columns="layer_b", values="overlap")
    assert keys.notna().to_numpy().tolist() == [
        [True, False, False, True],
        [False, True, False, False],
        [False, False, False, False],  # one head alone
        [True, False, False, False],
    ]


def test_a_spectrum_holds_each_components_share():
    cache = cache_of(noise(2, 500, 100))
    table = spectrum.energy_spectrum(Moments.of(cache))
    for (_, head, kind), rows in table.groupby(["layer", "head", "kind"]):
        shares = np.linalg.svd(cache.layers[0].tensor(kind)[head])[1] ** 2
        shares /= shares.sum()
        places = rows["component"].to_numpy() - 1
        assert len(rows) == spectrum.MOST_COMPONENTS and (places[0], places[-1]) == (0, 99)
        np.testing.assert_allclose(rows["energy_share"], shares[places], rtol=1e-5)
        np.testing.assert_allclose(rows["cumulative"], shares.cumsum()[places], rtol=1e-5)


def test_each_text_keeps_its_ranks_and_their_standard_error_is_told():
    texts = [text(seed, 20 + seed) for seed in range(3)]
    tables = reduce(Spectrum.__add__, map(Spectrum.of, texts)).tables(4)
    alone = [ranks_of(cache) for cache in texts]
    kept = tables["spectrum/texts"]
    for i, table in enumerate(alone):
        same = kept[kept["text"] == i].drop(columns="text").reset_index(drop=True)
        pd.testing.assert_frame_equal(same, table)
    each = np.stack([table["effective_rank"] for table in alone])
    pooled = tables["spectrum/ranks"]
    np.testing.assert_allclose(pooled["text_effective_rank"], each.mean(0))
    error = each.std(0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(pooled["text_effective_rank_se"], error)
    assert "spectrum/texts" not in Spectrum.of(texts[0]).tables(4)


def sentences(*texts: KVCache) -> list[str]:
    tables = reduce(Spectrum.__add__, map(Spectrum.of, texts)).tables(2)
    return said(tables["spectrum/ranks"], tables["spectrum/subspace_overlap"])


def test_findings_say_what_they_rest_on_and_how_many_dimensions_are_needed():
    said_of = "\n".join(sentences(cache_of(within([0], 1), within([0, 1, 2, 3], 2))))
    assert "rest on 1 text, in which a head holds 30 tokens." in said_of
    assert (
        "a head needs, of 8 dimensions, 2.5 for keys and 2.5 for values (mean over heads)."
        in said_of
    )
    assert "Too few" not in said_of and "±" not in said_of
    assert "(from 12% in layer 0 to " in said_of
    assert "±" in "\n".join(sentences(text(0), text(1)))


def test_layers_that_do_not_stand_out_are_not_named():
    line = next(x for x in sentences(cache_of(*[within([0, 1], 1)] * 3)) if "Effective" in x)
    assert "in layer" not in line and "(from 2" in line


def test_fewer_tokens_than_dimensions_are_told():
    line = next(x for x in sentences(text(0, DIM - 1)) if x.startswith("Too few"))
    assert "6 of 6 heads hold fewer than they have dimensions" in line
    assert not any(x.startswith("Too few") for x in sentences(text(0, DIM)))
    assert not any(x.startswith("Too few") for x in sentences(text(0, DIM - 1), text(1, DIM - 1)))


@pytest.mark.parametrize(
    "name", ["llama_gqa", "gemma3", "deepseek_v3", "qwen3_next", "falcon_h1", "gpt2"]
)
def test_every_kind_of_cache_has_spectra(name):
    loaded = families.loaded(name)
    cache = prefill(loaded, families.token_ids(40)).cache
    table = Spectrum.of(cache).tables(4)["spectrum/ranks"]
    for layer in cache.layers:
        for kind, x in (("key", layer.keys), ("value", layer.values)):
            rows = table[(table["layer"] == layer.index) & (table["kind"] == kind)]
            shape = rows["dim"].iloc[0], rows["tokens"].iloc[0], len(rows)
            assert shape == (x.shape[2], x.shape[1], x.shape[0])
    rotated = any(x.rotary is not None and x.rotary.frequencies for x in cache.layers)
    assert ("unrotated_key" in set(table["kind"])) == rotated


def test_a_text_is_summed_as_its_halves():
    layer = caches.layer(0, HEADS, 40, (DIM, DIM))
    first = layer.before(15)
    rest = replace(
        layer, keys=layer.keys[:, 15:], values=layer.values[:, 15:], positions=layer.positions[15:]
    )
    for kind in KINDS:
        whole = HeadMoments.of(layer, kind)
        both = HeadMoments.of(first, kind) + HeadMoments.of(rest, kind)
        torch.testing.assert_close(both.squares, whole.squares)
        assert torch.equal(both.tokens, whole.tokens)


def test_the_command_line_draws_spectra_and_says_what_they_rest_on(flags, tmp_path, capsys):
    assert run(*flags, "--analysis_focus", "spectrum") == 0
    stems = ("energy_spectrum", "ranks", "effective_rank_by_head", "subspace_overlap")
    files = {f"spectrum/{stem}.{ending}" for stem in stems for ending in ("png", "csv")}
    assert files | {"analyze.json", "cache_inventory.csv", "report.html"} == files_below(
        tmp_path / "out"
    )
    assert (
        "Energy spectra rest on 1 text, in which a head holds 60 tokens." in capsys.readouterr()[0]
    )
