"""The benchmark of time and memory: its caches, its fits, and that children say what they saw."""

import pytest
import torch

from benchmarks import mapped, measured, scaling
from data.cache import KINDS
from tests import caches


def test_a_mapped_cache_is_what_was_written_and_its_beginning_is_a_view(tmp_path):
    shape = mapped.Shape(2, 3, 2500, 8)
    mapped.write_drawn(tmp_path, shape)
    whole, short = mapped.mapped(tmp_path), mapped.mapped(tmp_path, 100, 1)
    assert whole.nbytes == shape.nbytes == mapped.read(tmp_path)
    assert (short.n_layers, short.n_tokens) == (1, 100)
    for kind in KINDS:
        x = whole.layers[0].tensor(kind)
        assert x.shape == shape.sizes and x.dtype == torch.bfloat16
        assert torch.equal(x[:, : mapped.REPEATED], x[:, mapped.REPEATED : 2 * mapped.REPEATED])
        assert torch.equal(short.layers[0].tensor(kind), x[:, :100])
        assert len(x.unique()) > 100


def test_a_repeated_context_is_turned_to_its_new_places(tmp_path):
    cache = caches.watched(caches.alike(torch.float16))
    mapped.write_repeated(tmp_path, cache, 25, noise=0.0)
    long = mapped.mapped(tmp_path)
    for layer, made in zip(cache.layers, long.layers, strict=True):
        for start, end in ((0, 10), (10, 20), (20, 25)):
            part = made.between(slice(start, end))
            assert torch.equal(part.values, layer.values[:, : end - start])
            still = layer.unrotated_keys()[:, : end - start]
            assert torch.allclose(part.unrotated_keys(), still, atol=0.05)


def test_every_analysis_is_measured(tmp_path):
    mapped.write_drawn(tmp_path, mapped.Shape(2, 2, 40, 8))
    for case in measured.ANALYSES:
        said = measured.analysis(case, str(tmp_path), 40)
        assert said["seconds"] > 0 and said["peak"] >= said["beyond"] >= 0


def test_memory_that_is_held_for_a_moment_is_seen():
    said, _ = measured.measured(lambda: torch.ones(1 << 24).add_(1).sum())  # 64 MiB
    assert said["beyond"] > 60 * 2**20


def test_slopes_tell_linear_from_square():
    sizes = [8192 * k for k in (1, 2, 4, 8)]
    assert scaling.slope(sizes, [n / 1000 for n in sizes]) == "1.00, 0%"
    exponent, off = scaling.slope(sizes, [(n / 1000) ** 2 for n in sizes]).split(", ")
    assert exponent == "2.00" and int(off.removesuffix("%")) > 10


@pytest.mark.skipif(not measured.STATUS.exists(), reason="only Linux tells what no file backs")
@pytest.mark.parametrize("case", ["global maxima", "statistics", "stages of generation"])
def test_a_process_holds_a_small_part_of_what_it_walks_over(tmp_path, case):
    shape = mapped.Shape(2, 8, 1 << 15, 64)  # 128 MiB
    mapped.write_drawn(tmp_path, shape)
    said = measured.analysis(case, str(tmp_path), shape.n_tokens)
    assert said["beyond"] < shape.nbytes / 3
