"""Our Tucker-2 solver beside tensorly's, on the same real cache at the same ranks.

    python -m benchmarks.tucker [--sequence_length 2048] [--rank 32] [--repeat 3] [--layers N]

Both decompose keys and values of every layer (or of the first N) along tokens and dimensions, one
after the other in one process; times are medians, the error is that of all layers together.
tensorly runs `partial_tucker(init="svd")` with its own tolerance, each backend and SVD in turn; not
its symeig_svd, which solves a tokens x tokens eigenproblem and took 4800 times as long as ours on
four layers.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

os.environ["TQDM_DISABLE"] = "1"

import tensorly
import torch
from tensorly.decomposition import partial_tucker

import config
from compression.methods.tucker import SWEEPS
from compression.methods.tucker_math import rebuilt, tucker2
from data import corpora, extraction, models

T = TypeVar("T")
SOLVERS = [
    ("numpy", "truncated_svd"),
    ("numpy", "randomized_svd"),
    ("pytorch", "truncated_svd"),
    ("pytorch", "randomized_svd"),
]


def ours(stacks: list[torch.Tensor], rank: int) -> list[tuple[torch.Tensor, ...]]:
    return [tucker2(x, rank, rank, SWEEPS) for x in stacks]


def theirs(stacks: list[torch.Tensor], rank: int, backend: str, svd: str) -> list[Any]:
    tensorly.set_backend(backend)
    tensors = [x.numpy() if backend == "numpy" else x for stack in stacks for x in stack]
    options = {"rank": [rank, rank], "modes": [1, 2], "init": "svd", "svd": svd}
    return [partial_tucker(x, **options)[0] for x in tensors]


def their_tensors(solved: list[Any], n_layers: int) -> list[torch.Tensor]:
    back = [
        torch.as_tensor(tensorly.tenalg.multi_mode_dot(core, factors, modes=[1, 2]))
        for core, factors in solved
    ]
    return [torch.stack(back[:n_layers]), torch.stack(back[n_layers:])]


def error(stacks: list[torch.Tensor], back: list[torch.Tensor]) -> float:
    pairs = zip(stacks, back, strict=True)
    squared = sum((x - y).double().square().sum().item() for x, y in pairs)
    return math.sqrt(squared / sum(x.double().square().sum().item() for x in stacks))


def median_seconds(action: Callable[[], T], repeat: int) -> tuple[float, T]:
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        result = action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--sequence_length", type=int, default=2048)
    p.add_argument("--rank", type=int, default=32)
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--layers", type=int, default=None)
    p.add_argument("--model", default=config.DEFAULT_MODEL)
    flags = p.parse_args()
    loaded = models.load(flags.model)
    ids = extraction.tokenise(loaded, corpora.reference_samples()[0], flags.sequence_length)
    layers = extraction.prefill(loaded, ids).cache.layers[: flags.layers]
    stacks = [torch.stack([layer.tensor(kind) for layer in layers]) for kind in ("key", "value")]
    print(
        f"{loaded.name}, {len(ids)} tokens, {len(layers)} layers, ranks {flags.rank}/{flags.rank}"
    )
    print(f"{'':26} {'seconds':>8} {'error':>9} {'times ours':>11} {'our error/its':>14}")
    ours(stacks, flags.rank)  # warm up
    our_s, parts = median_seconds(lambda: ours(stacks, flags.rank), 2 * flags.repeat + 1)
    our_error = error(stacks, [rebuilt(*each) for each in parts])
    print(f"{'ours':26} {our_s:8.3f} {our_error:9.6f}")
    for backend, svd in SOLVERS:
        action = lambda b=backend, s=svd: theirs(stacks, flags.rank, b, s)  # noqa: E731
        seconds, solved = median_seconds(action, flags.repeat)
        its = error(stacks, their_tensors(solved, len(layers)))
        name = f"tensorly {backend} {svd.removesuffix('_svd')}"
        print(
            f"{name:26} {seconds:8.3f} {its:9.6f} {seconds / our_s:11.1f} {our_error / its:14.5f}"
        )


if __name__ == "__main__":
    main()
