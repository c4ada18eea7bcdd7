"""What standing alone costs: `coded` of a whole text, which knows what its last queries look at,
beside chunks of every size, which know neither the rest of the text nor queries.

    python -m benchmarks.constraints --text_file wiki.test.raw [--skip_articles 7] [--num_samples 3]
        [--context_tokens 2048] [--chunk_tokens 64,128,256,512,1024] [--model smollm2-135m]

Prints ratios at two losses, between the measured steps, mean over articles; all calibrated on
other texts. `flat` is 256 tokens a chunk with all tokens weighing alike.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch

import config
from benchmarks.wikitext import articles
from compression.base import Calibration, Compressor
from compression.coded.chunked import CHUNK_TOKENS, CodedChunks
from compression.coded.kept_calibrations import calibration_of
from compression.coded.method import Coded
from compression.evaluate import Judge
from config import UsageError
from data import extraction, models
from data.loaded_model import LoadedModel
from data.scoring import Continuation

STEPS = (3.5e-5, 7e-5, 1.4e-4, 2.8e-4)
LOSSES = (0.003, config.ACCEPTABLE_KL)


def flat(learned: Calibration) -> Calibration:
    """The same with a weight of 1 for every token of a chunk."""
    alike = {"weights_without_queries": torch.zeros(3)}
    return Calibration(learned.tensors | alike, learned.learned_from)


def ways(learned: Calibration, sizes: list[int]) -> dict[str, Callable[..., Compressor]]:
    """How a cache is coded, by name: a method for each step."""
    of_chunks = {
        f"chunks of {size}": partial(CodedChunks, chunk_tokens=size, calibration=learned)
        for size in sizes
    }
    return {
        "coded, whole text, by attention": partial(Coded, calibration=learned),
        **of_chunks,
        f"chunks of {CHUNK_TOKENS}, flat": partial(CodedChunks, calibration=flat(learned)),
    }


def judges(loaded: LoadedModel, given: argparse.Namespace) -> list[Judge]:
    n_tokens = given.context_tokens + given.score_tokens + 1
    found: list[Judge] = []
    for article in articles(given.text_file)[given.skip_articles :]:
        ids = loaded.ids_of(article.text, n_tokens)
        if len(ids) == n_tokens and len(found) < given.num_samples:
            context = ids[: given.context_tokens]
            start = extraction.prefill(loaded, context, probe=True, recent_only=True)
            following = Continuation(loaded, start.past, ids[given.context_tokens :])
            found.append(Judge(start.cache, following))
    if not found:
        raise UsageError(f"--text_file {given.text_file} has no article of {n_tokens} tokens")
    return found


def ratio_at(loss: float, points: list[tuple[float, float]]) -> float:
    """Between (KL, ratio) pairs, on a line in logarithms; NaN beyond them."""
    kl, ratio = np.log(np.array(sorted(points))).T
    inside = kl[0] <= np.log(loss) <= kl[-1]
    return float(np.exp(np.interp(np.log(loss), kl, ratio))) if inside else float("nan")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--text_file", type=Path, required=True)
    p.add_argument("--skip_articles", type=int, default=0)
    p.add_argument("--num_samples", type=int, default=3)
    p.add_argument("--context_tokens", type=int, default=2048)
    p.add_argument("--score_tokens", type=int, default=config.SCORE_TOKENS)
    p.add_argument("--chunk_tokens", default="64,128,256,512,1024")
    p.add_argument("--model", default=config.DEFAULT_MODEL)
    given = p.parse_args()
    try:
        loaded = models.load(given.model)
        learned = calibration_of(loaded)
        texts = judges(loaded, given)
        print(f"{loaded.name}, {len(texts)} articles of {given.context_tokens} tokens")
        for name, of_step in ways(learned, [int(n) for n in given.chunk_tokens.split(",")]).items():
            rows = [[judge.score(of_step(step)) for step in STEPS] for judge in texts]
            cells = []
            for loss in LOSSES:
                each = [
                    ratio_at(loss, [(r["kl_mean_nats"], r["ratio"]) for r in row]) for row in rows
                ]
                cells.append(f"{np.mean(each):6.2f} x at KL {loss:g}")
            print(f"{name:34} {'  '.join(cells)}", flush=True)
    except (UsageError, OSError) as error:
        print(f"benchmarks.constraints: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
